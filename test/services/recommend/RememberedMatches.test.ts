/** What is remembered of a filter equals what the filter says now, whatever changed meanwhile. */
import { expect } from "bun:test"
import { Effect } from "effect"
import type { Product } from "../../../src/services/model/Product.ts"
import { matcher } from "../../../src/services/recommend/ProductFilter.ts"
import { makeRememberedMatches } from "../../../src/services/recommend/RememberedMatches.ts"
import { effectTest } from "../../support/effect.ts"

const product = (row: number, price: number, available = true): Product => ({
  product_id: `p-${row}`,
  product_name: `product ${row}`,
  category: row % 2 === 0 ? "even" : "odd",
  available,
  attributes: { price },
})

effectTest("changed, removed and new products match as their filter says, with several filters at once", () =>
  Effect.gen(function* () {
    const remembered = makeRememberedMatches()
    const products: Array<Product | undefined> = Array.from({ length: 10_000 }, (_, row) =>
      product(row, row % 100),
    )
    const filters = [{}, { categories: ["odd"] }, { conditions: { price: { lt: 3 } } }]
    const requireEqual = Effect.forEach(filters, (filter) =>
      Effect.map(remembered(filter, products), ({ count, of }) => {
        const matches = matcher(filter)
        const wanted = products.map((one) => (one !== undefined && matches(one) ? 1 : 0))
        expect([...of.subarray(0, products.length)]).toEqual(wanted)
        expect(count).toBe(wanted.filter((one) => one === 1).length)
      }),
    )
    yield* requireEqual
    products[3] = product(3, 50)
    products[4] = product(4, 4, false)
    products[5] = undefined
    products[50] = product(50, 1)
    yield* requireEqual
    products[5] = product(5, 0)
    for (let row = 10_000; row < 12_000; row++) products.push(product(row, row % 7))
    yield* requireEqual
  }),
)
