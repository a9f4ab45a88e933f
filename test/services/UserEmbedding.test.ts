/** The fold: properties over random interactions, and the formulas of the spec word by word. */
import { describe, expect, test } from "bun:test"
import { Either } from "effect"
import fc from "fast-check"
import * as Interaction from "../../src/services/Interaction.ts"
import {
  decay,
  type Event,
  type FoldSettings,
  fold,
  type UserEmbedding,
} from "../../src/services/UserEmbedding.ts"
import * as Vector from "../../src/services/Vector.ts"

const dimensions = 8
const start = Date.UTC(2026, 0, 1)
const dayMillis = 86_400_000
const weights = { product_purchase: 1, search: 0.7, product_click: 0.5, product_view: 0.3 }
const cumulative: FoldSettings = { lambda: 0.023, weights, history: "cumulative", space: "test" }
const recency: FoldSettings = { ...cumulative, history: "recency" }

const unit = (values: ReadonlyArray<number>) => Vector.normalise(Float32Array.from(values))
const event = (type: Interaction.EventType, days: number, vector: Float32Array, name = "x"): Event => {
  const facts = { user_id: "u", occurred_at: new Date(start + days * dayMillis).toISOString(), metadata: {} }
  return {
    vector,
    interaction:
      type === "search"
        ? Interaction.make({ ...facts, event_type: type, search_phrase: name })
        : Interaction.make({ ...facts, event_type: type, product_id: name }),
  }
}

const anyVector = fc
  .array(fc.double({ min: -1, max: 1, noNaN: true }), { minLength: dimensions, maxLength: dimensions })
  .filter((values) => Math.hypot(...values) > 0.1)
  .map(unit)
const anyEvent = fc
  .tuple(
    fc.constantFrom(...Interaction.eventTypes),
    fc.double({ min: 0, max: 400, noNaN: true }),
    anyVector,
    fc.nat(1e6),
  )
  .map(([type, days, vector, name]) => event(type, days, vector, `n${name}`))
const history = fc.array(anyEvent, { minLength: 1, maxLength: 30 })

const take = (current: UserEmbedding | undefined, events: ReadonlyArray<Event>, settings = cumulative) =>
  Either.getOrThrow(fold(current, events, settings, start))
const oneByOne = (events: ReadonlyArray<Event>, settings = cumulative) =>
  events.reduce<UserEmbedding | undefined>((current, one) => take(current, [one], settings), undefined)!

/** Σ weight · exp(-λ · days before the newest) · vector, in float64. */
const directSum = (events: ReadonlyArray<Event>) => {
  const newest = Math.max(...events.map(({ interaction }) => Date.parse(interaction.occurred_at)))
  const sum = new Float64Array(dimensions)
  for (const { interaction, vector } of events)
    Vector.addScaled(
      sum,
      weights[interaction.event_type] * decay(0.023, newest, Date.parse(interaction.occurred_at)),
      vector,
    )
  return sum
}
const farthest = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Math.max(...Array.from(a, (value, i) => Math.abs(value - b[i]!)))

describe("every fold", () => {
  for (const settings of [cumulative, recency])
    test(`is unit length, counts everything and keeps the newest (${settings.history})`, () => {
      fc.assert(
        fc.property(history, (events) => {
          const { embedding, event_count, last_event_id, last_updated, mass, recent } = oneByOne(
            events,
            settings,
          )
          const newest = events
            .map(({ interaction }) => interaction)
            .toSorted(Interaction.chronological)
            .at(-1)!
          expect(Math.abs(Vector.norm(embedding) - 1)).toBeLessThan(1e-6)
          expect(event_count).toBe(events.length)
          expect(last_event_id).toBe(newest.message_id)
          expect(last_updated).toBe(Date.parse(newest.occurred_at))
          expect(recent.length).toBe(Math.min(10, events.length))
          if (settings.history === "recency") expect(mass).toBe(1)
        }),
      )
    })
})

