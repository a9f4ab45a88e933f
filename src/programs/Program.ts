/** The tree of commands. Each has lines in Examples.ts. */
import { Command } from "@effect/cli"
import manifest from "../../package.json" with { type: "json" }
import { audit } from "./cli/Audit.ts"
import { config } from "./cli/Config.ts"
import { evaluate } from "./cli/Evaluate.ts"
import { exports } from "./cli/Export.ts"
import { failed } from "./cli/Failed.ts"
import { generate } from "./cli/Generate.ts"
import { imports } from "./cli/Import.ts"
import { products } from "./cli/Products.ts"
import { doctor, setup } from "./cli/Provision.ts"
import { rebuild } from "./cli/Rebuild.ts"
import { replay } from "./cli/Replay.ts"
import { api, relay, up, worker } from "./cli/Serve.ts"
import { stats } from "./cli/Stats.ts"
import { user } from "./cli/User.ts"

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
    generate,
  ]),
)
