/** Events, their delivery to workers, and what must be left of them. */
import { expect } from "bun:test"
import { Clock, Context, Effect, Layer } from "effect"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import * as EventTypes from "../../src/services/model/EventTypes.ts"
import { decay, weightOf } from "../../src/services/model/Fold.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import type { UserEmbedding } from "../../src/services/model/UserEmbedding.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import { InteractionLog, type LoggedInteraction } from "../../src/services/ports/InteractionLog.ts"
import * as EmbeddingUpdater from "../../src/services/update/EmbeddingUpdater.ts"
import { EventVectors } from "../../src/services/update/EventVectors.ts"
import { decoded, delivery } from "./delivery.ts"
import { product, search } from "./pipeline.ts"

export const phrases = ["running shoes", "red wine", "board games", "cordless drill", "baby blanket"]
export const productTexts = ["tent for two", "desk lamp", "espresso machine"]
const productTypes = ["product_view", "product_click", "product_purchase"] as const

/** What a user did: below 5 a search, otherwise an event with one of three products. */
export interface Act {
  readonly what: number
  readonly hour: number
}

export const interactionOf = (user: string, { hour, what }: Act) => {
  const at = new Date(Date.UTC(2026, 0, 1, hour)).toISOString()
  const type = productTypes[(what - 5) % 3]!
  return what < 5
    ? search(user, phrases[what]!, at)
    : product(user, type, `p-${Math.floor((what - 5) / 3)}`, at)
}

const twoDays = 2 * 86_400_000
/** The rows of the log, by default recorded two days after the products got their vectors. */
export const record = Effect.fnUntraced(function* (
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

export const makeWorkers = (count: number) =>
  Effect.replicateEffect(
    Effect.map(Layer.build(Layer.fresh(EmbeddingUpdater.layer)), (context) =>
      Context.get(context, EmbeddingUpdater.EmbeddingUpdater),
    ),
    count,
  )

export const toMessage = ({ id: logId, interaction, recordedAt }: LoggedInteraction) =>
  decoded(delivery(encodeMessage(interaction), { logId, recordedAt }))

/** Delivers to two workers at a time, and again what they want to retry. */
export const deliver = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>, batch: number) {
  const workers = yield* makeWorkers(2)
  let left = rows.map(toMessage)
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

export const expectSurvivors = Effect.fnUntraced(function* (
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

export const audited = Effect.fnUntraced(function* (user: string) {
  const { extra, missing } = yield* (yield* Auditor.Auditor).audit({ user })
  return { extra, missing }
})

/** Thirty events of a user, with three products and five phrases. */
export const history = (user: string) =>
  Array.from({ length: 30 }, (_, i) => interactionOf(user, { what: i % 14, hour: 7 * i }))

/** Records interactions, and hands them to a new worker in one batch. */
export const apply = Effect.fnUntraced(function* (
  interactions: ReadonlyArray<Interaction.Interaction>,
  later = twoDays,
) {
  const rows = yield* record(interactions, later)
  const [worker] = yield* makeWorkers(1)
  return yield* worker!.update(rows.map(toMessage))
})
export const acked = { _tag: "Settle", settlement: { _tag: "Ack" } } as const
