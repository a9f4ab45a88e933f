/**
 * The terms that a recommendation adds to similarity and popularity: products that people interact with together with the
 * user's newest ones, and products that the user bought. A term is 0 for almost all products, and the search of the catalogue
 * compares the others exactly.
 */
import { Effect } from "effect"
import type { ProductId } from "../model/Interaction.ts"
import { mostNeighbours, nearby } from "../model/Together.ts"
import type { RecentEvent } from "../model/UserEmbedding.ts"
import type { ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import type { ProductPairs } from "../ports/ProductPairs.ts"
import type { Catalogue, CatalogueError } from "./Catalogue.ts"

/** A part of the score, from 0 to its weight. */
export interface Term {
  readonly of: ReadonlyMap<ProductId, number>
  /** What this event adds to it. */
  readonly fromEvent: (event: RecentEvent, product: ProductId) => number
}

export const noTerm: Term = { of: new Map(), fromEvent: () => 0 }

/** Scales the values, so that the greatest one is the weight. */
export const scaled = (
  values: ReadonlyMap<ProductId, number>,
  weight: number,
  fromEvent: Term["fromEvent"],
): Term => {
  let most = 0
  for (const value of values.values()) most = Math.max(most, value)
  if (most <= 0) return noTerm
  const factor = weight / most
  return {
    of: new Map(Array.from(values, ([product, value]) => [product, value * factor])),
    fromEvent: (event, product) => fromEvent(event, product) * factor,
  }
}

/** Removes products that the catalogue does not have. */
const keepKnown = (catalogue: Catalogue["Type"], near: Map<ProductId, number>) =>
  Effect.map(catalogue.describe([...near.keys()]), (known) => {
    for (const product of near.keys()) if (!known.has(product)) near.delete(product)
  })

/** `together`, of the newest events, newest first. `interactions`: with a product, ever. */
export const together = Effect.fnUntraced(function* (
  catalogue: Catalogue["Type"],
  pairs: ProductPairs["Type"],
  weight: number,
  recent: ReadonlyArray<RecentEvent>,
  interactions: (product: ProductId) => number,
): Effect.fn.Return<Term, CatalogueError | ProductEmbeddingsError> {
  const products = recent.flatMap(({ product_id }) => product_id ?? [])
  if (weight === 0 || products.length === 0) return noTerm
  const stored = yield* pairs.load([...new Set(products)], mostNeighbours)
  const nearEvent = new Map<RecentEvent, ReadonlyMap<ProductId, number>>()
  const near = new Map<ProductId, number>()
  for (const [rank, event] of recent.entries()) {
    const { product_id } = event
    const found = product_id === null ? undefined : stored.get(product_id)
    if (product_id === null || found === undefined) continue
    const added = nearby(found.pairs, rank, interactions(product_id))
    nearEvent.set(event, added)
    for (const [product, value] of added) near.set(product, (near.get(product) ?? 0) + value)
  }
  yield* keepKnown(catalogue, near)
  return scaled(near, weight, (event, product) => nearEvent.get(event)?.get(product) ?? 0)
})

/** `together` with one product alone. The number of its interactions divides all values alike. */
export const withProduct = Effect.fnUntraced(function* (
  catalogue: Catalogue["Type"],
  pairs: ProductPairs["Type"],
  weight: number,
  product: ProductId,
): Effect.fn.Return<Term, CatalogueError | ProductEmbeddingsError> {
  const stored = weight === 0 ? undefined : (yield* pairs.load([product], mostNeighbours)).get(product)
  if (stored === undefined) return noTerm
  const near = new Map(nearby(stored.pairs, 0, 1))
  near.delete(product)
  yield* keepKnown(catalogue, near)
  return scaled(near, weight, () => 0)
})

/** The sum of terms, for the few products that have one. */
export const sumOf = (terms: ReadonlyArray<Term>): ReadonlyMap<ProductId, number> => {
  const sum = new Map<ProductId, number>()
  for (const { of } of terms)
    for (const [product, value] of of) sum.set(product, (sum.get(product) ?? 0) + value)
  return sum
}