describe("cumulative history", () => {
  test("does not depend on the order of arrival, nor on how arrivals are batched", () => {
    fc.assert(
      fc.property(history, fc.infiniteStream(fc.nat()), fc.nat(30), (events, random, cut) => {
        const keys = events.map(() => random.next().value)
        const shuffled = events
          .map((one, i) => [keys[i]!, one] as const)
          .toSorted(([a], [b]) => a - b)
          .map(([, one]) => one)
        const inOrder = oneByOne(
          events.toSorted((a, b) => Interaction.chronological(a.interaction, b.interaction)),
        )
        fc.pre(inOrder.mass > 0.05)
        const [head, tail] = [shuffled.slice(0, cut), shuffled.slice(cut)]
        const first = head.length > 0 ? take(undefined, head) : undefined
        const batched = tail.length > 0 ? take(first, tail) : first!
        for (const other of [oneByOne(shuffled), batched]) {
          expect(farthest(inOrder.embedding, other.embedding)).toBeLessThan(1e-5)
          expect(other.mass).toBeCloseTo(inOrder.mass, 5)
          expect(other.total_weight).toBeCloseTo(inOrder.total_weight, 9)
        }
      }),
    )
  })

  test("is the exponentially decayed weighted mean of all events", () => {
    fc.assert(
      fc.property(history, (events) => {
        const sum = directSum(events)
        fc.pre(Vector.norm(sum) > 0.05)
        const { embedding, mass } = oneByOne(events)
        expect(mass).toBeCloseTo(Vector.norm(sum), 5)
        expect(farthest(embedding, Vector.divide(sum, Vector.norm(sum)))).toBeLessThan(1e-4)
      }),
    )
  })

  test("a sum that cancels out keeps the direction with mass 0, and what follows is exact", () => {
    const [a, b] = [unit([1, 0, 0, 0, 0, 0, 0, 0]), unit([-1, 0, 0, 0, 0, 0, 0, 0])]
    const next = unit([0, 1, 0, 0, 0, 0, 0, 0])
    const gone = oneByOne([event("search", 0, a), event("search", 0, b, "y")])
    expect([gone.mass, ...gone.embedding]).toEqual([0, 1, 0, 0, 0, 0, 0, 0, 0])
    expect(take(gone, [event("search", 1, next)]).embedding).toEqual(next)
    expect(take(undefined, [event("search", 0, a), event("search", 0, b, "y")]).mass).toBe(0)
  })
})

describe("recency history", () => {
  test("one event is the formula: normalise((current · decay + event · weight) / (decay + weight))", () => {
    fc.assert(
      fc.property(
        anyVector,
        anyVector,
        fc.double({ min: 0, max: 90, noNaN: true }),
        (before, after, days) => {
          const faded = Math.exp(-0.023 * (Math.round(days * dayMillis) / dayMillis))
          const mixed = Array.from(before, (x, i) => (x * faded + after[i]! * 0.7) / (faded + 0.7))
          fc.pre(Math.hypot(...mixed) > 0.01)
          const current = take(undefined, [event("product_purchase", 0, before)], recency)
          const { embedding } = take(current, [event("search", days, after)], recency)
          expect(farthest(embedding, unit(mixed))).toBeLessThan(1e-5)
        },
      ),
    )
  })
})

test("decay: a half after 30 days, 0.85 after 7", () => {
  expect(decay(0.023, 30 * dayMillis, 0)).toBeCloseTo(0.5, 2)
  expect(decay(0.023, 7 * dayMillis, 0)).toBeCloseTo(0.85, 2)
})

test("the heavier event pulls harder: purchase > search > click > view", () => {
  const [base, other] = [unit([1, 0, 0, 0, 0, 0, 0, 0]), unit([0, 1, 0, 0, 0, 0, 0, 0])]
  const pull = (type: Interaction.EventType) =>
    Vector.cosine(oneByOne([event("search", 0, base), event(type, 1, other, "y")]).embedding, other)
  const pulls = (["product_purchase", "search", "product_click", "product_view"] as const).map(pull)
  expect(pulls).toEqual(pulls.toSorted((a, b) => b - a))
  expect(new Set(pulls).size).toBe(4)
})

test("the first interaction is its own vector, with its weight as mass", () => {
  const vector = unit([1, 2, 3, 4, 5, 6, 7, 8])
  expect(take(undefined, [event("product_click", 0, vector)])).toMatchObject({
    embedding: vector,
    mass: 0.5,
    total_weight: 0.5,
    event_count: 1,
  })
  expect(take(undefined, [event("product_click", 0, vector)], recency).mass).toBe(1)
})

test("an embedding of another space stops the fold and says rebuild", () => {
  const current = take(undefined, [event("search", 0, unit([1, 0, 0, 0, 0, 0, 0, 0]))])
  const folded = fold(
    current,
    [event("search", 1, unit([0, 1, 0, 0, 0, 0, 0, 0]))],
    { ...cumulative, space: "new" },
    start,
  )
  expect(
    String(Either.getLeft(folded).pipe((left) => ("value" in left ? left.value.message : ""))),
  ).toContain("rebuild")
})
