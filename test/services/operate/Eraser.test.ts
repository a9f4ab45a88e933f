/** Erasure on both stacks: removes all data of a user for good, and the user can begin again. */
import { expect } from "bun:test"
import { Chunk, Clock, Context, Duration, Effect, Fiber, Layer, Stream } from "effect"
import fc from "fast-check"
import type { Ports } from "../../../src/layers/Stack.ts"
import * as Relay from "../../../src/programs/Relay.ts"
import * as Worker from "../../../src/programs/Worker.ts"
import { none, prefix, toSet } from "../../../src/services/model/AppliedIds.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import { Auditor, layer as auditor } from "../../../src/services/operate/Auditor.ts"
import { Eraser, layer as eraser } from "../../../src/services/operate/Eraser.ts"
import { sweep } from "../../../src/services/operate/ErasureSweep.ts"
import { Rebuilder, layer as rebuilder } from "../../../src/services/operate/Rebuilder.ts"
import { DeadLetters } from "../../../src/services/ports/DeadLetters.ts"
import { InteractionLog, type LogRow } from "../../../src/services/ports/InteractionLog.ts"
import { DeadLetter, InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { PhraseEmbeddings, phraseKey } from "../../../src/services/ports/PhraseEmbeddings.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import type { InteractionRecorder } from "../../../src/services/record/InteractionRecorder.ts"
import { OutboxRelay, toMessage } from "../../../src/services/record/OutboxRelay.ts"
import { EmbeddingUpdater, layer as updaterLayer } from "../../../src/services/update/EmbeddingUpdater.ts"
import { EventVectors } from "../../../src/services/update/EventVectors.ts"
import { decoded, delivery } from "../../support/delivery.ts"
import { layerSuite } from "../../support/effect.ts"
import {
  drained,
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
          other_ids: [],
          interactions: 701,
          embedding: true,
          phrases: 9,
          dead_letters: 1,
        })
        expect(Date.parse(erased_at)).toBeGreaterThanOrEqual(before)
        expect(Date.parse(erased_at)).toBeLessThanOrEqual(Date.now())

        expect(yield* rows("gone")).toEqual([])
        expect(yield* embeddingOf("gone")).toBeUndefined()
        expect(
          [...(yield* Stream.runCollect(users.overflow([{ user_id: "gone", generation: 0 }])))].flat(),
        ).toEqual([])
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

    it("the order of the log decides, whatever the clocks of the machines say", () =>
      Effect.gen(function* () {
        for (const [user, difference] of [
          ["ahead", 3_600_000],
          ["behind", -3_600_000],
        ] as const) {
          const log = yield* InteractionLog
          const appendAt = (recordedAt: number, ...interactions: ReadonlyArray<ReturnType<typeof search>>) =>
            log.append(
              interactions.map((interaction) => ({
                interaction,
                idempotencyKey: null,
                occurredAtGiven: true,
                trace: null,
                recordedAt,
              })),
            )
          const [before, after] = [searches(user, 5), [search(user, "boat", at(9))]]
          yield* appendAt(Date.now() + difference, ...before)
          const old = yield* rows(user)
          const { interactions } = yield* erase(user)
          expect(interactions).toBe(5)
          // The erasing machine's clock may be ahead of the others, too.
          yield* appendAt(Date.now() - difference, ...after)
          const { publish } = yield* InteractionQueue
          yield* publish([...old, ...(yield* rows(user))].map(toMessage))
          yield* log.markPublished(yield* rows(user), Date.now())
          yield* workedOff
          expect((yield* embeddingOf(user))?.recent.map(({ search_phrase }) => search_phrase)).toEqual([
            "boat",
          ])
          expect(yield* (yield* Auditor).audit({ user })).toMatchObject({
            missing: 0,
            extra: 0,
            not_erased: 0,
          })
        }
      }))

    it("interactions recorded while an erasure is running are erased or count", () =>
      Effect.gen(function* () {
        const many = searches("busy", 300)
        const relayed = yield* Effect.forkScoped(
          Layer.launch(Layer.merge(Relay.layer, Layer.fresh(Worker.layer))),
        )
        yield* record(...many.slice(0, 100))
        const [report] = yield* Effect.all(
          [erase("busy"), Effect.forEach(many.slice(100), (one) => record(one), { concurrency: 20 })],
          { concurrency: 2 },
        )
        yield* drained
        yield* Fiber.interrupt(relayed)
        const left = yield* rows("busy")
        expect(left.length + report.interactions).toBe(300)
        expect((yield* embeddingOf("busy"))?.event_count ?? 0).toBe(left.length)
        expect(yield* (yield* Auditor).audit({ user: "busy" })).toMatchObject({
          missing: 0,
          extra: 0,
          not_erased: 0,
        })
      }))

    it("an event that was applied just before the tombstone, but recorded after the erasure began, still counts", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        yield* record(search("between", "tent", at(1)))
        const context = yield* Effect.context<Ports | OutboxRelay | InteractionRecorder | EventVectors>()
        const recordAndApply = Effect.zipRight(record(search("between", "boat", at(2))), workedOff)
        const slow = Layer.succeed(UserEmbeddings, {
          ...users,
          erase: (...args) =>
            Effect.zipRight(Effect.provide(Effect.orDie(recordAndApply), context), users.erase(...args)),
        })
        const erasing = Effect.provide(erase("between"), eraser.pipe(Layer.provide(slow))).pipe(
          Effect.provide(context),
        )
        expect((yield* erasing).interactions).toBe(1)
        const relay = yield* OutboxRelay
        yield* eventually(Effect.map(relay.drain, (count) => (count > 0 ? true : undefined)))
        yield* workedOff
        expect((yield* embeddingOf("between"))?.recent.map(({ search_phrase }) => search_phrase)).toEqual([
          "boat",
        ])
      }))

    it("a row that becomes visible after the erasure counts once, whichever of its messages arrive", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const { publish } = yield* InteractionQueue
        const users = yield* UserEmbeddings
        yield* record(...searches("late", 3))
        yield* workedOff
        // As if the INSERT of this row had been waiting for a lock while the erasure ran.
        yield* record(search("late", "boat", at(7)))
        yield* published
        const [late] = (yield* rows("late")).filter(({ interaction }) => interaction.occurred_at === at(7))
        const token = (yield* log.beginErasure(["late"])).token
        const erased_to = yield* log.maxId
        yield* users.erase("late", { erased_at: Date.now(), erased_to })
        yield* log.erase("late", late!.id - 1)
        yield* log.finishErasure("late", token, erased_to)

        yield* workedOff
        expect(yield* embeddingOf("late")).toBeUndefined()
        expect(yield* sweep()).toBe(1)
        const [renewed] = yield* rows("late")
        expect(renewed?.id).toBeGreaterThan(erased_to)
        yield* publish([late!, renewed!, late!, renewed!].map(toMessage))
        yield* log.markPublished([late!, renewed!], Date.now())
        yield* workedOff
        expect((yield* embeddingOf("late"))?.event_count).toBe(1)
        expect(yield* (yield* Auditor).audit({ user: "late" })).toMatchObject({
          consistent: 1,
          missing: 0,
          extra: 0,
          not_erased: 0,
        })
      }))

    it("the sweep removes what workers leave behind after an erasure", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const deadLetters = yield* DeadLetters
        const log = yield* InteractionLog
        yield* record(...searches("swept", 2))
        const [row] = yield* rows("swept")
        yield* workedOff
        yield* erase("swept")
        const stale = [{ user_id: "swept", generation: 0, ids: ["a".repeat(32)] }]
        yield* users.saveToLedger("applied", stale)
        yield* users.saveToLedger("skipped", stale)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const queue = yield* InteractionQueue
            yield* queue.publish([toMessage(row!)])
            const consumer = yield* queue.consume(1)
            const taken = yield* consumer.take(1)
            yield* consumer.settle(taken.map((one) => [one, DeadLetter({ error: "test", message: "" })]))
          }),
        )
        yield* eventually(Effect.map(deadLetters.count, (count) => (count === 1 ? true : undefined)))
        // A process whose clock is an hour ahead does not end the watch early: a late row would have no effect.
        const hourAhead = Object.assign(Clock.make(), {
          currentTimeMillis: Effect.sync(() => Date.now() + 3_600_000),
        })
        yield* Effect.withClock(sweep(), hourAhead)
        expect((yield* log.finishedErasures).map(({ user_id }) => user_id)).toContain("swept")
        yield* sweep(Duration.zero)
        expect(yield* log.finishedErasures).toEqual([])
        expect(yield* deadLetters.count).toBe(0)
        for (const kind of ["applied", "skipped"] as const)
          expect((yield* users.findInLedger(kind, stale)).get("swept")?.size ?? 0).toBe(0)
      }))

    it(
      "any interleaving of recording, delivery and the steps of an erasure leaves exactly the rows, applied once",
      () =>
        Effect.gen(function* () {
          const updater = yield* EmbeddingUpdater
          const log = yield* InteractionLog
          const users = yield* UserEmbeddings
          const action = fc.oneof(
            { weight: 3, arbitrary: fc.record({ record: fc.nat({ max: 11 }) }) },
            { weight: 4, arbitrary: fc.record({ deliver: fc.nat({ max: 1_000 }) }) },
            { weight: 2, arbitrary: fc.constant({ step: true } as const) },
          )
          const runs = fc.sample(fc.array(action, { minLength: 10, maxLength: 40 }), {
            numRuns: 12,
            seed: 15,
          })
          for (const [run, actions] of runs.entries()) {
            const user = `any-${run}`
            const events = searches(user, 12)
            const seen: Array<LogRow> = []
            const look = Effect.map(rows(user), (found) => {
              for (const row of found) if (!seen.some(({ id }) => id === row.id)) seen.push(row)
              return found
            })
            const deliver = (wanted: ReadonlyArray<LogRow>) =>
              updater.update(
                wanted.map(({ id, interaction, recordedAt }) =>
                  decoded(delivery(encodeMessage(interaction), { logId: id, recordedAt })),
                ),
              )
            let erasure = { token: "", erased_to: -1, renewTo: 0 }
            let after: Array<string> | undefined
            const steps = [
              Effect.gen(function* () {
                const token = (yield* log.beginErasure([user])).token
                erasure = { ...erasure, token, erased_to: yield* log.maxId }
              }),
              Effect.suspend(() =>
                users.erase(user, { erased_at: Date.now(), erased_to: erasure.erased_to }),
              ),
              Effect.map(log.maxId, (renewTo) => {
                erasure = { ...erasure, renewTo }
              }),
              Effect.suspend(() => log.erase(user, erasure.erased_to)),
              Effect.suspend(() => log.finishErasure(user, erasure.token, erasure.renewTo)),
              Effect.sync(() => {
                after = []
              }),
              log.renewSurvivors(user),
            ]
            for (const one of actions)
              if ("record" in one) {
                const [appended] = yield* record(events[one.record]!)
                if (appended?._tag === "Recorded") after?.push(appended.interaction.message_id)
                yield* look
              } else if ("deliver" in one) {
                if (seen.length > 0) yield* deliver([seen[one.deliver % seen.length]!])
              } else yield* steps.shift() ?? Effect.void
            for (const step of steps) yield* step
            const left = yield* look
            yield* deliver([...seen, ...seen.toReversed()])
            const applied = (yield* users.load([user])).get(user)?.applied ?? none
            const ids = left.map(({ interaction }) => interaction.message_id)
            expect([...toSet(applied)].toSorted()).toEqual(ids.map(prefix).toSorted())
            expect((yield* embeddingOf(user))?.event_count ?? 0).toBe(left.length)
            expect(left.every(({ id }) => id > erasure.erased_to)).toBe(true)
            for (const id of after ?? []) expect(ids).toContain(id)
            yield* log.markPublished(left, Date.now())
          }
          yield* published
          yield* workedOff
        }).pipe(Effect.provide(updaterLayer)),
      60_000,
    )

    it("what a losing write moves to the ledger does not count after an erasure", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const updater = (store: typeof users) =>
          Layer.build(updaterLayer.pipe(Layer.provide(Layer.succeed(UserEmbeddings, store)))).pipe(
            Effect.map(Context.get(EmbeddingUpdater)),
          )
        const history = searches("ledger", 330)
        const apply = (by: EmbeddingUpdater["Type"], from: number, to: number, id: number) =>
          by.update(
            history
              .slice(from, to)
              .map((one, index) =>
                decoded(delivery(encodeMessage(one), { logId: id + index, recordedAt: Date.now() })),
              ),
          )
        yield* apply(yield* updater(users), 0, 320, 1)
        // The user is erased after the worker has read the record and before it writes.
        let isErased = false
        const losing = yield* updater({
          ...users,
          saveToLedger: (...args) =>
            Effect.zipRight(
              isErased ? Effect.void : users.erase("ledger", { erased_at: Date.now(), erased_to: 320 }),
              Effect.suspend(() => {
                isErased = true
                return users.saveToLedger(...args)
              }),
            ),
        })
        yield* apply(losing, 320, 330, 1_000)
        const after = yield* updater(users)
        for (let from = 0; from < 320; from += 80) yield* apply(after, from, from + 80, 2_000 + from)
        yield* apply(after, 0, 320, 3_000)
        expect((yield* embeddingOf("ledger"))?.event_count).toBe(330)
        const { archived, generation } = (yield* users.load(["ledger"])).get("ledger")!
        expect(archived).toBeGreaterThan(0)
        const pages = yield* Stream.runCollect(users.overflow([{ user_id: "ledger", generation }]))
        expect([...pages].flat().flatMap(({ ids }) => ids)).toHaveLength(archived)
        yield* users.erase("ledger", { erased_at: Date.now(), erased_to: 1e6 })
      }).pipe(Effect.scoped))

    it("a worker that remembers the user from before the erasure notes a skipped event where the audit looks", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const updater = yield* EmbeddingUpdater
        const recordAndApply = (interaction: ReturnType<typeof search>) =>
          Effect.gen(function* () {
            const facts = { idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt: Date.now() }
            yield* log.append([{ ...facts, interaction }])
            const found = yield* rows("skipper")
            yield* updater.update(
              found.map(({ id, recordedAt }) =>
                decoded(delivery(encodeMessage(interaction), { logId: id, recordedAt })),
              ),
            )
            yield* log.markPublished(found, Date.now())
          })
        yield* recordAndApply(search("skipper", "tent", at(1)))
        yield* erase("skipper")
        yield* recordAndApply(product("skipper", "product_view", "p-later", at(2)))
        yield* storeProduct("p-later", "a boat")
        const report = yield* (yield* Auditor).audit({ user: "skipper" })
        expect(report).toMatchObject({ skipped: 1, missing: 0 })
        yield* log.erase("skipper", yield* log.maxId)
      }).pipe(Effect.provide(updaterLayer)))

    it("a rebuild that was waiting for the embedder during the erasure leaves no vector of a phrase", () =>
      Effect.gen(function* () {
        const vectors = yield* EventVectors
        const context = yield* Effect.context<
          Ports | OutboxRelay | InteractionRecorder | EventVectors | Eraser
        >()
        const kept = yield* PhraseEmbeddings
        const key = phraseKey(vectors.space, "rebuilt phrase")
        for (const returns of [false, true]) {
          yield* record(search("rebuilt", "rebuilt phrase", at(1)))
          yield* workedOff
          let isErased = false
          const slow = Layer.succeed(EventVectors, {
            ...vectors,
            resolve: (...args) =>
              Effect.gen(function* () {
                if (isErased) return yield* vectors.resolve(...args)
                isErased = true
                yield* Effect.orDie(erase("rebuilt"))
                const found = yield* vectors.resolve(...args)
                if (returns) yield* Effect.orDie(back)
                return found
              }).pipe(Effect.provide(context)),
          })
          const back = Effect.zipRight(record(search("rebuilt", "another phrase", at(2))), workedOff)
          yield* Effect.flatMap(Rebuilder, ({ rebuild }) => rebuild({ user: "rebuilt" })).pipe(
            Effect.provide(rebuilder.pipe(Layer.provide(slow))),
          )
          expect(isErased).toBe(true)
          expect((yield* kept.load([key])).size).toBe(0)
          expect((yield* embeddingOf("rebuilt"))?.event_count).toBe(returns ? 1 : undefined)
        }
        yield* erase("rebuilt")
      }))

    it("an erasure that failed after any of its steps is finished by repeating it", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const log = yield* InteractionLog
        for (const steps of [1, 2]) {
          const user = `cut-${steps}`
          yield* record(...searches(user, 5))
          yield* workedOff
          const erased_to = yield* log.maxId
          yield* log.beginErasure([user])
          yield* users.erase(user, { erased_at: Date.now(), erased_to })
          if (steps > 1) yield* log.erase(user, erased_to)
          expect(yield* sweep(Duration.zero)).toBe(0)
          const not_erased = steps > 1 ? 0 : 5
          expect(yield* (yield* Auditor).audit({ user })).toMatchObject({ missing: 0, extra: 0, not_erased })
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
