/** Command lines with a mistake: the message names the word that is wrong, and the name it comes near to. */
import { describe, expect, test } from "bun:test"
import { CliConfig } from "@effect/cli"
import { BunContext } from "@effect/platform-bun"
import { Effect } from "effect"
import { program } from "../../../../src/programs/cli/Program.ts"
import * as CommandLine from "../../../../src/programs/cli/support/CommandLine.ts"

const config = CliConfig.make({ showBuiltIns: false })
const read = (words: ReadonlyArray<string>) =>
  CommandLine.read(program.descriptor, words, config).pipe(
    Effect.catchTag("BadUsage", ({ message }) => Effect.succeed(message)),
    Effect.provide(BunContext.layer),
    Effect.runPromise,
  )

const mistakes: ReadonlyArray<readonly [line: string, message: string]> = [
  ["stat", "there is no command stat; did you mean stats?"],
  ["failed lsit", "there is no command failed lsit; did you mean failed list?"],
  ["show 1", "there is no command show; did you mean user show or failed show?"],
  ["nothing", "there is no command nothing"],
  ["--verson", "there is no option --verson; did you mean --version?"],
  ["stats --wach", "there is no option --wach; did you mean --watch?"],
  ["failed retry --al", "there is no option --al; did you mean --all?"],
  ["import interactions --foo x", "there is no option --foo"],
  ["stats now", "there is no argument for now"],
  ["audit --user 1 --user 2", "--user is given twice"],
  ["audit --user", "--user: give a value"],
  ["audit --user --json", "--user: give a value"],
  [
    "audit --user=",
    '--user "": must be 1 to 64 characters of A-Z a-z 0-9 . _ : -, and neither . nor .. (an integer is accepted too)',
  ],
  ["export embeddings --format csv --json", "--format csv: must be one of jsonl, npy, parquet"],
  ["generate --rate 5 --users abc", "--users abc: must be a whole number"],
  ["generate --rate x", "--rate x: must be a number"],
  ["generate --products /no/such", "--products /no/such: must exist, but there is no such file"],
  ["products import /", "file /: must be a regular file"],
  ["user show", "missing argument <user>"],
  [
    "sink --table A-B",
    "--table A-B: must be a name of small letters, digits and _, of at most 51 characters, with or without a schema",
  ],
  ["trace xyz", "id xyz: must be a message id (64 hex digits) or a trace id (32 hex digits)"],
]

describe("a mistake in the command line is named", () => {
  for (const [line, message] of mistakes)
    test(line, async () => {
      expect(await read(line.split(" "))).toBe(message)
    })
})

test("arguments come last, so that no flag takes one of them for its value", async () => {
  expect(await read(["user", "show", "--json", "1"])).toEqual(["user", "show", "--json", "--", "1"])
  expect(await read(["user", "show", "1", "--json"])).toEqual(["user", "show", "--json", "--", "1"])
  expect(await read(["user", "export", "-o=file", "--", "-x"])).toEqual(
    ["user", "export", "-o", "file", "--"].concat("-x"),
  )
  expect(await read(["generate", "--seed", "-5"])).toEqual(["generate", "--seed", "-5"])
})

test("a group and the bare program are no mistake: their help is shown", async () => {
  expect(await read(["failed"])).toEqual(["failed"])
  expect(await read([])).toEqual([])
})
