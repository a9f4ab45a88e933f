#!/usr/bin/env bun
/** The program `user-embeddings`: parses the command line and runs one command. */
import { readFileSync } from "node:fs"
import { constants } from "node:os"
import { CliConfig, Command } from "@effect/cli"
import type { Runtime } from "@effect/platform"
import { BunContext, BunRuntime } from "@effect/platform-bun"
import { Cause, Console, Effect, Exit, Layer, Option } from "effect"
import manifest from "../../package.json" with { type: "json" }
import { OutputClosed } from "../layers/files/StandardOutput.ts"
import * as Logging from "../layers/telemetry/Logging.ts"
import * as OpenTelemetry from "../layers/telemetry/OpenTelemetry.ts"
import { program } from "./cli/Program.ts"
import * as CommandLine from "./cli/support/CommandLine.ts"
import { errorJson, renderError } from "./cli/support/ErrorReport.ts"
import * as Help from "./cli/support/Help.ts"
import * as Output from "./cli/support/Output.ts"
import { BadUsage } from "./cli/support/Usage.ts"

const words = process.argv.slice(2)
const command = Help.find(words)
const end = words.indexOf("--")
const isGiven = (...names: ReadonlyArray<string>) =>
  words.slice(0, end < 0 ? words.length : end).some((word) => names.includes(word))
const asJson = isGiven("--json")

/** Prints an error with its next step; a defect with its stack trace. The console of a failed layer is not there yet. */
const report = (cause: Cause.Cause<unknown>) => {
  const error = Cause.failureOption(cause)
  if (Cause.isInterruptedOnly(cause) || (Option.isSome(error) && error.value instanceof OutputClosed))
    return Effect.void
  const text = Option.match(error, {
    onNone: () =>
      asJson ? errorJson({ type: "Defect", message: Cause.pretty(cause) }) : Cause.pretty(cause),
    onSome: (error) => renderError(error, command, asJson),
  })
  return Effect.sync(() => void process.stderr.write(`${text}\n`))
}

/** Commands that serve until a signal ends them. */
const isServing =
  ["up", "api", "worker", "relay"].includes(command[0] ?? "") ||
  (command[0] === "sink" && !words.includes("--check"))
let stoppedBy: "SIGINT" | "SIGTERM" | undefined
const codeOf = (signal: "SIGINT" | "SIGTERM") => 128 + constants.signals[signal]

/**
 * 0: done, or a serving command was stopped. 1: failed. 2: bad usage. 130, 143: a signal stopped a command in its work.
 * 141: the reader of its output is gone.
 */
const teardown: Runtime.Teardown = (exit, onExit) => {
  if (Exit.isSuccess(exit)) return onExit(0)
  if (Cause.isInterruptedOnly(exit.cause))
    return onExit(isServing || stoppedBy === undefined ? 0 : codeOf(stoppedBy))
  const error = Option.getOrUndefined(Cause.failureOption(exit.cause))
  onExit(error instanceof BadUsage ? 2 : error instanceof OutputClosed ? 128 + constants.signals.SIGPIPE : 1)
}

// The first signal stops in order. The second exits at once; the broker delivers unacknowledged messages again.
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    if (stoppedBy !== undefined) process.exit(codeOf(signal))
    stoppedBy = signal
  })

/** `nohup` lets a program ignore SIGHUP, which a handler would undo. Bit 0 of SigIgn is SIGHUP. */
const ignoresHangup = (): boolean => {
  try {
    const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]
    return (BigInt(`0x${mask ?? 0}`) & 1n) === 1n
  } catch {
    return false
  }
}
// A closed terminal or a service manager's reload stops in order, too.
if (!ignoresHangup()) process.on("SIGHUP", () => process.kill(process.pid, "SIGTERM"))

const parsing = CliConfig.make({ showBuiltIns: false })
const run = Command.run(program, { name: Help.program, version: manifest.version })
const shells = ["bash", "zsh", "fish"]

const answer = Effect.gen(function* () {
  const [first = "", shell = ""] = words
  if (isGiven("--help", "-h")) return yield* Help.show(program.descriptor, command, parsing)
  if (first === "--version" || first === "-v") return yield* Console.log(manifest.version)
  if (first === "--completions" && words.length === 2 && shells.includes(shell))
    return yield* shell === "bash"
      ? Effect.flatMap(Help.bashCompletions(program.descriptor), Console.log)
      : run(process.argv)
  const line = yield* CommandLine.read(program.descriptor, words, parsing)
  // A group without one of its commands, or the bare program.
  if (Help.childrenOf(line).length > 0) return yield* Help.show(program.descriptor, line, parsing)
  yield* run(["", "", ...line])
})

answer.pipe(
  Effect.provideService(Output.AsJson, asJson),
  Effect.provide(
    Layer.mergeAll(
      OpenTelemetry.layerConfig(process.argv[2]),
      CliConfig.layer(parsing),
      BunContext.layer,
      Output.layerConfig,
    ).pipe(Layer.provideMerge(Logging.layerConfig(process.stderr.isTTY))),
  ),
  Effect.tapErrorCause(report),
  BunRuntime.runMain({ disableErrorReporting: true, disablePrettyLogger: true, teardown }),
)
