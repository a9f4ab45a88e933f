/** The fold: properties over random histories, and the formulas of the spec, word by word, in float64. */
import { describe, expect, test } from "bun:test"
import { Either } from "effect"
import fc from "fast-check"
import { defaults, isPhraseEventType } from "../../../src/services/model/EventTypes.ts"
import {
  decay,
  type Event,
  type FoldSettings,
  fold,
  SpaceMismatch,
} from "../../../src/services/model/Fold.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import type { UserEmbedding } from "../../../src/services/model/UserEmbedding.ts"
import * as Vector from "../../../src/services/model/Vector.ts"

const dimensions = 8
const start = Date.UTC(2026, 0, 1)
const dayMillis = 86_400_000
const { weights } = defaults
const cumulative: FoldSettings = { lambda: 0.023, weights, history: "cumulative", space: "test" }
const recency: FoldSettings = { ...cumulative, history: "recency" }

const unit = (...values: ReadonlyArray<number>) =>
  Vector.normalise(Float32Array.from({ length: dimensions }, (_, i) => values[i] ?? 0))
const opposite = (v: Float32Array) => v.map((x) => -x)
const [east, north, up] = [unit(1), unit(0, 1), unit(0, 0, 1)]

const event = (type: Interaction.EventType, days: number, vector: Float32Array, name = "x"): Event => {
  const facts = { user_id: "u", occurred_at: new Date(start + days * dayMillis).toISOString(), metadata: {} }
  return {
    vector,
    interaction: isPhraseEventType(type)
      ? Interaction.make({ ...facts, event_type: type, search_phrase: name })
      : Interaction.make({ ...facts, event_type: type, product_id: name }),
  }
}
const at = ({ interaction }: Event) => Date.parse(interaction.occurred_at)
const oldestFirst = (events: ReadonlyArray<Event>) =>
  events.toSorted((a, b) => Interaction.chronological(a.interaction, b.interaction))

const anyVector = fc
  .array(fc.double({ min: -1, max: 1, noNaN: true }), { minLength: dimensions, maxLength: dimensions })
  .filter((values) => Math.hypot(...values) > 0.1)
  .map((values) => unit(...values))
const anyType = fc.constantFrom(...defaults.names)
const anyDays = (max: number) => fc.double({ min: 0, max, noNaN: true })
/** Distinct interactions; some of the same instant, so that message ids decide their order. */
const anyHistory = (minLength = 1, maxLength = 30) =>
  fc
    .array(fc.tuple(anyType, fc.oneof(anyDays(400), fc.constantFrom(0, 7, 30)), anyVector), {
      minLength,
      maxLength,
    })
    .map((events) => events.map(([type, days, vector], i) => event(type, days, vector, `n${i}`)))
/** A history in any order of arrival, with the numbers of events that arrive together. */
const arrivals = fc
  .tuple(anyHistory(), fc.array(fc.integer({ min: 1, max: 8 }), { minLength: 30, maxLength: 30 }))
  .chain(([events, sizes]) =>
    fc.tuple(
      fc.shuffledSubarray([...events], { minLength: events.length, maxLength: events.length }),
      fc.constant(sizes),
    ),
  )
const anySettings: fc.Arbitrary<FoldSettings> = fc.record({
  lambda: fc.oneof(fc.constantFrom(0, 0.023), fc.double({ min: 0, max: 10, noNaN: true })),
  weights: fc.record(
    Object.fromEntries(defaults.names.map((name) => [name, fc.double({ min: 1e-3, max: 1e3, noNaN: true })])),
  ),
  history: fc.constantFrom("cumulative" as const, "recency" as const),
  space: fc.constant("test"),
})

const take = (current: UserEmbedding | undefined, events: ReadonlyArray<Event>, settings = cumulative) =>
  Either.getOrThrow(fold(current, events, settings, start))
const inBatches = (
  events: ReadonlyArray<Event>,
  settings = cumulative,
  sizes: ReadonlyArray<number> = events.map(() => 1),
): UserEmbedding => {
  let current: UserEmbedding | undefined
  for (let i = 0, batch = 0; i < events.length; i += sizes[batch++] ?? 1)
    current = take(current, events.slice(i, i + (sizes[batch] ?? 1)), settings)
  return current ?? expect.unreachable("a history has at least one event")
}

