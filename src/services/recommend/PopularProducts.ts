/** Popular products, for users without taste. */
import { Array as Arr, Duration, Effect } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import * as Taste from "../model/Taste.ts"
import { Catalogue } from "./Catalogue.ts"
import { Popularity } from "./Popularity.ts"
import { matcher, type ProductFilter } from "./ProductFilter.ts"

/** Users without taste share a ranking, which takes 50 ms of CPU with 100,000 products. */
const rankingTtl = Duration.seconds(2)
/** Products that are sorted before other fibers run: about 2 ms. */
const sortedAtOnce = 2_048
/** The first page of the ranking is enough for most answers. */
const describedAtOnce = 200

interface Counted {
  readonly product_id: ProductId
  readonly decayed: number
}
const byPopularity = (a: Counted, b: Counted) =>
  b.decayed - a.decayed || (a.product_id < b.product_id ? -1 : 1)

/** Merges sorted lists as far as the reader goes. */
function* merge(lists: ReadonlyArray<ReadonlyArray<Counted>>): Generator<Counted> {
  const places = lists.map(() => 0)
  while (true) {
    let first: number | undefined
    for (let list = 0; list < lists.length; list++) {
      const head = lists[list]![places[list]!]
      if (head === undefined) continue
      if (first === undefined || byPopularity(head, lists[first]![places[first]!]!) < 0) first = list
    }
    if (first === undefined) return
    yield lists[first]![places[first]!++]!
  }
}

function* pagesOf<A>(items: Iterable<A>, size: number): Generator<ReadonlyArray<A>> {
  let page: Array<A> = []
  for (const item of items)
    if (page.push(item) === size) {
      yield page
      page = []
    }
  if (page.length > 0) yield page
}

/**
 * The products of the catalogue that have interactions, most popular first, ties by product id. Clients may invent ids, so
 * the catalogue is looked up in the counts, and not the other way round. `undefined` while the catalogue is too large for
 * memory.
 */
const rankCatalogue = Effect.gen(function* () {
  const { decayed } = yield* (yield* Popularity).counts
  const products = yield* (yield* Catalogue).products
  if (products === undefined) return undefined
  const lists = yield* Effect.forEach(Arr.chunksOf(products, sortedAtOnce), (some) =>
    Effect.as(
      yieldToEventLoop,
      some
        .map(({ product_id }) => ({ product_id, decayed: decayed(product_id) }))
        .filter((product) => product.decayed > 0)
        .sort(byPopularity),
    ),
  )
  return { [Symbol.iterator]: () => merge(lists) }
})

export const make = Effect.gen(function* () {
  const catalogue = yield* Catalogue
  const popularity = yield* Popularity
  const context = yield* Effect.context<Catalogue | Popularity>()
  const shared = yield* Effect.cachedWithTTL(Effect.provide(rankCatalogue, context), rankingTtl)

  /** Products with their part of the score, log(1 + n) / log(1 + greatest n). */
  return Effect.fnUntraced(function* (options: {
    readonly limit: number
    readonly filter: ProductFilter
    readonly without: ReadonlySet<ProductId>
  }) {
    const ranking = (yield* shared) ?? (yield* popularity.ranking)
    const matches = matcher(options.filter)
    const found: Array<readonly [Product, number]> = []
    let most = 0
    // Page by page, until enough are found: the ranking may be older than the latest deletion.
    for (const page of pagesOf(ranking, describedAtOnce)) {
      const known = yield* catalogue.describe(page.map(({ product_id }) => product_id))
      for (const { decayed, product_id } of page) {
        const product = known.get(product_id)
        if (product === undefined) continue
        most = Math.max(most, decayed)
        if (options.without.has(product_id) || !matches(product)) continue
        found.push([product, Taste.popularityPart(1, decayed, most)])
        if (found.length === options.limit) return found
      }
    }
    return found
  })
})
