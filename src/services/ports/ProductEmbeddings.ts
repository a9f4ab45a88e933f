/** The store of product vectors. */
import { Context, type Effect, Schema, type Stream } from "effect"
import type { ProductId } from "../model/Interaction.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

export interface ProductEmbedding {
  readonly product_id: ProductId
  /** As given, not necessarily unit length. */
  readonly embedding: Float32Array
  readonly product_name: string | null
  readonly category: string | null
  /** Name of the vector space. */
  readonly space: string
  /** The text it was embedded from, if it was. */
  readonly text: string | null
}

/** A product with its cosine to what was asked for. */
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

/** A stored product vector can't be folded: wrong dimension, zero, or not finite. */
export class UnusableVector extends Schema.TaggedError<UnusableVector>()("UnusableVector", {
  product_id: Schema.String,
  detail: Schema.String,
}) {
  override get message() {
    return `the vector of product ${this.product_id} ${this.detail}`
  }
}

/** A product's vector can't be used, or the store did not deliver it. */
export type ProductVectorError = ProductMissing | UnusableVector | ProductEmbeddingsError

/** The store has no index of vectors to search in. */
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
    /** Vectors of those products that have one in this space. */
    readonly load: (
      products: ReadonlyArray<ProductId>,
      space: string,
    ) => Effect.Effect<ReadonlyMap<ProductId, Float32Array>, ProductEmbeddingsError>
    /**
     * Creates or replaces products (the last one wins when a product stands twice); answers in their order
     * whether each is new. Name and category that are `null` keep what is stored.
     */
    readonly upsert: (
      products: ReadonlyArray<ProductEmbedding>,
    ) => Effect.Effect<ReadonlyArray<boolean>, ProductEmbeddingsError>
    /** The products of the vector's space with the greatest cosine, greatest first; exact. */
    readonly nearest: (
      vector: Float32Array,
      options: { readonly space: string; readonly limit: number },
    ) => Effect.Effect<ReadonlyArray<Neighbour>, ProductEmbeddingsError>
    /** Since when (Unix ms) those products are known that have a vector in this space. */
    readonly knownSince: (
      products: ReadonlyArray<ProductId>,
      space: string,
    ) => Effect.Effect<ReadonlyMap<ProductId, number>, ProductEmbeddingsError>
    readonly count: Effect.Effect<number, ProductEmbeddingsError>
    /** How many have their vector in another space than this one. */
    readonly elsewhere: (space: string) => Effect.Effect<number, ProductEmbeddingsError>
    /** Products near a vector, by an index of the store, which may miss some: for catalogues too large for `nearest`. */
    readonly indexed: (
      vector: Float32Array,
      options: { readonly space: string; readonly limit: number; readonly category?: string | undefined },
    ) => Effect.Effect<ReadonlyArray<ProductEmbedding>, ProductEmbeddingsError | NoVectorIndex>
    /** Names and categories of those products that there are. */
    readonly describe: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<
      ReadonlyMap<ProductId, Pick<ProductEmbedding, "product_id" | "product_name" | "category">>,
      ProductEmbeddingsError
    >
    /** Products of any space that were written after this instant (Unix ms), with the time of that. */
    readonly changed: (
      after: number,
    ) => Stream.Stream<ProductEmbedding & { readonly updated_at: number }, ProductEmbeddingsError>
    /** All products of a space, in the order of their ids. */
    readonly stream: (space: string) => Stream.Stream<ProductEmbedding, ProductEmbeddingsError>
  }
>() {}
