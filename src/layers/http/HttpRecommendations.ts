/** Handlers of the group `recommendations`. */
import { HttpApiBuilder } from "@effect/platform"
import { Effect } from "effect"
import { defaultLimit } from "../../services/api/ApiParameters.ts"
import { api, bodyBytes } from "../../services/api/InteractionApi.ts"
import { CatalogueSearchBody, RecommendationBody } from "../../services/api/RecommendationApi.ts"
import type { Reason } from "../../services/model/Taste.ts"
import { InteractionLog } from "../../services/ports/InteractionLog.ts"
import { type Recommendations, Recommender } from "../../services/recommend/Recommender.ts"
import { decodeBody } from "./HttpBody.ts"
import { makeConcurrencyLimit } from "./HttpConcurrencyLimit.ts"
import { toProblem } from "./HttpProblems.ts"

const decodeSearch = decodeBody(CatalogueSearchBody)
const decodeWanted = decodeBody(RecommendationBody)

const explained = ({ event, share }: Reason) => {
  const { event_type, occurred_at, product_id, search_phrase } = event
  const reference = search_phrase === null ? { product_id: product_id ?? undefined } : { search_phrase }
  return { event_type, ...reference, occurred_at, share }
}

/** A comparison of all users takes up to a second. */
const limitOfComparisons = { running: 1, waiting: 9 }

type Wanted = typeof RecommendationBody.Type

/** The fields of a request as the recommender takes them. */
const wanted = ({
  category,
  exclude_ids = [],
  filter,
  limit = defaultLimit,
}: Pick<Wanted, "category" | "exclude_ids" | "filter" | "limit">) => ({
  limit,
  excludeIds: exclude_ids,
  filter: { categories: category === undefined ? undefined : [category].flat(), conditions: filter },
})
const recommendable = ({ exclude = "purchased", fallback = "popular", ...among }: Wanted) => ({
  ...wanted(among),
  exclude,
  fallback,
})

/** The id that the answer names. */
const ownerOf = (user: string) =>
  Effect.flatMap(InteractionLog, (log) =>
    Effect.match(log.person(user), { onFailure: () => user, onSuccess: ({ user_id }) => user_id }),
  )

const answer = (user: string, { items, source }: Recommendations) =>
  Effect.map(ownerOf(user), (user_id) => ({
    user_id,
    source,
    items: items.map((item) => ({ ...item, because: item.because.map(explained) })),
  }))

export const recommendations = HttpApiBuilder.group(api, "recommendations", (handlers) =>
  Effect.map(Recommender, (recommender) => {
    const limited = makeConcurrencyLimit(limitOfComparisons)
    return handlers
      .handle("recommend", ({ path: { userId }, urlParams }) =>
        recommender.recommend(userId, recommendable(urlParams)).pipe(
          toProblem,
          Effect.flatMap((found) => answer(userId, found)),
        ),
      )
      .handleRaw("recommendAmong", ({ path: { userId }, request }) =>
        Effect.gen(function* () {
          const body = yield* decodeWanted(request, bodyBytes)
          const found = yield* toProblem(recommender.recommend(userId, recommendable(body)))
          return yield* answer(userId, found)
        }),
      )
      .handle("buyAgain", ({ path: { userId }, urlParams: { limit = defaultLimit } }) =>
        Effect.gen(function* () {
          const items = yield* toProblem(recommender.buyAgain(userId, limit))
          return { user_id: yield* ownerOf(userId), items }
        }),
      )
      .handle("similarUsers", ({ path: { userId }, urlParams: { limit = defaultLimit } }) =>
        Effect.gen(function* () {
          const { compared, users } = yield* limited(toProblem(recommender.similarUsers(userId, limit)))
          return { user_id: yield* ownerOf(userId), compared, items: users }
        }),
      )
      .handle("similarProducts", ({ path: { productId }, urlParams }) =>
        Effect.map(toProblem(recommender.similarProducts(productId, wanted(urlParams))), (items) => ({
          product_id: productId,
          items,
        })),
      )
      .handleRaw("searchCatalogue", ({ request }) =>
        Effect.gen(function* () {
          const { exclude = "none", query, user, ...body } = yield* decodeSearch(request, bodyBytes)
          const found = yield* toProblem(recommender.search(query, { ...wanted(body), exclude, user }))
          return { query, user_id: user === undefined ? null : yield* ownerOf(user), ...found }
        }),
      )
  }),
)
