/** The store of product vectors. */
import { Context, type Effect, Schema, type Stream } from "effect"
import type { ProductId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

interface Vectored {
  /** As the producer sent it, not necessarily of unit length. */
  readonly embedding: Float32Array
  /** Name of the vector space. */
  readonly space: string
  /** The text that the vector is an embedding of, if it is known. */
  readonly text: string | null
}

export interface ProductEmbedding extends Product, Vectored {}

/** What a write changes. An absent field, or a name or category of `null`, leaves the stored one as it is. */
export type ProductChange = Pick<Product, "product_id"> &
  Partial<Product> &
  (Vectored | { readonly [Field in keyof Vectored]?: undefined })

/** `missing`: the product does not exist, and the change has no vector to create it with. */
export type Upserted = "created" | "changed" | "missing"

/** Differs, in practice, whenever a product is added, removed or stamped anew. */
export interface StampSum {
  readonly count: number
  /** Of the stamps modulo {@link stampModulus}. */
  readonly sum: number
}
/** A prime, so small that the sum of millions of stamps is exact. */
export const stampModulus = 1_000_000_007

export interface StoredProduct extends ProductEmbedding {
  /** A deleted product keeps its id, space and stamp here. Its vector is left out: only `load` reads it. */
  readonly deleted: boolean
  /** Unix ms, by the clock of the program that wrote it last; 0 when that program set none. */
  readonly updated_at: number
}

/** A product and the cosine between its vector and the vector of the query. */
export interface Neighbour extends Pick<ProductEmbedding, "product_id" | "product_name" | "category"> {
  readonly similarity: number
}

export class ProductEmbeddingsError extends Schema.TaggedError<ProductEmbeddingsError>()(
  "ProductEmbeddingsError",
  portFailure,
) {
  override get message() {
    return describeFailure("product embeddings", this)
  }
}

/** The product has no embedding in the configured space. */
export class ProductMissing extends Schema.TaggedError<ProductMissing>()("ProductMissing", {
  product_id: Schema.String,
  space: Schema.String,
}) {
  override get message() {
    return `product ${this.product_id} has no embedding in space ${this.space}`
  }
}

/** A stored product vector has the wrong dimension, is zero, or is not finite. */
export class UnusableVector extends Schema.TaggedError<UnusableVector>()("UnusableVector", {
  product_id: Schema.String,
  detail: Schema.String,
}) {
  override get message() {
    return `the vector of product ${this.product_id} ${this.detail}`
  }
}

/** Why a product has no usable vector. */
export type ProductVectorError = ProductMissing | UnusableVector | ProductEmbeddingsError

/** The store has no vector index. */
export class NoVectorIndex extends Schema.TaggedError<NoVectorIndex>()("NoVectorIndex", {
  detail: Schema.String,
}) {
  override get message() {
    return this.detail
  }
}

export class ProductEmbeddings extends Context.Tag("user-embeddings/ProductEmbeddings")<
  ProductEmbeddings,
  {
    /** The vectors of these products in this space, also of deleted ones: their events still count. */
    readonly load: (
      products: ReadonlyArray<ProductId>,
      space: string,
    ) => Effect.Effect<ReadonlyMap<ProductId, Float32Array>, ProductEmbeddingsError>
    /**
     * Creates or changes products, as if one by one, and answers in their order. Creating a deleted product again takes
     * over nothing of it.
     */
    readonly upsert: (
      changes: ReadonlyArray<ProductChange>,
    ) => Effect.Effect<ReadonlyArray<Upserted>, ProductEmbeddingsError>
    /** Deletes products and keeps their vectors for `load`. Answers which of them existed. */
    readonly remove: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlySet<ProductId>, ProductEmbeddingsError>
    /** The available products of a space with the greatest cosines, greatest first. Exact. */
    readonly nearest: (
      vector: Float32Array,
      options: { readonly space: string; readonly limit: number },
    ) => Effect.Effect<ReadonlyArray<Neighbour>, ProductEmbeddingsError>
    /** When the products that have a vector in this space were first stored (Unix ms). */
    readonly knownSince: (
      products: ReadonlyArray<ProductId>,
      space: string,
    ) => Effect.Effect<ReadonlyMap<ProductId, number>, ProductEmbeddingsError>
    /**
     * Since when these products have had the vectors that they have now (Unix ms). Later than it was, but never earlier, if
     * another program wrote the product last.
     */
    readonly vectorsSince: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyMap<ProductId, number>, ProductEmbeddingsError>
    /** Products that are not deleted. */
    readonly count: Effect.Effect<number, ProductEmbeddingsError>
    /** How many products that are not deleted have a vector in another space. */
    readonly countInOtherSpaces: (space: string) => Effect.Effect<number, ProductEmbeddingsError>
    /** Products near a vector, by a vector index, which may miss some: for catalogues too large for `nearest`. */
    readonly indexed: (
      vector: Float32Array,
      options: {
        readonly space: string
        readonly limit: number
        readonly categories?: ReadonlyArray<string> | undefined
      },
    ) => Effect.Effect<ReadonlyArray<ProductEmbedding>, ProductEmbeddingsError | NoVectorIndex>
    /** These products without vectors, where they exist or existed. */
    readonly describe: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyMap<ProductId, Product>, ProductEmbeddingsError>
    /** Products of any space that were written or deleted after this instant (Unix ms), by the clocks of their writers. */
    readonly changed: (after: number) => Stream.Stream<StoredProduct, ProductEmbeddingsError>
    /** Computed by the store: it costs a tenth of {@link stamps}. */
    readonly stampSum: (space: string) => Effect.Effect<StampSum, ProductEmbeddingsError>
    /** The stamps of all products of a space, also deleted ones. Cheap beside {@link stream}: it reads an index alone. */
    readonly stamps: (
      space: string,
    ) => Stream.Stream<Pick<StoredProduct, "product_id" | "updated_at">, ProductEmbeddingsError>
    /** Those of these products that exist or existed, in any space. */
    readonly find: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyArray<StoredProduct>, ProductEmbeddingsError>
    /**
     * Products of a space that can't be used, by their ids as they are stored, and why. Other programs write products,
     * too. Reads all vectors.
     */
    readonly problems: (
      space: string,
      dimensions: number,
    ) => Stream.Stream<{ readonly product_id: string; readonly detail: string }, ProductEmbeddingsError>
    /** All products of a space, also deleted ones, in the order of their ids. A vector may be unusable. */
    readonly stream: (space: string) => Stream.Stream<StoredProduct, ProductEmbeddingsError>
  }
>() {}
