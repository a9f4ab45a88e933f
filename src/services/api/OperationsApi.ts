/** The routes of those who run the service: the page reads them. */
import { HttpApiEndpoint, HttpApiGroup, HttpApiSchema } from "@effect/platform"
import { Schema } from "effect"
import { EventType, MessageId, UserId } from "../model/Interaction.ts"
import { Limit, user } from "./ApiParameters.ts"

const Count = Schema.Number
const OrNull = <A>(schema: Schema.Schema<A>) => Schema.NullOr(schema)
const System = Schema.Struct({
  queues: OrNull(
    Schema.Struct({
      user_embedding_updates: Schema.Struct({ ready: Count, unacked: OrNull(Count), consumers: Count }),
      isolated: Count,
      retry: Schema.Record({ key: Schema.String, value: Count }),
      failed: Count,
    }),
  ),
  rates: OrNull(Schema.Struct({ publish: Count, deliver: Count, ack: Count })),
  log: OrNull(
    Schema.Struct({ total: Count, unpublished: Count, oldest_unpublished_s: OrNull(Schema.Number) }),
  ),
  users: OrNull(Count),
  event_to_embedding_s: OrNull(
    Schema.Struct({
      p50: OrNull(Schema.Number),
      p95: OrNull(Schema.Number),
      p99: OrNull(Schema.Number),
    }),
  ),
  unavailable: Schema.Array(Schema.String),
}).annotations({ identifier: "SystemStats" })

const Letter = {
  id: OrNull(Schema.String),
  message_id: OrNull(Schema.String),
  user_id: OrNull(Schema.String),
  event_type: OrNull(Schema.String),
  error: OrNull(Schema.String),
  message: OrNull(Schema.String),
  attempts: Count,
  first_failed_at: OrNull(Schema.String),
  last_failed_at: OrNull(Schema.String),
}
const Letters = Schema.Struct({
  total: Count,
  items: Schema.Array(Schema.Struct(Letter)).annotations({ description: "newest first" }),
}).annotations({ identifier: "DeadLetters" })
const LetterGroups = Schema.Struct({
  groups: Schema.Array(
    Schema.Struct({
      error: OrNull(Schema.String),
      count: Count,
      first_failed_at: OrNull(Schema.String),
      last_failed_at: OrNull(Schema.String),
      example: Schema.Struct({
        id: OrNull(Schema.String),
        message_id: OrNull(Schema.String),
        message: OrNull(Schema.String),
      }),
    }),
  ),
}).annotations({ identifier: "DeadLetterGroups" })
const LettersInFull = Schema.Struct({
  items: Schema.Array(
    Schema.Struct({
      ...Letter,
      retried_from: OrNull(Schema.String),
      worker: OrNull(Schema.String),
      original_exchange: OrNull(Schema.String),
      original_routing_key: OrNull(Schema.String),
      body: OrNull(Schema.String),
      body_base64: OrNull(Schema.String),
    }),
  ),
}).annotations({ identifier: "DeadLettersInFull" })
/** Which dead letters are meant: these, those of one error, or all. */
export const DeadLetterIds = Schema.Union(
  Schema.Struct({ ids: Schema.Array(UserId).pipe(Schema.minItems(1), Schema.maxItems(1_000)) }),
  Schema.Struct({ error: Schema.NonEmptyString }),
  Schema.Struct({ all: Schema.Literal(true) }),
).annotations({ identifier: "PickedLetters" })

const Profile = Schema.Struct({
  user_id: Schema.String,
  event_count: Count,
  norm: Schema.Number,
  space: Schema.String,
  events: Schema.Array(
    Schema.Struct({
      event_type: EventType,
      reference: OrNull(Schema.String),
      product_name: OrNull(Schema.String),
      occurred_at: Schema.String,
      message_id: MessageId,
      share: OrNull(Schema.Number).annotations({
        description:
          "weight · exp(−λ · days before last_updated) / total_weight; null: not in the vector, as its product has no embedding, or on its way",
      }),
      trace_id: OrNull(Schema.String),
    }),
  ),
}).annotations({ identifier: "UserProfile" })

const letterId = HttpApiSchema.param("letterId", Schema.typeSchema(UserId))
export const operations = HttpApiGroup.make("operations")
  .add(HttpApiEndpoint.get("system", "/api/system").addSuccess(System))
  .add(
    HttpApiEndpoint.get("systemEvents", "/api/system/events").addSuccess(
      HttpApiSchema.Text({ contentType: "text/event-stream" }).annotations({
        description: "SystemStats as server-sent events, one every few seconds",
      }),
    ),
  )
  .add(
    HttpApiEndpoint.get("deadLetters", "/api/dead-letters")
      .setUrlParams(Schema.Struct({ error: Schema.optional(Schema.String), limit: Limit }))
      .addSuccess(Letters),
  )
  .add(HttpApiEndpoint.get("deadLetterGroups", "/api/dead-letters/groups").addSuccess(LetterGroups))
  .add(HttpApiEndpoint.get("deadLetter")`/api/dead-letters/${letterId}`.addSuccess(LettersInFull))
  .add(
    HttpApiEndpoint.post("retryDeadLetters", "/api/dead-letters/retry")
      .setPayload(DeadLetterIds)
      .addSuccess(Schema.Struct({ picked: Count, retried: Count })),
  )
  .add(
    HttpApiEndpoint.post("removeDeadLetters", "/api/dead-letters/remove")
      .setPayload(DeadLetterIds)
      .addSuccess(Schema.Struct({ removed: Count })),
  )
  .add(HttpApiEndpoint.get("profile")`/api/user/${user}/profile`.addSuccess(Profile))
