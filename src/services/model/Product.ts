/** What a shop says about a product. */
import { Predicate, Schema } from "effect"
import type { ProductId } from "./Interaction.ts"

export type Scalar = string | number | boolean
export type Attribute = Scalar | ReadonlyArray<string>
export type Attributes = Readonly<Record<string, Attribute>>

export interface Product {
  readonly product_id: ProductId
  readonly product_name: string | null
  readonly category: string | null
  /** Whether the product may be recommended. Deleted products are not available. */
  readonly available: boolean
  readonly attributes: Attributes
}

export const mostAttributes = 32
/** Greatest size of the attributes of a product as JSON. */
const maxAttributesBytes = 8192
/** Letters, digits, blanks, `_` and `-`. MongoDB gives `.` and `$` a meaning. */
const namePattern = /^[\p{L}\p{N}][\p{L}\p{N}_ -]{0,63}$/u

const isText = (value: unknown): value is string => typeof value === "string" && value.isWellFormed()
export const isScalar = (value: unknown): value is Scalar =>
  isText(value) || typeof value === "boolean" || Number.isFinite(value)
export const isAttribute = (value: unknown): value is Attribute =>
  isScalar(value) || (Array.isArray(value) && value.every(isText))

const attributeJsonSchema = {
  anyOf: [{ type: ["string", "number", "boolean"] }, { type: "array", items: { type: "string" } }],
}
const attribute = Schema.declare(isAttribute, {
  message: () => "must be a string, a number, a boolean or an array of strings",
  jsonSchema: attributeJsonSchema,
})

/** Any name but `__proto__`, which an object cannot hold: what is given for it would be lost without an error. */
export const AttributeName = Schema.String.pipe(Schema.filter((name) => name !== "__proto__"))

/** Attributes as they are read: within no limits, because another program may have stored them. */
export const StoredAttributes: Schema.Schema<Attributes> = Schema.Record({
  key: AttributeName,
  value: attribute,
}).annotations({ jsonSchema: { type: "object", additionalProperties: attributeJsonSchema } })

export const Attributes: Schema.Schema<Attributes> = StoredAttributes.pipe(
  Schema.filter((attributes) => {
    const names = Object.keys(attributes)
    if (names.length > mostAttributes)
      return `must have at most ${mostAttributes} attributes, has ${names.length}`
    if (Buffer.byteLength(JSON.stringify(attributes)) > maxAttributesBytes)
      return `must be at most ${maxAttributesBytes} bytes as JSON`
    return names
      .filter((name) => !namePattern.test(name))
      .map((name) => ({
        path: [name],
        message: "the name of an attribute must be 1 to 64 letters, digits, blanks, _ or -",
      }))
  }),
  Schema.annotations({
    identifier: "Attributes",
    jsonSchema: {
      type: "object",
      maxProperties: mostAttributes,
      additionalProperties: attributeJsonSchema,
    },
  }),
)

/** Of a value that any program may have stored: attributes of other kinds are left out. */
export const readAttributes = (stored: unknown): Attributes =>
  Predicate.isRecord(stored) && !Array.isArray(stored)
    ? Object.fromEntries(
        Object.entries(stored).filter((entry): entry is [string, Attribute] => isAttribute(entry[1])),
      )
    : {}
