/** The routes of embeddings: reading, erasing, and the vectors of products. */
import { HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { Destroys, RouteScopes } from "../AccessTokens.ts"
import { UserId } from "../model/Interaction.ts"
import { Read } from "../recommend/EmbeddingReads.ts"
import { inTurn, withExample, withFloat32 } from "./ApiDocument.ts"
import { choice, product, user } from "./ApiParameters.ts"
import { Authorisation, bodyStatuses, problems } from "./ApiProblems.ts"
import { Embedding } from "./EmbeddingJson.ts"
import { embeddingFields } from "./ProductApi.ts"

/** Exactly one of `vector` and `text`. An absent name or category leaves the stored one as it is. */
export const ProductEmbeddingBody = Schema.Struct(embeddingFields)
  .pipe(
    Schema.filter(
      ({ text, vector }) => (text === undefined) !== (vector === undefined) || "give either vector or text",
    ),
  )
  .annotations({ identifier: "ProductEmbeddingBody" })

const stored = { product_id: Schema.String, space: Schema.String, dimension_count: Schema.Number }
const ProductCreated = Schema.Struct({ ...stored, created: Schema.Literal(true) })
const ProductReplaced = Schema.Struct({ ...stored, created: Schema.Literal(false) })

const trueOrFalse = Schema.Literal("true", "false").annotations({
  message: () => ({ message: "must be true or false", override: true }),
})
const read = choice(...Read.literals)

const mostUsers = 1_000
/** The longest body: ids of 64 characters, with room for white space. */
export const embeddingsBodyBytes = 128 * 1024
const usersRule = `must be an array of 1 to ${mostUsers} user ids`
export const EmbeddingsBody = Schema.Struct({
  user_ids: Schema.Array(UserId).pipe(
    Schema.filter((ids) => (ids.length > 0 && ids.length <= mostUsers) || usersRule, {
      jsonSchema: { minItems: 1, maxItems: mostUsers },
    }),
  ),
  read: Schema.optionalWith(read, { nullable: true }),
  format: Schema.optionalWith(choice("json", "float32"), { nullable: true }),
}).annotations({ identifier: "EmbeddingsBody" })

const UserVector = Schema.Struct({
  user_id: Schema.String.annotations({ description: "the id that was asked for" }),
  version: Schema.Number,
  embedding: Schema.Array(Schema.Number),
})
export const Embeddings = Schema.Struct({
  read: Read,
  space: Schema.String,
  dimension_count: Schema.Number,
  embeddings: Schema.Array(Schema.NullOr(UserVector)).annotations({
    description:
      "in the order of user_ids; null: the user has no embedding, or has it in another space, or no taste",
  }),
}).annotations({ identifier: "Embeddings" })

/** The first line of the answer in float32. */
export const Float32Line = Schema.Struct({
  read: Read,
  space: Schema.String,
  dimension_count: Schema.Number,
  user_ids: Schema.Array(Schema.String),
  versions: Schema.Array(Schema.Number),
})

export const CatalogueMean = Schema.Struct({
  space: Schema.String,
  dimension_count: Schema.Number,
  mean: Schema.Array(Schema.Number),
}).annotations({ identifier: "CatalogueMean" })

export const embeddings = HttpApiGroup.make("embeddings")
  .annotate(OpenApi.Description, "Vectors of users and products, and erasing users.")
  .add(
    HttpApiEndpoint.del("eraseUser")`/api/user/${user}`
      .annotate(OpenApi.Summary, "Erase a user")
      .addSuccess(HttpApiSchema.NoContent)
      .addError(problems(422, 503))
      .annotate(
        OpenApi.Description,
        "Erases the user from the log, the embeddings and the dead letters. Queued interactions of the user are ignored. Safe to repeat.",
      )
      .annotate(Destroys, true)
      .annotate(RouteScopes, ["operate"]),
  )
  .add(
    HttpApiEndpoint.get("embedding")`/api/user/${user}/embedding`
      .annotate(OpenApi.Summary, "Read a user's embedding or taste")
      .setUrlParams(Schema.Struct({ read: Schema.optional(read), vector: Schema.optional(trueOrFalse) }))
      .addSuccess(Embedding)
      .addError(problems(404, 422, 503))
      .annotate(
        OpenApi.Description,
        "read=taste: the vector that recommendations use, instead of the stored one. In JSON the stored vector comes with vector=true alone, the taste unless vector=false. Accept: application/octet-stream gets the vector as little-endian float32. The ETag of a taste holds for an hour, and until the embedding or the mean of the catalogue changes.",
      )
      .annotate(
        OpenApi.Transform,
        withFloat32({ etag: true, version: true, description: "dimension_count numbers" }),
      )
      .annotate(RouteScopes, ["read"]),
  )
  .add(
    HttpApiEndpoint.post("many", "/api/embeddings")
      .annotate(OpenApi.Summary, "Read the vectors of many users")
      .setPayload(EmbeddingsBody)
      .addSuccess(Embeddings)
      .addError(problems(...bodyStatuses, 503))
      .annotate(
        OpenApi.Description,
        "The vectors of up to 1,000 users, in the order of user_ids. format=float32: a line of JSON (read, space, dimension_count, and user_ids and versions of the users found), padded with spaces to a multiple of 4 bytes, then one row of little-endian float32 for each of them.",
      )
      .annotate(
        OpenApi.Transform,
        inTurn(
          withExample({ user_ids: ["u-1", "u-2"], read: "taste", format: "float32" }),
          withFloat32({ etag: false, version: false, description: "the line of JSON, then the rows" }),
        ),
      )
      .annotate(RouteScopes, ["read"]),
  )
  .add(
    HttpApiEndpoint.get("catalogueMean", "/api/catalogue/mean")
      .annotate(OpenApi.Summary, "Read the mean of all product vectors")
      .addSuccess(CatalogueMean)
      .addError(problems(422, 503))
      .annotate(
        OpenApi.Description,
        "The mean of all product vectors. A taste is compared with product − mean, scaled to unit length. All zeros while there are no products. Accept: application/octet-stream gets it as little-endian float32.",
      )
      .annotate(
        OpenApi.Transform,
        withFloat32({ etag: true, version: false, description: "dimension_count numbers" }),
      )
      .annotate(RouteScopes, ["read"]),
  )
  .add(
    HttpApiEndpoint.put("putProduct")`/api/product/${product}/embedding`
      .annotate(OpenApi.Summary, "Set the vector of a product")
      .setPayload(ProductEmbeddingBody)
      .addSuccess(ProductCreated, { status: 201 })
      .addSuccess(ProductReplaced, { status: 200 })
      .addError(problems(...bodyStatuses, 503))
      .annotate(OpenApi.Transform, withExample({ text: "A light tent for two", product_name: "Tent" }))
      .annotate(RouteScopes, ["catalogue"]),
  )
  .middleware(Authorisation)
