/** Which products may be found: by category, and by conditions on their attributes. */
import { Predicate, Schema } from "effect"
import { AttributeName, isScalar, mostAttributes, type Product, type Scalar } from "../model/Product.ts"

const bounds = ["gte", "lte", "gt", "lt"] as const
type Range = { readonly [Bound in (typeof bounds)[number]]?: number }
/** A value, one of several values, or a range of numbers. An array contains at least one of the values. */
export type Condition = Scalar | ReadonlyArray<Scalar> | Range
export type Conditions = Readonly<Record<string, Condition>>

export interface ProductFilter {
  readonly categories?: ReadonlyArray<string> | undefined
  /** All of them must hold. */
  readonly conditions?: Conditions | undefined
}

const isRange = (value: unknown): value is Range =>
  Predicate.isRecord(value) &&
  Object.keys(value).length > 0 &&
  Object.entries(value).every(
    ([bound, limit]) => bounds.some((known) => known === bound) && Number.isFinite(limit),
  )
const isCondition = (value: unknown): value is Condition =>
  isScalar(value) || (Array.isArray(value) ? value.length > 0 && value.every(isScalar) : isRange(value))

const scalar = { type: ["string", "number", "boolean"] }
const condition = {
  anyOf: [
    scalar,
    { type: "array", minItems: 1, items: scalar },
    {
      type: "object",
      minProperties: 1,
      additionalProperties: false,
      properties: Object.fromEntries(bounds.map((bound) => [bound, { type: "number" }])),
    },
  ],
}
export const Conditions: Schema.Schema<Conditions> = Schema.Record({
  key: AttributeName,
  value: Schema.declare(isCondition, {
    message: () =>
      "must be a string, a number, a boolean, an array of these, or an object of the numbers gte, lte, gt, lt",
  }),
}).pipe(
  Schema.filter(
    (conditions) =>
      Object.keys(conditions).length <= mostAttributes || `must name at most ${mostAttributes} attributes`,
  ),
  Schema.annotations({
    identifier: "Conditions",
    jsonSchema: { type: "object", maxProperties: mostAttributes, additionalProperties: condition },
  }),
)

const inRange = ({ gt, gte, lt, lte }: Range) => {
  const from = gte ?? Number.NEGATIVE_INFINITY
  const to = lte ?? Number.POSITIVE_INFINITY
  return (value: unknown) =>
    typeof value === "number" &&
    value >= from &&
    value <= to &&
    (gt === undefined || value > gt) &&
    (lt === undefined || value < lt)
}

const test = (condition: Condition): ((attribute: unknown) => boolean) => {
  if (isRange(condition)) return inRange(condition)
  const wanted = new Set<unknown>([condition].flat())
  return (attribute) =>
    Array.isArray(attribute) ? attribute.some((value) => wanted.has(value)) : wanted.has(attribute)
}

/** Whether a product may be found. Prepared once, because a search asks it for every product. */
export const matcher = ({ categories, conditions = {} }: ProductFilter): ((product: Product) => boolean) => {
  const among = categories && new Set<string | null>(categories)
  const tests = Object.entries(conditions).map(([name, condition]) => [name, test(condition)] as const)
  return ({ attributes, available, category }) =>
    available &&
    (among === undefined || among.has(category)) &&
    tests.every(([name, holds]) => Object.hasOwn(attributes, name) && holds(attributes[name]))
}
