/** All commands. Each has examples in support/Examples.ts. */
import { Command } from "@effect/cli"
import manifest from "../../../package.json" with { type: "json" }
import { audit } from "./Audit.ts"
import { config } from "./Config.ts"
import { evaluate } from "./Evaluate.ts"
import { exports } from "./Export.ts"
import { failed } from "./Failed.ts"
import { generate } from "./Generate.ts"
import { imports } from "./Import.ts"
import { products } from "./Products.ts"
import { doctor, setup } from "./Provision.ts"
import { prune } from "./Prune.ts"
import { rebuild } from "./Rebuild.ts"
import { replay } from "./Replay.ts"
import { api, relay, up, worker } from "./Serve.ts"
import { sink } from "./Sink.ts"
import { stats } from "./Stats.ts"
import { user } from "./User.ts"

export const program = Command.make("user-embeddings").pipe(
  Command.withDescription(manifest.description),
  Command.withSubcommands([
    up,
    api,
    worker,
    relay,
    setup,
    doctor,
    config,
    products,
    imports,
    exports,
    evaluate,
    user,
    stats,
    failed,
    replay,
    rebuild,
    audit,
    prune,
    sink,
    generate,
  ]),
)