/** Σ weight · exp(-λ · days before the newest) · vector, and the sum of these factors. */
const direct = (events: ReadonlyArray<Event>, { lambda, weights } = cumulative) => {
  const newest = Math.max(...events.map(at))
  const factors = events.map(
    (one) => weights[one.interaction.event_type]! * Math.exp((-lambda * (newest - at(one))) / dayMillis),
  )
  const sum = Array.from({ length: dimensions }, (_, i) =>
    events.reduce(
      (total, { vector }, k) => total + (factors[k] ?? Number.NaN) * (vector[i] ?? Number.NaN),
      0,
    ),
  )
  return { sum, length: Math.hypot(...sum), total: factors.reduce((a, b) => a + b, 0) }
}
const farthest = (a: ArrayLike<number>, b: ArrayLike<number>) => {
  expect(a.length).toBe(b.length)
  return Math.max(...Array.from(a, (value, i) => Math.abs(value - (b[i] ?? Number.NaN))))
}
const sumOf = ({ embedding, mass }: UserEmbedding) => Array.from(embedding, (x) => x * mass)

describe("every fold", () => {
  test("is finite and unit length, whatever the settings, the order and the batches", () => {
    fc.assert(
      fc.property(arrivals, anySettings, ([events, sizes], settings) => {
        const { embedding, mass, total_weight } = inBatches(events, settings, sizes)
        expect(Math.abs(Vector.norm(embedding) - 1)).toBeLessThan(1e-6)
        expect(Number.isFinite(mass) && mass >= 0).toBe(true)
        expect(total_weight).toBeGreaterThan(0)
        expect(mass).toBeLessThanOrEqual(
          settings.history === "recency" ? 1 : total_weight * (1 + 1e-6) + Number.MIN_VALUE,
        )
      }),
    )
  })

  test("counts each kind, and remembers the newest 10 and the newest of all", () => {
    fc.assert(
      fc.property(arrivals, anySettings, ([events, sizes], settings) => {
        const folded = inBatches(events, settings, sizes)
        const newestFirst = oldestFirst(events)
          .toReversed()
          .map(({ interaction }) => interaction)
        const [newest = expect.unreachable("empty")] = newestFirst
        const number = (type: Interaction.EventType) =>
          events.filter(({ interaction }) => interaction.event_type === type).length
        expect(folded).toMatchObject({
          user_id: "u",
          event_count: events.length,
          last_updated: Math.max(...events.map(at)),
          last_event_id: newest.message_id,
          last_event_type: newest.event_type,
          recent: newestFirst
            .slice(0, 10)
            .map(({ event_type, search_phrase, product_id, occurred_at, message_id }) => ({
              event_type,
              search_phrase,
              product_id,
              occurred_at,
              message_id,
            })),
          metadata: {
            search_count: number("search"),
            view_count: number("product_view"),
            click_count: number("product_click"),
            purchase_count: number("product_purchase"),
            decay_lambda: settings.lambda,
            last_recalculation: start,
          },
        })
      }),
    )
  })

  test("does not depend on the order of the events within a batch", () => {
    fc.assert(
      fc.property(anyHistory(0), arrivals, anySettings, (before, [events], settings) => {
        const current = before.length > 0 ? inBatches(before, settings) : undefined
        expect(take(current, events, settings)).toEqual(take(current, oldestFirst(events), settings))
      }),
    )
  })

  test("changes nothing of what it is given", () => {
    const before = inBatches([event("search", 0, unit(1, 2)), event("search", 1, unit(2, 1))])
    const given = [event("product_view", 2, unit(3, 1)), event("product_view", 1, unit(1, 3), "y")]
    const copies = structuredClone({ before, given })
    take(before, given)
    expect({ before, given }).toEqual(copies)
  })

  test("keeps created_at and the last recalculation, and says when it was updated", () => {
    const first = Either.getOrThrow(fold(undefined, [event("search", 0, east)], cumulative, 1000))
    const second = Either.getOrThrow(
      fold(first, [event("search", 1, north)], { ...cumulative, lambda: 0.5 }, 2000),
    )
    expect(first).toMatchObject({
      created_at: 1000,
      updated_at: 1000,
      metadata: { last_recalculation: 1000 },
    })
    expect(second).toMatchObject({
      created_at: 1000,
      updated_at: 2000,
      metadata: { last_recalculation: 1000, decay_lambda: 0.5 },
    })
  })
})

