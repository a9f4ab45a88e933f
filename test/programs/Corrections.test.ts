/**
 * Any interleaving of events and retractions, delivered twice and out of order to several workers, gives what the surviving
 * events give alone, on both stacks.
 */
import { expect } from "bun:test"
import { Clock, type ConfigError, Context, Effect, Layer, Runtime } from "effect"
import fc from "fast-check"
import type { Ports } from "../../src/layers/Stack.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import * as EventTypes from "../../src/services/model/EventTypes.ts"
import { decay, weightOf } from "../../src/services/model/Fold.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import type { UserEmbedding } from "../../src/services/model/UserEmbedding.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Eraser from "../../src/services/operate/Eraser.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { InteractionLog, type LoggedInteraction } from "../../src/services/ports/InteractionLog.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import type { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as EmbeddingUpdater from "../../src/services/update/EmbeddingUpdater.ts"
import { EventVectors, layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import { decoded, delivery } from "../support/delivery.ts"
import { layerSuite } from "../support/effect.ts"
import { embeddingOf, product, search, storeProduct } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const phrases = ["running shoes", "red wine", "board games", "cordless drill", "baby blanket"]
const productTypes = ["product_view", "product_click", "product_purchase"] as const

/** What three ids did, and how the messages arrive. */
interface Scenario {
  readonly acts: ReadonlyArray<{
    readonly user: number
    /** Below 5 a search, otherwise an event with one of three products. */
    readonly what: number
    readonly hour: number
    readonly retracted: boolean
  }>
  /** Order of arrival: any numbers, and the messages in the order of these. */
  readonly order: ReadonlyArray<number>
  readonly batch: number
}
const scenario: fc.Arbitrary<Scenario> = fc.record({
  acts: fc.array(
    fc.record({
      user: fc.nat({ max: 2 }),
      what: fc.nat({ max: 13 }),
      hour: fc.nat({ max: 1_000 }),
      retracted: fc.boolean(),
    }),
    { minLength: 1, maxLength: 90, size: "max" },
  ),
  order: fc.array(fc.nat(), { minLength: 50, maxLength: 400, size: "max" }),
  batch: fc.integer({ min: 1, max: 40 }),
})

const interactionOf = (user: string, { hour, what }: Scenario["acts"][number]) => {
  const at = new Date(Date.UTC(2026, 0, 1, hour)).toISOString()
  const type = productTypes[(what - 5) % 3]!
  return what < 5
    ? search(user, phrases[what]!, at)
    : product(user, type, `p-${Math.floor((what - 5) / 3)}`, at)
}

const twoDays = 2 * 86_400_000
/** The rows of the log, by default recorded two days after the products got their vectors. */
const record = Effect.fnUntraced(function* (
  interactions: ReadonlyArray<Interaction.Interaction>,
  later = twoDays,
) {
  const log = yield* InteractionLog
  const recordedAt = (yield* Clock.currentTimeMillis) + later
  const appended = yield* log.append(
    interactions.map((interaction) => ({
      interaction,
      idempotencyKey: null,
      occurredAtGiven: true,
      trace: null,
      recordedAt,
    })),
  )
  const rows = appended.flatMap(
    (one): ReadonlyArray<LoggedInteraction> =>
      one._tag === "Recorded" ? [{ id: one.id, interaction: one.interaction, trace: null, recordedAt }] : [],
  )
  yield* log.markPublished(rows, recordedAt)
  return rows
})

const makeWorkers = (count: number) =>
  Effect.replicateEffect(
    Effect.map(Layer.build(Layer.fresh(EmbeddingUpdater.layer)), (context) =>
      Context.get(context, EmbeddingUpdater.EmbeddingUpdater),
    ),
    count,
  )

/** The figures of an embedding that must be those of the surviving events. */
const figuresOf = (embedding: UserEmbedding) => ({
  event_count: embedding.event_count,
  last_event_id: embedding.last_event_id,
  recent: embedding.recent.map(({ message_id }) => message_id),
  counters: Object.fromEntries(
    Object.entries(embedding.metadata).filter(([name, value]) => name.endsWith("_count") && value !== 0),
  ),
})

/** The weighted sum at `at`, straight from the events. */
const sumOf = Effect.fnUntraced(function* (events: ReadonlyArray<Interaction.Interaction>, at: number) {
  const vectors = yield* Effect.flatMap(EventVectors, ({ resolve }) => resolve(events))
  const { lambda } = yield* EmbeddingConfig.EmbeddingConfig
  const sum = new Float64Array(1536)
  let total = 0
  for (const [index, { event_type, occurred_at }] of events.entries()) {
    const weight =
      weightOf(EventTypes.defaults.weights, event_type) * decay(lambda, at, Date.parse(occurred_at))
    Vector.addScaled(sum, weight, yield* vectors[index]!)
    total += weight
  }
  return { sum, total, mass: Vector.norm(sum) }
})

const expectSurvivors = Effect.fnUntraced(function* (
  embedding: UserEmbedding | undefined,
  survivors: ReadonlyArray<Interaction.Interaction>,
) {
  if (survivors.length === 0) return expect(embedding).toBeUndefined()
  if (embedding === undefined) throw new Error("there is no embedding")
  const newest = survivors.toSorted((a, b) => Interaction.chronological(b, a))
  const counters: Record<string, number> = {}
  for (const { event_type } of survivors)
    counters[EventTypes.counterOf(event_type)] = (counters[EventTypes.counterOf(event_type)] ?? 0) + 1
  expect(figuresOf(embedding)).toEqual({
    event_count: survivors.length,
    last_event_id: newest[0]!.message_id,
    recent: newest.slice(0, 10).map(({ message_id }) => message_id),
    counters,
  })
  const { mass, sum, total } = yield* sumOf(survivors, embedding.last_updated)
  const difference = Float64Array.from(sum, (value, i) => value / mass - embedding.embedding[i]!)
  expect(Vector.norm(difference)).toBeLessThanOrEqual(1e-5)
  expect(Math.abs(embedding.mass / mass - 1)).toBeLessThanOrEqual(1e-5)
  expect(Math.abs(embedding.total_weight / total - 1)).toBeLessThanOrEqual(1e-5)
})

const audited = Effect.fnUntraced(function* (user: string) {
  const { extra, missing } = yield* (yield* Auditor.Auditor).audit({ user })
  return { extra, missing }
})

let runs = 0
const check = Effect.fnUntraced(function* ({ acts, batch, order }: Scenario) {
  const run = runs++
  const nameOf = (user: number) => `run-${run}-${user}`
  const events = new Map(
    acts.map((act) => {
      const interaction = interactionOf(nameOf(act.user), act)
      return [interaction.message_id, { interaction, retracted: act.retracted }] as const
    }),
  )
  const taken = [...events.values()].filter(({ retracted }) => retracted)
  const rows = yield* record([
    ...Array.from(events.values(), ({ interaction }) => interaction),
    ...taken.map(({ interaction }) => Interaction.retract(interaction)),
  ])
  const messages = [...rows, ...rows]
    .map((row, index) => ({ row, rank: (order[index % order.length] ?? 0) + index }))
    .toSorted((a, b) => (a.rank % 1_009) - (b.rank % 1_009))
    .map(({ row: { id, interaction, recordedAt } }) =>
      decoded(delivery(encodeMessage(interaction), { logId: id, recordedAt })),
    )
  const workers = yield* makeWorkers(2)
  for (let from = 0, turn = 0; from < messages.length; from += batch, turn++) {
    const outcomes = yield* workers[turn % 2]!.update(messages.slice(from, from + batch))
    expect(new Set(outcomes.map(({ settlement }) => settlement._tag))).toEqual(new Set(["Ack"]))
  }
  for (const user of new Set(acts.map(({ user }) => nameOf(user)))) {
    const survivors = [...events.values()]
      .filter(({ interaction, retracted }) => interaction.user_id === user && !retracted)
      .map(({ interaction }) => interaction)
    yield* expectSurvivors(yield* embeddingOf(user), survivors)
    expect(yield* audited(user)).toEqual({ extra: 0, missing: 0 })
    if (survivors.length === 0) continue
    yield* (yield* Rebuilder.Rebuilder).rebuild({ user })
    yield* expectSurvivors(yield* embeddingOf(user), survivors)
  }
}, Effect.scoped)

/** Thirty events of a user, with three products and five phrases. */
const history = (user: string) =>
  Array.from({ length: 30 }, (_, i) =>
    interactionOf(user, { user: 0, what: i % 14, hour: 7 * i, retracted: false }),
  )

/** Records interactions, and hands them to a new worker in one batch. */
const apply = Effect.fnUntraced(function* (
  interactions: ReadonlyArray<Interaction.Interaction>,
  later = twoDays,
) {
  const rows = yield* record(interactions, later)
  const [worker] = yield* makeWorkers(1)
  return yield* worker!.update(
    rows.map(({ id, interaction, recordedAt }) =>
      decoded(delivery(encodeMessage(interaction), { logId: id, recordedAt })),
    ),
  )
})
const acked = { _tag: "Settle", settlement: { _tag: "Ack" } } as const

const suite = (
  name: string,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
  numRuns: number,
) =>
  layerSuite(
    name,
    Layer.mergeAll(Auditor.layer, Rebuilder.layer, Eraser.layer).pipe(
      Layer.provideMerge(eventVectors),
      Layer.provideMerge(stack),
    ),
    (it) => {
      it(
        "gives the vector, the counts and the newest events of the surviving events; live, rebuilt and audited",
        () =>
          Effect.gen(function* () {
            for (const [index, text] of ["tent for two", "desk lamp", "espresso machine"].entries())
              yield* storeProduct(`p-${index}`, text)
            const runtime = yield* Effect.runtime<
              | Effect.Effect.Context<ReturnType<typeof check>>
              | EmbeddingConfig.EmbeddingConfig
              | UserEmbeddings
            >()
            const property = fc.asyncProperty(scenario, (one) => Runtime.runPromise(runtime)(check(one)))
            yield* Effect.promise(() => fc.assert(property, { numRuns }))
          }),
        120_000,
      )

      it("an event whose product was embedded anew is taken out with the vector that was folded", () =>
        Effect.gen(function* () {
          yield* storeProduct("changing", "tent for two")
          const events = history("anew")
          const bought = product("anew", "product_purchase", "changing", "2026-01-02T00:00:00.000Z")
          yield* apply([...events, bought])
          yield* storeProduct("changing", "red wine from Portugal")
          yield* apply([Interaction.retract(bought)])
          yield* expectSurvivors(yield* embeddingOf("anew"), events)
        }))

      it("an event whose product is gone is taken out, too", () =>
        Effect.gen(function* () {
          yield* storeProduct("vanishing", "tent for two")
          const events = history("gone")
          const bought = product("gone", "product_purchase", "vanishing", "2026-01-02T00:00:00.000Z")
          yield* apply([...events, bought])
          const products = yield* ProductEmbeddings
          const [known] = yield* products.find(["vanishing"])
          yield* products.upsert([{ ...known!, space: "other" }])
          yield* apply([Interaction.retract(bought)])
          yield* expectSurvivors(yield* embeddingOf("gone"), events)
        }))

      it("after a change of weights, and in recency history, a retraction rebuilds its user", () =>
        Effect.gen(function* () {
          for (const [user, changed] of [
            ["weights", { eventTypes: EventTypes.make({ product_view: 0.9 }) }],
            ["recency", { history: "recency" }],
          ] as const) {
            const settings = EmbeddingConfig.layer(user === "recency" ? changed : {})
            const events = history(user)
            yield* Effect.provide(apply(events), settings)
            yield* Effect.provide(apply([Interaction.retract(events[3]!)]), EmbeddingConfig.layer(changed))
            const left = yield* embeddingOf(user)
            yield* Effect.provide(
              Effect.flatMap(Rebuilder.Rebuilder, ({ rebuild }) => rebuild({ user })),
              Rebuilder.layer.pipe(Layer.provide(EmbeddingConfig.layer(changed))),
            )
            const rebuilt = yield* embeddingOf(user)
            expect(left?.event_count).toBe(29)
            expect(Vector.dot(left!.embedding, rebuilt!.embedding)).toBeGreaterThan(1 - 1e-9)
            expect(left?.total_weight).toBeCloseTo(rebuilt!.total_weight, 9)
          }
        }))

      it("a retraction that cannot be exact is a dead letter; what else the user did is applied", () =>
        Effect.gen(function* () {
          const [first, second] = [`${phrases[0]}`, `${phrases[1]}`].map((phrase, day) =>
            search("stuck", phrase, `2026-01-0${day + 1}T00:00:00.000Z`),
          )
          yield* storeProduct("lost", "tent for two")
          const viewed = product("stuck", "product_view", "lost", "2026-01-03T00:00:00.000Z")
          yield* apply([first!, viewed])
          const products = yield* ProductEmbeddings
          const [known] = yield* products.find(["lost"])
          yield* products.upsert([{ ...known!, space: "other" }])
          // Vectors stay in memory for a while.
          const outcomes = yield* Effect.provide(
            apply([Interaction.retract(first!), second!]),
            Layer.fresh(eventVectors),
          )
          expect(outcomes).toMatchObject([
            { settlement: { _tag: "DeadLetter", failure: { error: "cannot_rebuild" } } },
            acked,
          ])
          expect((yield* embeddingOf("stuck"))?.event_count).toBe(3)
          // A rebuild by hand applies the retraction that the log has.
          yield* (yield* Rebuilder.Rebuilder).rebuild({ user: "stuck", allowMissing: true })
          expect((yield* embeddingOf("stuck"))?.event_count).toBe(2)
          expect((yield* embeddingOf("stuck"))?.metadata).toMatchObject({ search_count: 1, view_count: 1 })
          expect(yield* audited("stuck")).toEqual({ extra: 0, missing: 0 })
        }))

      it("a worker that remembers an older record of the user finds the retraction applied", () =>
        Effect.gen(function* () {
          const [first, second] = history("older")
          const [one, other] = yield* makeWorkers(2)
          const rows = yield* record([
            first!,
            second!,
            Interaction.retract(first!),
            Interaction.retract(second!),
          ])
          const [m1, m2, r1, r2] = rows.map(({ id, interaction, recordedAt }) =>
            decoded(delivery(encodeMessage(interaction), { logId: id, recordedAt })),
          )
          yield* one!.update([m1!, m2!])
          // Rebuilds the user without both events, because the log has both retractions.
          yield* other!.update([r1!])
          expect(yield* embeddingOf("older")).toBeUndefined()
          expect(yield* one!.update([r2!])).toEqual([acked])
          expect(yield* audited("older")).toEqual({ extra: 0, missing: 0 })
        }))

      it("an erasure covers retractions; what is done afterwards counts, also the same event again", () =>
        Effect.gen(function* () {
          const [first, second] = history("erased")
          const rows = yield* record([first!, second!, Interaction.retract(first!)], 0)
          const messages = rows.map(({ id, interaction, recordedAt }) =>
            decoded(delivery(encodeMessage(interaction), { logId: id, recordedAt })),
          )
          const [worker] = yield* makeWorkers(1)
          yield* worker!.update(messages.slice(0, 2))
          yield* (yield* Eraser.Eraser).erase("erased")
          expect(yield* worker!.update(messages)).toEqual([acked, acked, acked])
          expect(yield* embeddingOf("erased")).toBeUndefined()
          yield* apply([first!, second!], 0)
          yield* expectSurvivors(yield* embeddingOf("erased"), [first!, second!])
          yield* apply([Interaction.retract(first!), Interaction.retract(second!)], 0)
          yield* expectSurvivors(yield* embeddingOf("erased"), [])
          yield* (yield* Eraser.Eraser).erase("erased")
          yield* apply([first!], 0)
          yield* expectSurvivors(yield* embeddingOf("erased"), [first!])
          expect(yield* audited("erased")).toEqual({ extra: 0, missing: 0 })
        }))
    },
  )

suite("events and retractions on the embedded stack", embedded(), 25)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  suite("events and retractions", external(), 10),
)
