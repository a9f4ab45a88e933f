import { describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { CliConfig, CommandDescriptor } from "@effect/cli"
import { BunContext } from "@effect/platform-bun"
import { Effect } from "effect"
import { program } from "../../../../src/programs/cli/Program.ts"
import { examples } from "../../../../src/programs/cli/support/Examples.ts"
import * as Help from "../../../../src/programs/cli/support/Help.ts"
import { bundledProgram } from "../../../support/bundledProgram.ts"
import { childProcess } from "../../../support/childProcess.ts"

const config = CliConfig.make({ showBuiltIns: false })
const root = program.descriptor
const run = <A, E>(effect: Effect.Effect<A, E, BunContext.BunContext>) =>
  Effect.runPromise(Effect.provide(effect, BunContext.layer))
const helpOf = (...path: ReadonlyArray<string>) => run(Help.render(root, path, config))

const main = await bundledProgram("src/programs/main.ts")

describe("--help", () => {
  test("has examples for every command, and for nothing else", async () => {
    const script = await run(CommandDescriptor.getBashCompletions(root, "user-embeddings"))
    const paths = [...script.join("\n").matchAll(/cmd="user__embeddings__(\w+)"/g)].map(([, name = ""]) =>
      name.replaceAll("__", " "),
    )
    const leaves = paths.filter((path) => !paths.some((other) => other.startsWith(`${path} `)))
    expect(leaves.length).toBeGreaterThan(20)
    expect(Object.keys(examples).toSorted()).toEqual(leaves.toSorted())
    for (const lines of Object.values(examples)) expect(lines.length).toBeWithin(1, 4)
  })

  test("has only examples that the parser accepts", async () => {
    const folder = mkdtempSync(join(tmpdir(), "examples-"))
    for (const name of ["history.jsonl", "history.csv", "events.tsv", "catalogue.jsonl", "catalogue.csv"])
      writeFileSync(join(folder, name), "")
    const wordsOf = (line: string) =>
      line
        .replace(/^.*user-embeddings (?=\w+$)/, "")
        .replace(/ > .*$/, "")
        .split(" ")
        .map((word) => word.replaceAll("'", ""))
        .map((word) => (/^(history|events|catalogue)\./.test(word) ? join(folder, word) : word))
    try {
      for (const [name, lines] of Object.entries(examples))
        for (const line of lines) {
          const words = wordsOf(line)
          expect(words.join(" ")).toStartWith(name)
          const directive = await run(CommandDescriptor.parse(root, ["user-embeddings", ...words], config))
          expect(directive).toMatchObject({ _tag: "UserDefined", leftover: [] })
        }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  test("shows the command line and each option with its meaning, and ends with the examples", async () => {
    const help = Bun.stripANSI(await helpOf("import", "interactions"))
    expect(help).toContain("USAGE\n  user-embeddings import interactions [OPTIONS] <file>\n")
    expect(help).toMatch(/ {2}--strict +Stop at the first bad record\n/)
    expect(help).not.toMatch(/user-defined|setting is optional|One of the following/)
    expect(help.split("\n\n").at(-1)).toStartWith(
      "EXAMPLES\n  user-embeddings import interactions history.jsonl\n",
    )
  })

  test("of a group lists the commands of the group", async () => {
    const help = Bun.stripANSI(await helpOf("failed"))
    expect(help).toContain("USAGE\n  user-embeddings failed COMMAND\n")
    for (const child of ["list", "groups", "show", "retry", "remove"])
      expect(help).toMatch(new RegExp(`^  ${child} +[A-Z]`, "m"))
  })

  test("is about the command at the beginning of the command line", () => {
    expect(Help.find(["failed", "retry", "--all", "--help"])).toEqual(["failed", "retry"])
    expect(Help.find(["failed", "--help"])).toEqual(["failed"])
    expect(Help.find(["--help"])).toEqual([])
    expect(Help.find(["user", "show", "show", "-h"])).toEqual(["user", "show"])
  })

  test("has no colours without a terminal", async () => {
    const { code, err, out } = await childProcess([process.execPath, main, "failed", "retry", "--help"])
    expect({ code, err }).toEqual({ code: 0, err: "" })
    expect(out).toBe(Bun.stripANSI(out))
    expect(out).toContain("user-embeddings failed retry")
  }, 60_000)

  test.skipIf(Bun.which("script") === null)(
    "has colours on a terminal, unless NO_COLOR is set",
    async () => {
      const onTerminal = async (command: string, env: Readonly<Record<string, string>>) =>
        (await childProcess(["script", "-qec", `${process.execPath} ${main} ${command}`, "/dev/null"], env))
          .out
      const [painted, plain, failure] = await Promise.all([
        onTerminal("stats --help", {}),
        onTerminal("stats --help", { NO_COLOR: "1" }),
        onTerminal("failed retry", {}),
      ])
      expect(painted).toContain("\u001b[1mUSAGE\u001b[22m")
      expect(plain).toContain("USAGE")
      expect(plain).not.toContain("\u001b[")
      expect(failure).toStartWith("user-embeddings: give the ids of dead letters")
      expect(failure).not.toContain("\u001b[31m")
    },
    60_000,
  )
})

test("bash completes commands, commands of a group, and options", async () => {
  const script = await run(Help.bashCompletions(root))
  const complete = async (...words: ReadonlyArray<string>) => {
    const line = `${script}
COMP_WORDS=(${words.map((word) => `"${word}"`).join(" ")}); COMP_CWORD=${words.length - 1}
_user-embeddings_bash_completions user-embeddings; printf '%s\\n' "\${COMPREPLY[@]}"`
    return (await childProcess(["bash", "-c", line])).out.trim().split("\n")
  }
  const [command, commandsOfGroup, option] = await Promise.all([
    complete("user-embeddings", "im"),
    complete("user-embeddings", "failed", "re"),
    complete("user-embeddings", "failed", "retry", "--dr"),
  ])
  expect(command).toEqual(["import"])
  expect(commandsOfGroup.toSorted()).toEqual(["remove", "retry"])
  expect(option).toEqual(["--dry-run"])
})
