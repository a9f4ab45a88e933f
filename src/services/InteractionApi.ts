/** The HTTP contract: routes, payloads and answers. `/openapi.json` and `/docs` are generated from it. */
import { HttpApi, HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { JSONSchema, Record, Schema } from "effect"
import { EventType, MessageId, ProductId, SearchPhrase, UserId } from "./Interaction.ts"
import { FieldIssue, ProblemDocument } from "./Problem.ts"
import { BulkItem, ProductBody, SearchBody } from "./Submission.ts"
import { History } from "./UserEmbedding.ts"

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

const wellFormed = Schema.String.pipe(
  Schema.filter((text) => text.isWellFormed() || "must not contain lone surrogates"),
)
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

const user = HttpApiSchema.param("userId", Schema.typeSchema(UserId))
const product = HttpApiSchema.param("productId", Schema.typeSchema(ProductId))
/** Ids decoded together with header and body, so that one answer names all that is wrong. */
const idAsSent = Schema.String.annotations({
  jsonSchema: { type: "string", pattern: "^[A-Za-z0-9._:-]{1,64}$" },
})
const sentUser = HttpApiSchema.param("userId", idAsSent)
const sentProduct = HttpApiSchema.param("productId", idAsSent)

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

const refused = (rule: string) => ({ message: () => ({ message: rule, override: true }) })
const limitRule = "must be an integer from 1 to 100"
const Limit = Schema.optionalWith(
  Schema.String.pipe(
    Schema.pattern(/^([1-9][0-9]?|100)$/, refused(limitRule)),
    Schema.compose(Schema.NumberFromString),
  ),
  { default: () => 10 },
)
const Category = Schema.optional(
  wellFormed.pipe(
    Schema.filter((text) => (text.length > 0 && text.length <= 255) || "must be 1 to 255 characters"),
  ),
)
const choice = <const Values extends readonly [string, ...Array<string>]>(...values: Values) =>
  Schema.Literal(...values).annotations(refused(`must be one of ${values.join(", ")}`))

const described = {
  product_id: Schema.String,
  product_name: Schema.NullOr(Schema.String),
  category: Schema.NullOr(Schema.String),
}
const Recommended = Schema.Struct({
  user_id: Schema.String,
  source: Schema.Literal("taste", "popular").annotations({
    description: "popular: the user has no taste yet; score = popularity, of decayed counts",
  }),
  items: Schema.Array(
    Schema.Struct({
      ...described,
      score: Schema.Number.annotations({ description: "similarity + popularity" }),
      similarity: Schema.Number.annotations({ description: "cosine of taste and product, both centred" }),
      popularity: Schema.Number.annotations({
        description:
          "POPULARITY_WEIGHT · log(1 + n) / log(1 + greatest n); n = interactions with the product",
      }),
      because: Schema.Array(
        Schema.Struct({
          event_type: EventType,
          product_id: Schema.optional(Schema.String),
          search_phrase: Schema.optional(Schema.String),
          occurred_at: Schema.String,
          share: Schema.Number,
        }),
      ).annotations({ description: "the newest events that speak for the product, largest share first" }),
      rest: Schema.Number.annotations({ description: "share of all older events; all shares add up to 1" }),
    }),
  ),
}).annotations({ identifier: "Recommendations" })
const BoughtBefore = Schema.Struct({
  user_id: Schema.String,
  items: Schema.Array(
    Schema.Struct({
      ...described,
      score: Schema.Number.annotations({ description: "sum of exp(−λ · days since) over the purchases" }),
      purchases: Schema.Number,
      last_purchased_at: Schema.String,
    }),
  ),
}).annotations({ identifier: "BuyAgain" })
const SimilarProducts = Schema.Struct({
  product_id: Schema.String,
  items: Schema.Array(Schema.Struct({ ...described, similarity: Schema.Number })),
}).annotations({ identifier: "SimilarProducts" })
const SimilarUsers = Schema.Struct({
  user_id: Schema.String,
  compared: Schema.Number.annotations({ description: "users compared with" }),
  items: Schema.Array(Schema.Struct({ user_id: Schema.String, similarity: Schema.Number })),
}).annotations({ identifier: "SimilarUsers" })
/** Asks for the products that a phrase means; nothing is recorded. */
export const CatalogueSearchBody = Schema.Struct({
  query: SearchPhrase,
  user: Schema.optionalWith(UserId, { nullable: true }),
  category: Schema.optionalWith(Category.from, { nullable: true }),
  limit: Schema.optionalWith(Schema.Int.pipe(Schema.between(1, 100)).annotations(refused(limitRule)), {
    default: () => 10,
    nullable: true,
  }),
}).annotations({ identifier: "CatalogueSearchBody" })
const FoundProducts = Schema.Struct({
  query: Schema.String,
  user_id: Schema.NullOr(Schema.String),
  personalised: Schema.Boolean.annotations({ description: "whether the user's taste took part" }),
  items: Schema.Array(
    Schema.Struct({
      ...described,
      score: Schema.Number.annotations({ description: "similarity + 0.3 · taste" }),
      similarity: Schema.Number.annotations({ description: "cosine of phrase and product, both centred" }),
      taste: Schema.NullOr(Schema.Number).annotations({
        description: "cosine of the user's taste and product",
      }),
    }),
  ),
}).annotations({ identifier: "FoundProducts" })

const recommendations = HttpApiGroup.make("recommendations")
  .add(
    HttpApiEndpoint.get("recommend")`/api/user/${user}/recommendations`
      .setUrlParams(
        Schema.Struct({
          limit: Limit,
          exclude: Schema.optionalWith(choice("purchased", "seen", "none"), {
            default: () => "purchased" as const,
          }),
          category: Category,
          fallback: Schema.optionalWith(choice("popular", "none"), { default: () => "popular" as const }),
        }),
      )
      .addSuccess(Recommended),
  )
  .add(
    HttpApiEndpoint.get("buyAgain")`/api/user/${user}/buy-again`
      .setUrlParams(Schema.Struct({ limit: Limit }))
      .addSuccess(BoughtBefore),
  )
  .add(
    HttpApiEndpoint.get("similarUsers")`/api/user/${user}/similar`
      .setUrlParams(Schema.Struct({ limit: Limit }))
      .addSuccess(SimilarUsers),
  )
  .add(
    HttpApiEndpoint.get("similarProducts")`/api/product/${product}/similar`
      .setUrlParams(Schema.Struct({ limit: Limit, category: Category }))
      .addSuccess(SimilarProducts),
  )
  .add(
    HttpApiEndpoint.post("searchCatalogue", "/api/search")
      .setPayload(CatalogueSearchBody)
      .addSuccess(FoundProducts),
  )

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
export const PickedLetters = Schema.Union(
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
const operations = HttpApiGroup.make("operations")
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
      .setPayload(PickedLetters)
      .addSuccess(Schema.Struct({ picked: Count, retried: Count })),
  )
  .add(
    HttpApiEndpoint.post("removeDeadLetters", "/api/dead-letters/remove")
      .setPayload(PickedLetters)
      .addSuccess(Schema.Struct({ removed: Count })),
  )
  .add(HttpApiEndpoint.get("profile")`/api/user/${user}/profile`.addSuccess(Profile))

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

interface Operation {
  readonly parameters?: ReadonlyArray<object>
  readonly requestBody?: object
  readonly responses: Readonly<Record<string, object>>
  readonly security?: ReadonlyArray<object>
}
interface Document {
  readonly components: { readonly schemas: Readonly<Record<string, object>> }
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
}

const problem = {
  description: "What is wrong, as RFC 9457 problem document",
  content: { "application/problem+json": { schema: { $ref: "#/components/schemas/ProblemDocument" } } },
}
const retryLater = {
  ...problem,
  headers: { "Retry-After": { description: "Seconds to wait", schema: { type: "integer" } } },
}
const idempotencyKey = {
  name: "Idempotency-Key",
  in: "header",
  required: false,
  description: "The same key for the same user answers with the first result, whatever the time",
  schema: { type: "string", minLength: 1, maxLength: 255 },
}
const ofBodies = { "400": problem, "413": problem, "415": problem }

/** What the schemas can't say of an operation: its problems, the key, and whether it needs a body. */
const complete = (path: string, method: string, operation: Operation): Operation => {
  const { "400": _, ...responses } = operation.responses
  if (!path.startsWith("/api/")) return { ...operation, security: [], responses }
  const records = method === "post"
  const keyed = records && path.startsWith("/api/user/")
  return {
    ...operation,
    // `{}`: no token, where the API is open.
    security: [{ bearer: [] }, {}],
    ...(keyed ? { parameters: [...(operation.parameters ?? []), idempotencyKey] } : {}),
    ...(path.includes("/product/{productId}/") && records
      ? { requestBody: { ...operation.requestBody, required: false } }
      : {}),
    responses: {
      ...responses,
      ...(operation.requestBody ? ofBodies : {}),
      "401": problem,
      ...(records && path.startsWith("/api/dead-letters/") ? { "403": problem } : {}),
      ...(method === "get" ? { "404": problem } : {}),
      "422": problem,
      ...(keyed ? { "429": retryLater } : {}),
      "503": retryLater,
    },
  }
}

const completeDocument = ({ components, paths, ...rest }: Document) => {
  const { HttpApiDecodeError, Issue, PropertyKey, ...schemas } = components.schemas
  return {
    ...rest,
    paths: Record.map(paths, (methods, path) =>
      Record.map(methods, (operation, method) => complete(path, method, operation)),
    ),
    components: {
      schemas: { ...schemas, ...JSONSchema.make(ProblemDocument).$defs },
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", description: "Only where API_TOKENS is set" },
      },
    },
  }
}

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
