/** The handlers of the HTTP contract, a file a group. */
import { HttpApiBuilder } from "@effect/platform"
import { Layer } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { embeddings } from "./HttpEmbeddings.ts"
import { health } from "./HttpHealth.ts"
import { interactions } from "./HttpInteractions.ts"
import { operations } from "./HttpOperations.ts"
import { recommendations } from "./HttpRecommendations.ts"

export const layer = HttpApiBuilder.api(api).pipe(
  Layer.provide([interactions, embeddings, recommendations, operations, health]),
)
