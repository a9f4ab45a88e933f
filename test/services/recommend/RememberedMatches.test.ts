/** What is remembered of a filter equals what the filter says now, whatever changed meanwhile. */
import { expect } from "bun:test"
import { Effect } from "effect"
import { ProductRows } from "../../../src/services/recommend/CatalogueRows.ts"
import { matcher } from "../../../src/services/recommend/ProductFilter.ts"
import { makeRememberedMatches } from "../../../src/services/recommend/RememberedMatches.ts"
import { effectTest } from "../../support/effect.ts"

effectTest("changed, removed and new products match as their filter says, with several filters at once", () =>
  Effect.gen(function* () {
    const rows = new ProductRows("test", 2, { mostProducts: 1e6, mostCompared: 1e9 })
    const put = (n: number, price: number, available = true) =>
      rows.put(
        {
          product_id: `p-${n}`,
          product_name: `product ${n}`,
          category: n % 2 === 0 ? "even" : "odd",
          available,
          attributes: { price },
          embedding: Float32Array.of(n, 1),
          space: "test",
          updated_at: 1,
          deleted: false,
          text: null,
        },
        0,
      )
    for (let n = 0; n < 10_000; n++) put(n, n % 100)
    const remembered = makeRememberedMatches(rows)
    const filters = [{}, { categories: ["odd"] }, { conditions: { price: { lt: 3 } } }]
    const requireEqual = Effect.forEach(filters, (filter) =>
      Effect.map(remembered(filter), ({ count, of }) => {
        const matches = matcher(filter)
        const wanted = rows.products.map((one) => (one !== undefined && matches(one) ? 1 : 0))
        expect([...of.subarray(0, wanted.length)]).toEqual(wanted)
        expect(count).toBe(wanted.filter((one) => one === 1).length)
      }),
    )
    yield* requireEqual
    put(3, 50)
    put(4, 4, false)
    rows.remove("p-5", 0)
    put(50, 1)
    yield* requireEqual
    put(5, 0)
    for (let n = 10_000; n < 12_000; n++) put(n, n % 7)
    yield* requireEqual
    // So many changes that they are no longer remembered one by one.
    for (let round = 1; round <= 5; round++) for (let n = 0; n < 12_000; n++) put(n, (n + round) % 50)
    put(7, 1)
    yield* requireEqual
    rows.clear()
    put(1, 1)
    yield* requireEqual
  }),
)
