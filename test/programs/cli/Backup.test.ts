/** `backup` as a process beside a system that records: the copy is of one moment, and a system starts from it. */
import { expect } from "bun:test"
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Effect, Fiber, Layer } from "effect"
import { backup } from "../../../src/layers/sqlite/SqliteBackup.ts"
import * as Auditor from "../../../src/services/operate/Auditor.ts"
import * as Settings from "../../../src/services/Settings.ts"
import { bundledProgram } from "../../support/bundledProgram.ts"
import { childProcess } from "../../support/childProcess.ts"
import { effectTest } from "../../support/effect.ts"
import { drained, pipeline, record, recording as recordingOn, search } from "../../support/pipeline.ts"
import { embedded } from "../../support/stacks.ts"

const main = await bundledProgram("src/programs/main.ts")
const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()

const run = (folder: string, ...args: ReadonlyArray<string>) =>
  childProcess([process.execPath, main, "backup", ...args], { DATA_DIR: folder, LOG_LEVEL: "error" })

effectTest(
  "a copy that was made while events were recorded starts, and every event in it counts once",
  () =>
    Effect.gen(function* () {
      const to = mkdtempSync(join(tmpdir(), "backup-"))
      yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(to, { recursive: true })))
      const copy = join(to, "monday")
      let recorded = 0
      const recordOn = Effect.suspend(() => {
        const events = [1, 2, 3].map((n) => search(`u-${n}`, `phrase ${recorded + n}`, at(recorded + n)))
        return Effect.map(record(...events), () => {
          recorded += events.length
        })
      }).pipe(Effect.zipLeft(Effect.sleep("20 millis")), Effect.forever)
      const report = yield* Effect.gen(function* () {
        const folder = yield* Settings.DATA_DIR
        const recording = yield* Effect.fork(recordOn)
        while (recorded < 30) yield* Effect.sleep("1 millis")
        const before = recorded
        const made = yield* Effect.promise(() => run(folder, "--to", copy, "--json"))
        expect([made.err, made.code]).toEqual(["", 0])
        const report: { readonly file: string; readonly interactions: number } = JSON.parse(made.out)
        expect(report.file).toBe(join(copy, "user-embeddings.sqlite"))
        expect(report.interactions).toBeGreaterThanOrEqual(before)
        yield* Fiber.interrupt(recording)
        // Recording went on meanwhile.
        expect(recorded).toBeGreaterThan(before)
        expect([statSync(copy).mode & 0o777, statSync(report.file).mode & 0o777]).toEqual([0o700, 0o600])
        expect(readdirSync(copy)).toEqual(["user-embeddings.sqlite"])
        expect((yield* Effect.flip(backup(folder, copy))).message).toContain("exists already")
        return report
        // Without a worker: the copy would wait for the lease of its claims.
      }).pipe(Effect.provide(recordingOn(embedded())))

      const { consistent, extra, missing, users } = yield* Effect.gen(function* () {
        yield* drained
        return yield* (yield* Auditor.Auditor).audit({})
      }).pipe(Effect.provide(Layer.provideMerge(Auditor.layer, pipeline(embedded({ DATA_DIR: copy })))))
      expect({ consistent, extra, missing, users }).toEqual({ consistent: 3, extra: 0, missing: 0, users: 3 })
      expect(report.interactions).toBeGreaterThan(0)
    }),
  60_000,
)

effectTest("what cannot be copied is said in words, and leaves nothing behind", () =>
  Effect.gen(function* () {
    const folder = mkdtempSync(join(tmpdir(), "backup-"))
    yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(folder, { recursive: true })))
    const refused = yield* Effect.flip(backup(folder, join(folder, "copy")))
    expect(refused.message).toStartWith("there is no database at ")
    expect(readdirSync(folder)).toEqual([])
    writeFileSync(join(folder, "user-embeddings.sqlite"), "this is no database".repeat(100))
    const damaged = yield* Effect.flip(backup(folder, join(folder, "copy")))
    expect(damaged.message).toContain("file is not a database")
    expect(readdirSync(join(folder, "copy"))).toEqual([])
  }),
)
