/** The routes of products. */
import { HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { Destroys, RouteScopes } from "../AccessTokens.ts"
import { ProductId } from "../model/Interaction.ts"
import { ItemProblem } from "../model/Problem.ts"
import { Attributes, StoredAttributes } from "../model/Product.ts"
import { withExample } from "./ApiDocument.ts"
import { product, wellFormed, withStatus } from "./ApiParameters.ts"
import { Authorisation, bodyStatuses, problems } from "./ApiProblems.ts"

export const productsBodyBytes = 32 * 1024 * 1024
export const mostProducts = 1_000

const shortText = Schema.optionalWith(
  wellFormed.pipe(Schema.filter((text) => text.length <= 255 || "must be at most 255 characters")),
  { nullable: true },
)
/** Names and the source of the vector. */
export const embeddingFields = {
  vector: Schema.optional(Schema.Array(Schema.Number)),
  text: Schema.optional(
    Schema.compose(wellFormed, Schema.Trim).pipe(
      Schema.filter((text) => (text.length > 0 && text.length <= 8192) || "must be 1 to 8192 characters"),
    ),
  ),
  product_name: shortText,
  category: shortText,
}
/** Fields of a product, the same in requests and in the lines of `products import`. */
export const productFields = {
  ...embeddingFields,
  available: Schema.optionalWith(Schema.Boolean, { nullable: true }),
  attributes: Schema.optionalWith(Attributes, { nullable: true }),
}
const notBoth = ({ text, vector }: { readonly text?: unknown; readonly vector?: unknown }) =>
  text === undefined || vector === undefined || "give either vector or text"

/** An absent field leaves the stored one as it is. */
export const ProductChangeBody = Schema.Struct(productFields)
  .pipe(Schema.filter(notBoth))
  .annotations({ identifier: "ProductChangeBody" })
export const ProductItem = Schema.Struct({ product_id: ProductId, ...productFields })
  .pipe(Schema.filter(notBoth))
  .annotations({ identifier: "ProductItem" })

const documentFields = {
  product_id: Schema.String,
  product_name: Schema.NullOr(Schema.String),
  category: Schema.NullOr(Schema.String),
  available: Schema.Boolean.annotations({ description: "whether it may be recommended" }),
  attributes: StoredAttributes,
  space: Schema.String,
  text: Schema.NullOr(Schema.String).annotations({
    description: "what the vector is an embedding of, if known",
  }),
  updated_at: Schema.String,
}
const ProductDocument = Schema.Struct(documentFields).annotations({ identifier: "Product" })
const Created = Schema.Struct({ ...documentFields, created: Schema.Literal(true) })
const Changed = Schema.Struct({ ...documentFields, created: Schema.Literal(false) })

const Result = Schema.Struct({
  index: Schema.Number,
  status: Schema.Literal(201, 200, 422, 503),
  product_id: Schema.optional(Schema.String),
  error: Schema.optional(ItemProblem),
})
export const ProductsReport = Schema.Struct({
  created: Schema.Number,
  changed: Schema.Number,
  rejected: Schema.Number,
  results: Schema.Array(Result),
}).annotations({ identifier: "ProductsReport" })

const exampleProduct = {
  product_name: "Tent",
  category: "outdoor",
  text: "A light tent for two",
  attributes: { price: 199, colours: ["green", "grey"] },
}

export const products = HttpApiGroup.make("products")
  .annotate(OpenApi.Description, "The catalogue.")
  .add(
    HttpApiEndpoint.put("change")`/api/product/${product}`
      .annotate(OpenApi.Summary, "Create or change a product")
      .setPayload(ProductChangeBody)
      .addSuccess(Created, { status: 201 })
      .addSuccess(Changed, { status: 200 })
      .addError(problems(...bodyStatuses, 503))
      .annotate(OpenApi.Transform, withExample(exampleProduct))
      .annotate(
        OpenApi.Description,
        "Creates the product, or changes the fields that are given. Attributes are replaced as a whole. Without vector and text, a new product is embedded by its name and category; an existing one keeps its vector.",
      ),
  )
  .add(
    HttpApiEndpoint.get("get")`/api/product/${product}`
      .annotate(OpenApi.Summary, "Read a product")
      .addSuccess(ProductDocument)
      .addError(problems(404, 422, 503))
      .annotate(RouteScopes, ["read", "catalogue"]),
  )
  .add(
    HttpApiEndpoint.del("remove")`/api/product/${product}`
      .annotate(OpenApi.Summary, "Remove a product")
      .addSuccess(HttpApiSchema.NoContent)
      .addError(problems(422, 503))
      .annotate(
        OpenApi.Description,
        "The product is never recommended again. Its events still count, also late ones. Safe to repeat.",
      )
      .annotate(Destroys, true),
  )
  .add(
    HttpApiEndpoint.post("changeMany", "/api/products")
      .annotate(OpenApi.Summary, "Create or change up to 1,000 products")
      .setPayload(Schema.Array(ProductItem).pipe(Schema.minItems(1), Schema.maxItems(mostProducts)))
      .addSuccess(withStatus(200, "Every product is stored", ProductsReport))
      .addSuccess(withStatus(207, "Some products are rejected", ProductsReport))
      .addError(problems(...bodyStatuses, 503))
      .annotate(OpenApi.Transform, withExample([{ product_id: "tent-1", ...exampleProduct }])),
  )
  .middleware(Authorisation)
  .annotate(RouteScopes, ["catalogue"])
