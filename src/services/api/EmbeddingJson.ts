/** A user embedding as JSON: in responses of the API, in `user show` and in `export embeddings`. */
import { Schema } from "effect"
import { EventType, MessageId } from "../model/Interaction.ts"
import { History, type UserEmbedding } from "../model/UserEmbedding.ts"

const RecentEvent = Schema.Struct({
  event_type: EventType,
  search_phrase: Schema.optional(Schema.String),
  product_id: Schema.optional(Schema.String),
  occurred_at: Schema.String,
  message_id: MessageId,
})

const facts = {
  user_id: Schema.String,
  dimension_count: Schema.Number,
  last_updated: Schema.String,
  event_count: Schema.Number,
  last_event_type: EventType,
  last_event_id: MessageId,
  mass: Schema.Number,
  total_weight: Schema.Number,
  space: Schema.String,
  history: History,
  created_at: Schema.String,
  updated_at: Schema.String,
  version: Schema.Number,
}
const metadata = Schema.Record({ key: Schema.String, value: Schema.Union(Schema.Number, Schema.String) })

export const Embedding = Schema.Struct({
  ...facts,
  recent: Schema.Array(RecentEvent),
  metadata,
  embedding: Schema.optional(Schema.Array(Schema.Number)),
  read: Schema.optional(Schema.Literal("taste")).annotations({
    description: "taste: the vector is the user's taste, not the stored embedding",
  }),
}).annotations({ identifier: "UserEmbedding" })

/** The newest events in place of the vector and the recent events. */
export const UserProfile = Schema.Struct({
  ...facts,
  metadata,
  norm: Schema.Number,
  events: Schema.Array(
    // As they stand in the log, where another program may have written something else.
    Schema.Struct({
      event_type: Schema.String,
      reference: Schema.NullOr(Schema.String),
      product_name: Schema.NullOr(Schema.String),
      occurred_at: Schema.String,
      message_id: Schema.String,
      share: Schema.NullOr(Schema.Number).annotations({
        description:
          "w / Σ |w| with w = weight · exp(−λ · days before last_updated), negative if the event moves the vector away; null: not applied, because the event is in flight or its product has no embedding",
      }),
      trace_id: Schema.NullOr(Schema.String),
    }),
  ),
}).annotations({ identifier: "UserProfile" })

/** Without the vector. Instants are ISO 8601. */
export const embeddingJson = (
  { embedding, metadata, recent, ...facts }: UserEmbedding,
  version: number,
): typeof Embedding.Type => {
  const iso = (instant: number) => new Date(instant).toISOString()
  return {
    ...facts,
    recent: recent.map(({ product_id, search_phrase, ...event }) => ({
      ...event,
      ...(search_phrase === null ? { product_id: product_id ?? undefined } : { search_phrase }),
    })),
    last_updated: iso(facts.last_updated),
    created_at: iso(facts.created_at),
    updated_at: iso(facts.updated_at),
    version,
    metadata: { ...metadata, last_recalculation: iso(metadata.last_recalculation) },
    dimension_count: embedding.length,
  }
}
