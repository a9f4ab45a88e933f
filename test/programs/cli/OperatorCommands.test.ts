/** The operator's commands as processes: exit codes, JSON on stdout, and no change without a confirmation. */
import { expect } from "bun:test"
import { Effect } from "effect"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import * as Settings from "../../../src/services/Settings.ts"
import { bundledProgram } from "../../support/bundledProgram.ts"
import { childProcess } from "../../support/childProcess.ts"
import { layerSuite } from "../../support/effect.ts"
import { embeddingOf, message, record, recording, search, workedOff } from "../../support/pipeline.ts"
import { embedded } from "../../support/stacks.ts"

const main = await bundledProgram("src/programs/main.ts")
const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()

/** Runs the program in the data folder of the suite, without a terminal. */
const run = (...args: ReadonlyArray<string>) =>
  Effect.flatMap(Settings.DATA_DIR, (folder) =>
    Effect.promise(() => childProcess(["bun", main, ...args], { DATA_DIR: folder, LOG_LEVEL: "error" })),
  )

layerSuite("operator's commands", recording(embedded()), (it) => {
  it(
    "bad usage prints an error and exits with 2, for every command",
    () =>
      Effect.gen(function* () {
        const bad = yield* Effect.forEach(
          [
            ["failed", "retry"],
            ["failed", "list", "--since", "yesterday"],
            ["replay"],
            ["rebuild", "--all", "--user", "u"],
            ["user", "erase", "u"],
            ["backup"],
          ],
          (args) =>
            Effect.map(run(...args), ({ code, err, out }) => ({ args, code, hasError: err + out !== "" })),
          { concurrency: 4 },
        )
        expect(bad.filter(({ code, hasError }) => code !== 2 || !hasError)).toEqual([])
      }),
    120_000,
  )

  it(
    "the audit exits with 1 when events are missing, and its JSON has the documented fields",
    () =>
      Effect.gen(function* () {
        const [lost, ...others] = [1, 2, 3].map((second) => search("u", "tent", at(second)))
        yield* record(...others)
        yield* workedOff
        const good = yield* run("audit", "--json")
        expect([good.code, JSON.parse(good.out)]).toEqual([
          0,
          { users: 1, consistent: 1, missing: 0, extra: 0, not_erased: 0, in_flight: 0, dead: 0, skipped: 0 },
        ])
        const log = yield* InteractionLog
        const [appended] = yield* log.append([
          {
            interaction: lost!,
            idempotencyKey: null,
            occurredAtGiven: true,
            trace: null,
            recordedAt: Date.now(),
          },
        ])
        if (appended?._tag !== "Recorded") throw new Error("not recorded")
        yield* log.markPublished([appended], Date.now())
        const bad = yield* run("audit", "--user", "u", "--details", "--json")
        expect(bad.code).toBe(1)
        expect(JSON.parse(bad.out)).toMatchObject({
          missing: 1,
          details: [{ state: "missing", message_id: lost!.message_id }],
        })
        const replayed = yield* run("replay", "--user", "u", "--json")
        expect([replayed.code, JSON.parse(replayed.out)]).toEqual([0, { matched: 3, published: 3 }])
        yield* workedOff
        const [audited, rebuilt, refused] = yield* Effect.all(
          [run("audit"), run("rebuild", "--all", "--json"), run("rebuild", "--user", "nobody")],
          { concurrency: 4 },
        )
        expect(audited.code).toBe(0)
        expect([rebuilt.code, JSON.parse(rebuilt.out)]).toEqual([0, { rebuilt: 1, failed: 0, failures: [] }])
        expect(refused.code).toBe(1)
      }),
    120_000,
  )

  it(
    "dead letters are listed, retried and removed, and an unknown id exits with 1",
    () =>
      Effect.gen(function* () {
        const queue = yield* InteractionQueue
        yield* queue.publish([message(search("v", "tent", at(1)), Buffer.from("{}"))])
        yield* workedOff
        const list = Effect.map(run("failed", "list", "--json"), ({ out }) => JSON.parse(out))
        const [deadLetter] = yield* list
        const [shown, unknown, partlyUnknown, dryRun] = yield* Effect.all(
          [
            run("failed", "show", deadLetter.id),
            run("failed", "show", "nobody"),
            run("failed", "retry", deadLetter.id, "nobody"),
            run("failed", "remove", deadLetter.id, "--dry-run"),
          ],
          { concurrency: 4 },
        )
        expect(shown.out).toContain("schema_violation")
        expect(unknown.code).toBe(1)
        expect(partlyUnknown.code).toBe(1)
        expect(dryRun.code).toBe(0)
        expect(yield* list).toEqual([deadLetter])
        const retried = yield* run("failed", "retry", "--all", "--json")
        expect([retried.code, JSON.parse(retried.out)]).toEqual([0, { picked: 1, retried: 1 }])
        yield* workedOff
        const removed = yield* run(
          "failed",
          "remove",
          "--all",
          "--error",
          "schema_violation",
          "--yes",
          "--json",
        )
        expect([removed.code, JSON.parse(removed.out)]).toEqual([0, { removed: 1 }])
        const nothing = yield* run("failed", "remove", "--all")
        expect([nothing.code, nothing.err]).toEqual([0, ""])
        expect(yield* list).toEqual([])
      }),
    120_000,
  )

  it(
    "an erasure reports what it has removed",
    () =>
      Effect.gen(function* () {
        yield* record(search("w", "a tent for w", at(1)))
        yield* workedOff
        const { code, out } = yield* run("user", "erase", "w", "--yes", "--json")
        expect([code, JSON.parse(out)]).toEqual([
          0,
          {
            user_id: "w",
            other_ids: [],
            erased_at: expect.any(String),
            interactions: 1,
            embedding: true,
            phrases: 1,
            dead_letters: 0,
          },
        ])
        expect(yield* embeddingOf("w")).toBeUndefined()
      }),
    120_000,
  )
})
