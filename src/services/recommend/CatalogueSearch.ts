/**
 * Searches the catalogue: in memory, or through the vector index of the store. In a large memory the similarities of all
 * products are estimated first. Then products are compared exactly, greatest estimate first, until no other product can be
 * among the best.
 */
import { Effect } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import * as Vector from "../model/Vector.ts"
import { type ProductEmbeddings, ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { makeEstimate } from "./CatalogueEstimates.ts"
import type { ProductRows } from "./CatalogueRows.ts"
import { matcher, type ProductFilter } from "./ProductFilter.ts"
import { type Matches, makeRememberedMatches } from "./RememberedMatches.ts"
import { insertTopK } from "./TopK.ts"

/** Candidates requested from the store's index per product of the answer. */
const candidatesEach = 20

/** A product with the parts of its score: `score = similarity + bonus + extra`. */
export interface Scored extends Pick<Product, "product_id" | "product_name" | "category"> {
  readonly score: number
  /** Cosine of the search direction and the product's centred vector. */
  readonly similarity: number
  readonly bonus: number
  /** The product's centred vector, unit length; zero when the product has been removed since. */
  readonly centred: () => Float32Array
}

/** Added to a product's similarity. All bonuses of a process are of one kind, and change slowly. */
export interface Bonus {
  readonly of: (product: ProductId) => number
}

/** Only available products are found. */
export interface Search {
  readonly limit: number
  readonly filter?: ProductFilter | undefined
  readonly without?: ReadonlySet<ProductId> | undefined
  readonly bonus?: Bonus | undefined
  /** Added to the scores of a few products, without a limit. */
  readonly extra?: ReadonlyMap<ProductId, number> | undefined
}

interface Ranked<Source> extends Omit<Scored, "centred"> {
  readonly source: Source
}
const ahead = (a: Ranked<unknown>, b: Ranked<unknown>): boolean =>
  a.score > b.score || (a.score === b.score && a.product_id < b.product_id)

/** The best products so far. A source is where the vector of a product comes from. */
class Ranking<Source> {
  readonly best: Array<Ranked<Source>> = []

  constructor(private readonly search: Search) {}

  /** Whether the first places are taken by greater scores. */
  isTooLow(score: number, places = this.search.limit): boolean {
    const worst = this.best[places - 1]
    return worst !== undefined && score < worst.score
  }

  offer({ category, product_id, product_name }: Product, source: Source, similarity: number): void {
    const { bonus, extra, limit } = this.search
    const added = bonus?.of(product_id) ?? 0
    const score = similarity + added + (extra?.get(product_id) ?? 0)
    if (this.isTooLow(score)) return
    const ranked = { product_id, product_name, category, score, similarity, bonus: added, source }
    insertTopK(this.best, limit, ranked, ahead)
  }
}

/** After so many comparisons only the first places matter: the others are spare, for products that are left out. */
const enoughCompared = 2_000
const firstPlaces = 10

/** With a smaller share of products that match, it is faster to compare all of them than to estimate all others too. */
const smallShare = 0.02

/** Work between two turns of the event loop: about 1 ms. A visit of a product is 1. */
const workPerTurn = 8_192
const comparison = 16

const rowsThatMatch = ({ count, of }: Matches): Uint32Array => {
  const found = new Uint32Array(count)
  for (let row = 0, place = 0; place < count; row++) if (of[row] === 1) found[place++] = row
  return found
}

/** Searches the memory, one search at a time. */
export const makeScan = (rows: ProductRows, scans: Effect.Semaphore) => {
  const estimate = makeEstimate(rows)
  const matchesOf = makeRememberedMatches(rows)
  const search = Effect.fnUntraced(function* (direction: Float32Array, search: Search) {
    // The mean may move during the search, which keeps to the one that it began with.
    const { codes, factors, mean, products } = rows
    const onMean = Vector.dot(direction, mean)
    const wide = new Float64Array(direction)
    const { extra = new Map<ProductId, number>(), filter = {}, limit, without } = search
    const matches = yield* matchesOf(filter)
    const ranking = new Ranking<number>(search)
    const similarityOf = (row: number) => (rows.dot(wide, row) - onMean) * (factors[row] ?? 0)
    const estimates =
      codes === undefined || matches.count < smallShare * products.length
        ? undefined
        : yield* estimate(codes, direction, search.bonus, matches.of)
    for (const [id, added] of extra) {
      const row = rows.rowOf.get(id)
      const product = row === undefined ? undefined : products[row]
      if (row === undefined || product === undefined || matches.of[row] !== 1 || without?.has(id)) continue
      if (estimates !== undefined && ranking.isTooLow(estimates.scores[row]! + added)) continue
      ranking.offer(product, row, similarityOf(row))
    }
    let compared = 0
    let isDone = false
    /** Visits rows from this place in their order, and answers where to continue. */
    const visit = (order: Uint32Array, from: number): number => {
      let place = from
      for (let work = 0; place < order.length && work < workPerTurn; place++, work++) {
        const row = order[place]!
        const places = compared < enoughCompared ? limit : Math.min(limit, firstPlaces)
        if (
          estimates !== undefined &&
          ranking.isTooLow(estimates.scores[row]! + estimates.tolerance, places)
        ) {
          isDone = true
          return order.length
        }
        if (matches.of[row] !== 1) continue
        const similarity = similarityOf(row)
        compared += 1
        work += comparison
        // Before the product, which is hardly ever in the processor's cache.
        if (estimates !== undefined && ranking.isTooLow(similarity + estimates.bonuses[row]!)) continue
        const product = products[row]
        if (product === undefined || without?.has(product.product_id) || extra.has(product.product_id))
          continue
        ranking.offer(product, row, similarity)
      }
      return place
    }
    const next = estimates?.next ?? Effect.sync(() => rowsThatMatch(matches))
    while (!isDone) {
      const order = yield* next
      isDone = order.length === 0 || estimates === undefined
      for (let place = visit(order, 0); place < order.length; place = visit(order, place))
        yield* yieldToEventLoop
    }
    return ranking.best.flatMap(({ source, ...scored }): ReadonlyArray<Scored> => {
      const { product_id } = scored
      const centred = () => rows.centred(product_id) ?? new Float32Array(rows.dimensions)
      // A product that was removed meanwhile is none.
      return products[source]?.product_id === product_id ? [{ ...scored, centred }] : []
    })
  })
  // A caller with many searches must not take the permit again before those that wait for it.
  return (direction: Float32Array, wanted: Search) =>
    Effect.zipLeft(scans.withPermits(1)(search(direction, wanted)), yieldToEventLoop)
}

/** Searches the products that the store's index finds near the direction, and those with an extra. */
export const searchIndex = Effect.fnUntraced(function* (
  products: ProductEmbeddings["Type"],
  rows: ProductRows,
  direction: Float32Array,
  search: Search,
) {
  const { extra = new Map<ProductId, number>(), filter = {}, limit, without } = search
  const wanted = { space: rows.space, limit: candidatesEach * limit, categories: filter.categories }
  const near = yield* Effect.mapError(products.indexed(direction, wanted), (error) =>
    error._tag === "NoVectorIndex"
      ? new ProductEmbeddingsError({ reason: "unavailable", operation: "search the index", cause: error })
      : error,
  )
  const isNear = new Set(near.map(({ product_id }) => product_id))
  const others = yield* products.find([...extra.keys()].filter((id) => !isNear.has(id)))
  const matches = matcher(filter)
  const ranking = new Ranking<Float32Array>(search)
  for (const { embedding, space, ...product } of [...near, ...others])
    if (
      space === rows.space &&
      Vector.problem(embedding, rows.dimensions) === undefined &&
      matches(product) &&
      without?.has(product.product_id) !== true
    ) {
      const centred = rows.centre(Vector.normalise(embedding))
      ranking.offer(product, centred, Vector.dot(direction, centred))
    }
  return ranking.best.map(({ source, ...scored }): Scored => ({ ...scored, centred: () => source }))
})