describe("the first interaction", () => {
  test("is its own vector, with its weight behind it", () => {
    fc.assert(
      fc.property(anyVector, anyType, anySettings, (vector, type, settings) => {
        const weight = settings.weights[type]!
        expect(take(undefined, [event(type, 3, vector)], settings)).toMatchObject({
          embedding: vector,
          event_count: 1,
          mass: settings.history === "recency" ? 1 : weight,
          total_weight: weight,
          last_updated: start + 3 * dayMillis,
          history: settings.history,
          space: "test",
        })
      }),
    )
  })
})

describe("cumulative history", () => {
  test("is the exponentially decayed weighted mean of all events, in whatever order and batches they arrive", () => {
    fc.assert(
      fc.property(arrivals, ([events, sizes]) => {
        const folded = inBatches(events, cumulative, sizes)
        const { length, sum, total } = direct(events)
        expect(farthest(sumOf(folded), sum)).toBeLessThan(1e-5)
        expect(folded.mass).toBeCloseTo(length, 5)
        expect(folded.total_weight).toBeCloseTo(total, 9)
        if (length > 0.05 * total)
          expect(
            farthest(
              folded.embedding,
              sum.map((x) => x / length),
            ),
          ).toBeLessThan(1e-5)
      }),
      { numRuns: 250 },
    )
  })

  test("stays exact over a long life: 5,000 events, one by one", () => {
    const events = fc.sample(anyHistory(100, 100), { numRuns: 50, seed: 1 }).flat()
    const { length, sum, total } = direct(events)
    const folded = inBatches(events)
    expect(
      farthest(
        folded.embedding,
        sum.map((x) => x / length),
      ),
    ).toBeLessThan(1e-4)
    expect(folded.total_weight).toBeCloseTo(total, 6)
  })

  test("stays exact with other weights and another λ", () => {
    const wide = fc.record({
      lambda: fc.double({ min: 0, max: 1, noNaN: true }),
      weights: fc.record(
        Object.fromEntries(
          defaults.names.map((name) => [name, fc.double({ min: 0.5, max: 5, noNaN: true })]),
        ),
      ),
      history: fc.constant("cumulative" as const),
      space: fc.constant("test"),
    })
    fc.assert(
      fc.property(arrivals, wide, ([events, sizes], settings) => {
        const { sum, total } = direct(events, settings)
        expect(farthest(sumOf(inBatches(events, settings, sizes)), sum)).toBeLessThan(
          1e-5 * Math.max(1, total),
        )
      }),
    )
  })

  test("equals the same events folded in time when one comes late, weeks after", () => {
    fc.assert(
      fc.property(anyHistory(3), anyVector, (events, vector) => {
        const late = event("product_purchase", -50, vector, "late")
        const [inTime, afterwards] = [inBatches(oldestFirst([...events, late])), inBatches([...events, late])]
        expect(farthest(sumOf(afterwards), sumOf(inTime))).toBeLessThan(1e-5)
        expect(afterwards.total_weight).toBeCloseTo(inTime.total_weight, 9)
        expect(afterwards.recent).toEqual(inTime.recent)
      }),
    )
  })

  test("a sum that cancels out keeps the direction with mass 0, and what follows is exact", () => {
    fc.assert(
      fc.property(anyVector, anyVector, anyType, anyDays(300), (vector, next, type, days) => {
        const pair = [event(type, 0, vector, "a"), event(type, 0, opposite(vector), "b")]
        for (const gone of [inBatches(oldestFirst(pair)), take(undefined, pair)]) {
          expect(gone.mass).toBe(0)
          expect(gone.total_weight).toBeCloseTo(2 * weights[type]!, 12)
          expect(gone.event_count).toBe(2)
          expect(gone.embedding).toEqual(oldestFirst(pair)[0]?.vector ?? new Float32Array(0))
          const after = take(gone, [event("product_click", days, next, "c")])
          expect(farthest(after.embedding, next)).toBeLessThan(1e-6)
          expect(after.mass).toBeCloseTo(0.5, 6)
        }
      }),
    )
  })

  test("a sum that nearly cancels out is not taken for nothing: a minute's decay is left", () => {
    const before = take(undefined, [event("search", 0, east, "a")])
    const after = take(before, [event("search", 1 / 1440, opposite(east), "b")])
    expect(farthest(after.embedding, opposite(east))).toBeLessThan(1e-6)
    expect(after.mass).toBeCloseTo((0.7 * 0.023) / 1440, 8)
    expect(after.mass).toBeGreaterThan(0)
  })

  test("a sum that cancels out within a batch leaves what else is in it", () => {
    const folded = take(undefined, [
      event("search", 0, east, "a"),
      event("search", 0, opposite(east), "b"),
      event("product_view", 0, up, "c"),
    ])
    expect(folded.embedding).toEqual(up)
    expect(folded.mass).toBeCloseTo(0.3, 12)
  })

  test("a batch that cancels an embedding out keeps the embedding's last direction, with mass 0", () => {
    const before = take(undefined, [event("product_purchase", 0, north, "a")])
    const gone = take(before, [
      event("product_click", 0, opposite(north), "b"),
      event("product_click", 0, opposite(north), "c"),
    ])
    expect(gone).toMatchObject({ embedding: north, mass: 0, total_weight: 2, event_count: 3 })
  })

  test("evidence outweighs a single event: fifty views are not turned around by one purchase", () => {
    const views = Array.from({ length: 50 }, (_, i) => event("product_view", i / 100, east, `v${i}`))
    const { embedding } = take(inBatches(views), [event("product_purchase", 0.5, north, "p")])
    expect(Vector.cosine(embedding, east)).toBeGreaterThan(0.99)
  })
})

