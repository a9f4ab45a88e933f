/** Reading a taste: the worked example of docs/concepts.md, and properties of every taste. */
import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { Either } from "effect"
import fc from "fast-check"
import { type Event, type FoldSettings, fold } from "../../../src/services/model/Fold.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import * as Taste from "../../../src/services/model/Taste.ts"
import type { UserEmbedding } from "../../../src/services/model/UserEmbedding.ts"
import * as Vector from "../../../src/services/model/Vector.ts"

const weights = { product_purchase: 1, search: 0.7, product_click: 0.5, product_view: 0.3 }
const settings: FoldSettings = { lambda: 0.023, weights, history: "cumulative", space: "test" }
const f32 = (...values: ReadonlyArray<number>) => Float32Array.from(values)

const event = (
  event_type: "product_purchase" | "product_view",
  product_id: string,
  occurred_at: string,
  vector: Float32Array,
): Event => ({
  interaction: Interaction.make({ user_id: "u", event_type, product_id, occurred_at, metadata: {} }),
  vector,
})
const foldAll = (events: ReadonlyArray<Event>, s = settings): UserEmbedding =>
  Either.getOrThrow(fold(undefined, events, s, 0))
const remembered = (user: UserEmbedding, events: ReadonlyArray<Event>) =>
  user.recent.map((recent) => ({
    event: recent,
    vector: events.find(({ interaction }) => interaction.message_id === recent.message_id)?.vector,
  }))
const meanOf = (vectors: ReadonlyArray<Float32Array>): Float32Array => {
  const sum = new Float64Array(vectors[0]!.length)
  for (const v of vectors) Vector.addScaled(sum, 1, v)
  return Vector.divide(sum, vectors.length)
}

describe("the example of docs/concepts.md", () => {
  const document = readFileSync(new URL("../../../docs/concepts.md", import.meta.url), "utf8")
  const products = {
    mug: f32(1, 0),
    kettle: f32(0.8, 0.6),
    cup: f32(0.96, 0.28),
    tent: f32(0, 1),
    boot: f32(-0.6, 0.8),
  }
  const bought = event("product_purchase", "mug", "2026-01-01T00:00:00.000Z", products.mug)
  const viewed = event("product_view", "kettle", "2026-01-31T00:00:00.000Z", products.kettle)
  const user = foldAll([bought, viewed])
  const mean = meanOf(Object.values(products))
  const now = Date.parse("2026-02-01T00:00:00.000Z")
  const taste = Taste.read(user, remembered(user, [bought, viewed]), mean, weights, now)!
  const n = { mug: 9, kettle: 4, cup: 3, tent: 2, boot: 1 }
  const figure = (x: number) => x.toFixed(4).replace(/^(-?)0\.0000$/, "0.0000")
  const vector = ([x, y]: ArrayLike<number> & Iterable<number>) => `(${figure(x!)}, ${figure(y!)})`
  const says = (line: string) => expect(document).toContain(line)

  test("the fold", () => {
    says(`mass = ${figure(user.mass)}`)
    says(`total = ${figure(user.total_weight)}`)
    says(`embedding = ${vector(user.embedding)}`)
  })

  test("mean, memories and taste", () => {
    const long = Taste.longMemory(user, mean)!
    says(`μ = ${vector(mean)}`)
    says(`long = ${vector(Vector.divide(long, Vector.norm(long)))}`)
    says(`b = ${figure(taste.b)}`)
    says(`taste = ${vector(taste.direction)}`)
  })

  for (const [name, v] of Object.entries(products))
    test(`the row of the ${name}`, () => {
      const centred = Taste.centre(v, mean)!
      const similarity = Vector.dot(taste.direction, centred)
      const popularity = Taste.popularityPart(0.2, n[name as keyof typeof n], 9)
      const { because, rest } = Taste.explain(taste, centred, similarity)
      const share = (id: string) => because.find(({ event }) => event.product_id === id)?.share ?? 0
      const row = [
        name,
        vector(centred),
        figure(similarity),
        figure(popularity),
        figure(similarity + popularity),
        figure(share("mug")),
        figure(share("kettle")),
        figure(rest),
      ]
      says(`| ${row.join(" | ")} |`)
    })
})

// ---------------------------------------------------------------------------------------------------------

const dimensions = 6
const unitVector = fc
  .array(fc.double({ min: -1, max: 1, noNaN: true }), { minLength: dimensions, maxLength: dimensions })
  .filter((values) => Math.hypot(...values) > 0.1)
  .map((values) => Vector.normalise(Float32Array.from(values)))
const anEvent = fc
  .record({
    kind: fc.constantFrom("product_purchase" as const, "product_view" as const),
    id: fc.integer({ min: 0, max: 9_999 }),
    at: fc.integer({ min: 0, max: 90 * 24 * 3_600 }),
    vector: unitVector,
  })
  .map(({ at, id, kind, vector }) =>
    event(kind, `p-${id}`, new Date(1_770_000_000_000 + at * 1_000).toISOString(), vector),
  )
const someEvents = (most: number) =>
  fc.uniqueArray(anEvent, {
    minLength: 1,
    maxLength: most,
    selector: ({ interaction }) => interaction.message_id,
  })
const catalogue = fc.array(unitVector, { minLength: 3, maxLength: 12 })

