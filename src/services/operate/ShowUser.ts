/** One user's embedding in figures, with the newest events and the nearest products. */
import { Effect, Schema } from "effect"
import { embeddingJson } from "../api/EmbeddingJson.ts"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { decay, type Weights, weightOf } from "../model/Fold.ts"
import type { Interaction, UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import * as Vector from "../model/Vector.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { ProductEmbeddings } from "../ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../ports/UserEmbeddings.ts"
import * as AppliedInteractions from "../update/AppliedInteractions.ts"
import { ownerOf } from "../update/People.ts"

export class UserNotFound extends Schema.TaggedError<UserNotFound>()("UserNotFound", {
  user_id: Schema.String,
  /** Whether an event of the user is recorded, or was applied. */
  known: Schema.Boolean,
}) {
  override get message() {
    return this.known
      ? `user ${this.user_id} has no embedding`
      : `user ${this.user_id} is unknown: no event is recorded`
  }
}

const eventsShown = 20
const neighboursShown = 10

/**
 * Shares of applied events by message id. `total_weight` is Σ w over all events, so Σ |w| is `total_weight` plus twice
 * what the negative events subtract; older events than these are taken as positive.
 */
const sharesOf = (
  { last_updated, metadata, total_weight }: UserEmbedding,
  events: ReadonlyArray<Interaction>,
  weights: Weights,
): ReadonlyMap<string, number> => {
  const decayed = events.map(
    ({ event_type, occurred_at }) =>
      weightOf(weights, event_type) * decay(metadata.decay_lambda, last_updated, Date.parse(occurred_at)),
  )
  const sum = decayed.reduce((all, weight) => all + Math.abs(weight), 0)
  const subtracted = decayed.reduce((all, weight) => all - Math.min(0, weight), 0)
  const total = Math.max(sum, total_weight + 2 * subtracted)
  return new Map(events.map(({ message_id }, index) => [message_id, decayed[index]! / total]))
}

/**
 * `share` of an event = w / Σ |w| with w = weight · exp(-λ · days before last_updated). A negative share moves the vector
 * away from the event. In cumulative history it is the event's part of the weight behind the vector; in recency history
 * it only shows the decayed weight. An event that is not applied, because it is in flight or its product has no
 * embedding, has no share.
 */
export const userInFigures = Effect.fn("userInFigures")(function* (user_id: UserId) {
  const users = yield* UserEmbeddings
  const log = yield* InteractionLog
  const products = yield* ProductEmbeddings
  const config = yield* EmbeddingConfig
  // Read before the record, so that an event applied meanwhile counts as applied.
  const newest = yield* log.newest(user_id, eventsShown)
  const { record, user_id: owner } = yield* ownerOf(users, user_id)
  const embedding = record?.embedding
  if (record === undefined || embedding === undefined)
    return yield* new UserNotFound({ user_id, known: record !== undefined || newest.length > 0 })

  const named = yield* products.describe(
    newest.flatMap(({ interaction: { product_id } }) => product_id ?? []),
  )
  const interactions = newest.map(({ interaction }) => interaction)
  const applied = yield* AppliedInteractions.findApplied(
    users,
    interactions.map(({ message_id }) => ({ user_id: owner, message_id })),
    new Map([[owner, AppliedInteractions.appliedState(record)]]),
  )
  const shareOf = sharesOf(
    embedding,
    interactions.filter(({ message_id }) => applied.has(AppliedIds.prefix(message_id))),
    config.eventTypes.weights,
  )
  const { recent: _, ...facts } = embeddingJson(embedding, record.version)
  return {
    ...facts,
    norm: Vector.norm(embedding.embedding),
    events: newest.map(
      ({ interaction: { event_type, message_id, occurred_at, product_id, search_phrase }, trace }) => ({
        event_type,
        reference: search_phrase ?? product_id,
        product_name: product_id === null ? null : (named.get(product_id)?.product_name ?? null),
        occurred_at,
        message_id,
        share: shareOf.get(message_id) ?? null,
        trace_id: trace?.traceparent.split("-")[1] ?? null,
      }),
    ),
  }
})

/**
 * The same, with the products nearest to the stored vector. Their `cosine` is of the stored vectors as they are; the
 * `similarity` of a recommendation is of taste and product, both centred.
 */
export const showUser = Effect.fn("showUser")(function* (user_id: UserId) {
  const figures = yield* userInFigures(user_id)
  const [users, products] = yield* Effect.all([UserEmbeddings, ProductEmbeddings])
  const vector = (yield* ownerOf(users, user_id)).record?.embedding
  if (vector === undefined) return yield* new UserNotFound({ user_id, known: true })
  const { space } = figures
  const nearest = yield* products.nearest(vector.embedding, { space, limit: neighboursShown })
  const nearest_products = nearest.map(({ similarity, ...product }) => ({ ...product, cosine: similarity }))
  return { ...figures, nearest_products }
})