describe("recency history", () => {
  test("one event is normalise((current · decay + event · weight) / (decay + weight))", () => {
    fc.assert(
      fc.property(anyVector, anyVector, anyType, anyDays(90), (before, after, type, days) => {
        const faded = Math.exp((-0.023 * Math.round(days * dayMillis)) / dayMillis)
        const weight = weights[type]!
        const mixed = Array.from(
          before,
          (x, i) => (x * faded + (after[i] ?? Number.NaN) * weight) / (faded + weight),
        )
        fc.pre(Math.hypot(...mixed) > 0.01)
        const current = take(undefined, [event("product_purchase", 0, before, "first")], recency)
        const folded = take(current, [event(type, days, after, "second")], recency)
        expect(farthest(folded.embedding, unit(...mixed))).toBeLessThan(1e-5)
        expect(folded.mass).toBe(1)
        expect(folded.total_weight).toBeCloseTo(faded + weight, 9)
      }),
    )
  })

  test("an older event fades itself: normalise(current + event · weight · decay)", () => {
    fc.assert(
      fc.property(anyVector, anyVector, anyDays(90), (before, after, days) => {
        const current = take(undefined, [event("product_purchase", 100, before)], recency)
        const late = event("product_purchase", 100 - days, after, "late")
        const faded = Math.exp((-0.023 * (current.last_updated - at(late))) / dayMillis)
        const mixed = Array.from(before, (x, i) => x + (after[i] ?? Number.NaN) * faded)
        fc.pre(Math.hypot(...mixed) > 0.01)
        expect(farthest(take(current, [late], recency).embedding, unit(...mixed))).toBeLessThan(1e-5)
      }),
    )
  })

  test("a batch is the same as its events one by one, oldest first", () => {
    fc.assert(
      fc.property(anyHistory(0), arrivals, (before, [events]) => {
        const current = before.length > 0 ? inBatches(before, recency) : undefined
        const stepwise = oldestFirst(events).reduce(
          (state: UserEmbedding | undefined, one) => take(state, [one], recency),
          current,
        )
        expect(stepwise).toEqual(take(current, events, recency))
      }),
    )
  })

  test("a sum that cancels out keeps direction and mass 1", () => {
    const before = take(undefined, [event("product_purchase", 0, east, "a")], recency)
    const after = take(before, [event("product_purchase", 0, opposite(east), "b")], recency)
    expect(after).toMatchObject({ embedding: east, mass: 1, total_weight: 2, event_count: 2 })
  })
})

