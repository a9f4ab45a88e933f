/** Output of commands: JSON for programs, tables for people, colours on terminals. */
import { Options } from "@effect/cli"
import { Console, Context, Effect, Layer, Option } from "effect"
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

/** Whether the command line has `--json`. */
export class AsJson extends Context.Reference<AsJson>()("user-embeddings/AsJson", {
  defaultValue: () => false,
}) {}

export const json = Options.boolean("json").pipe(Options.withDescription("Print JSON on stdout"))

/** Prints the value as JSON, or as the text that `human` makes of it. */
export const print = <A>(json: boolean, value: A, human: (value: A) => string): Effect.Effect<void> =>
  Console.log(json ? JSON.stringify(value, null, 2) : human(value))

/** Columns of the terminal, or those that COLUMNS gives. Elsewhere lines may have any length. */
export const columns = (): number =>
  Number(process.env.COLUMNS) ||
  (process.stdout.isTTY ? process.stdout.columns : 0) ||
  Number.POSITIVE_INFINITY

/** Breaks between words; a longer word stays whole. */
export const wrap = (text: string, width: number): ReadonlyArray<string> =>
  Number.isFinite(width) ? Bun.wrapAnsi(text, width).split("\n") : [text]

const leastLastColumn = 24

/** Each cell in a line of its own, after its heading, for terminals that are too narrow for columns. */
const inLines = (headings: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>) =>
  rows
    .map((row) =>
      headings
        .flatMap((heading, column) => {
          const cell = row[column] ?? ""
          return cell === "" ? [] : wrap(heading === "" ? cell : `${heading}: ${cell}`, columns())
        })
        .join("\n"),
    )
    .join("\n\n")

/**
 * Rows in aligned columns under their headings. Widths ignore colour codes and count wide characters as two. The last
 * column is wrapped on a terminal that is too narrow for it.
 */
export const table = (headings: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>) => {
  const all = [headings, ...rows]
  const widths = headings.map((_, column) =>
    Math.max(...all.map((row) => Bun.stringWidth(row[column] ?? ""))),
  )
  const before = widths.slice(0, -1).reduce((sum, width) => sum + width + 2, 0)
  const room = columns() - before
  const last = widths.at(-1) ?? 0
  if (room < Math.min(last, leastLastColumn)) return inLines(headings, rows)
  return all
    .map((row) => {
      const cells = row
        .slice(0, -1)
        .map((cell, column) => cell + " ".repeat(Math.max(0, (widths[column] ?? 0) - Bun.stringWidth(cell))))
      return [...cells, wrap(row.at(-1) ?? "", room).join(`\n${" ".repeat(before)}`)].join("  ").trimEnd()
    })
    .join("\n")
}
