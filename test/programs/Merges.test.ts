/**
 * Any interleaving of events, retractions and merges over three ids, delivered twice and out of order to workers that run at
 * the same time, gives what the surviving events of each person give alone, on both stacks.
 */
import { expect } from "bun:test"
import { Clock, type ConfigError, Context, Effect, Layer, Runtime } from "effect"
import fc from "fast-check"
import type { Ports } from "../../src/layers/Stack.ts"
import { EmbeddingConfig } from "../../src/services/EmbeddingConfig.ts"
import { counterOf, defaults } from "../../src/services/model/EventTypes.ts"
import { decay, weightOf } from "../../src/services/model/Fold.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import type { UserEmbedding } from "../../src/services/model/UserEmbedding.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { InteractionLog, type LoggedInteraction } from "../../src/services/ports/InteractionLog.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as EmbeddingUpdater from "../../src/services/update/EmbeddingUpdater.ts"
import { EventVectors, layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import { ownerOf } from "../../src/services/update/People.ts"
import { decoded, delivery } from "../support/delivery.ts"
import { layerSuite } from "../support/effect.ts"
import { product, search, storeProduct } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const phrases = ["running shoes", "red wine", "board games", "cordless drill", "baby blanket"]
const productTypes = ["product_view", "product_click", "product_purchase"] as const

const id = fc.nat({ max: 2 })
interface Scenario {
  readonly acts: ReadonlyArray<{
    readonly user: number
    /** Below 5 a search, otherwise an event with one of three products. */
    readonly what: number
    readonly hour: number
    readonly retracted: boolean
  }>
  /** Merges, which the log refuses where they contradict each other. Others are recorded before all events. */
  readonly merges: ReadonlyArray<{ readonly into: number; readonly from: number }>
  /** Order of arrival: any numbers, and the messages in the order of these. */
  readonly order: ReadonlyArray<number>
  readonly batch: number
}
const scenario: fc.Arbitrary<Scenario> = fc.record({
  acts: fc.array(
    fc.record({ user: id, what: fc.nat({ max: 13 }), hour: fc.nat({ max: 1_000 }), retracted: fc.boolean() }),
    { minLength: 1, maxLength: 90, size: "max" },
  ),
  merges: fc.array(
    fc.record({ into: id, from: id }).filter(({ from, into }) => from !== into),
    { maxLength: 4 },
  ),
  order: fc.array(fc.nat(), { minLength: 50, maxLength: 400, size: "max" }),
  batch: fc.integer({ min: 1, max: 40 }),
})

const interactionOf = (user: string, { hour, what }: Scenario["acts"][number]) => {
  const at = new Date(Date.UTC(2026, 0, 1, hour)).toISOString()
  return what < 5
    ? search(user, phrases[what]!, at)
    : product(user, productTypes[(what - 5) % 3]!, `p-${Math.floor((what - 5) / 3)}`, at)
}

/** The rows of the log, recorded two days after the products got their vectors. */
const record = Effect.fnUntraced(function* (interactions: ReadonlyArray<Interaction.Interaction>) {
  const log = yield* InteractionLog
  const recordedAt = (yield* Clock.currentTimeMillis) + 2 * 86_400_000
  const facts = { idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt }
  const appended = yield* log.append(interactions.map((interaction) => ({ interaction, ...facts })))
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

/** Delivers to two workers at a time, and again what they want to retry. */
const deliver = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>, batch: number) {
  const workers = yield* makeWorkers(2)
  let left = rows.map(({ id: logId, interaction, recordedAt }) =>
    decoded(delivery(encodeMessage(interaction), { logId, recordedAt })),
  )
  while (left.length > 0) {
    const batches = Array.from({ length: Math.ceil(left.length / batch) }, (_, index) =>
      left.slice(index * batch, (index + 1) * batch),
    )
    const outcomes = yield* Effect.forEach(
      batches,
      (messages, index) => workers[index % 2]!.update(messages),
      { concurrency: 2 },
    )
    const settlements = outcomes.flat().map(({ settlement }) => settlement)
    expect(settlements.filter(({ _tag }) => _tag === "DeadLetter")).toEqual([])
    left = batches.flat().filter((_, index) => settlements[index]!._tag === "Retry")
  }
})

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
  const { lambda } = yield* EmbeddingConfig
  const sum = new Float64Array(1536)
  let total = 0
  for (const [index, { event_type, occurred_at }] of events.entries()) {
    const weight = weightOf(defaults.weights, event_type) * decay(lambda, at, Date.parse(occurred_at))
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
    counters[counterOf(event_type)] = (counters[counterOf(event_type)] ?? 0) + 1
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

/** The people that the merges of the log make of these ids, as the ids that each one has. */
const peopleOf = (ids: ReadonlyArray<string>, merges: ReadonlyArray<Interaction.Interaction>) => {
  const owner = new Map(ids.map((one) => [one, one]))
  for (const { reference, user_id } of merges) {
    const [from, into] = [owner.get(reference!), owner.get(user_id)!]
    for (const one of ids) if (owner.get(one) === from) owner.set(one, into)
  }
  return Map.groupBy(ids, (one) => owner.get(one)!)
}

let runs = 0
const check = Effect.fnUntraced(function* ({ acts, batch, merges, order }: Scenario) {
  const run = runs++
  const ids = [0, 1, 2].map((user) => `run-${run}-${user}`)
  const events = new Map(
    acts.map((act) => {
      const interaction = interactionOf(ids[act.user]!, act)
      return [interaction.message_id, { interaction, retracted: act.retracted }] as const
    }),
  )
  const merged = yield* record(
    merges.map(({ from, into }, index) =>
      Interaction.merge(ids[into]!, ids[from]!, new Date(Date.UTC(2026, 1, 1, 0, index)).toISOString()),
    ),
  )
  const taken = [...events.values()].filter(({ retracted }) => retracted)
  const rows = [
    ...merged,
    ...(yield* record([
      ...Array.from(events.values(), ({ interaction }) => interaction),
      ...taken.map(({ interaction }) => Interaction.retract(interaction)),
    ])),
  ]
  const messages = [...rows, ...rows]
    .map((row, index) => ({ row, rank: (order[index % order.length] ?? 0) + index }))
    .toSorted((a, b) => (a.rank % 1_009) - (b.rank % 1_009))
  yield* deliver(
    messages.map(({ row }) => row),
    batch,
  )
  const users = yield* UserEmbeddings
  const { audit } = yield* Auditor.Auditor
  const { rebuild } = yield* Rebuilder.Rebuilder
  for (const [owner, members] of peopleOf(
    ids,
    merged.map(({ interaction }) => interaction),
  )) {
    const survivors = [...events.values()]
      .filter(({ interaction, retracted }) => members.includes(interaction.user_id) && !retracted)
      .map(({ interaction }) => interaction)
    const found = yield* Effect.forEach(members, (member) => ownerOf(users, member))
    expect(found.map(({ user_id }) => user_id)).toEqual(members.map(() => owner))
    yield* expectSurvivors(found[0]!.record?.embedding, survivors)
    if (survivors.length === 0) continue
    expect(yield* rebuild({ user: members[0]! })).toMatchObject({ rebuilt: 1, failed: 0 })
    yield* expectSurvivors((yield* ownerOf(users, owner)).record?.embedding, survivors)
    expect(yield* audit({ user: members[0]! })).toMatchObject({ extra: 0, missing: 0 })
  }
  expect(yield* audit({})).toMatchObject({ extra: 0, missing: 0 })
}, Effect.scoped)

const suite = (
  name: string,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
  numRuns: number,
) =>
  layerSuite(
    name,
    Layer.merge(Auditor.layer, Rebuilder.layer).pipe(
      Layer.provideMerge(eventVectors),
      Layer.provideMerge(stack),
    ),
    (it) => {
      it(
        "gives each person the vector, the counts and the newest events; live, rebuilt and audited",
        () =>
          Effect.gen(function* () {
            for (const [index, text] of ["tent for two", "desk lamp", "espresso machine"].entries())
              yield* storeProduct(`p-${index}`, text)
            const runtime = yield* Effect.runtime<
              Effect.Effect.Context<ReturnType<typeof check>> | EmbeddingConfig
            >()
            const property = fc.asyncProperty(scenario, (one) => Runtime.runPromise(runtime)(check(one)))
            yield* Effect.promise(() => fc.assert(property, { numRuns }))
          }),
        120_000,
      )
    },
  )

suite("events, retractions and merges on the embedded stack", embedded(), 25)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  suite("events, retractions and merges", external(), 10),
)