describe("a late interaction", () => {
  for (const settings of [cumulative, recency])
    test(`is never dropped nor amplified, and does not move the clock back (${settings.history})`, () => {
      fc.assert(
        fc.property(fc.double({ min: 0.001, max: 200, noNaN: true }), anyType, (days, type) => {
          const current = take(undefined, [event("product_purchase", 0, east, "a")], settings)
          const late = take(current, [event(type, -days, north, "b")], settings)
          const inTime = take(current, [event(type, 0, north, "b")], settings)
          const pull = (folded: UserEmbedding) => Vector.cosine(folded.embedding, north)
          expect(pull(late)).toBeGreaterThan(0)
          expect(pull(late)).toBeLessThan(pull(inTime))
          expect(late.event_count).toBe(2)
          expect(late.total_weight).toBeGreaterThan(1)
          expect(late.total_weight).toBeLessThan(1 + weights[type]!)
          expect(late).toMatchObject({
            last_updated: current.last_updated,
            last_event_id: current.last_event_id,
            last_event_type: current.last_event_type,
          })
        }),
      )
    })

  test("of any age leaves a usable embedding, even where its decay underflows", () => {
    const current = take(undefined, [event("search", 10_000, east)], { ...cumulative, lambda: 10 })
    const { embedding, mass } = take(current, [event("search", -10_000, opposite(east), "old")], {
      ...cumulative,
      lambda: 10,
    })
    expect(embedding).toEqual(east)
    expect(mass).toBeCloseTo(0.7, 12)
  })
})

describe("an existing embedding", () => {
  test("keeps the history it was created with", () => {
    const [old, next] = [event("search", 0, east), event("search", 1, north, "y")]
    expect(take(take(undefined, [old], recency), [next], cumulative)).toEqual(
      take(take(undefined, [old], recency), [next], recency),
    )
    expect(take(take(undefined, [old]), [next], recency).history).toBe("cumulative")
  })

  test("of another space stops the fold with an error that says rebuild, and for whom", () => {
    const current = take(undefined, [event("search", 0, east)])
    const folded = fold(current, [event("search", 1, north)], { ...cumulative, space: "new" }, start)
    expect(Either.flip(folded)).toEqual(
      Either.right(new SpaceMismatch({ user_id: "u", stored: "test", configured: "new" })),
    )
    expect(Either.merge(Either.mapBoth(folded, { onLeft: String, onRight: () => "folded" }))).toContain(
      "the embedding of user u is in space test, not new: rebuild it (user-embeddings rebuild --user u)",
    )
  })
})

describe("decay", () => {
  test("is a half after 30 days, 0.85 after 7 days, 1 at once", () => {
    expect(decay(0.023, 30 * dayMillis, 0)).toBeCloseTo(0.5016, 4)
    expect(decay(0.023, 7 * dayMillis, 0)).toBeCloseTo(0.8513, 4)
    expect(decay(0.023, 5, 5)).toBe(1)
    expect(decay(0, 1e12, 0)).toBe(1)
  })

  test("is the same in both directions, composes, and counts fractions of a day", () => {
    expect(decay(0.023, 0, dayMillis)).toBe(decay(0.023, dayMillis, 0))
    expect(decay(0.023, dayMillis / 2, 0) ** 2).toBeCloseTo(decay(0.023, dayMillis, 0), 12)
    expect(decay(0.023, 1, 0)).toBeLessThan(1)
  })
})

test("the heavier event pulls harder: purchase > search > click > view", () => {
  const order = ["product_purchase", "search", "product_click", "product_view"] as const
  for (const settings of [cumulative, recency]) {
    const pulls = order.map((type) =>
      Vector.cosine(
        inBatches([event("search", 0, east), event(type, 1, north, "y")], settings).embedding,
        north,
      ),
    )
    for (const [i, pull] of pulls.slice(1).entries()) expect(pull).toBeLessThan(pulls[i] ?? 0)
  }
})

test("two events of one instant: the greater message id is the newer one", () => {
  const pair = oldestFirst([event("search", 0, east, "a"), event("product_view", 0, north, "b")])
  for (const arrived of [pair, pair.toReversed()])
    expect(inBatches(arrived)).toMatchObject({
      last_event_id: pair[1]?.interaction.message_id,
      last_event_type: pair[1]?.interaction.event_type,
      recent: [
        { message_id: pair[1]?.interaction.message_id },
        { message_id: pair[0]?.interaction.message_id },
      ],
    })
})

test("a whole history can be folded at once, a million events too", () => {
  const one = event("product_view", 0, east)
  const { event_count, mass, recent } = take(
    undefined,
    Array.from({ length: 1_000_000 }, () => one),
  )
  expect(event_count).toBe(1_000_000)
  expect(mass).toBeCloseTo(300_000, 3)
  expect(recent.length).toBe(10)
})

