/** All commands. Each has examples in support/Examples.ts. */
import { Args, CliConfig, Command, type ValidationError } from "@effect/cli"
import type { BunContext } from "@effect/platform-bun"
import { Console, Effect } from "effect"
import manifest from "../../../package.json" with { type: "json" }
import { audit } from "./Audit.ts"
import { backup } from "./Backup.ts"
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
import * as CommandLine from "./support/CommandLine.ts"
import { type BadUsage, command } from "./support/Usage.ts"
import { trace } from "./Trace.ts"
import { user } from "./User.ts"

const helpOf = (
  words: ReadonlyArray<string>,
): Effect.Effect<
  void,
  BadUsage | ValidationError.ValidationError,
  CliConfig.CliConfig | BunContext.BunContext
> => Effect.flatMap(CliConfig.CliConfig, (config) => CommandLine.showHelp(program.descriptor, words, config))

const help = command(
  "help",
  "Shows the help of a command, as --help does",
  { command: Args.repeated(Args.text({ name: "command" })) },
  ({ command }) => helpOf(command),
)

const version = command("version", "Shows the version", {}, () => Console.log(manifest.version))

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
    backup,
    sink,
    generate,
    trace,
    help,
    version,
  ]),
)
