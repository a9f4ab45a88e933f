/** One user's embedding in figures, with the newest events and the nearest products. */
import { Effect, Schema } from "effect"
import { embeddingJson } from "../api/EmbeddingJson.ts"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { decay, weightOf } from "../model/Fold.ts"
import type { UserId } from "../model/Interaction.ts"
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
 * `share` of an event = weight · exp(-λ · days before last_updated) / total_weight. In cumulative history it is the
 * event's part of the weight behind the vector; in recency history it only shows the decayed weight. An event that is not
 * applied, because it is in flight or its product has no embedding, has no share.
 */
export const userInFigures = Effect.fn("userInFigures")(function* (user_id: UserId) {
  const users = yield* UserEmbeddings
  const log = yield* InteractionLog
  const products = yield* ProductEmbeddings
  const config = yield* EmbeddingConfig
  // Read before the record, so that an event applied meanwhile counts as applied.
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
        share: applied.has(AppliedIds.prefix(message_id))
          ? (weightOf(config.eventTypes.weights, event_type) *
              decay(embedding.metadata.decay_lambda, embedding.last_updated, Date.parse(occurred_at))) /
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
