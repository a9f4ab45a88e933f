/** The HTTP contract: routes, payloads and answers. `/openapi.json` and `/docs` are generated from it. */
import { HttpApi, HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { JSONSchema, Schema } from "effect"
import { EventType, MessageId, ProductId, UserId } from "./Interaction.ts"
import { FieldIssue, ProblemDocument } from "./Problem.ts"
import { BulkItem, ProductBody, SearchBody } from "./Submission.ts"
import { History } from "./UserEmbedding.ts"

/** Greatest body in bytes, of the bulk route and of all others. */
export const bulkBodyBytes = 1024 * 1024
export const bodyBytes = 64 * 1024
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

const Embedding = Schema.Struct({
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
  recent: Schema.Array(Schema.Unknown),
  metadata: Schema.Record({ key: Schema.String, value: Schema.Union(Schema.Number, Schema.String) }),
  embedding: Schema.optional(Schema.Array(Schema.Number)),
}).annotations({ identifier: "UserEmbedding" })

/** Exactly one of `vector` and `text`. */
export const ProductEmbeddingBody = Schema.Struct({
  vector: Schema.optional(Schema.Array(Schema.Number)),
  text: Schema.optional(
    Schema.Trim.pipe(
      Schema.filter((text) => (text.length > 0 && text.length <= 8192) || "must be 1 to 8192 characters"),
    ),
  ),
  product_name: Schema.optional(Schema.String),
  category: Schema.optional(Schema.String),
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
    }),
  }),
}).annotations({ identifier: "Health" })

const user = HttpApiSchema.param("userId", Schema.typeSchema(UserId))
const product = HttpApiSchema.param("productId", Schema.typeSchema(ProductId))

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
    HttpApiEndpoint.post("search")`/api/user/${user}/search`
      .setPayload(SearchBody)
      .addSuccess(Recorded, { status: 201 })
      .addSuccess(Recorded, { status: 200 }),
  )
  .add(productEvent(HttpApiEndpoint.post("view")`/api/user/${user}/product/${product}/view`))
  .add(productEvent(HttpApiEndpoint.post("click")`/api/user/${user}/product/${product}/click`))
  .add(productEvent(HttpApiEndpoint.post("purchase")`/api/user/${user}/product/${product}/purchase`))
  .add(
    HttpApiEndpoint.post("bulk", "/api/interactions")
      .setPayload(Schema.Array(BulkItem).pipe(Schema.minItems(1), Schema.maxItems(bulkItems)))
      .addSuccess(BulkReport, { status: 200 })
      .addSuccess(BulkReport, { status: 207 }),
  )

const embeddings = HttpApiGroup.make("embeddings")
  .add(
    HttpApiEndpoint.get("embedding")`/api/user/${user}/embedding`
      .setUrlParams(Schema.Struct({ vector: Schema.optional(Schema.Literal("true", "false")) }))
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
  .add(HttpApiEndpoint.get("readyz", "/readyz").addSuccess(Health).addSuccess(Health, { status: 503 }))

/** What the schemas can't say: the problems of every route, the key of those that record, the token. */
const completeDocument = (document: Record<string, unknown>): Record<string, unknown> => {
  const problem = {
    description: "What is wrong, as RFC 9457 problem document",
    content: { "application/problem+json": { schema: { $ref: "#/components/schemas/ProblemDocument" } } },
  }
  const key = {
    name: "Idempotency-Key",
    in: "header",
    required: false,
    description: "The same key for the same user answers with the first result, whatever the time",
    schema: { type: "string", minLength: 1, maxLength: 255 },
  }
  const { components, paths, ...rest } = document as {
    readonly components: { readonly schemas: object }
    readonly paths: Record<string, Record<string, { responses: object; parameters?: ReadonlyArray<object> }>>
  }
  const complete = ([path, methods]: (typeof entries)[number]) => {
    const operations = Object.entries(methods).map(([method, operation]) => {
      const isOpen = path === "/livez" || path === "/readyz"
      const { "400": _, ...responses } = operation.responses as Record<string, unknown>
      const problems = isOpen
        ? {}
        : Object.fromEntries(
            ["400", "401", "413", "415", "422", "429", "503"].map((status) => [status, problem]),
          )
      const parameters =
        method === "post" && path !== "/api/interactions"
          ? [...(operation.parameters ?? []), key]
          : operation.parameters
      return [method, { ...operation, parameters, responses: { ...problems, ...responses } }] as const
    })
    return [path, Object.fromEntries(operations)] as const
  }
  const entries = Object.entries(paths)
  const schemas = {
    ...components.schemas,
    ProblemDocument: JSONSchema.make(ProblemDocument).$defs?.ProblemDocument,
  }
  return { ...rest, paths: Object.fromEntries(entries.map(complete)), components: { ...components, schemas } }
}

export const api = HttpApi.make("user-embeddings")
  .add(interactions)
  .add(embeddings)
  .add(health)
  .annotate(OpenApi.Title, "user-embeddings")
  .annotate(OpenApi.Description, "Keeps a vector of every user's taste up to date from what they do.")
  .annotate(OpenApi.Version, "1.0")
  .annotate(OpenApi.Transform, completeDocument)
