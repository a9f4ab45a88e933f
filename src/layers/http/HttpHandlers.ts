/** The handlers of the HTTP API, one file a group. */
import { HttpApiBuilder, HttpRouter, HttpServerRequest } from "@effect/platform"
import { Effect, Layer } from "effect"
import { Authorisation, SegmentAuthorisation } from "../../services/api/ApiProblems.ts"
import { api } from "../../services/api/InteractionApi.ts"
import { unprocessable } from "../../services/model/Problem.ts"
import { CurrentCaller, missingScope, needsToken } from "./HttpAuthorisation.ts"
import { embeddings } from "./HttpEmbeddings.ts"
import { health } from "./HttpHealth.ts"
import { interactions } from "./HttpInteractions.ts"
import { operations } from "./HttpOperations.ts"
import { products } from "./HttpProducts.ts"
import { recommendations } from "./HttpRecommendations.ts"
import { type Route, routeAt } from "./HttpRoutes.ts"
import { segment } from "./HttpSegment.ts"

/**
 * HttpMiddleware.ts has checked the token before the router found the route. The router decodes paths, so only its own
 * answer tells which scope the request needs. A misspelt query parameter would be ignored without a word.
 */
const checkRoute = Effect.gen(function* () {
  const { route } = yield* HttpRouter.RouteContext
  const { destroys, parameters = [], scopes = [] }: Partial<Route> = routeAt(route.method, route.path) ?? {}
  const caller = yield* CurrentCaller
  if (destroys && !caller.mayDestroy) return yield* needsToken
  const refused = missingScope(caller, scopes)
  if (refused !== undefined) return yield* refused
  const unknown = Object.keys(yield* HttpServerRequest.ParsedSearchParams).filter(
    (name) => !parameters.includes(name) && !(name === "access_token" && scopes.includes("write")),
  )
  if (unknown.length > 0 && route.path.startsWith("/api/")) {
    const rule = parameters.length === 0 ? "this route has none" : `known are ${parameters.join(", ")}`
    return yield* unprocessable(
      unknown.map((field) => ({ field, detail: `is not a known query parameter: ${rule}` })),
    )
  }
})
const authorised = Layer.merge(
  Layer.succeed(Authorisation, { bearer: () => checkRoute }),
  Layer.succeed(SegmentAuthorisation, { basic: () => checkRoute }),
)

export const layer = HttpApiBuilder.api(api).pipe(
  Layer.provide([interactions, embeddings, products, recommendations, operations, segment, health]),
  Layer.provide(authorised),
)
