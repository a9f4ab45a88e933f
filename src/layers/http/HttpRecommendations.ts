/** Handlers of the group `recommendations`. */
import { HttpApiBuilder } from "@effect/platform"
import { Effect } from "effect"
import { api, bodyBytes } from "../../services/api/InteractionApi.ts"
import { CatalogueSearchBody } from "../../services/api/RecommendationApi.ts"
import type { Reason } from "../../services/model/Taste.ts"
import { InteractionLog } from "../../services/ports/InteractionLog.ts"
import { Recommender } from "../../services/recommend/Recommender.ts"
import { decodeBody } from "./HttpBody.ts"
import { toProblem } from "./HttpProblems.ts"

const decodeSearch = decodeBody(CatalogueSearchBody)

const explained = ({ event, share }: Reason) => {
  const { event_type, occurred_at, product_id, search_phrase } = event
  const reference = search_phrase === null ? { product_id: product_id ?? undefined } : { search_phrase }
  return { event_type, ...reference, occurred_at, share }
}

/** The id that the answer names. */
const ownerOf = (user: string) =>
  Effect.flatMap(InteractionLog, (log) =>
    Effect.match(log.person(user), { onFailure: () => user, onSuccess: ({ user_id }) => user_id }),
  )

export const recommendations = HttpApiBuilder.group(api, "recommendations", (handlers) =>
  Effect.map(Recommender, (recommender) =>
    handlers
      .handle("recommend", ({ path: { userId }, urlParams }) =>
        Effect.gen(function* () {
          const { items, source } = yield* toProblem(recommender.recommend(userId, urlParams))
          const explainedItems = items.map((item) => ({ ...item, because: item.because.map(explained) }))
          return { user_id: yield* ownerOf(userId), source, items: explainedItems }
        }),
      )
      .handle("buyAgain", ({ path: { userId }, urlParams: { limit } }) =>
        Effect.gen(function* () {
          const items = yield* toProblem(recommender.buyAgain(userId, limit))
          return { user_id: yield* ownerOf(userId), items }
        }),
      )
      .handle("similarUsers", ({ path: { userId }, urlParams: { limit } }) =>
        Effect.gen(function* () {
          const { compared, users } = yield* toProblem(recommender.similarUsers(userId, limit))
          return { user_id: yield* ownerOf(userId), compared, items: users }
        }),
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
          return { query, user_id: user === undefined ? null : yield* ownerOf(user), ...found }
        }),
      ),
  ),
)
