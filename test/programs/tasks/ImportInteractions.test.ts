/** Imports of histories: exact, even when the import is killed in the middle; unreadable records are listed. */
import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { BunContext } from "@effect/platform-bun"
import { Effect, Layer, Option } from "effect"
import { importInteractions } from "../../../src/programs/tasks/ImportInteractions.ts"
import type { Reading } from "../../../src/services/history/InteractionFile.ts"
import { Auditor, layer as auditor } from "../../../src/services/operate/Auditor.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { layerSuite } from "../../support/effect.ts"
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

describe("the command", () => {
  const main = join(import.meta.dir, "../../../src/programs/main.ts")
  const data = join(folder, "data")
  const run = (...args: ReadonlyArray<string>) =>
    Bun.spawn([process.execPath, main, ...args], {
      env: { PATH: process.env.PATH ?? "", DATA_DIR: data },
      stdout: "pipe",
      stderr: "pipe",
    })
  const output = async (...args: ReadonlyArray<string>) => {
    const child = run(...args)
    const [text, code] = await Promise.all([new Response(child.stdout).text(), child.exited])
    return { code, text }
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

  test("an unknown field exits with 2", async () => {
    const { code } = await output("import", "interactions", main, "--map", "who=x")
    expect(code).toBe(2)
  })
})
