/** Made-up interactions: repeatable, with the shares of a shop, skewed, without duplicates. */
import { expect, test } from "bun:test"
import { interactions, mix } from "../../../src/services/history/LoadModel.ts"
import { eventTypes, type Interaction } from "../../../src/services/model/Interaction.ts"

const products = Array.from({ length: 50 }, (_, index) => `p-${index}`)
const model = { users: 100, eventsPerUser: 50, seed: 1, products, start: 1_770_000_000_000 }
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

test("event types occur with their shares", () => {
  expect(Object.values(mix).reduce((sum, share) => sum + share, 0)).toBeCloseTo(1, 9)
  for (const type of eventTypes) {
    const share = made.filter(({ event_type }) => event_type === type).length / made.length
    expect(Math.abs(share - mix[type])).toBeLessThan(0.02)
  }
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
