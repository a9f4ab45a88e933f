/** Handlers of the group `recommendations`: what is read from taste. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect, Either, type ParseResult, Schema } from "effect"
import { api, bodyBytes } from "../../services/api/InteractionApi.ts"
import { CatalogueSearchBody } from "../../services/api/RecommendationApi.ts"
import { issues } from "../../services/model/Interaction.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import type { Reason } from "../../services/model/Taste.ts"
import { Recommender } from "../../services/recommend/Recommender.ts"
import { readJson } from "./HttpBody.ts"
import { answer, serviceUnavailable } from "./HttpProblems.ts"

const decodeSearch = Schema.decodeUnknownEither(CatalogueSearchBody, {
  errors: "all",
  onExcessProperty: "error",
})

const reason = ({ event, share }: Reason) => {
  const { event_type, occurred_at, product_id, search_phrase } = event
  return { event_type, ...(search_phrase === null ? { product_id } : { search_phrase }), occurred_at, share }
}

/** What a failure of the step means to a client. */
const problem = (error: { readonly _tag: string; readonly message: string }): Problem => {
  switch (error._tag) {
    case "NoTaste":
    case "ProductNotFound":
      return new Problem({ status: 404, detail: error.message })
    case "CatalogueTooLarge":
    case "TooManyUsers":
      return new Problem({ status: 501, detail: error.message })
    case "UserEmbeddingsError":
      return serviceUnavailable("user embeddings")()
    case "InteractionLogError":
      return serviceUnavailable("interactions")()
    case "PhraseEmbedderError":
      return serviceUnavailable("embeddings of phrases")()
    default:
      return serviceUnavailable("product embeddings")()
  }
}
const toProblem = Effect.mapError(problem)

export const recommendations = HttpApiBuilder.group(api, "recommendations", (handlers) =>
  Effect.gen(function* () {
    const recommender = yield* Recommender
    const json = HttpServerResponse.json

    const search = Effect.fnUntraced(function* (request: HttpServerRequest.HttpServerRequest) {
      const decoded = decodeSearch((yield* readJson(request, bodyBytes)) ?? {})
      const { category, limit, query, user } = yield* Either.mapLeft(
        decoded,
        (error: ParseResult.ParseError) =>
          unprocessable(
            issues(error).map(({ field, problem }) => ({
              field,
              detail: problem
                .replace(/^is unexpected.*/, "is not a known field")
                .replace(/.*actual undefined$/, "is missing")
                .replace(/^Expected .*CatalogueSearchBody.*/, "must be a JSON object"),
            })),
          ),
      )
      const found = yield* toProblem(recommender.search(query, { limit, category, user }))
      return yield* json({ query, user_id: user ?? null, ...found })
    })

    return handlers
      .handleRaw("recommend", ({ path: { userId }, urlParams }) =>
        recommender.recommend(userId, urlParams).pipe(
          toProblem,
          Effect.flatMap(({ items, source }) => {
            const explained = items.map((item) => ({ ...item, because: item.because.map(reason) }))
            return json({ user_id: userId, source, items: explained })
          }),
          answer,
        ),
      )
      .handleRaw("buyAgain", ({ path: { userId }, urlParams: { limit } }) =>
        recommender.buyAgain(userId, limit).pipe(
          toProblem,
          Effect.flatMap((items) => json({ user_id: userId, items })),
          answer,
        ),
      )
      .handleRaw("similarUsers", ({ path: { userId }, urlParams: { limit } }) =>
        recommender.similarUsers(userId, limit).pipe(
          toProblem,
          Effect.flatMap(({ compared, users }) => json({ user_id: userId, compared, items: users })),
          answer,
        ),
      )
      .handleRaw("similarProducts", ({ path: { productId }, urlParams }) =>
        recommender.similarProducts(productId, urlParams).pipe(
          toProblem,
          Effect.flatMap((items) => json({ product_id: productId, items })),
          answer,
        ),
      )
      .handleRaw("searchCatalogue", ({ request }) => answer(search(request)))
  }),
)
