/** What commands print: JSON for programs, tables for people. */
import { Options } from "@effect/cli"
import { Console, type Effect } from "effect"

/** The option `--json` of every command that prints something. */
export const json = Options.boolean("json").pipe(Options.withDescription("Print JSON on stdout"))

/** Prints the value as JSON, or for people as `human` words it. */
export const print = <A>(json: boolean, value: A, human: (value: A) => string): Effect.Effect<void> =>
  Console.log(json ? JSON.stringify(value, null, 2) : human(value))

/** Rows in aligned columns under their headings. */
export const table = (
  headings: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>,
): string => {
  const all = [headings, ...rows]
  const widths = headings.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  return all
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n")
}