describe("every taste", () => {
  test("has unit length, and the parts of its events add up to the similarity to any product", () => {
    fc.assert(
      fc.property(someEvents(10), catalogue, unitVector, (events, vectors, product) => {
        const user = foldAll(events)
        const mean = meanOf(vectors)
        const taste = Taste.read(user, remembered(user, events), mean, weights, 1_780_000_000_000)
        const centred = Taste.centre(product, mean)
        if (taste === undefined || centred === undefined) return
        expect(Vector.norm(taste.direction)).toBeCloseTo(1, 6)
        const similarity = Vector.dot(taste.direction, centred)
        // All ten events have vectors, so their parts alone add up to the similarity.
        const sum = taste.events.reduce((total, { factor, vector }) => {
          const parted = Float32Array.from(vector, (x, i) => x - mean[i]!)
          return total + factor * Vector.dot(parted, centred)
        }, 0)
        expect(sum).toBeCloseTo(similarity, 4)
      }),
    )
  })

  test("explains a product in signed shares whose absolute values add up to 1, largest first", () => {
    fc.assert(
      fc.property(someEvents(25), catalogue, unitVector, (events, vectors, product) => {
        const user = foldAll(events)
        const mean = meanOf(vectors)
        const taste = Taste.read(user, remembered(user, events), mean, weights, 1_780_000_000_000)
        const centred = Taste.centre(product, mean)
        if (taste === undefined || centred === undefined) return
        const similarity = Vector.dot(taste.direction, centred)
        const { because, rest } = Taste.explain(taste, centred, similarity)
        const shares = because.map(({ share }) => share)
        expect(because.length).toBeLessThanOrEqual(10)
        expect(shares).toEqual(shares.toSorted((a, b) => Math.abs(b) - Math.abs(a)))
        for (const share of [...shares, rest]) expect(Math.abs(share)).toBeLessThanOrEqual(1)
        const total = shares.reduce((sum, share) => sum + Math.abs(share), Math.abs(rest))
        // No event and no rest has a part: the product is orthogonal to all of them.
        if (total === 0) return expect(Math.abs(similarity)).toBeLessThan(1e-5)
        expect(total).toBeCloseTo(1, 9)
        // The shares of one sum: their balance has the sign of the similarity.
        const balance = shares.reduce((sum, share) => sum + share, rest)
        if (Math.abs(similarity) > 1e-5) expect(Math.sign(balance)).toBe(Math.sign(similarity))
      }),
    )
  })

  test("does not depend on the order in which the events arrived", () => {
    fc.assert(
      fc.property(someEvents(20), catalogue, (events, vectors) => {
        const mean = meanOf(vectors)
        const read = (given: ReadonlyArray<Event>) => {
          const user = foldAll(given)
          return Taste.read(user, remembered(user, given), mean, weights, 1_780_000_000_000)
        }
        const [one, other] = [read(events), read(events.toReversed())]
        if (one === undefined || other === undefined) return
        expect(Vector.dot(one.direction, other.direction)).toBeCloseTo(1, 5)
      }),
    )
  })
})

describe("taste at its limits", () => {
  const user = foldAll([event("product_view", "a", "2026-01-01T00:00:00.000Z", f32(1, 0))])
  const recent = remembered(user, [event("product_view", "a", "2026-01-01T00:00:00.000Z", f32(1, 0))])

  test("a catalogue of one product gives no direction", () => {
    expect(Taste.read(user, recent, f32(1, 0), weights, 0)).toBeUndefined()
    expect(Taste.centre(f32(1, 0), f32(1, 0))).toBeUndefined()
  })

  test("without the vectors of the newest events the taste is long memory alone", () => {
    const mean = f32(0, 1)
    const taste = Taste.read(
      user,
      recent.map(({ event }) => ({ event, vector: undefined })),
      mean,
      weights,
      0,
    )!
    expect(Vector.dot(taste.direction, Taste.centre(f32(1, 0), mean)!)).toBeCloseTo(1, 6)
    expect(Taste.explain(taste, Taste.centre(f32(1, 0), mean)!, 1)).toEqual({ because: [], rest: 1 })
  })

  test("in recency history long memory is the vector's direction from the mean", () => {
    const recency = foldAll([event("product_view", "a", "2026-01-01T00:00:00.000Z", f32(1, 0))], {
      ...settings,
      history: "recency",
    })
    expect([...Taste.longMemory(recency, f32(0, 0.5))!]).toEqual([1, -0.5])
  })

  test("short memory weighs 0.7 at once, 0.5 after a day, 0.3 in the end, and never more when a clock is behind", () => {
    expect(Taste.shortWeight(0)).toBeCloseTo(0.7, 12)
    expect(Taste.shortWeight(24)).toBeCloseTo(0.5, 12)
    expect(Taste.shortWeight(24_000)).toBeCloseTo(0.3, 12)
    expect(Taste.shortWeight(-1)).toBeCloseTo(0.7, 12)
  })

  test("popularity is the full weight for the most popular product, and 0 for an unknown one or an empty log", () => {
    expect(Taste.popularityPart(0.2, 9, 9)).toBeCloseTo(0.2, 12)
    expect(Taste.popularityPart(0.2, 0, 9)).toBe(0)
    expect(Taste.popularityPart(0.2, 0, 0)).toBe(0)
  })
})
