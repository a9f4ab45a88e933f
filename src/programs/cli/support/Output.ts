/** Output of commands: JSON for programs, tables for people, colours on terminals. */
import { Options } from "@effect/cli"
import { Console, Effect, Layer, Option } from "effect"
import * as Settings from "../../../services/Settings.ts"

const escape = "\u001b["
const paint = (on: number, off: number) => (text: string) => `${escape}${on}m${text}${escape}${off}m`
export const bold = paint(1, 22)
export const green = paint(32, 39)
export const yellow = paint(33, 39)
export const red = paint(31, 39)

const colours = new RegExp(`${RegExp.escape(escape)}[\\d;]*m`, "g")
const plain = (line: unknown) => (typeof line === "string" ? line.replace(colours, "") : line)

/** A console that removes colours unless it writes to a terminal, and always with NO_COLOR. */
export const layerConfig = Layer.unwrapEffect(
  Effect.gen(function* () {
    const unwanted = Option.isSome(yield* Settings.NO_COLOR)
    const inherited = yield* Effect.console
    const onto = (terminal: boolean | undefined, write: Console.Console["log"]): Console.Console["log"] =>
      terminal && !unwanted ? write : (...lines) => write(...lines.map(plain))
    // Bun's own console.error paints everything red.
    const toTerminal = (...lines: ReadonlyArray<unknown>) => void process.stderr.write(`${lines.join(" ")}\n`)
    const terminal = process.stderr.isTTY && !unwanted
    return Console.setConsole({
      ...inherited,
      log: onto(process.stdout.isTTY, inherited.log),
      error: terminal
        ? (...lines) => Effect.sync(() => toTerminal(...lines))
        : onto(process.stderr.isTTY, inherited.error),
      unsafe: terminal
        ? Object.assign(Object.create(inherited.unsafe), { error: toTerminal })
        : inherited.unsafe,
    })
  }),
)

export const json = Options.boolean("json").pipe(Options.withDescription("Print JSON on stdout"))

/** Prints the value as JSON, or as the text that `human` makes of it. */
export const print = <A>(json: boolean, value: A, human: (value: A) => string): Effect.Effect<void> =>
  Console.log(json ? JSON.stringify(value, null, 2) : human(value))

/** Rows in aligned columns under their headings. Widths ignore colour codes and count wide characters as two. */
export const table = (headings: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>) => {
  const all = [headings, ...rows]
  const widths = headings.map((_, column) =>
    Math.max(...all.map((row) => Bun.stringWidth(row[column] ?? ""))),
  )
  return all
    .map((row) =>
      row
        .map((cell, column) => cell + " ".repeat(Math.max(0, (widths[column] ?? 0) - Bun.stringWidth(cell))))
        .join("  ")
        .trimEnd(),
    )
    .join("\n")
}
