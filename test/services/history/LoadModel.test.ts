/** Made-up interactions: repeatable, with the shares of a shop, skewed, without duplicates. */
import { expect, test } from "bun:test"
import { interactions } from "../../../src/services/history/LoadModel.ts"
import { defaults, make as eventTypesWith } from "../../../src/services/model/EventTypes.ts"
import type { Interaction } from "../../../src/services/model/Interaction.ts"

const products = Array.from({ length: 50 }, (_, index) => `p-${index}`)
const model = {
  users: 100,
  eventsPerUser: 50,
  seed: 1,
  products,
  types: defaults.all,
  start: 1_770_000_000_000,
}
const made = interactions(model)
const counts = (of: (one: Interaction) => string | null) =>
  [
    ...Map.groupBy(
      made.filter((one) => of(one) !== null),
      of,
    ).values(),
  ]
    .map(({ length }) => length)
    .toSorted((a, b) => b - a)

test("the same model gives the same interactions; another seed or start gives others", () => {
  const ids = (change: Partial<typeof model>) =>
    new Set(interactions({ ...model, ...change }).map(({ message_id }) => message_id))
  const first = ids({})
  expect(first.size).toBe(5_000)
  expect(ids({}).isSubsetOf(first)).toBe(true)
  expect(ids({ products: products.toReversed() }).isSubsetOf(first)).toBe(true)
  expect(ids({ seed: 2 }).intersection(first).size).toBeLessThan(100)
  expect(ids({ start: model.start + 3_600_000 }).isDisjointFrom(first)).toBe(true)
})

test("each event type has its share", () => {
  const total = defaults.all.reduce((sum, { loadShare }) => sum + loadShare, 0)
  for (const { loadShare, name } of defaults.all) {
    const share = made.filter(({ event_type }) => event_type === name).length / made.length
    expect(Math.abs(share - loadShare / total)).toBeLessThan(0.02)
  }
})

test("a configured type occurs too", () => {
  const types = eventTypesWith({ wish: 0.8 }).all
  const carts = interactions({ ...model, types }).filter(({ event_type }) => event_type === "wish")
  expect(carts.length / made.length).toBeGreaterThan(0.03)
  expect(carts.every(({ product_id }) => product_id !== null)).toBe(true)
})

test("a few users, products and phrases make up most events, and all of them occur", () => {
  for (const [of, size] of [
    [(one: Interaction) => one.user_id, 100],
    [(one: Interaction) => one.product_id, 50],
  ] as const) {
    const sizes = counts(of)
    expect(sizes.length).toBe(size)
    // Zipf: the first of 100 has 1/5.19 of all events, ten times as many as the tenth.
    expect(sizes[0]! / sizes[9]!).toBeGreaterThan(7)
    expect(sizes[0]! / sizes[9]!).toBeLessThan(13)
  }
  expect(made.some(({ product_id }) => product_id !== null && !products.includes(product_id))).toBe(false)
})

test("each event occurs after the one before", () => {
  expect(made.map(({ occurred_at }) => Date.parse(occurred_at))).toEqual(
    made.map((_, index) => model.start + index),
  )
})
