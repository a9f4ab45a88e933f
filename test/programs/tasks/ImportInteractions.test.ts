/** Imports of histories: exact, even when the import is killed in the middle; unreadable records are listed. */
import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Command, HelpDoc, ValidationError } from "@effect/cli"
import { BunContext } from "@effect/platform-bun"
import { Effect, Layer, Option, Stream } from "effect"
import { imports } from "../../../src/programs/cli/Import.ts"
import { BadUsage } from "../../../src/programs/cli/support/Usage.ts"
import { importInteractions } from "../../../src/programs/tasks/ImportInteractions.ts"
import type { Reading } from "../../../src/services/history/InteractionFile.ts"
import { Auditor, layer as auditor } from "../../../src/services/operate/Auditor.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { bundledProgram } from "../../support/bundledProgram.ts"
import { effectTest, layerSuite } from "../../support/effect.ts"
import { drained, pipeline, storeProduct } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const folder = mkdtempSync(join(tmpdir(), "import-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const write = (name: string, text: string) => {
  const file = join(folder, name)
  writeFileSync(file, text)
  return file
}
const reading: Reading = { format: "csv", delimiter: ",", map: {}, types: {}, set: {}, ignore: [] }
const options = (name: string) => ({
  reading,
  state: Option.some(join(folder, `${name}.json`)),
  restart: false,
  strict: false,
  progress: () => Effect.void,
})
const total = Effect.flatMap(InteractionLog, (log) => Effect.map(log.backlog, ({ total }) => total))
const head = "user_id,event_type,product_id,search_phrase,occurred_at\n"
const row = (user: string, n: number) =>
  `${user},${n % 3 === 0 ? `search,,"tent, ${n % 7} persons"` : "view,p-import,"},${1_700_000_000 + n}\n`
const rows = (user: (n: number) => string, count: number) =>
  Array.from({ length: count }, (_, n) => row(user(n), n)).join("")

const suite = (name: string, stack: Parameters<typeof pipeline>[0]) =>
  layerSuite(
    name,
    auditor.pipe(Layer.provideMerge(pipeline(stack)), Layer.provideMerge(BunContext.layer)),
    (it) => {
      it(
        "imported records are applied exactly, by the audit; a second import records nothing, and a longer file only its new rows",
        () =>
          Effect.gen(function* () {
            yield* storeProduct("p-import", "a tent")
            const text = head + rows((n) => `hist-${n % 20}`, 2_500)
            const file = write("history.csv", text)
            const first = yield* importInteractions(file, options("history"))
            expect(first).toMatchObject({ records: 2_500, recorded: 2_500, rejected: 0, resumed_at_line: 1 })
            const again = yield* importInteractions(file, options("history"))
            expect(again).toMatchObject({ recorded: 2_500, duplicates: 0, resumed_at_line: 2_502 })
            const anew = yield* importInteractions(file, { ...options("history"), restart: true })
            expect(anew).toMatchObject({ recorded: 0, duplicates: 2_500, resumed_at_line: 1 })
            write("history.csv", text + row("hist-new", 2_500))
            const more = yield* importInteractions(file, options("history"))
            expect(more).toMatchObject({ records: 2_501, recorded: 1, resumed_at_line: 2_502 })
            yield* drained
            const { audit } = yield* Auditor
            expect(yield* audit({})).toMatchObject({
              users: 21,
              consistent: 21,
              missing: 0,
              extra: 0,
              in_flight: 0,
            })
          }),
        60_000,
      )

      it("bad records are listed with line, reason and text; the others are recorded", () =>
        Effect.gen(function* () {
          const before = yield* total
          const lines = [
            "bad-1,view,p-1,,1700000000",
            "bad-1,cart,p-1,,1700000000",
            "bad-1,view",
            'bad-2,search,,"a',
            'b",1700000001',
            ",view,p-1,,1700000000",
          ]
          const file = write("bad.csv", head + lines.join("\n"))
          const report = yield* importInteractions(file, options("bad"))
          expect(report).toMatchObject({ records: 5, recorded: 1, rejected: 4 })
          expect((yield* total) - before).toBe(1)
          const rejected = readFileSync(report.rejected_file!, "utf8").trim().split("\n")
          expect(rejected.map((line) => JSON.parse(line))).toEqual([
            { line: 3, reason: expect.stringContaining("event_type: must be one of"), text: lines[1] },
            { line: 4, reason: "has 2 cells, the header 5", text: lines[2] },
            {
              line: 5,
              reason: expect.stringContaining("search_phrase: must not contain control"),
              text: `${lines[3]}\n${lines[4]}`,
            },
            { line: 7, reason: "user_id: is missing", text: lines[5] },
          ])
          const stopped = yield* Effect.flip(importInteractions(file, { ...options("strict"), strict: true }))
          expect(stopped.message).toStartWith("line 3: event_type")
        }))

      it("a record cut at the end of a growing file is recorded once it is whole, wherever it was cut", () =>
        Effect.gen(function* () {
          const log = yield* InteractionLog
          // Cut in its last column, a CSV record still looks whole, with another product.
          const columns = ["user_id", "event_type", "occurred_at", "product_id"] as const
          const record = (user: string, n: number) => [user, "view", `${1_700_000_000 + n}`, `p-${n}`]
          const forms = {
            csv: (cells: ReadonlyArray<string>) => cells.join(","),
            jsonl: (cells: ReadonlyArray<string>) =>
              JSON.stringify(Object.fromEntries(cells.map((cell, n) => [columns[n], cell]))),
          }
          for (const format of ["csv", "jsonl"] as const) {
            const toLine = forms[format]
            const length = toLine(record("cut-00", 100)).length
            for (let kept = 1; kept <= length; kept += format === "csv" ? 3 : 16) {
              const user = `cut-${format}-${kept}`
              const lines = [100, 101, 102].map((n) => toLine(record(user, n)))
              const text = `${format === "csv" ? `${columns.join(",")}\n` : ""}${lines.join("\n")}\n`
              const last = lines[2]!.length + 1
              const set = { ...options(user), reading: { ...reading, format } }
              const file = write(`${user}.${format}`, text.slice(0, text.length - last + kept))
              yield* importInteractions(file, set)
              write(`${user}.${format}`, text)
              const { recorded, rejected } = yield* importInteractions(file, set)
              expect([recorded, rejected]).toEqual([format === "jsonl" && kept >= last - 1 ? 2 : 3, 0])
              const logged = yield* Stream.runCollect(log.stream({ user }))
              expect(
                [...logged].map(({ interaction }) => [interaction.product_id, interaction.occurred_at]),
              ).toEqual(
                [100, 101, 102].map((n) => [`p-${n}`, new Date((1_700_000_000 + n) * 1_000).toISOString()]),
              )
            }
          }
        }))

      it("a CSV file without a last line end is recorded with `complete`; JSON shows that it is whole", () =>
        Effect.gen(function* () {
          const file = write("open.csv", head + row("open", 1) + row("open", 2).trimEnd())
          const cut = yield* importInteractions(file, options("open"))
          expect(cut).toMatchObject({ records: 2, recorded: 1, rejected: 1 })
          expect(readFileSync(cut.rejected_file!, "utf8")).toContain("has no line end, so it may be cut")
          const whole = yield* importInteractions(file, { ...options("open"), complete: true })
          expect(whole).toMatchObject({ recorded: 2, rejected: 0, resumed_at_line: 3 })
          const json = write(
            "open.jsonl",
            JSON.stringify({
              user_id: "open",
              event_type: "view",
              product_id: 1,
              occurred_at: 1_700_000_003,
            }),
          )
          const set = { ...options("open-json"), reading: { ...reading, format: "jsonl" } as const }
          expect(yield* importInteractions(json, set)).toMatchObject({ recorded: 1, rejected: 0 })
          expect(yield* importInteractions(json, set)).toMatchObject({ records: 1, duplicates: 1 })
        }))

      it("text in another encoding is rejected by its line, or stored as it is when the encoding is named", () =>
        Effect.gen(function* () {
          const log = yield* InteractionLog
          const user = "umlaut"
          const bytes = Buffer.from(
            `user_id,event_type,search_phrase,occurred_at\n${user},search,Kaffeem\xfchle,1700000000\n${user},search,tea,1700000001\n`,
            "latin1",
          )
          const file = join(folder, "umlaut.csv")
          writeFileSync(file, bytes)
          const phrases = Effect.map(Stream.runCollect(log.stream({ user })), (rows) =>
            [...rows].map(({ interaction }) => interaction.search_phrase),
          )
          const report = yield* importInteractions(file, options("umlaut"))
          expect(report).toMatchObject({ recorded: 1, rejected: 1 })
          expect(JSON.parse(readFileSync(report.rejected_file!, "utf8"))).toMatchObject({
            line: 2,
            reason: "is not UTF-8 (--encoding names another one)",
          })
          expect(yield* phrases).toEqual(["tea"])
          yield* importInteractions(file, {
            ...options("umlaut"),
            reading: { ...reading, encoding: "latin1" },
          })
          expect((yield* phrases).toSorted()).toEqual(["Kaffeemühle", "tea"])
        }))

      it("a new file with an old name is imported from the beginning; an unknown column is refused", () =>
        Effect.gen(function* () {
          const file = write("other.csv", head + rows(() => "other-a", 10))
          yield* importInteractions(file, options("other"))
          write("other.csv", head + rows(() => "other-b", 30))
          const report = yield* importInteractions(file, options("other"))
          expect(report).toMatchObject({ recorded: 30, resumed_at_line: 1 })
          const refused = yield* Effect.flip(
            importInteractions(file, {
              ...options("x"),
              reading: { ...reading, map: { user_id: "customer" } },
            }),
          )
          expect(refused.message).toContain('has no column "customer" for user_id; its columns are user_id,')
        }))
    },
  )

suite("imports on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "imports on real servers", () => suite("MySQL", external()))

const main = await bundledProgram("src/programs/main.ts")

describe("the command", () => {
  const data = join(folder, "data")
  const run = (...args: ReadonlyArray<string>) =>
    Bun.spawn([process.execPath, main, ...args], {
      env: { PATH: process.env.PATH ?? "", DATA_DIR: data },
      stdout: "pipe",
      stderr: "pipe",
    })
  const output = async (...args: ReadonlyArray<string>) => {
    const child = run(...args)
    const [text, errors, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ])
    return { code, errors, text }
  }

  test("killed in the middle, it resumes where it stopped, and the log has each record once", async () => {
    const count = 12_000
    const file = write("killed.csv", head + rows((n) => `k-${n % 50}`, count))
    const state = join(folder, "killed.json")
    await output("setup")
    const child = run("import", "interactions", file, "--state", state)
    const reached = () => {
      try {
        return Number(JSON.parse(readFileSync(state, "utf8")).recorded)
      } catch {
        return 0
      }
    }
    while (reached() < 3_000 && child.exitCode === null) await Bun.sleep(1)
    child.kill("SIGKILL")
    await child.exited
    const before = reached()
    expect(before).toBeGreaterThan(0)
    expect(before).toBeLessThan(count)
    const { code, text } = await output("import", "interactions", file, "--state", state, "--json")
    const report = JSON.parse(text)
    expect([code, report.records, report.resumed_at_line]).toEqual([0, count, before + 2])
    // At most the records of the commit after the last state.
    expect(report.duplicates).toBeLessThanOrEqual(1_000)
    const logged = await Effect.runPromise(Effect.provide(total, embedded({ DATA_DIR: data })))
    expect(logged).toBe(count)
  }, 60_000)

  test("types may be named by the words of routes; the column, the zone and the form of times by options", async () => {
    const file = write("kauf.csv", "kunde;was;artikel;wann\r\nkauf-1;Kauf;p-1;31.01.2026 13:00\r\n")
    const { code, text } = await output(
      ...["import", "interactions", file, "--json", "--types", "Kauf=purchase", "--delimiter", ";"],
      ...["--map", "user_id=kunde,event_type=was,product_id=artikel,occurred_at=wann"],
      ...["--timezone", "Europe/Berlin", "--date-format", "dd.MM.yyyy HH:mm"],
    )
    expect([code, JSON.parse(text).recorded]).toEqual([0, 1])
    const stored = Effect.flatMap(InteractionLog, (log) => Stream.runCollect(log.stream({ user: "kauf-1" })))
    const [logged] = await Effect.runPromise(Effect.provide(stored, embedded({ DATA_DIR: data })))
    expect(logged?.interaction).toMatchObject({
      event_type: "product_purchase",
      occurred_at: "2026-01-31T12:00:00.000Z",
    })
  }, 20_000)
})

describe("options are refused with the reason, before a server is asked", () => {
  const parse = Command.run(imports, { name: "user-embeddings", version: "" })
  for (const [args, reason] of [
    [["--map", "who=x"], "the fields are user_id"],
    [["--types", "Kauf=bogus"], "--types Kauf=bogus: must be one of search, view, product_view,"],
    [["--set", "event_type=bogus"], "--set event_type=bogus: must be one of"],
    [["--types", "a=view,a=click"], "--types: a is given twice, as view and as click"],
    [["--encoding", "utf-16"], "--encoding utf-16: can't be read; iconv"],
    [["--encoding", "klingon"], "--encoding klingon: must be an encoding"],
    [["--timezone", "Europe/Belin"], "--timezone Europe/Belin: must be a time zone"],
    [["--date-format", "dd.MM"], "--date-format dd.MM: has no year"],
    [["--delimiter", "||"], "--delimiter ||: must be one ASCII character, or tab"],
  ] as const)
    effectTest(args.join(" "), () =>
      Effect.gen(function* () {
        const refused: unknown = yield* Effect.flip(
          parse(["bun", "main", "interactions", import.meta.path, ...args]).pipe(
            Effect.provide(BunContext.layer),
          ),
        )
        const text = ValidationError.isValidationError(refused)
          ? HelpDoc.toAnsiText(refused.error)
          : refused instanceof BadUsage
            ? refused.message
            : ""
        expect(text).toContain(reason)
      }),
    )
})
