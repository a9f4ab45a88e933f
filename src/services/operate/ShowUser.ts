/** Step: one user's embedding in figures, the newest events with their share in it, nearest products. */
import { Effect, Schema } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import type { UserId } from "../model/Interaction.ts"
import { decay, weightOf } from "../model/UserEmbedding.ts"
import * as Vector from "../model/Vector.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { ProductEmbeddings } from "../ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../ports/UserEmbeddings.ts"
import * as AppliedInteractions from "./AppliedInteractions.ts"

export class UserNotFound extends Schema.TaggedError<UserNotFound>()("UserNotFound", {
  user_id: Schema.String,
}) {
  override get message() {
    return `user ${this.user_id} has no embedding`
  }
}

const eventsShown = 20
const neighboursShown = 10

/**
 * `share` of an event = weight · exp(-λ · days before last_updated) / total_weight: its part of the weight behind
 * the vector in cumulative history. In recency history it tells the decayed weight only. What is not applied (its product
 * has no embedding, or it is on its way) has none.
 */
export const userInFigures = Effect.fn("userInFigures")(function* (user_id: UserId) {
  const users = yield* UserEmbeddings
  const log = yield* InteractionLog
  const products = yield* ProductEmbeddings
  const config = yield* EmbeddingConfig
  // Before the record: what was applied meanwhile is on it.
  const newest = yield* log.newest(user_id, eventsShown)
  const record = (yield* users.load([user_id])).get(user_id)
  const embedding = record?.embedding
  if (record === undefined || embedding === undefined) return yield* new UserNotFound({ user_id })

  const named = yield* products.describe(
    newest.flatMap(({ interaction: { product_id } }) => product_id ?? []),
  )
  const interactions = newest.map(({ interaction }) => interaction)
  const applied = yield* AppliedInteractions.findApplied(
    users,
    interactions,
    new Map([[user_id, AppliedInteractions.appliedState(record)]]),
  )
  const { embedding: vector, last_updated, recent: _, ...facts } = embedding
  return {
    ...facts,
    created_at: new Date(facts.created_at).toISOString(),
    updated_at: new Date(facts.updated_at).toISOString(),
    last_updated: new Date(last_updated).toISOString(),
    version: record.version,
    dimension_count: vector.length,
    norm: Vector.norm(vector),
    metadata: {
      ...facts.metadata,
      last_recalculation: new Date(facts.metadata.last_recalculation).toISOString(),
    },
    events: newest.map(
      ({ interaction: { event_type, message_id, occurred_at, product_id, search_phrase }, trace }) => ({
        event_type,
        reference: search_phrase ?? product_id,
        product_name: product_id === null ? null : (named.get(product_id)?.product_name ?? null),
        occurred_at,
        message_id,
        share: applied.has(AppliedIds.prefix(message_id))
          ? (weightOf(config.eventTypes.weights, event_type) *
              decay(embedding.metadata.decay_lambda, last_updated, Date.parse(occurred_at))) /
            embedding.total_weight
          : null,
        trace_id: trace?.traceparent.split("-")[1] ?? null,
      }),
    ),
  }
})

/** The same, with the products nearest to the stored vector. */
export const showUser = Effect.fn("showUser")(function* (user_id: UserId) {
  const figures = yield* userInFigures(user_id)
  const [users, products] = yield* Effect.all([UserEmbeddings, ProductEmbeddings])
  const vector = (yield* users.load([user_id])).get(user_id)?.embedding
  if (vector === undefined) return yield* new UserNotFound({ user_id })
  const { space } = figures
  const nearest_products = yield* products.nearest(vector.embedding, { space, limit: neighboursShown })
  return { ...figures, nearest_products }
})
