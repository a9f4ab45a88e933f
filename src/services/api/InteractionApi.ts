/** The HTTP API: routes, payloads, responses and problems. `/openapi.json` is generated from it. */
import { HttpApi, HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { Context, Schema } from "effect"
import { RouteScopes, type Scope } from "../AccessTokens.ts"
import { namePattern } from "../model/EventTypes.ts"
import { EventType, idPattern, MessageId } from "../model/Interaction.ts"
import { ItemProblem } from "../model/Problem.ts"
import { Ready, Unavailable } from "../operate/Health.ts"
import { BulkItem, MergeBody, ProductBody, RetractionBody, SearchBody } from "../record/Submission.ts"
import { completeDocument, inTurn, withExample, withIdempotencyKey, withOptionalBody } from "./ApiDocument.ts"
import { withStatus } from "./ApiParameters.ts"
import { Authorisation, bodyStatuses, problems } from "./ApiProblems.ts"
import { embeddings } from "./EmbeddingApi.ts"
import { operations } from "./OperationsApi.ts"
import { products } from "./ProductApi.ts"
import { recommendations } from "./RecommendationApi.ts"
import { segment } from "./SegmentApi.ts"

/** The largest body in bytes, for all routes without a limit of their own. */
export const bodyBytes = 64 * 1024
export const bulkBodyBytes = 1024 * 1024
/** For a body with a vector: from 2,048 dimensions on, its numbers need more than 64 KiB. */
export const vectorBytes = (dimensions: number): number => Math.max(bodyBytes, dimensions * 32)
export const bulkItems = 1_000

const Recorded = Schema.Struct({
  message_id: MessageId,
  user_id: Schema.String,
  event_type: EventType,
  occurred_at: Schema.String,
  duplicate: Schema.Boolean,
}).annotations({ identifier: "Recorded" })

/** Status and problem of a rejected item are those that the route of a single interaction answers with. */
const rejections = [403, 404, 409, 410, 422, 429] as const

const BulkResult = Schema.Struct({
  index: Schema.Number,
  status: Schema.Literal(201, 200, ...rejections),
  message_id: Schema.optional(MessageId),
  duplicate: Schema.optional(Schema.Boolean),
  error: Schema.optional(ItemProblem),
})
export const BulkReport = Schema.Struct({
  accepted: Schema.Number,
  duplicates: Schema.Number,
  rejected: Schema.Number,
  results: Schema.Array(BulkResult),
}).annotations({ identifier: "BulkReport" })

/** RecordingRoutes.ts decodes the ids with header and body: one problem names every wrong field. */
const undecoded = (pattern: string) => Schema.String.annotations({ jsonSchema: { type: "string", pattern } })
const undecodedId = undecoded(idPattern.source)
const undecodedUser = HttpApiSchema.param("userId", undecodedId)
const undecodedProduct = HttpApiSchema.param("productId", undecodedId)
const undecodedType = HttpApiSchema.param("type", undecoded(namePattern.source))

const productEvent = <
  Name extends string,
  Path extends { readonly userId: string; readonly productId: string },
>(
  endpoint: HttpApiEndpoint.HttpApiEndpoint<Name, "POST", Path>,
) =>
  endpoint
    .setPayload(ProductBody)
    .addSuccess(withStatus(201, "Recorded", Recorded))
    .addSuccess(withStatus(200, "Recorded before; nothing changed", Recorded))
    .addError(problems(429))
    .annotate(
      OpenApi.Transform,
      inTurn(withIdempotencyKey, withOptionalBody, withExample({ price: 79, channel: "app" })),
    )

const interactions = HttpApiGroup.make("interactions")
  .annotate(
    OpenApi.Description,
    "What users do. An answer comes when the event is durable; a worker applies it within seconds.",
  )
  .add(
    HttpApiEndpoint.post("search")`/api/user/${undecodedUser}/search`
      .annotate(OpenApi.Summary, "Record a search")
      .setPayload(SearchBody)
      .addSuccess(withStatus(201, "Recorded", Recorded))
      .addSuccess(withStatus(200, "Recorded before; nothing changed", Recorded))
      .addError(problems(429))
      .annotate(
        OpenApi.Transform,
        inTurn(withIdempotencyKey, withExample({ query: "wireless headphones", device: "phone" })),
      ),
  )
  .add(
    productEvent(
      HttpApiEndpoint.post("view")`/api/user/${undecodedUser}/product/${undecodedProduct}/view`.annotate(
        OpenApi.Summary,
        "Record a view of a product",
      ),
    ),
  )
  .add(
    productEvent(
      HttpApiEndpoint.post("click")`/api/user/${undecodedUser}/product/${undecodedProduct}/click`.annotate(
        OpenApi.Summary,
        "Record a click on a product",
      ),
    ),
  )
  .add(
    productEvent(
      HttpApiEndpoint.post(
        "purchase",
      )`/api/user/${undecodedUser}/product/${undecodedProduct}/purchase`.annotate(
        OpenApi.Summary,
        "Record a purchase of a product",
      ),
    ),
  )
  .add(
    productEvent(
      HttpApiEndpoint.post(
        "product",
      )`/api/user/${undecodedUser}/product/${undecodedProduct}/${undecodedType}`.annotate(
        OpenApi.Summary,
        "Record an event of a type of your own",
      ),
    ).annotate(OpenApi.Description, "Records an event of a type that EVENT_WEIGHTS adds."),
  )
  .add(
    HttpApiEndpoint.post("retract")`/api/user/${undecodedUser}/retractions`
      .annotate(OpenApi.Summary, "Take an event back")
      .setPayload(RetractionBody)
      .addSuccess(withStatus(201, "Recorded", Recorded))
      .addSuccess(withStatus(200, "Recorded before; nothing changed", Recorded))
      .addError(problems(404, 410, 429))
      .annotate(
        OpenApi.Transform,
        inTurn(
          withIdempotencyKey,
          withExample({
            message_id: "0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4",
            reason: "refund",
          }),
        ),
      )
      .annotate(
        OpenApi.Description,
        "Takes an interaction of the user back, by its message_id: the embedding becomes as if it had never happened.",
      )
      .annotate(RouteScopes, ["person"]),
  )
  .add(
    HttpApiEndpoint.post("merge")`/api/user/${undecodedUser}/merge`
      .annotate(OpenApi.Summary, "Make a guest and a user one person")
      .setPayload(MergeBody)
      .addSuccess(withStatus(201, "Recorded", Recorded))
      .addSuccess(withStatus(200, "Recorded before; nothing changed", Recorded))
      .addError(problems(409, 429))
      .annotate(OpenApi.Transform, inTurn(withIdempotencyKey, withExample({ from: "guest-7" })))
      .annotate(
        OpenApi.Description,
        "Makes the id `from` an alias of the user: one person from now on. It can't be undone. 409: it would close a circle, or `from` is an alias of somebody else.",
      )
      .annotate(RouteScopes, ["person"]),
  )
  .add(
    HttpApiEndpoint.post("bulk", "/api/interactions")
      .annotate(OpenApi.Summary, "Record up to 1,000 events")
      .setPayload(Schema.Array(BulkItem).pipe(Schema.minItems(1), Schema.maxItems(bulkItems)))
      .addSuccess(withStatus(200, "Every item is recorded, now or before", BulkReport))
      .addSuccess(withStatus(207, "Some items are rejected", BulkReport))
      .annotate(
        OpenApi.Transform,
        withExample([
          {
            user_id: "u-1",
            event_type: "search",
            search_phrase: "tent",
            occurred_at: "2026-02-10T12:34:56Z",
          },
          {
            user_id: "u-1",
            event_type: "product_purchase",
            product_id: "tent-1",
            idempotency_key: "order-1",
          },
        ]),
      ),
  )
  .addError(problems(...bodyStatuses, 503))
  .middleware(Authorisation)
  .annotate(RouteScopes, ["write"])

const health = HttpApiGroup.make("health")
  .annotate(OpenApi.Description, "Probes and metrics of this process.")
  .add(
    HttpApiEndpoint.get("livez", "/livez")
      .annotate(OpenApi.Summary, "Ask whether the process runs")
      .setUrlParams(Schema.Struct({ verbose: Schema.optional(Schema.String) }))
      .addSuccess(Schema.Struct({ status: Schema.Literal("ok") }))
      // Only with `verbose`, as for /readyz.
      .addError(problems(401, 403)),
  )
  .add(
    HttpApiEndpoint.get("readyz", "/readyz")
      .annotate(OpenApi.Summary, "Ask whether requests can be answered")
      .setUrlParams(Schema.Struct({ verbose: Schema.optional(Schema.String) }))
      .addSuccess(Ready)
      .addSuccess(Unavailable, { status: 503 })
      .addError(problems(401, 403)),
  )
  .add(
    HttpApiEndpoint.get("metrics", "/metrics")
      .annotate(OpenApi.Summary, "Read metrics")
      .addSuccess(
        HttpApiSchema.Text().annotations({ description: "Metrics in the text format of Prometheus" }),
      )
      .middleware(Authorisation)
      .annotate(RouteScopes, ["operate"]),
  )
  .annotate(RouteScopes, [])

/** HttpMiddleware.ts answers the decode error, which HttpApi declares for every endpoint, as a problem. */
const withoutDecodeError = Object.assign(HttpApi.make("user-embeddings"), { errorSchema: Schema.Never })

export const api = withoutDecodeError
  .add(interactions)
  .add(embeddings)
  .add(products)
  .add(recommendations)
  .add(operations)
  .add(segment)
  .add(health)
  .annotate(OpenApi.Title, "user-embeddings")
  .annotate(OpenApi.Description, "Keeps a vector of every user's taste up to date from what they do.")
  .annotate(OpenApi.Version, "1.0")
  .annotate(OpenApi.Servers, [{ url: "/", description: "The API that serves this document" }])
  .annotate(OpenApi.Transform, (document) =>
    completeDocument(document as OpenApi.OpenAPISpec, scopesByOperation()),
  )

const scopesByOperation = () => {
  const scopes = new Map<string, ReadonlyArray<Scope>>()
  HttpApi.reflect(api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint, group, mergedAnnotations }) =>
      scopes.set(`${group.identifier}.${endpoint.name}`, Context.unsafeGet(mergedAnnotations, RouteScopes)),
  })
  return scopes
}
