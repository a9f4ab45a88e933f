/**
 * The catalogue in memory: the unit-length vectors of all products of the configured space. A change in the store is seen
 * within a second of the next request; a product that was removed leaves within five. If the store has a vector index of
 * its own, it holds a large catalogue in place of the memory. Then μ stays that of the products read before the limit was
 * exceeded.
 */
import { Context, Duration, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import * as Vector from "../model/Vector.ts"
import { PhraseEmbedder } from "../ports/PhraseEmbedder.ts"
import { ProductEmbeddings, ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { makeRefresh } from "./CatalogueRefresh.ts"
import { type Bounds, ProductRows } from "./CatalogueRows.ts"
import { makeScan, type Scored, type Search, searchIndex } from "./CatalogueSearch.ts"
import * as StaleWhileRevalidate from "./StaleWhileRevalidate.ts"

/** A product takes 6.9 KB of memory at 1536 dimensions. Up to 682 of them are all compared. */
const bounds: Bounds = { mostProducts: 100_000, mostCompared: 1 << 20 }
const freshFor = Duration.seconds(1)

export type { Scored, Search } from "./CatalogueSearch.ts"
export type CatalogueError = ProductEmbeddingsError

export class Catalogue extends Context.Tag("user-embeddings/Catalogue")<
  Catalogue,
  {
    readonly space: string
    /** μ: the mean of all unit-length vectors; a zero vector while there are no products. */
    readonly mean: Effect.Effect<Float32Array, CatalogueError>
    /** A product's centred vector (zero when it is the mean); `undefined` when it has none in this space. */
    readonly centred: (product: ProductId) => Effect.Effect<Float32Array | undefined, CatalogueError>
    /** Copies of the unit-length vectors of those products that are in memory. */
    readonly vectors: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyMap<ProductId, Float32Array>, CatalogueError>
    /** Products by their ids; unknown ones are left out, and deleted ones are not available. */
    readonly describe: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyMap<ProductId, Product>, CatalogueError>
    /** All products; `undefined` while the store's index has them. */
    readonly products: Effect.Effect<ReadonlyArray<Product> | undefined, CatalogueError>
    /** Those of the names that no product's attributes have; none while the store's index has the products. */
    readonly unknownAttributes: (
      names: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyArray<string>, CatalogueError>
    /** The products with the greatest scores, ties by product id. A large catalogue misses fewer than one in 100. */
    readonly search: (
      direction: Float32Array,
      search: Search,
    ) => Effect.Effect<ReadonlyArray<Scored>, CatalogueError>
    /** Call after this process has changed the store: the next answer then shows the change at once. */
    readonly invalidate: Effect.Effect<void>
  }
>() {}

/** What is known about these products. */
const lookUp = <A>(ids: ReadonlyArray<ProductId>, of: (id: ProductId) => A | undefined) => {
  const found = new Map<ProductId, A>()
  for (const id of ids) {
    const known = of(id)
    if (known !== undefined) found.set(id, known)
  }
  return found
}

const loadCentred = Effect.fnUntraced(function* (
  products: ProductEmbeddings["Type"],
  rows: ProductRows,
  id: ProductId,
) {
  const vector = (yield* products.load([id], rows.space)).get(id)
  if (vector === undefined || Vector.problem(vector, rows.dimensions) !== undefined) return undefined
  return rows.centre(Vector.normalise(vector))
})

const make = Effect.fnUntraced(function* (limits: Bounds) {
  const products = yield* ProductEmbeddings
  const { dimensions } = yield* EmbeddingConfig
  const { space } = yield* PhraseEmbedder
  const rows = new ProductRows(space, dimensions, limits)
  const scans = yield* Effect.makeSemaphore(1)
  const scan = makeScan(rows, scans)

  const { current, invalidate } = yield* StaleWhileRevalidate.make<CatalogueError, never>({
    name: "catalogue",
    freshFor,
    refresh: makeRefresh(products, rows, scans, yield* Effect.scope),
    stillLoading: () =>
      new ProductEmbeddingsError({
        reason: "unavailable",
        operation: "load the catalogue",
        cause: new Error("the catalogue is still loading"),
      }),
  })
  /** Runs after the catalogue is loaded and fresh enough. */
  const whenFresh = <A, E>(answer: () => Effect.Effect<A, E>) =>
    Effect.zipRight(current, Effect.suspend(answer))

  return Catalogue.of({
    space,
    mean: Effect.map(current, () => rows.mean),
    centred: (id) =>
      whenFresh(() => (rows.tooLarge ? loadCentred(products, rows, id) : Effect.succeed(rows.centred(id)))),
    vectors: (ids) => whenFresh(() => Effect.succeed(lookUp(ids, (id) => rows.vector(id)))),
    describe: (ids) =>
      whenFresh(() =>
        rows.tooLarge ? products.describe(ids) : Effect.succeed(lookUp(ids, (id) => rows.product(id))),
      ),
    products: Effect.map(current, () => (rows.tooLarge ? undefined : rows.all())),
    unknownAttributes: (names) =>
      whenFresh(() => Effect.succeed(rows.tooLarge ? [] : names.filter((name) => !rows.hasAttribute(name)))),
    search: (direction, search) =>
      whenFresh(() =>
        rows.tooLarge ? searchIndex(products, rows, direction, search) : scan(direction, search),
      ),
    invalidate,
  })
})

export const layerOf = (limits: Partial<Bounds>) => Layer.scoped(Catalogue, make({ ...bounds, ...limits }))

export const layer = layerOf({})
