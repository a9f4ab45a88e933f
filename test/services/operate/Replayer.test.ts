/** Replay and rebuild on both stacks: no interaction is applied twice, and the same interactions give the same vector. */
import { expect } from "bun:test"
import { Chunk, Effect, Fiber, Layer, Stream } from "effect"
import type { Ports } from "../../../src/layers/Stack.ts"
import { EmbeddingConfig } from "../../../src/services/EmbeddingConfig.ts"
import * as AppliedIds from "../../../src/services/model/AppliedIds.ts"
import { fold } from "../../../src/services/model/Fold.ts"
import { type Interaction, retract } from "../../../src/services/model/Interaction.ts"
import { Auditor, layer as auditor } from "../../../src/services/operate/Auditor.ts"
import { Rebuilder, layer as rebuilder } from "../../../src/services/operate/Rebuilder.ts"
import { Replayer, layer as replayer } from "../../../src/services/operate/Replayer.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings, UserEmbeddingsError } from "../../../src/services/ports/UserEmbeddings.ts"
import { EventVectors } from "../../../src/services/update/EventVectors.ts"
import { layerSuite } from "../../support/effect.ts"
import {
  embeddingOf,
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
const searches = (user: string, count: number, from = 0) =>
  Array.from({ length: count }, (_, index) => search(user, `phrase ${index % 9}`, at((from + index) * 3_600)))

const recordOf = (user: string) =>
  Effect.map(
    Effect.flatMap(UserEmbeddings, (users) => users.load([user])),
    (records) => records.get(user)!,
  )
const greatestDifference = (a: Float32Array, b: Float32Array) =>
  a.reduce((most, x, index) => Math.max(most, Math.abs(x - b[index]!)), 0)
const consistent = (user: string) =>
  Effect.gen(function* () {
    const report = yield* (yield* Auditor).audit({ user })
    expect(report).toEqual({
      users: 1,
      consistent: 1,
      missing: 0,
      extra: 0,
      not_erased: 0,
      in_flight: 0,
      dead: 0,
      skipped: 0,
    })
  })
const rebuild = (user: string, allowMissing = false) =>
  Effect.flatMap(Rebuilder, ({ rebuild }) => rebuild({ user, allowMissing }))
const replay = (...args: Parameters<Replayer["Type"]["replay"]>) =>
  Effect.flatMap(Replayer, ({ replay }) => replay(...args))
/** In parts, so that ids move to the overflow. */
const apply = (interactions: ReadonlyArray<Interaction>, atOnce = 300) =>
  Effect.gen(function* () {
    for (let i = 0; i < interactions.length; i += atOnce) {
      yield* record(...interactions.slice(i, i + atOnce))
      yield* workedOff
    }
  })

const suite = (name: string, stack: Parameters<typeof recording>[0]) =>
  layerSuite(
    name,
    Layer.mergeAll(auditor, replayer, rebuilder).pipe(Layer.provideMerge(recording(stack))),
    (it) => {
      it("a replay of applied interactions changes nothing, even of the oldest of many", () =>
        Effect.gen(function* () {
          yield* apply(searches("replayed", 900))
          const before = yield* recordOf("replayed")
          expect(before.archived).toBeGreaterThan(0)
          const read: Array<number> = []
          const progress = (count: number) => Effect.sync(() => void read.push(count))
          expect(yield* replay({ user: "replayed" }, { progress })).toEqual({ matched: 900, published: 900 })
          expect(read.at(-1)).toBe(900)
          expect(yield* replay({ user: "replayed", until: at(1) })).toEqual({ matched: 1, published: 1 })
          yield* workedOff
          expect(yield* recordOf("replayed")).toEqual(before)
          yield* consistent("replayed")
        }))

      it("a rebuild removes ids that release 0.1.0 left in the ledger, and counts their events posted again", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const erased = searches("left", 30, 500)
          const ids = erased.map(({ message_id }) => AppliedIds.prefix(message_id))
          yield* apply(searches("left", 400), 200)
          yield* users.saveToLedger("applied", [{ user_id: "left", generation: 0, ids }])
          yield* record(...erased.slice(0, 10))
          yield* workedOff
          const audit = Effect.flatMap(Auditor, ({ audit }) => audit({ user: "left" }))
          expect(yield* audit).toMatchObject({ missing: 0, extra: 30 })
          expect(yield* rebuild("left")).toMatchObject({ rebuilt: 1 })
          expect((yield* recordOf("left")).embedding?.event_count).toBe(410)
          yield* consistent("left")
          yield* record(...erased)
          yield* workedOff
          expect((yield* recordOf("left")).embedding?.event_count).toBe(430)
          yield* consistent("left")
        }))

      it("replays by type and time, and only counts in a dry run", () =>
        Effect.gen(function* () {
          yield* record(
            ...[0, 1, 2].map((hour) => search("filtered", "tent", at(hour * 3_600))),
            product("filtered", "product_view", "p", at(3_600)),
          )
          const filter = { user: "filtered", type: "search", since: at(3_600), until: at(7_200) } as const
          expect(yield* replay(filter, { dryRun: true })).toEqual({ matched: 1, published: 0 })
          yield* workedOff
          expect(yield* replay(filter)).toEqual({ matched: 1, published: 1 })
          const { main } = yield* (yield* InteractionQueue).depths
          expect(main.ready).toBe(1)
          yield* workedOff
        }))

      it("replays by the time of recording, however long ago the events occurred", () =>
        Effect.gen(function* () {
          const log = yield* InteractionLog
          const recordedAt = (hour: number) => Date.UTC(2026, 5, 1, hour)
          yield* log.append(
            [0, 1, 2].map((hour) => ({
              interaction: search("recorded", `${hour}`, at(-hour)),
              idempotencyKey: null,
              occurredAtGiven: true,
              trace: null,
              recordedAt: recordedAt(hour),
            })),
          )
          yield* log.markPublished(
            yield* Stream.runCollect(log.stream({ user: "recorded" })).pipe(Effect.map(Chunk.toArray)),
            1,
          )
          const recordedSince = new Date(recordedAt(1)).toISOString()
          expect(yield* replay({ user: "recorded", recordedSince })).toEqual({ matched: 2, published: 2 })
          yield* workedOff
          expect((yield* embeddingOf("recorded"))?.event_count).toBe(2)
          yield* log.erase("recorded", yield* log.maxId)
          yield* (yield* UserEmbeddings).erase("recorded", {
            erased_at: Date.now(),
            erased_to: yield* log.maxId,
          })
        }))

      it(
        "a rebuild of all users waits for stores that are out, and tells where to go on when it stops",
        () =>
          Effect.gen(function* () {
            const users = yield* UserEmbeddings
            const names = Array.from({ length: 130 }, (_, n) => `many-${String(n).padStart(3, "0")}`)
            yield* apply(names.map((user) => search(user, "tent", at(1))))
            let failures = 3
            let broken: string | undefined
            const out = (reason: "unavailable" | "not_set_up") =>
              Effect.fail(new UserEmbeddingsError({ reason, operation: "find", cause: new Error("out") }))
            const failing = Layer.succeed(UserEmbeddings, {
              ...users,
              load: (wanted) =>
                Effect.suspend(() => {
                  if (broken !== undefined && wanted.includes(broken)) return out("not_set_up")
                  return wanted.includes("many-007") && failures-- > 0
                    ? out("unavailable")
                    : users.load(wanted)
                }),
            })
            const upTo: Array<string> = []
            const all = (options: { readonly after?: string }) =>
              Effect.flatMap(Rebuilder, ({ rebuild }) =>
                rebuild({ ...options, allowMissing: true, completed: (user) => void upTo.push(user) }),
              )
            const context = yield* Effect.context<Ports | EventVectors>()
            const failingly = <A, E>(effect: Effect.Effect<A, E, Rebuilder>) =>
              Effect.provide(effect, rebuilder.pipe(Layer.provide(failing))).pipe(Effect.provide(context))

            const first = yield* failingly(all({ after: "many-" }))
            expect(first).toMatchObject({ failed: 0 })
            expect(first.rebuilt).toBeGreaterThanOrEqual(130)
            expect(first.stopped).toBeUndefined()
            expect(failures).toBeLessThan(0)

            broken = "many-120"
            const second = yield* failingly(all({ after: "many-" }))
            expect(second.stopped).toEqual({
              reason: expect.stringContaining("not_set_up"),
              after: names[99]!,
            })
            expect(upTo.at(-1)).toBe(names[99]!)
            expect(second.rebuilt).toBeGreaterThanOrEqual(100)
            broken = undefined
            const versions = yield* users.load([names[99]!, names[100]!])
            yield* all({ after: second.stopped!.after! })
            const after = yield* users.load([names[99]!, names[100]!])
            expect(after.get(names[99]!)?.version).toBe(versions.get(names[99]!)!.version)
            expect(after.get(names[100]!)!.version).toBeGreaterThan(versions.get(names[100]!)!.version)
          }),
        60_000,
      )

      it("a replay publishes rows that wait in the outbox and marks them, and applies skipped events", () =>
        Effect.gen(function* () {
          const log = yield* InteractionLog
          const viewed = product("waiting", "product_view", "p-waiting", at(1))
          yield* log.append([
            {
              interaction: viewed,
              idempotencyKey: null,
              occurredAtGiven: true,
              trace: null,
              recordedAt: Date.now(),
            },
          ])
          expect(yield* replay({ user: "waiting" })).toEqual({ matched: 1, published: 1 })
          const [row] = yield* Stream.runCollect(log.stream({ user: "waiting" }))
          expect(row?.published).toBe(true)
          yield* workedOff
          expect(yield* embeddingOf("waiting")).toBeUndefined()
          yield* storeProduct("p-waiting", "a tent")
          yield* replay({ user: "waiting" })
          yield* workedOff
          expect((yield* embeddingOf("waiting"))?.event_count).toBe(1)
        }))

      it("a rebuild gives the same vector, keeps the applied ids, and increases the version by one", () =>
        Effect.gen(function* () {
          // Applied out of order and in parts.
          const many = searches("rebuilt", 700).toSorted((a, b) => (a.message_id < b.message_id ? -1 : 1))
          yield* apply(many)
          const before = yield* recordOf("rebuilt")
          expect(yield* rebuild("rebuilt")).toEqual({ rebuilt: 1, failed: 0, failures: [] })
          const after = yield* recordOf("rebuilt")
          expect(greatestDifference(after.embedding!.embedding, before.embedding!.embedding)).toBeLessThan(
            1e-4,
          )
          const { embedding: _, mass, metadata, total_weight, updated_at, ...facts } = before.embedding!
          expect(after).toMatchObject({ ...before, version: before.version + 1, embedding: facts })
          expect(after.embedding!.mass).toBeCloseTo(mass, 3)
          expect(after.embedding!.total_weight).toBeCloseTo(total_weight, 3)
          expect(after.embedding!.updated_at).toBeGreaterThan(updated_at)
          expect(after.embedding!.metadata).toEqual({
            ...metadata,
            last_recalculation: after.embedding!.updated_at,
          })
          yield* consistent("rebuilt")
        }))

      it("a rebuild counts exactly the applied interactions; the others arrive as messages", () =>
        Effect.gen(function* () {
          const [first, second, third] = searches("partly", 3)
          yield* apply([first!])
          yield* record(second!, third!)
          yield* rebuild("partly")
          expect((yield* embeddingOf("partly"))?.event_count).toBe(1)
          yield* workedOff
          expect((yield* embeddingOf("partly"))?.event_count).toBe(3)
          yield* consistent("partly")
        }))

      it("a rebuild moves a user to the configured space, history and weights", () =>
        Effect.gen(function* () {
          const events = searches("moved", 5)
          yield* apply(events)
          const users = yield* UserEmbeddings
          const right = yield* recordOf("moved")
          const wrong = {
            ...right.embedding!,
            space: "elsewhere:7",
            history: "recency" as const,
            mass: 1,
            embedding: Float32Array.from(right.embedding!.embedding).reverse(),
            created_at: 1_000,
          }
          expect(
            yield* users.save([
              { record: { ...right, embedding: wrong, version: right.version + 1 }, expected: right.version },
            ]),
          ).toEqual([true])
          yield* rebuild("moved")
          const { embedding } = yield* recordOf("moved")
          expect(embedding).toMatchObject({
            space: right.embedding!.space,
            history: "cumulative",
            event_count: 5,
            created_at: 1_000,
          })
          expect(greatestDifference(embedding!.embedding, right.embedding!.embedding)).toBeLessThan(1e-4)
          expect(embedding!.mass).toBeCloseTo(right.embedding!.mass, 4)
        }))

      it("in recency history a rebuild folds in the order of occurrence, not of arrival", () =>
        Effect.gen(function* () {
          const events = searches("recent", 10)
          yield* apply(events.toReversed(), 1)
          const vectors = yield* EventVectors
          const { eventTypes, lambda } = yield* EmbeddingConfig
          const settings = {
            lambda,
            weights: eventTypes.weights,
            history: "recency" as const,
            space: vectors.space,
          }
          const expected = yield* fold(
            undefined,
            yield* Effect.forEach(yield* vectors.resolve(events), (vector, index) =>
              Effect.map(vector, (vector) => ({ interaction: events[index]!, vector })),
            ),
            settings,
            0,
          )
          const inRecency = Layer.provide(
            rebuilder,
            Layer.succeed(EmbeddingConfig, { ...(yield* EmbeddingConfig), history: "recency" as const }),
          )
          yield* Effect.provide(rebuild("recent"), Layer.fresh(inRecency))
          const { embedding } = yield* recordOf("recent")
          expect(embedding).toMatchObject({ history: "recency", mass: 1, event_count: 10 })
          expect(greatestDifference(embedding!.embedding, expected.embedding)).toBeLessThan(1e-4)
        }))

      it("refuses when a vector is gone, and names it; with allowMissing it rebuilds without, until the vector is back", () =>
        Effect.gen(function* () {
          yield* storeProduct("p-gone", "a garden hose")
          const bought = product("gone", "product_purchase", "p-gone", at(2))
          yield* apply([search("gone", "tent", at(1)), bought])
          const before = yield* recordOf("gone")
          const products = yield* ProductEmbeddings
          const { space } = yield* EventVectors
          const [hose] = yield* Effect.map(products.load(["p-gone"], space), (found) => [...found.values()])
          const store = (space: string) =>
            products.upsert([
              {
                product_id: "p-gone",
                embedding: hose!,
                product_name: null,
                category: null,
                space,
                text: null,
              },
            ])
          yield* store("elsewhere")
          const stopped = yield* rebuild("gone")
          expect(stopped).toMatchObject({ rebuilt: 0, failed: 1 })
          expect(stopped.failures[0]?.reason).toContain("p-gone")
          expect(stopped.failures[0]?.reason).toContain(bought.message_id)
          expect(yield* recordOf("gone")).toEqual(before)
          expect(yield* rebuild("gone", true)).toMatchObject({ rebuilt: 1, failed: 0 })
          const { embedding: without } = yield* recordOf("gone")
          expect(without).toMatchObject({ event_count: 2, metadata: { purchase_count: 1, search_count: 1 } })
          expect(without!.total_weight).toBeCloseTo(0.7, 6)
          yield* consistent("gone")
          yield* store(space)
          yield* rebuild("gone")
          const { embedding } = yield* recordOf("gone")
          expect(greatestDifference(embedding!.embedding, before.embedding!.embedding)).toBeLessThan(1e-4)
        }))

      it("refuses when the log has lost interactions, unless allowMissing is set", () =>
        Effect.gen(function* () {
          const events = searches("pruned", 4)
          yield* apply(events)
          const queue = yield* InteractionQueue
          yield* queue.publish([message(search("pruned", "never logged", at(9)))])
          yield* workedOff
          const stopped = yield* rebuild("pruned")
          expect(stopped.failures[0]?.reason).toContain("1 applied interactions are no longer in the log")
          expect((yield* embeddingOf("pruned"))?.event_count).toBe(5)
          expect(yield* rebuild("pruned", true)).toMatchObject({ rebuilt: 1 })
          expect((yield* embeddingOf("pruned"))?.event_count).toBe(4)
          expect(yield* (yield* Auditor).audit({ user: "pruned" })).toMatchObject({ missing: 0, extra: 1 })
        }))

      it("misses no interaction that is taken back, if an erasure has deleted its row meanwhile", () =>
        Effect.gen(function* () {
          const never = search("raced", "erased before its retraction was recorded", at(0))
          yield* apply([search("raced", "tent", at(1)), retract(never)])
          yield* consistent("raced")
          const { embedding } = yield* recordOf("raced")
          expect(embedding?.event_count).toBe(1)
          expect(yield* rebuild("raced")).toMatchObject({ rebuilt: 1, failed: 0 })
          yield* consistent("raced")
        }))

      it("reports a user without embedding", () =>
        Effect.gen(function* () {
          const { failures } = yield* rebuild("nobody")
          expect(failures).toEqual([{ user_id: "nobody", reason: "user nobody: has no embedding" }])
        }))

      it("of all users passes over one who lost the embedding after being listed", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const listing = Layer.succeed(UserEmbeddings, {
            ...users,
            usersAfter: () => Effect.succeed(["nobody"]),
          })
          const report = yield* Effect.flatMap(Rebuilder, (rebuilder) => rebuilder.rebuild({})).pipe(
            Effect.provide(rebuilder.pipe(Layer.provide(listing))),
            Effect.provide(yield* Effect.context<Ports | EventVectors>()),
          )
          expect(report).toMatchObject({ failed: 0, failures: [] })
        }))

      it(
        "repeated rebuilds beside workers lose nothing and count nothing twice",
        () =>
          Effect.gen(function* () {
            const many = Array.from({ length: 5 }, (_, user) => searches(`busy-${user}`, 200)).flat()
            yield* record(...many.slice(0, 100))
            yield* workedOff
            const users = [...new Set(many.map(({ user_id }) => user_id))]
            const rebuilding = yield* Effect.forEach(users, (user) => rebuild(user)).pipe(
              Effect.zipRight(Effect.promise(() => new Promise(setImmediate))),
              Effect.forever,
              Effect.fork,
            )
            for (let i = 100; i < many.length; i += 100) {
              yield* record(...many.slice(i, i + 100))
              yield* workedOff
            }
            yield* Fiber.interrupt(rebuilding)
            for (const user of users) expect((yield* rebuild(user)).rebuilt).toBe(1)
            const vectors = yield* EventVectors
            const { eventTypes, lambda } = yield* EmbeddingConfig
            const settings = {
              lambda,
              weights: eventTypes.weights,
              history: "cumulative" as const,
              space: vectors.space,
            }
            for (let user = 0; user < 5; user++) {
              yield* consistent(`busy-${user}`)
              const own = many.filter(({ user_id }) => user_id === `busy-${user}`)
              const resolved = yield* vectors.resolve(own)
              const events = yield* Effect.forEach(
                Chunk.fromIterable(resolved.entries()),
                ([index, vector]) => Effect.map(vector, (vector) => ({ interaction: own[index]!, vector })),
              )
              const expected = yield* fold(undefined, events, settings, 0)
              const embedding = yield* embeddingOf(`busy-${user}`)
              expect(greatestDifference(embedding!.embedding, expected.embedding)).toBeLessThan(1e-4)
            }
          }),
        60_000,
      )
    },
  )

suite("replay and rebuild on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "replay and rebuild on real servers", () =>
  suite("from MySQL to MongoDB", external()),
)
