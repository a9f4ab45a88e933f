/** Handlers of the group `recommendations`. */
import { HttpApiBuilder } from "@effect/platform"
import { Effect } from "effect"
import { api, bodyBytes } from "../../services/api/InteractionApi.ts"
import { CatalogueSearchBody } from "../../services/api/RecommendationApi.ts"
import type { Reason } from "../../services/model/Taste.ts"
import { Recommender } from "../../services/recommend/Recommender.ts"
import { decodeBody } from "./HttpBody.ts"
import { toProblem } from "./HttpProblems.ts"

const decodeSearch = decodeBody(CatalogueSearchBody)

const explained = ({ event, share }: Reason) => {
  const { event_type, occurred_at, product_id, search_phrase } = event
  const reference = search_phrase === null ? { product_id: product_id ?? undefined } : { search_phrase }
  return { event_type, ...reference, occurred_at, share }
}

export const recommendations = HttpApiBuilder.group(api, "recommendations", (handlers) =>
  Effect.map(Recommender, (recommender) =>
    handlers
      .handle("recommend", ({ path: { userId }, urlParams }) =>
        Effect.map(toProblem(recommender.recommend(userId, urlParams)), ({ items, source }) => ({
          user_id: userId,
          source,
          items: items.map((item) => ({ ...item, because: item.because.map(explained) })),
        })),
      )
      .handle("buyAgain", ({ path: { userId }, urlParams: { limit } }) =>
        Effect.map(toProblem(recommender.buyAgain(userId, limit)), (items) => ({ user_id: userId, items })),
      )
      .handle("similarUsers", ({ path: { userId }, urlParams: { limit } }) =>
        Effect.map(toProblem(recommender.similarUsers(userId, limit)), ({ compared, users }) => ({
          user_id: userId,
          compared,
          items: users,
        })),
      )
      .handle("similarProducts", ({ path: { productId }, urlParams }) =>
        Effect.map(toProblem(recommender.similarProducts(productId, urlParams)), (items) => ({
          product_id: productId,
          items,
        })),
      )
      .handleRaw("searchCatalogue", ({ request }) =>
        Effect.gen(function* () {
          const { category, limit, query, user } = yield* decodeSearch(request, bodyBytes)
          const found = yield* toProblem(recommender.search(query, { limit, category, user }))
          return { query, user_id: user ?? null, ...found }
        }),
      ),
  ),
)
