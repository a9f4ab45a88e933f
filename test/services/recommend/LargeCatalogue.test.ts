/** Searches in a catalogue with codes, compared with plain arithmetic over all its products. */
import { describe, expect, test } from "bun:test"
import { Effect } from "effect"
import { compiled, source, target } from "../../../scripts/kernels/compile.ts"
import { yieldToEventLoop } from "../../../src/services/EventLoop.ts"
import type { Product } from "../../../src/services/model/Product.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import { BinaryCodes } from "../../../src/services/recommend/BinaryCodes.ts"
import { ProductRows } from "../../../src/services/recommend/CatalogueRows.ts"
import { makeScan, type Search } from "../../../src/services/recommend/CatalogueSearch.ts"
import { matcher } from "../../../src/services/recommend/ProductFilter.ts"
import { effectTest } from "../../support/effect.ts"

const dimensions = 160

/** The same numbers in every run (mulberry32). */
let state = 42
const random = () => {
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1
}
const noise = (length = dimensions) => Float32Array.from({ length }, () => random() + random() + random())
const near = (v: Float32Array, share: number) => noise().map((x, i) => share * x + v[i]!)

interface Stored {
  readonly product: Product
  readonly unit: Float32Array
}
const world = () => {
  const rows = new ProductRows("test", dimensions, { mostProducts: 100_000, mostCompared: 0 })
  const scan = makeScan(rows, Effect.unsafeMakeSemaphore(1))
  const stored = new Map<string, Stored>()
  const put = (n: number, embedding: Float32Array) => {
    const product = {
      product_id: `p-${n}`,
      product_name: null,
      category: ["red", "green", "blue"][n % 3]!,
      available: n % 7 !== 0,
      attributes: { price: (n * 17) % 100 },
    }
    rows.put({ ...product, embedding, space: "test", text: null, deleted: false, updated_at: 0 }, 0)
    stored.set(product.product_id, { product, unit: Vector.normalise(embedding) })
  }
  const remove = (n: number) => {
    rows.remove(`p-${n}`, 0)
    stored.delete(`p-${n}`)
  }
  const settle = () => {
    for (const _ of rows.recomputeMean());
  }
  return { rows, scan, stored, put, remove, settle }
}

/** The ids in their order, by plain arithmetic. */
const compareAll = (
  { rows, stored }: ReturnType<typeof world>,
  direction: Float32Array,
  { bonus, extra, filter = {}, limit, without }: Search,
) => {
  const { mean } = rows
  const matches = matcher(filter)
  return [...stored.values()]
    .filter(({ product }) => matches(product) && without?.has(product.product_id) !== true)
    .map(({ product: { product_id }, unit }) => {
      let [along, squares] = [0, 0]
      for (let i = 0; i < dimensions; i++) {
        const difference = unit[i]! - mean[i]!
        along += direction[i]! * difference
        squares += difference * difference
      }
      const similarity = along / Math.sqrt(squares)
      return [product_id, similarity + (bonus?.of(product_id) ?? 0) + (extra?.get(product_id) ?? 0)] as const
    })
    .sort(([, a], [, b]) => b - a)
    .slice(0, limit)
}

const bonus = { of: (id: string) => (Number(id.slice(2)) % 40 === 0 ? 0.2 : 0.01) }
const searches: ReadonlyArray<Search> = [
  { limit: 10 },
  { limit: 100, bonus },
  { limit: 10, filter: { conditions: { price: { lt: 7 } } } },
  { limit: 10, filter: { conditions: { price: 1 } } },
  { limit: 20, bonus, filter: { categories: ["red"], conditions: { price: { gte: 50 } } } },
  {
    limit: 10,
    extra: new Map([
      ["p-5", 1.5],
      ["p-7", 9],
      ["p-8", 0.4],
      ["nowhere", 9],
    ]),
    without: new Set(["p-9"]),
  },
]

/** Recall in the first ten places; the score of what is found must be exact. */
const recall = Effect.fnUntraced(function* (
  found: ReturnType<typeof world>,
  directions: ReadonlyArray<Float32Array>,
) {
  let [hits, wanted] = [0, 0]
  for (const direction of directions)
    for (const search of searches) {
      const expected = compareAll(found, direction, { ...search, limit: Number.POSITIVE_INFINITY })
      const scores = new Map(expected)
      const items = yield* found.scan(direction, search)
      for (const { centred, product_id, score, similarity } of items) {
        expect(score).toBeCloseTo(scores.get(product_id)!, 5)
        expect(similarity).toBeCloseTo(Vector.dot(direction, centred()), 5)
      }
      const ids = new Set(items.map(({ product_id }) => product_id))
      expect(ids.size).toBe(Math.min(search.limit, expected.length))
      const first = expected.slice(0, 10)
      hits += first.filter(([id]) => ids.has(id)).length
      wanted += first.length
    }
  return hits / wanted
})

