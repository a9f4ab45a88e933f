/** The routes of recommendations and of the search in the catalogue. */
import { HttpApiEndpoint, HttpApiGroup, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { RouteScopes } from "../AccessTokens.ts"
import { EventType, ProductId, SearchPhrase, UserId } from "../model/Interaction.ts"
import { Conditions } from "../recommend/ProductFilter.ts"
import {
  BoughtBefore,
  Found,
  RecommendedProduct,
  SimilarProduct,
  SimilarUser,
} from "../recommend/Recommender.ts"
import { inTurn, withExample, withOptionalBody } from "./ApiDocument.ts"
import { Category, categoryName, choice, Limit, limitRule, product, refused, user } from "./ApiParameters.ts"
import { Authorisation, bodyStatuses, problems } from "./ApiProblems.ts"

const Recommended = Schema.Struct({
  user_id: Schema.String,
  source: Schema.Literal("taste", "popular").annotations({
    description: "popular: the user has no taste yet; score = popularity, from decayed counts",
  }),
  items: Schema.Array(
    Schema.Struct({
      ...RecommendedProduct.fields,
      because: Schema.Array(
        Schema.Struct({
          event_type: EventType,
          product_id: Schema.optional(Schema.String),
          search_phrase: Schema.optional(Schema.String),
          occurred_at: Schema.String,
          share: Schema.Number,
        }),
      ).annotations({
        description:
          "the newest events with their shares of similarity, together and again, largest absolute share first; a negative share speaks against the product",
      }),
      rest: Schema.Number.annotations({
        description: "share of all older events together; the absolute values of all shares add up to 1",
      }),
    }),
  ),
}).annotations({ identifier: "Recommendations" })
const BuyAgain = Schema.Struct({ user_id: Schema.String, items: Schema.Array(BoughtBefore) }).annotations({
  identifier: "BuyAgain",
})
const SimilarProducts = Schema.Struct({
  product_id: Schema.String,
  items: Schema.Array(SimilarProduct),
}).annotations({ identifier: "SimilarProducts" })
const SimilarUsers = Schema.Struct({
  user_id: Schema.String,
  compared: Schema.Number.annotations({ description: "number of users compared" }),
  items: Schema.Array(SimilarUser),
}).annotations({ identifier: "SimilarUsers" })
const oneCategoryOrMore = Schema.Union(
  categoryName,
  Schema.Array(categoryName).pipe(Schema.minItems(1), Schema.maxItems(100)),
).annotations(refused("must be a string of 1 to 255 characters, or an array of 1 to 100 of them"))
/** Which products to find, in the body of a request. */
const wanted = {
  limit: Schema.optionalWith(Schema.Int.pipe(Schema.between(1, 100)).annotations(refused(limitRule)), {
    nullable: true,
  }),
  exclude_ids: Schema.optionalWith(
    Schema.Array(ProductId).pipe(
      Schema.maxItems(1_000, { message: () => "must be at most 1000 product ids" }),
    ),
    { nullable: true },
  ),
  category: Schema.optionalWith(oneCategoryOrMore, { nullable: true }),
  filter: Schema.optionalWith(Conditions, { nullable: true }),
}
const Exclude = choice("purchased", "seen", "none")
const fallback = choice("popular", "none")
export const RecommendationBody = Schema.Struct({
  ...wanted,
  exclude: Schema.optionalWith(Exclude, { nullable: true }),
  fallback: Schema.optionalWith(fallback, { nullable: true }),
}).annotations({ identifier: "RecommendationBody" })
/** Finds products by a phrase. Nothing is recorded. */
export const CatalogueSearchBody = Schema.Struct({
  query: SearchPhrase,
  user: Schema.optionalWith(UserId, { nullable: true }),
  ...wanted,
  exclude: Schema.optionalWith(Exclude, { nullable: true }),
})
  .pipe(
    Schema.filter(
      ({ exclude, user }) =>
        exclude === undefined ||
        exclude === "none" ||
        user !== undefined || { path: ["exclude"], message: "needs a user" },
    ),
  )
  .annotations({ identifier: "CatalogueSearchBody" })
const FoundProducts = Schema.Struct({
  query: Schema.String,
  user_id: Schema.NullOr(Schema.String),
  personalised: Schema.Boolean.annotations({ description: "whether the user's taste changed the scores" }),
  items: Schema.Array(Found),
}).annotations({ identifier: "FoundProducts" })

export const recommendations = HttpApiGroup.make("recommendations")
  .annotate(OpenApi.Description, "What is made of vectors. Nothing is recorded.")
  .add(
    HttpApiEndpoint.get("recommend")`/api/user/${user}/recommendations`
      .annotate(OpenApi.Summary, "Recommend products to a user")
      .setUrlParams(
        Schema.Struct({
          limit: Limit,
          exclude: Schema.optional(Exclude.annotations({ default: "purchased" })),
          category: Category,
          fallback: Schema.optional(fallback.annotations({ default: "popular" })),
        }),
      )
      .addSuccess(Recommended)
      .addError(problems(404, 422, 503)),
  )
  .add(
    HttpApiEndpoint.post("recommendAmong")`/api/user/${user}/recommendations`
      .annotate(OpenApi.Summary, "Recommend products that a filter admits")
      .setPayload(RecommendationBody)
      .addSuccess(Recommended)
      .addError(problems(...bodyStatuses, 404, 503))
      .annotate(
        OpenApi.Transform,
        inTurn(
          withOptionalBody,
          withExample({ limit: 3, filter: { price: { lte: 50 }, brand: ["Acme", "Apex"] } }),
        ),
      )
      .annotate(OpenApi.Description, "Recommendations among the products that a filter admits."),
  )
  .add(
    HttpApiEndpoint.get("buyAgain")`/api/user/${user}/buy-again`
      .annotate(OpenApi.Summary, "List what a user buys again")
      .setUrlParams(Schema.Struct({ limit: Limit }))
      .addSuccess(BuyAgain)
      .addError(problems(422, 503)),
  )
  .add(
    HttpApiEndpoint.get("similarUsers")`/api/user/${user}/similar`
      .annotate(OpenApi.Summary, "Find users with a similar taste")
      .setUrlParams(Schema.Struct({ limit: Limit }))
      .addSuccess(SimilarUsers)
      .addError(problems(404, 422, 501, 503))
      .annotate(
        OpenApi.Description,
        "Compares the long memories of all users, which takes up to a second. An API answers one such request at a time, nine more wait, and further ones get 503 with the type /problems#busy.",
      ),
  )
  .add(
    HttpApiEndpoint.get("similarProducts")`/api/product/${product}/similar`
      .annotate(OpenApi.Summary, "Find similar products")
      .setUrlParams(Schema.Struct({ limit: Limit, category: Category }))
      .addSuccess(SimilarProducts)
      .addError(problems(404, 422, 503)),
  )
  .add(
    HttpApiEndpoint.post("searchCatalogue", "/api/search")
      .annotate(OpenApi.Summary, "Search products by a phrase and a user's taste")
      .setPayload(CatalogueSearchBody)
      .addSuccess(FoundProducts)
      .addError(problems(...bodyStatuses, 501, 503))
      .annotate(OpenApi.Transform, withExample({ query: "tent", user: "u-1", limit: 5 })),
  )
  .middleware(Authorisation)
  // The page shows recommendations, too.
  .annotate(RouteScopes, ["read", "operate"])
