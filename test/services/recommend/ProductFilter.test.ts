/** Filters of products, compared with a plain reading of their definition. */
import { describe, expect, test } from "bun:test"
import { Either, Schema } from "effect"
import fc from "fast-check"
import { issues } from "../../../src/services/model/Interaction.ts"
import { type Attribute, Attributes, readAttributes } from "../../../src/services/model/Product.ts"
import { type Condition, Conditions, matcher } from "../../../src/services/recommend/ProductFilter.ts"

const scalar = fc.constantFrom<string | number | boolean>("red", "blue", "", 1, 2, 2.5, -1, true, false)
const attribute: fc.Arbitrary<Attribute> = fc.oneof(
  scalar,
  fc.array(fc.constantFrom("red", "blue", ""), { maxLength: 3 }),
)
const name = fc.constantFrom("colour", "price", "constructor")
const bound = fc.option(fc.constantFrom(-1, 0, 1, 2, 2.5), { nil: undefined })
const range = fc
  .record({ gte: bound, lte: bound, gt: bound, lt: bound })
  .map((bounds) => JSON.parse(JSON.stringify(bounds)) as object)
  .filter((bounds) => Object.keys(bounds).length > 0)
const condition = fc.oneof(
  scalar,
  fc.array(scalar, { minLength: 1, maxLength: 3 }),
  range,
) as fc.Arbitrary<Condition>

const holds = (attribute: Attribute | undefined, condition: Condition): boolean => {
  if (attribute === undefined) return false
  if (typeof condition === "object" && !Array.isArray(condition)) {
    if (typeof attribute !== "number") return false
    return Object.entries(condition as Readonly<Record<string, number>>).every(([is, limit]) =>
      is === "gte"
        ? attribute >= limit
        : is === "lte"
          ? attribute <= limit
          : is === "gt"
            ? attribute > limit
            : attribute < limit,
    )
  }
  const values: ReadonlyArray<unknown> = [attribute].flat()
  return [condition].flat().some((wanted) => values.includes(wanted))
}

test("equality, containing, ranges; a missing attribute never matches", () => {
  fc.assert(
    fc.property(
      fc.dictionary(name, attribute),
      fc.dictionary(name, condition),
      fc.boolean(),
      fc.option(fc.subarray(["hats", "shoes"], { minLength: 1 }), { nil: undefined }),
      (attributes, conditions, available, categories) => {
        const product = { product_id: "p", product_name: null, category: "hats", available, attributes }
        const expected =
          available &&
          (categories === undefined || categories.includes("hats")) &&
          Object.entries(conditions).every(([name, condition]) =>
            holds(Object.hasOwn(attributes, name) ? attributes[name] : undefined, condition),
          )
        expect(matcher({ categories, conditions })(product)).toBe(expected)
      },
    ),
    { numRuns: 2_000, seed: 1 },
  )
})

const problems = <A, I>(schema: Schema.Schema<A, I>, value: unknown) =>
  Either.match(Schema.decodeUnknownEither(schema, { errors: "all", onExcessProperty: "error" })(value), {
    onLeft: (error) => issues(error).map(({ field, problem }) => `${field}: ${problem}`),
    onRight: () => [],
  })

describe("what a filter and the attributes may be", () => {
  const isNone =
    "must be a string, a number, a boolean, an array of these, or an object of the numbers gte, lte, gt, lt"
  test.each([
    [{ price: { gte: 1, lt: 2 }, brand: ["a", 1, true], sale: false }, []],
    [{ price: {} }, [`price: ${isNone}`]],
    [{ price: { over: 1 } }, [`price: ${isNone}`]],
    [{ price: { gte: "1" }, brand: [] }, [`price: ${isNone}`, `brand: ${isNone}`]],
    [{ brand: null }, [`brand: ${isNone}`]],
  ])("filter %j", (filter, expected) => expect(problems(Conditions, filter)).toEqual(expected))

  const kinds = "must be a string, a number, a boolean or an array of strings"
  const named = "the name of an attribute must be 1 to 64 letters, digits, blanks, _ or -"
  const many = Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`a${i}`, i]))
  test.each([
    [{ price: 19.9, "Größe in cm": "M", sale: true, colours: ["red"], "sub-brand_2": "x" }, []],
    [{ price: null, sizes: [1], more: {} }, [`price: ${kinds}`, `sizes: ${kinds}`, `more: ${kinds}`]],
    [{ "a.b": 1, $set: 2, "": 3 }, [`a.b: ${named}`, `$set: ${named}`, `: ${named}`]],
    [many, [": must have at most 32 attributes, has 33"]],
    [{ text: "x".repeat(8_192) }, [": must be at most 8192 bytes as JSON"]],
  ])("attributes %#", (attributes, expected) => expect(problems(Attributes, attributes)).toEqual(expected))

  test("__proto__ is refused, because an object would lose it", () => {
    const given = JSON.parse('{"__proto__":"x"}')
    expect(problems(Conditions, given)).toHaveLength(1)
    expect(problems(Attributes, given)).toHaveLength(1)
  })

  test("what another program stored is read as far as it can be", () => {
    expect(readAttributes({ price: 1, odd: { a: 1 }, mixed: [1, "x"], sizes: ["M"] })).toEqual({
      price: 1,
      sizes: ["M"],
    })
    for (const other of [null, "text", ["x"], 5]) expect(readAttributes(other)).toEqual({})
  })
})