describe("negative weights", () => {
  const signed: FoldSettings = {
    ...cumulative,
    weights: { ...weights, wish: 0.6, unwish: -0.6, dislike: -0.4 },
  }
  const signedTypes = ["search", "product_view", "product_purchase", "wish", "dislike"] as const
  const signedHistory = fc
    .array(fc.tuple(fc.constantFrom(...signedTypes), anyDays(60), anyVector), { minLength: 1, maxLength: 20 })
    .map((events) => events.map(([type, days, vector], i) => event(type, days, vector, `n${i}`)))
    // A sum that all but cancels out has no direction to compare.
    .filter((events) => direct(events, signed).length > 0.05)

  test("the embedding is the direct sum, in whatever order and batches the events arrive", () => {
    const inAnyOrder = signedHistory.chain((events) =>
      fc.tuple(
        fc.shuffledSubarray([...events], { minLength: events.length, maxLength: events.length }),
        fc.array(fc.integer({ min: 1, max: 5 }), { minLength: events.length, maxLength: events.length }),
      ),
    )
    fc.assert(
      fc.property(inAnyOrder, ([events, sizes]) => {
        const { length, sum, total } = direct(events, signed)
        const embedding = inBatches(events, signed, sizes)
        expect(farthest(sumOf(embedding), sum)).toBeLessThan(1e-5)
        expect(embedding.mass).toBeCloseTo(length, 5)
        expect(embedding.total_weight).toBeCloseTo(total, 9)
        expect(Vector.norm(embedding.embedding)).toBeCloseTo(1, 6)
      }),
    )
  })

  test("an event of weight -w after one of weight w at the same instant leaves the sum as it was", () => {
    const anyPlace = fc.tuple(signedHistory, anyDays(60), anyVector, fc.boolean(), fc.boolean())
    fc.assert(
      fc.property(anyPlace, ([events, days, vector, together, negativeFirst]) => {
        const before = inBatches(events, signed, [events.length])
        const pair = [event("wish", days, vector, "w"), event("unwish", days, vector, "w")]
        const added = negativeFirst ? pair.toReversed() : pair
        const after = together
          ? take(before, added, signed)
          : added.reduce((current, one) => take(current, [one], signed), before)
        const fading = decay(signed.lambda, after.last_updated, before.last_updated)
        expect(
          farthest(
            sumOf(after),
            sumOf(before).map((x) => x * fading),
          ),
        ).toBeLessThan(1e-5)
        expect(after.total_weight).toBeCloseTo(before.total_weight * fading, 9)
        expect(after.event_count).toBe(before.event_count + 2)
      }),
    )
  })

  test("the pair alone leaves mass 0, and the next event is exact", () => {
    const pair = [event("wish", 1, north), event("unwish", 1, north)]
    for (const sizes of [[2], [1, 1]]) {
      const nothing = inBatches(pair, signed, sizes)
      expect(nothing).toMatchObject({ mass: 0, total_weight: 0, event_count: 2 })
      const next = take(nothing, [event("product_view", 2, up)], signed)
      expect(farthest(next.embedding, up)).toBe(0)
      expect(next.mass).toBeCloseTo(0.3, 12)
    }
  })

  test("a user with negative events only has the opposite of their sum", () => {
    for (const history of [signed, { ...signed, history: "recency" as const }]) {
      const alone = take(undefined, [event("dislike", 0, north)], history)
      expect(farthest(alone.embedding, opposite(north))).toBe(0)
      expect(alone.total_weight).toBeCloseTo(-0.4, 12)
      expect(alone.mass).toBeCloseTo(history.history === "recency" ? 1 : 0.4, 12)
      const two = inBatches([event("dislike", 0, north), event("dislike", 0, east, "e")], history)
      expect(two.embedding[0]).toBeLessThan(0)
      expect(two.embedding[1]).toBeLessThan(0)
    }
  })

  test("each type of one's own has a counter of its own", () => {
    const { metadata } = inBatches(
      [event("wish", 0, north), event("wish", 1, east), event("search", 2, up)],
      signed,
    )
    expect(metadata).toMatchObject({ wish_count: 2, search_count: 1, view_count: 0 })
  })
})
