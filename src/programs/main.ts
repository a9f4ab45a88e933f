#!/usr/bin/env bun
/** The program `user-embeddings`: parses the command line and runs one command. */
import { CliConfig, Command, ValidationError } from "@effect/cli"
import type { Runtime } from "@effect/platform"
import { BunContext, BunRuntime } from "@effect/platform-bun"
import { Cause, ConfigError, Console, Effect, Exit, Layer, Option } from "effect"
import manifest from "../../package.json" with { type: "json" }
import * as Logging from "../layers/Logging.ts"
import * as OpenTelemetry from "../layers/OpenTelemetry.ts"
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
import { BadUsage } from "./Usage.ts"

const program = Command.make("user-embeddings").pipe(
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

/** One line that says what is wrong; defects keep their trace. */
const report = (cause: Cause.Cause<unknown>) =>
  Option.match(Cause.failureOption(cause), {
    onNone: () => (Cause.isInterruptedOnly(cause) ? Effect.void : Console.error(Cause.pretty(cause))),
    onSome: (error) =>
      ValidationError.isValidationError(error)
        ? Effect.void
        : Console.error(
            `user-embeddings: ${error instanceof Error || ConfigError.isConfigError(error) ? error.message : String(error)}`,
          ),
  })

/** 0 done or stopped by a signal, 1 failed, 2 bad usage. */
const teardown: Runtime.Teardown = (exit, onExit) =>
  onExit(
    Exit.match(exit, {
      onSuccess: () => 0,
      onFailure: (cause) =>
        Cause.isInterruptedOnly(cause)
          ? 0
          : Option.exists(
                Cause.failureOption(cause),
                (error) => ValidationError.isValidationError(error) || error instanceof BadUsage,
              )
            ? 2
            : 1,
    }),
  )

// The first signal drains and closes in order; the second leaves at once, and what is open is delivered again.
let signals = 0
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    signals += 1
    if (signals > 1) process.exit(130)
  })

Command.run(program, { name: "user-embeddings", version: manifest.version })(process.argv).pipe(
  Effect.tapErrorCause(report),
  Effect.provide(
    Layer.mergeAll(
      OpenTelemetry.layerConfig(process.argv[2]),
      CliConfig.layer({ showBuiltIns: false }),
      BunContext.layer,
    ).pipe(Layer.provideMerge(Logging.layerConfig(process.stderr.isTTY))),
  ),
  BunRuntime.runMain({ disableErrorReporting: true, disablePrettyLogger: true, teardown }),
)
