/**
 * The catalogue in memory: the unit-length vectors of all products of the configured space, for exact scans. A change in
 * the store is seen within a second of the next request; a product that was removed leaves within five. A
 * catalogue that is too large for memory is searched through the store's own vector index, if there is one. Then μ stays
 * that of the products read before the limit was exceeded.
 */
import { Context, Duration, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import * as Vector from "../model/Vector.ts"
import { PhraseEmbedder } from "../ports/PhraseEmbedder.ts"
import { ProductEmbeddings, ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { makeRefresh } from "./CatalogueRefresh.ts"
import { ProductRows } from "./CatalogueRows.ts"
import {
  type CatalogueTooLarge,
  makeScan,
  type Scored,
  type Search,
  scoreEach,
  searchIndex,
} from "./CatalogueSearch.ts"
import * as StaleWhileRevalidate from "./StaleWhileRevalidate.ts"

/** The most products held in memory: 6 KB each at 1536 dimensions. */
export const mostProducts = 100_000
const freshFor = Duration.seconds(1)

export { CatalogueTooLarge, type Scored, type Search } from "./CatalogueSearch.ts"
export type CatalogueError = ProductEmbeddingsError | CatalogueTooLarge

export class Catalogue extends Context.Tag("user-embeddings/Catalogue")<
  Catalogue,
  {
    readonly space: string
    /** μ: the mean of all unit-length vectors; a zero vector while there are no products. */
    readonly mean: Effect.Effect<Float32Array, CatalogueError>
    /** A product's centred vector (zero when it is the mean); `undefined` when it has none in this space. */
    readonly centred: (product: ProductId) => Effect.Effect<Float32Array | undefined, CatalogueError>
    /** Products by their ids; unknown ones are left out, and deleted ones are not available. */
    readonly describe: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyMap<ProductId, Product>, CatalogueError>
    /** All products; `undefined` while they are too many for memory. */
    readonly products: Effect.Effect<ReadonlyArray<Product> | undefined, CatalogueError>
    /** Those of the names that no product's attributes have; none while the products are too many for memory. */
    readonly unknownAttributes: (
      names: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyArray<string>, CatalogueError>
    /** The products with the greatest scores, ties by product id. Exact while the catalogue is in memory. */
    readonly search: (
      direction: Float32Array,
      search: Search,
    ) => Effect.Effect<ReadonlyArray<Scored>, CatalogueError>
    /** Scores these products one by one, in any order; those that `search` would not find are left out. */
    readonly score: (
      direction: Float32Array,
      products: ReadonlyArray<ProductId>,
      search: Omit<Search, "limit">,
    ) => Effect.Effect<ReadonlyArray<Scored>, CatalogueError>
    /** Call after this process has changed the store: the next answer then shows the change at once. */
    readonly invalidate: Effect.Effect<void>
  }
>() {}

const isKnown = (entry: readonly [ProductId, Product | undefined]): entry is readonly [ProductId, Product] =>
  entry[1] !== undefined

const loadCentred = Effect.fnUntraced(function* (
  products: ProductEmbeddings["Type"],
  rows: ProductRows,
  id: ProductId,
) {
  const vector = (yield* products.load([id], rows.space)).get(id)
  if (vector === undefined || Vector.problem(vector, rows.dimensions) !== undefined) return undefined
  return rows.centre(Vector.normalise(vector))
})

const make = Effect.fnUntraced(function* (limit: number) {
  const products = yield* ProductEmbeddings
  const { dimensions } = yield* EmbeddingConfig
  const { space } = yield* PhraseEmbedder
  const rows = new ProductRows(space, dimensions, limit)
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
    describe: (ids) =>
      whenFresh(() =>
        rows.tooLarge
          ? products.describe(ids)
          : Effect.succeed(new Map(ids.map((id) => [id, rows.product(id)] as const).filter(isKnown))),
      ),
    products: Effect.map(current, () => (rows.tooLarge ? undefined : rows.all())),
    unknownAttributes: (names) =>
      whenFresh(() => Effect.succeed(rows.tooLarge ? [] : names.filter((name) => !rows.hasAttribute(name)))),
    search: (direction, search) =>
      whenFresh(() =>
        rows.tooLarge ? searchIndex(products, rows, direction, search) : scan(direction, search),
      ),
    score: (direction, ids, search) => whenFresh(() => scoreEach(products, rows, direction, ids, search)),
    invalidate,
  })
})

/** Holds up to `limit` products in memory. */
export const layerOf = (limit: number) => Layer.scoped(Catalogue, make(limit))

export const layer = layerOf(mostProducts)
