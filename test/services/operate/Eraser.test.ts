/** Erasure on both stacks: removes all data of a user for good, and the user can begin again. */
import { expect } from "bun:test"
import { Chunk, Effect, Layer, Stream } from "effect"
import { Auditor, layer as auditor } from "../../../src/services/operate/Auditor.ts"
import { Eraser, layer as eraser } from "../../../src/services/operate/Eraser.ts"
import { DeadLetters } from "../../../src/services/ports/DeadLetters.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { DeadLetter, InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { PhraseEmbeddings, phraseKey } from "../../../src/services/ports/PhraseEmbeddings.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import { EventVectors } from "../../../src/services/update/EventVectors.ts"
import { layerSuite } from "../../support/effect.ts"
import {
  embeddingOf,
  eventually,
  message,
  product,
  record,
  recording,
  search,
  storeProduct,
  workedOff,
} from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()
const searches = (user: string, count: number) =>
  Array.from({ length: count }, (_, index) => search(user, `phrase ${index % 9}`, at(index)))

const erase = (user: string) => Effect.flatMap(Eraser, ({ erase }) => erase(user))
const rows = (user: string) =>
  Effect.flatMap(InteractionLog, (log) => Effect.map(Stream.runCollect(log.stream({ user })), Chunk.toArray))
const published = Effect.flatMap(InteractionLog, ({ backlog }) =>
  eventually(Effect.map(backlog, ({ unpublished }) => (unpublished === 0 ? true : undefined))),
)
const publishAgain = (...interactions: ReadonlyArray<ReturnType<typeof search>>) =>
  Effect.flatMap(InteractionQueue, ({ publish }) =>
    publish(interactions.map((one) => ({ ...message(one), recordedAt: Date.now() - 60_000 }))),
  )

