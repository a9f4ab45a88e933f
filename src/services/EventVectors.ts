import { Schema } from "effect"
export class ProductMissing extends Schema.TaggedError<ProductMissing>()("ProductMissing", {
  product_id: Schema.String,
}) {}
export type EventVectorError = ProductMissing