effectTest("a search with codes finds 99 % of the best, whatever was put, changed and removed before", () =>
  Effect.gen(function* () {
    const shop = world()
    const common = noise()
    const clusters = Array.from({ length: 20 }, () => near(common, 1))
    const vector = (n: number) => near(clusters[n % 20]!, 0.8)
    for (let n = 0; n < 1_500; n++) shop.put(n, vector(n))
    shop.settle()
    const { codes } = shop.rows
    const directions = () => Array.from({ length: 4 }, (_, n) => Vector.normalise(near(clusters[n]!, 2)))
    expect(yield* recall(shop, directions())).toBeGreaterThan(0.99)

    // Other products take the rows of removed ones; the mean is still the old one.
    for (let n = 0; n < 100; n++) shop.remove(3 * n)
    for (let n = 0; n < 50; n++) shop.put(2_000 + n, vector(n + 7))
    for (let n = 1_000; n < 1_050; n++) shop.put(n, vector(n + 3))
    expect(yield* recall(shop, directions())).toBeGreaterThan(0.99)
    shop.settle()
    expect(shop.rows.codes).toBe(codes!)

    // A new assortment moves the mean so far that all products are encoded again, while others change.
    const other = noise()
    for (let n = 3_000; n < 4_500; n++) shop.put(n, near(other, 0.8))
    const computing = shop.rows.recomputeMean()
    for (let n = 0; n < 10; n++) computing.next()
    for (let n = 1; n < 300; n += 3) shop.put(n, near(other, 0.8))
    for (const _ of computing);
    expect(shop.rows.codes).not.toBe(codes!)
    const both = [...directions(), ...Array.from({ length: 2 }, () => Vector.normalise(near(other, 1)))]
    expect(yield* recall(shop, both)).toBeGreaterThan(0.99)
  }),
)

effectTest("a product that goes away during a search is not found, nor one that takes its row", () =>
  Effect.gen(function* () {
    const shop = world()
    const direction = Vector.normalise(noise())
    for (let n = 1; n <= 2_000; n++) shop.put(n, near(direction, n / 500))
    shop.settle()
    const searching = yield* Effect.fork(shop.scan(direction, { limit: 2_000 }))
    // The estimates take three turns of the event loop, and each turn after them compares 500 products, the nearest first.
    for (let turn = 0; turn < 5; turn++) yield* yieldToEventLoop
    for (let n = 1; n <= 1_000; n++) shop.remove(n)
    shop.put(3_000, noise())
    const ids = new Set((yield* searching).map(({ product_id }) => product_id))
    expect([ids.has("p-1"), ids.has("p-999"), ids.has("p-3000"), ids.has("p-1999")]).toEqual([
      false,
      false,
      false,
      true,
    ])
  }),
)

describe("codes", () => {
  test("estimates are too low once in 160 times, whatever the vectors are", () => {
    const kinds: Record<string, () => Float32Array> = {
      noise,
      sparse: () => noise().map((x, i) => (i === Math.floor(Math.abs(x) * 50) % 160 ? 1 : x / 100)),
      repeated: () => {
        const part = noise(dimensions / 4)
        return Float32Array.from({ length: dimensions }, (_, i) => part[i % part.length]!)
      },
    }
    for (const [name, make] of Object.entries(kinds)) {
      const codes = new BinaryCodes(
        dimensions,
        noise().map((x) => x / 50),
      )
      const vectors = Array.from({ length: 1_000 }, () => Vector.normalise(make()))
      for (const [row, vector] of vectors.entries()) codes.set(row, vector)
      let tooLow = 0
      for (let n = 0; n < 20; n++) {
        const direction = Vector.normalise(make())
        const { offset, onCentre, step } = codes.prepare(direction)
        const sums = codes.sums(0)
        for (const [row, vector] of vectors.entries())
          if ((sums[row]! * step + offset) * codes.scales[row]! < Vector.dot(direction, vector) - onCentre)
            tooLow++
      }
      expect([name, tooLow / 20_000 > 0, tooLow / 20_000 < 0.012]).toEqual([name, true, true])
    }
  })

  test("the compiled kernel is that of BinaryCodes.wat", async () => {
    expect(await Bun.file(target).text()).toBe(await compiled(await Bun.file(source).text()))
  })
})
