/** The handlers of the HTTP API, one file a group. */
import { HttpApiBuilder } from "@effect/platform"
import { Effect, Layer } from "effect"
import { Authorisation } from "../../services/api/ApiProblems.ts"
import { api } from "../../services/api/InteractionApi.ts"
import { embeddings } from "./HttpEmbeddings.ts"
import { health } from "./HttpHealth.ts"
import { interactions } from "./HttpInteractions.ts"
import { operations } from "./HttpOperations.ts"
import { products } from "./HttpProducts.ts"
import { recommendations } from "./HttpRecommendations.ts"

/** HttpMiddleware.ts has checked the token before the router found the handler. */
const authorised = Layer.succeed(Authorisation, { bearer: () => Effect.void })

export const layer = HttpApiBuilder.api(api).pipe(
  Layer.provide([interactions, embeddings, products, recommendations, operations, health]),
  Layer.provide(authorised),
)