const suite = (name: string, stack: Parameters<typeof recording>[0]) =>
  layerSuite(name, Layer.mergeAll(eraser, auditor).pipe(Layer.provideMerge(recording(stack))), (it) => {
    it("removes rows, embedding, overflow, phrases and dead letters of one user, and reports the counts", () =>
      Effect.gen(function* () {
        yield* storeProduct("p-1", "a tent")
        const bought = product("gone", "product_purchase", "p-1", at(5_000))
        for (const part of [searches("gone", 400), searches("gone", 700).slice(400), [bought]]) {
          yield* record(...part)
          yield* workedOff
        }
        yield* record(...searches("stays", 3))
        yield* workedOff
        const users = yield* UserEmbeddings
        expect((yield* users.load(["gone"])).get("gone")?.archived).toBeGreaterThan(0)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const queue = yield* InteractionQueue
            yield* queue.publish(["gone", "stays"].map((user) => message(search(user, "died", at(1)))))
            const consumer = yield* queue.consume(2)
            for (let left = 2; left > 0; ) {
              const taken = yield* consumer.take(left)
              left -= taken.length
              yield* consumer.settle(
                taken.map((delivery) => [delivery, DeadLetter({ error: "test", message: "" })]),
              )
            }
          }),
        )
        const deadLetters = yield* DeadLetters
        yield* eventually(Effect.map(deadLetters.count, (count) => (count === 2 ? true : undefined)))

        const before = Date.now()
        const { erased_at, ...report } = yield* erase("gone")
        expect(report).toEqual({
          user_id: "gone",
          interactions: 701,
          embedding: true,
          phrases: 9,
          dead_letters: 1,
        })
        expect(Date.parse(erased_at)).toBeGreaterThanOrEqual(before)
        expect(Date.parse(erased_at)).toBeLessThan(Date.now())

        expect(yield* rows("gone")).toEqual([])
        expect(yield* embeddingOf("gone")).toBeUndefined()
        expect([...(yield* Stream.runCollect(users.overflow(["gone"])))].flat()).toEqual([])
        const kept = yield* PhraseEmbeddings
        const { space } = yield* EventVectors
        expect((yield* kept.load([phraseKey(space, "phrase 1")])).size).toBe(0)
        const left = yield* Stream.runCollect(deadLetters.list)
        expect([...left].map(({ messageId }) => messageId)).toEqual([
          search("stays", "died", at(1)).message_id,
        ])
        expect(yield* rows("stays")).toHaveLength(3)
        expect((yield* embeddingOf("stays"))?.event_count).toBe(3)
        yield* deadLetters.remove(() => true)
      }))

    it("can be repeated, and works for an unknown user", () =>
      Effect.gen(function* () {
        for (const user of ["gone", "never-seen"])
          expect(yield* erase(user)).toMatchObject({
            user_id: user,
            interactions: 0,
            embedding: false,
            phrases: 0,
            dead_letters: 0,
          })
      }))

    it("queued and replayed messages do not bring the user back", () =>
      Effect.gen(function* () {
        yield* record(...searches("queued", 50))
        yield* published
        expect((yield* erase("queued")).interactions).toBe(50)
        yield* publishAgain(...searches("queued", 60))
        yield* workedOff
        expect(yield* embeddingOf("queued")).toBeUndefined()
        expect(yield* (yield* Auditor).audit({ user: "queued" })).toMatchObject({ missing: 0, extra: 0 })
      }))

    it("interactions after the erasure count, also one that was recorded before and is posted again", () =>
      Effect.gen(function* () {
        const same = searches("back", 4)
        yield* record(...same)
        yield* workedOff
        yield* erase("back")
        const appended = yield* record(same[0]!, search("back", "something new", at(9)))
        expect(appended.map(({ _tag }) => _tag)).toEqual(["Recorded", "Recorded"])
        yield* publishAgain(...same)
        yield* workedOff
        expect((yield* embeddingOf("back"))?.event_count).toBe(2)
        expect(yield* (yield* Auditor).audit({ user: "back" })).toMatchObject({ missing: 0, extra: 0 })
      }))

    it("removes a row recorded by a clock that is ahead", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const ahead = search("skewed", "tent", at(1))
        const recordedAt = Date.now() + 700
        const [appended] = yield* log.append([
          { interaction: ahead, idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt },
        ])
        if (appended?._tag !== "Recorded") throw new Error("not recorded")
        const queue = yield* InteractionQueue
        yield* queue.publish([{ ...message(ahead), recordedAt }])
        yield* log.markPublished([appended], Date.now())
        const report = yield* erase("skewed")
        expect(report.interactions).toBe(1)
        expect(Date.parse(report.erased_at)).toBe(recordedAt)
        // An interaction right after the response counts.
        yield* record(search("skewed", "boat", at(2)))
        yield* workedOff
        expect((yield* embeddingOf("skewed"))?.event_count).toBe(1)
        expect((yield* rows("skewed")).map(({ interaction }) => interaction.search_phrase)).toEqual(["boat"])
      }))

    it("interactions recorded after the tombstone are kept while the erasure is still running", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const many = searches("busy", 300)
        yield* record(...many.slice(0, 100))
        const [report] = yield* Effect.all(
          [
            erase("busy"),
            Effect.gen(function* () {
              yield* Effect.forEach(many.slice(100, 200), (one) => record(one))
              yield* eventually(
                Effect.map(users.load(["busy"]), (found) =>
                  (found.get("busy")?.erased_at ?? -1) > 0 ? true : undefined,
                ),
              )
              yield* Effect.forEach(many.slice(200), (one) => record(one))
            }),
          ],
          { concurrency: 2 },
        )
        yield* workedOff
        const left = yield* rows("busy")
        expect(left.length + report.interactions).toBe(300)
        expect(left.every(({ recordedAt }) => recordedAt > Date.parse(report.erased_at))).toBe(true)
        expect((yield* embeddingOf("busy"))?.event_count).toBe(left.length)
        expect(yield* (yield* Auditor).audit({ user: "busy" })).toMatchObject({ missing: 0, extra: 0 })
      }))

    it("an erasure that failed after any of its steps is finished by repeating it", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const log = yield* InteractionLog
        for (const steps of [1, 2]) {
          const user = `cut-${steps}`
          yield* record(...searches(user, 5))
          yield* workedOff
          const now = Date.now()
          yield* users.erase(user, now)
          if (steps > 1) yield* log.erase(user, now)
          expect(yield* (yield* Auditor).audit({ user })).toMatchObject({ missing: 0, extra: 0 })
          yield* publishAgain(...searches(user, 5))
          yield* workedOff
          expect(yield* embeddingOf(user)).toBeUndefined()
          expect((yield* erase(user)).interactions).toBe(steps === 1 ? 5 : 0)
          expect(yield* rows(user)).toEqual([])
        }
      }))
  })

suite("erasure on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "erasure on real servers", () =>
  suite("everywhere", external()),
)
