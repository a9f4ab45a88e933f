/** Tables and help on narrow terminals. */
import { afterEach, expect, test } from "bun:test"
import { CliConfig } from "@effect/cli"
import { BunContext } from "@effect/platform-bun"
import { Effect } from "effect"
import { program } from "../../../../src/programs/cli/Program.ts"
import { examples } from "../../../../src/programs/cli/support/Examples.ts"
import * as Help from "../../../../src/programs/cli/support/Help.ts"
import { table } from "../../../../src/programs/cli/support/Output.ts"

const { COLUMNS } = process.env
afterEach(() => {
  if (COLUMNS === undefined) delete process.env.COLUMNS
  else process.env.COLUMNS = COLUMNS
})
const headings = ["VARIABLE", "MEANING"]
const rows = [["API_PORT", "Port of the HTTP API, which listens on loopback unless API_HOST is set"]]

test("the last column of a table is wrapped", () => {
  process.env.COLUMNS = "40"
  expect(table(headings, rows)).toBe(`VARIABLE  MEANING
API_PORT  Port of the HTTP API, which
          listens on loopback unless
          API_HOST is set`)
})

test("each cell has a line of its own where columns have no room", () => {
  process.env.COLUMNS = "30"
  expect(table(headings, [...rows, ["X", ""]])).toBe(`VARIABLE: API_PORT
MEANING: Port of the HTTP API,
which listens on loopback
unless API_HOST is set

VARIABLE: X`)
})

test("without a terminal a row is one line", () => {
  delete process.env.COLUMNS
  expect(table(headings, rows).split("\n")).toHaveLength(2)
})

test("help fits into 40 columns, except command lines, which people copy", async () => {
  process.env.COLUMNS = "40"
  for (const name of Object.keys(examples)) {
    const help = await Effect.runPromise(
      Help.render(program.descriptor, name.split(" "), CliConfig.make({ showBuiltIns: false })).pipe(
        Effect.provide(BunContext.layer),
      ),
    )
    const long = Bun.stripANSI(help)
      .split("\n")
      .filter((line) => line.length > 40 && /\S \S/.test(line) && !line.includes("user-embeddings"))
    expect(long).toEqual([])
  }
})
