/**
 * The store of the products that people interact with together (see model/Together.ts). It lies beside the product
 * embeddings and fails as they do. One process at a time counts; any process reads.
 */
import { Context, type Effect } from "effect"
import type { ProductId } from "../model/Interaction.ts"
import type { Pairs } from "../model/Together.ts"
import type { ProductEmbeddingsError } from "./ProductEmbeddings.ts"

/** How far the log is counted. */
export interface PairProgress {
  /** All rows up to this id are counted. */
  readonly countedUpTo: number
  /** Counting the rows up to this id has begun. After a crash exactly these rows are counted again. */
  readonly begunUpTo: number
  /** Whether all rows up to `begunUpTo` are being counted from the first one. */
  readonly rebuilding: boolean
}
export const notBegun: PairProgress = { countedUpTo: 0, begunUpTo: 0, rebuilding: false }

export interface StoredPairs {
  /** The id of the last row that counts in them. */
  readonly upTo: number
  readonly pairs: Pairs
}

export class ProductPairs extends Context.Tag("user-embeddings/ProductPairs")<
  ProductPairs,
  {
    readonly progress: Effect.Effect<PairProgress, ProductEmbeddingsError>
    /** Moves the progress on. Succeeds with `false`, and without effect, if it is not `from` any more. */
    readonly advance: (from: PairProgress, to: PairProgress) => Effect.Effect<boolean, ProductEmbeddingsError>
    /** The stored pairs of these products, at most `most` of each, greatest first. */
    readonly load: (
      products: ReadonlyArray<ProductId>,
      most?: number,
    ) => Effect.Effect<ReadonlyMap<ProductId, StoredPairs>, ProductEmbeddingsError>
    /**
     * Replaces the pairs of these products, where the stored ones reach less far than `upTo`. A product that is not `known`
     * had no pairs when they were read; if one that is known has none any more, it was deleted, and it stays so.
     */
    readonly save: (
      upTo: number,
      rows: ReadonlyArray<{ readonly product_id: ProductId; readonly pairs: Pairs; readonly known: boolean }>,
    ) => Effect.Effect<void, ProductEmbeddingsError>
    readonly remove: (products: ReadonlyArray<ProductId>) => Effect.Effect<void, ProductEmbeddingsError>
    /** Marks all pairs, so that they reach less far than any row. They stay readable. */
    readonly outdate: Effect.Effect<void, ProductEmbeddingsError>
    /** Removes all pairs that reach less far than `upTo`. */
    readonly removeBefore: (upTo: number) => Effect.Effect<void, ProductEmbeddingsError>
  }
>() {}
