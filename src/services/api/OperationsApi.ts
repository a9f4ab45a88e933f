/** The routes for operators. The page reads them. */
import { HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { Destroys, RouteScopes } from "../AccessTokens.ts"
import { UserId } from "../model/Interaction.ts"
import { HistoryFigures } from "../operate/History.ts"
import { RecentEvent } from "../operate/RecentEvents.ts"
import { SystemStats } from "../operate/SystemStats.ts"
import { withExample } from "./ApiDocument.ts"
import { Limit, refused, user } from "./ApiParameters.ts"
import { Authorisation, bodyStatuses, problems } from "./ApiProblems.ts"
import { UserProfile } from "./EmbeddingJson.ts"

const Count = Schema.Number
const OrNull = Schema.NullOr
const deadLetter = {
  id: OrNull(Schema.String),
  message_id: OrNull(Schema.String),
  user_id: OrNull(Schema.String),
  event_type: OrNull(Schema.String),
  product_id: OrNull(Schema.String),
  error: OrNull(Schema.String),
  message: OrNull(Schema.String),
  attempts: Count,
  first_failed_at: OrNull(Schema.String),
  last_failed_at: OrNull(Schema.String),
}
const DeadLetters = Schema.Struct({
  total: Count,
  items: Schema.Array(Schema.Struct(deadLetter)).annotations({ description: "newest first" }),
}).annotations({ identifier: "DeadLetters" })
export const DeadLetterGroup = Schema.Struct({
  error: OrNull(Schema.String),
  count: Count,
  first_failed_at: OrNull(Schema.String),
  last_failed_at: OrNull(Schema.String),
  /** The newest of the group. */
  example: Schema.Struct(deadLetter).pick("id", "message_id", "message"),
})
const DeadLetterGroups = Schema.Struct({ groups: Schema.Array(DeadLetterGroup) }).annotations({
  identifier: "DeadLetterGroups",
})
const DeadLettersInFull = Schema.Struct({
  items: Schema.Array(
    Schema.Struct({
      ...deadLetter,
      retried_from: OrNull(Schema.String),
      worker: OrNull(Schema.String),
      original_exchange: OrNull(Schema.String),
      original_routing_key: OrNull(Schema.String),
      body: OrNull(Schema.String),
      body_base64: OrNull(Schema.String),
    }),
  ),
}).annotations({ identifier: "DeadLettersInFull" })
export const DeadLetterSelection = Schema.Union(
  Schema.Struct({ ids: Schema.Array(UserId).pipe(Schema.minItems(1), Schema.maxItems(1_000)) }),
  Schema.Struct({ error: Schema.NonEmptyString }),
  Schema.Struct({ all: Schema.Literal(true) }),
).annotations({ identifier: "DeadLetterSelection" })

/** Which dead letters; each that is left out admits all. */
const filters = {
  error: Schema.optional(Schema.String),
  user: Schema.optional(Schema.String),
  product: Schema.optional(Schema.String),
}
export const defaultHours = 24
const Hours = Schema.optional(
  Schema.String.pipe(
    Schema.pattern(/^([1-9]|1[0-9]|2[0-4])$/, {
      ...refused("must be an integer from 1 to 24"),
      jsonSchema: { type: "integer", minimum: 1, maximum: 24, default: defaultHours },
    }),
    Schema.compose(Schema.NumberFromString),
  ),
)

const letterId = HttpApiSchema.param("letterId", Schema.typeSchema(UserId))
export const operations = HttpApiGroup.make("operations")
  .annotate(OpenApi.Description, "For operators: figures and dead letters. The page at `/` reads them.")
  .add(
    HttpApiEndpoint.get("system", "/api/system")
      .annotate(OpenApi.Summary, "Read the figures of the system")
      .addSuccess(SystemStats),
  )
  .add(
    HttpApiEndpoint.get("systemEvents", "/api/system/events")
      .annotate(OpenApi.Summary, "Follow the figures of the system")
      .addSuccess(
        HttpApiSchema.Text({ contentType: "text/event-stream" }).annotations({
          description: "SystemStats as server-sent events, one every few seconds",
        }),
      ),
  )
  .add(
    HttpApiEndpoint.get("systemHistory", "/api/system/history")
      .annotate(OpenApi.Summary, "Read the figures of the last hours")
      .setUrlParams(Schema.Struct({ hours: Hours }))
      .addSuccess(HistoryFigures)
      .addError(problems(422))
      .annotate(
        OpenApi.Description,
        "One sample a minute of the last hours, from the memory of this API: it begins anew with the process.",
      ),
  )
  .add(
    HttpApiEndpoint.get("recentEvents", "/api/events")
      .annotate(OpenApi.Summary, "Search the events recorded last")
      .setUrlParams(
        Schema.Struct({
          user: Schema.optional(Schema.String),
          product: Schema.optional(Schema.String),
          type: Schema.optional(Schema.String),
          limit: Limit,
        }),
      )
      .addSuccess(
        Schema.Struct({ items: Schema.Array(RecentEvent) }).annotations({ identifier: "RecentEvents" }),
      )
      .addError(problems(422, 503))
      .annotate(
        OpenApi.Description,
        "Those of the 1,000 events recorded last that match, newest first, and whether they are applied.",
      ),
  )
  .add(
    HttpApiEndpoint.get("deadLetters", "/api/dead-letters")
      .annotate(OpenApi.Summary, "List dead letters")
      .setUrlParams(Schema.Struct({ ...filters, limit: Limit }))
      .addSuccess(DeadLetters)
      .addError(problems(422, 503)),
  )
  .add(
    HttpApiEndpoint.get("deadLetterGroups", "/api/dead-letters/groups")
      .annotate(OpenApi.Summary, "Count dead letters by error")
      .setUrlParams(Schema.Struct(filters))
      .addSuccess(DeadLetterGroups)
      .addError(problems(422, 503)),
  )
  .add(
    HttpApiEndpoint.get("deadLetter")`/api/dead-letters/${letterId}`
      .annotate(OpenApi.Summary, "Read a dead letter in full")
      .addSuccess(DeadLettersInFull)
      .addError(problems(404, 422, 503)),
  )
  .add(
    HttpApiEndpoint.post("retryDeadLetters", "/api/dead-letters/retry")
      .annotate(OpenApi.Summary, "Publish dead letters again")
      .setPayload(DeadLetterSelection)
      .addSuccess(Schema.Struct({ picked: Count, retried: Count }))
      .addError(problems(...bodyStatuses, 503))
      .annotate(OpenApi.Transform, withExample({ error: "unusable_vector" }))
      .annotate(Destroys, true),
  )
  .add(
    HttpApiEndpoint.post("removeDeadLetters", "/api/dead-letters/remove")
      .annotate(OpenApi.Summary, "Remove dead letters")
      .setPayload(DeadLetterSelection)
      .addSuccess(Schema.Struct({ removed: Count }))
      .addError(problems(...bodyStatuses, 404, 503))
      .annotate(OpenApi.Transform, withExample({ ids: ["2f1c7a52-6f0e-4f1e-9b7e-0a4b8c6d9e11"] }))
      .annotate(Destroys, true),
  )
  .add(
    HttpApiEndpoint.get("profile")`/api/user/${user}/profile`
      .annotate(OpenApi.Summary, "Read what makes up a user")
      .addSuccess(UserProfile)
      .addError(problems(404, 422, 503)),
  )
  .middleware(Authorisation)
  .annotate(RouteScopes, ["operate"])
