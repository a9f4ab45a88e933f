/** Parameters and answers of routes in several groups. */
import { HttpApiSchema } from "@effect/platform"
import { Option, Schema, SchemaAST } from "effect"
import { ProductId, UserId } from "../model/Interaction.ts"

export const user = HttpApiSchema.param("userId", Schema.typeSchema(UserId))
export const product = HttpApiSchema.param("productId", Schema.typeSchema(ProductId))

export const wellFormed = Schema.String.pipe(
  Schema.filter((text) => text.isWellFormed() || "must not contain lone surrogates"),
)
export const refused = (rule: string) => ({ message: () => ({ message: rule, override: true }) })
export const limitRule = "must be an integer from 1 to 100"
/** Handlers apply the defaults of parameters: a default of the schema would make them mandatory in the typed client. */
export const defaultLimit = 10
export const Limit = Schema.optional(
  Schema.String.pipe(
    Schema.pattern(/^([1-9][0-9]?|100)$/, {
      ...refused(limitRule),
      jsonSchema: { type: "integer", minimum: 1, maximum: 100, default: defaultLimit },
    }),
    Schema.compose(Schema.NumberFromString),
  ),
)
export const categoryName = wellFormed.pipe(
  Schema.filter((text) => (text.length > 0 && text.length <= 255) || "must be 1 to 255 characters"),
)
export const Category = Schema.optional(categoryName)
export const choice = <const Values extends readonly [string, ...Array<string>]>(...values: Values) =>
  Schema.Literal(...values).annotations(refused(`must be one of ${values.join(", ")}`))

/** The schema as answer with a status. Any annotation drops the name under which OpenAPI knows the schema. */
export const withStatus = <A, I, R>(status: number, description: string, schema: Schema.Schema<A, I, R>) =>
  schema.annotations({
    ...HttpApiSchema.annotations({ status, description }),
    identifier: Option.getOrThrow(SchemaAST.getIdentifierAnnotation(schema.ast)),
  })
