/** The table of event types, and what EVENT_WEIGHTS may add to it. */
import { describe, expect, test } from "bun:test"
import { Either } from "effect"
import * as EventTypes from "../../../src/services/model/EventTypes.ts"

const reading = (text: string) => Either.merge(EventTypes.parseWeights(text))

describe("EVENT_WEIGHTS", () => {
  test("adds types and changes weights", () => {
    const weights = { wish: 0.8, dislike: -0.4, product_view: 0.2 }
    expect(reading("wish:0.8, dislike:-0.4,product_view:0.2")).toEqual(weights)
    const types = EventTypes.make(weights)
    expect(types.names).toEqual([...EventTypes.defaults.names, "wish", "dislike"])
    expect(types.weights).toEqual({ ...EventTypes.defaults.weights, ...weights })
    expect(types.ofRoute("wish")?.name).toBe("wish")
    expect(types.ofRoute("view")?.weight).toBe(0.2)
    expect(types.has("wishlist")).toBe(false)
  })

  const refused: Readonly<Record<string, string>> = {
    cart: '"cart" is not name:weight',
    "": '"" is not name:weight',
    "ab:0.5,": '"" is not name:weight',
    "a:0.5": "a name is 2 to 32 characters of a-z, 0-9 and _, and begins with a letter",
    [`${"x".repeat(33)}:0.5`]: "a name is 2 to 32 characters of a-z, 0-9 and _, and begins with a letter",
    "Cart:0.5": "a name is 2 to 32 characters of a-z, 0-9 and _, and begins with a letter",
    "view:0.5": "the name is reserved",
    "merge:0.5": "the name is reserved",
    "retraction:-1": "the name is reserved",
    "product_wish:0.5": "the name is reserved",
    "cart:0": "a weight is a number from -1 to 1, not 0",
    "cart:1.5": "a weight is a number from -1 to 1, not 0",
    "cart:-2": "a weight is a number from -1 to 1, not 0",
    "cart:heavy": "a weight is a number from -1 to 1, not 0",
    "cart:": "a weight is a number from -1 to 1, not 0",
    "cart:Infinity": "a weight is a number from -1 to 1, not 0",
    "cart:0.5,cart:0.6": "cart has two weights, 0.5 and 0.6",
  }
  for (const [text, problem] of Object.entries(refused))
    test(`refuses "${text.slice(0, 20)}"`, () => expect(reading(text)).toContain(problem))

  test("accepts the same weight twice", () => expect(reading("cart:0.5,cart:0.5")).toEqual({ cart: 0.5 }))
})

test("names that every object has are names like any other", () => {
  const types = EventTypes.make({ constructor: 0.5 })
  expect(Object.entries(types.weights)).toContainEqual(["constructor", 0.5])
  expect(EventTypes.counterOf("constructor")).toBe("constructor_count")
  expect(EventTypes.defaults.has("constructor")).toBe(false)
  expect(EventTypes.counterOf("product_view")).toBe("view_count")
})

test("rows of a type that is no longer configured keep their type; reserved names are no types", () => {
  for (const name of ["wish", "product_view", "constructor"])
    expect(EventTypes.isProductEventType(name)).toBe(true)
  for (const name of ["search", "view", "merge", "retraction", "product_wish", "a", "A", "", 5, null])
    expect(EventTypes.isProductEventType(name)).toBe(false)
})
