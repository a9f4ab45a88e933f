/** The HTTP contract: routes, payloads and answers. `/openapi.json` and `/docs` are generated from it. */
import { HttpApi, HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { namePattern } from "../model/EventTypes.ts"
import { EventType, MessageId } from "../model/Interaction.ts"
import { FieldIssue } from "../model/Problem.ts"
import { History } from "../model/UserEmbedding.ts"
import { BulkItem, ProductBody, SearchBody } from "../record/Submission.ts"
import { completeDocument, type Document } from "./ApiDocument.ts"
import { product, user, wellFormed } from "./ApiParameters.ts"
import { operations } from "./OperationsApi.ts"
import { recommendations } from "./RecommendationApi.ts"

/** Greatest body in bytes, of the bulk route and of all others. */
export const bulkBodyBytes = 1024 * 1024
export const bodyBytes = 64 * 1024
/** Of the route that takes a vector: room for its numbers, where 64 KiB are too few (from 2,048 dimensions on). */
export const vectorBytes = (dimensions: number): number => Math.max(bodyBytes, dimensions * 32)
/** Items of one bulk request. */
export const bulkItems = 1_000

const Recorded = Schema.Struct({
  message_id: MessageId,
  user_id: Schema.String,
  event_type: EventType,
  occurred_at: Schema.String,
  duplicate: Schema.Boolean,
}).annotations({ identifier: "Recorded" })

const BulkResult = Schema.Struct({
  index: Schema.Number,
  status: Schema.Literal(201, 200, 422, 429),
  message_id: Schema.optional(MessageId),
  duplicate: Schema.optional(Schema.Boolean),
  error: Schema.optional(
    Schema.Struct({ detail: Schema.String, errors: Schema.optional(Schema.Array(FieldIssue)) }),
  ),
})
export const BulkReport = Schema.Struct({
  accepted: Schema.Number,
  duplicates: Schema.Number,
  rejected: Schema.Number,
  results: Schema.Array(BulkResult),
}).annotations({ identifier: "BulkReport" })

const RecentEvent = Schema.Struct({
  event_type: EventType,
  search_phrase: Schema.optional(Schema.String),
  product_id: Schema.optional(Schema.String),
  occurred_at: Schema.String,
  message_id: MessageId,
})

export const Embedding = Schema.Struct({
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
  recent: Schema.Array(RecentEvent),
  metadata: Schema.Record({ key: Schema.String, value: Schema.Union(Schema.Number, Schema.String) }),
  embedding: Schema.optional(Schema.Array(Schema.Number)),
}).annotations({ identifier: "UserEmbedding" })

const shortText = Schema.optionalWith(
  wellFormed.pipe(Schema.filter((text) => text.length <= 255 || "must be at most 255 characters")),
  { nullable: true },
)
/** Exactly one of `vector` and `text`. Without a name or category what is stored stays. */
export const ProductEmbeddingBody = Schema.Struct({
  vector: Schema.optional(Schema.Array(Schema.Number)),
  text: Schema.optional(
    Schema.compose(wellFormed, Schema.Trim).pipe(
      Schema.filter((text) => (text.length > 0 && text.length <= 8192) || "must be 1 to 8192 characters"),
    ),
  ),
  product_name: shortText,
  category: shortText,
})
  .pipe(
    Schema.filter(
      ({ text, vector }) => (text === undefined) !== (vector === undefined) || "give either vector or text",
    ),
  )
  .annotations({ identifier: "ProductEmbeddingBody" })

const ProductStored = Schema.Struct({
  product_id: Schema.String,
  space: Schema.String,
  dimension_count: Schema.Number,
  created: Schema.Boolean,
})

const Health = Schema.Struct({
  status: Schema.Literal("ok", "degraded", "unavailable"),
  dependencies: Schema.Record({
    key: Schema.String,
    value: Schema.Struct({
      status: Schema.Literal("up", "degraded", "down"),
      detail: Schema.optional(Schema.String),
      version: Schema.optional(Schema.String),
      latency_ms: Schema.optional(Schema.Number),
    }),
  }),
}).annotations({ identifier: "Health" })

/** Ids decoded together with header and body, so that one answer names all that is wrong. */
const idAsSent = Schema.String.annotations({
  jsonSchema: { type: "string", pattern: "^[A-Za-z0-9._:-]{1,64}$" },
})
const sentUser = HttpApiSchema.param("userId", idAsSent)
const sentProduct = HttpApiSchema.param("productId", idAsSent)
const sentType = HttpApiSchema.param(
  "type",
  Schema.String.annotations({ jsonSchema: { type: "string", pattern: namePattern.source } }),
)

const productEvent = <Name extends string>(
  endpoint: HttpApiEndpoint.HttpApiEndpoint<
    Name,
    "POST",
    { readonly userId: string; readonly productId: string }
  >,
) =>
  endpoint.setPayload(ProductBody).addSuccess(Recorded, { status: 201 }).addSuccess(Recorded, { status: 200 })

const interactions = HttpApiGroup.make("interactions")
  .add(
    HttpApiEndpoint.post("search")`/api/user/${sentUser}/search`
      .setPayload(SearchBody)
      .addSuccess(Recorded, { status: 201 })
      .addSuccess(Recorded, { status: 200 }),
  )
  .add(productEvent(HttpApiEndpoint.post("view")`/api/user/${sentUser}/product/${sentProduct}/view`))
  .add(productEvent(HttpApiEndpoint.post("click")`/api/user/${sentUser}/product/${sentProduct}/click`))
  .add(productEvent(HttpApiEndpoint.post("purchase")`/api/user/${sentUser}/product/${sentProduct}/purchase`))
  .add(
    HttpApiEndpoint.post("product")`/api/user/${sentUser}/product/${sentProduct}/${sentType}`
      .setPayload(ProductBody)
      .addSuccess(Recorded, { status: 201 })
      .addSuccess(Recorded, { status: 200 })
      .annotate(OpenApi.Description, "Records an event of a type that EVENT_WEIGHTS adds."),
  )
  .add(
    HttpApiEndpoint.post("bulk", "/api/interactions")
      .setPayload(Schema.Array(BulkItem).pipe(Schema.minItems(1), Schema.maxItems(bulkItems)))
      .addSuccess(BulkReport, { status: 200 })
      .addSuccess(BulkReport, { status: 207 }),
  )

const trueOrFalse = Schema.Literal("true", "false").annotations({
  message: () => ({ message: "must be true or false", override: true }),
})
const embeddings = HttpApiGroup.make("embeddings")
  .add(
    HttpApiEndpoint.del("eraseUser")`/api/user/${user}`
      .addSuccess(HttpApiSchema.NoContent)
      .annotate(
        OpenApi.Description,
        "Erases the user everywhere: log, embedding, dead letters; what is queued is defeated. Safe to repeat.",
      ),
  )
  .add(
    HttpApiEndpoint.get("embedding")`/api/user/${user}/embedding`
      .setUrlParams(Schema.Struct({ vector: Schema.optional(trueOrFalse) }))
      .addSuccess(Embedding),
  )
  .add(
    HttpApiEndpoint.put("putProduct")`/api/product/${product}/embedding`
      .setPayload(ProductEmbeddingBody)
      .addSuccess(ProductStored, { status: 201 })
      .addSuccess(ProductStored, { status: 200 }),
  )

const health = HttpApiGroup.make("health")
  .add(HttpApiEndpoint.get("livez", "/livez").addSuccess(Schema.Struct({ status: Schema.Literal("ok") })))
  .add(
    HttpApiEndpoint.get("readyz", "/readyz")
      .setUrlParams(Schema.Struct({ verbose: Schema.optional(Schema.String) }))
      .addSuccess(Health)
      .addSuccess(Health, { status: 503 }),
  )
  .add(
    HttpApiEndpoint.get("metrics", "/metrics").addSuccess(
      HttpApiSchema.Text().annotations({ description: "Metrics in the text format of Prometheus" }),
    ),
  )

export const api = HttpApi.make("user-embeddings")
  .add(interactions)
  .add(embeddings)
  .add(recommendations)
  .add(operations)
  .add(health)
  .annotate(OpenApi.Title, "user-embeddings")
  .annotate(OpenApi.Description, "Keeps a vector of every user's taste up to date from what they do.")
  .annotate(OpenApi.Version, "1.0")
  .annotate(OpenApi.Transform, (document) => completeDocument(document as Document))
