/**
 * Step: interactions → event vectors. A product's stored embedding, or the embedding of the search phrase: from
 * memory, else from the phrases already paid for, else from the embedder, which never sees a phrase twice.
 */
import { Array as Arr, Clock, Context, Deferred, Duration, Effect, Either, Layer, Schema } from "effect"
import { EmbeddingConfig } from "./EmbeddingConfig.ts"
import type { Interaction } from "./Interaction.ts"
import { PhraseEmbedder, type PhraseEmbedderError } from "./PhraseEmbedder.ts"
import { PhraseEmbeddings, type PhraseEmbeddingsError, phraseKey } from "./PhraseEmbeddings.ts"
import { ProductEmbeddings, type ProductEmbeddingsError } from "./ProductEmbeddings.ts"
import * as Vector from "./Vector.ts"

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

export type EventVectorError = ProductMissing | UnusableVector | ProductEmbeddingsError | PhraseEmbedderError

type Found<E> = Either.Either<Float32Array, E>

export class EventVectors extends Context.Tag("user-embeddings/EventVectors")<
  EventVectors,
  {
    /** Name of the vector space. */
    readonly space: string
    /** Unit-length vectors of interactions, in their order; one's failure does not touch the others. */
    readonly resolve: (
      interactions: ReadonlyArray<Interaction>,
    ) => Effect.Effect<ReadonlyArray<Found<EventVectorError>>>
    /** Vectors of texts that are not kept, in their order. */
    readonly ofTexts: (
      texts: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyArray<Found<PhraseEmbedderError>>>
  }
>() {}

/** Phrases kept in memory: 6 KB each at 1536 dimensions. */
const phrasesInMemory = 4_000

const make = Effect.gen(function* () {
  const config = yield* EmbeddingConfig
  const products = yield* ProductEmbeddings
  const kept = yield* PhraseEmbeddings
  const embedder = yield* PhraseEmbedder
  const { space } = embedder
  const ttl = Duration.toMillis(config.cacheTtl)
  /** In order of use, oldest first. */
  const memory = new Map<string, { readonly vector: Float32Array; readonly until: number }>()
  /** Phrases that another caller is finding right now. */
  const inFlight = new Map<string, Deferred.Deferred<Found<PhraseEmbedderError>>>()

  const recall = (phrase: string, now: number): Float32Array | undefined => {
    const entry = memory.get(phrase)
    if (entry === undefined) return undefined
    memory.delete(phrase)
    if (entry.until <= now) return undefined
    memory.set(phrase, entry)
    return entry.vector
  }
  const remember = (phrase: string, vector: Float32Array, now: number) => {
    memory.set(phrase, { vector, until: now + ttl })
    for (const oldest of memory.keys()) {
      if (memory.size <= phrasesInMemory) break
      memory.delete(oldest)
    }
  }

  /** The store of phrases only saves money: without it they are computed. */
  const orElse =
    <A>(fallback: A) =>
    (effect: Effect.Effect<A, PhraseEmbeddingsError>): Effect.Effect<A> =>
      Effect.catchAll(effect, (error) =>
        Effect.logWarning("phrases.store_failed").pipe(
          Effect.annotateLogs({ error: error.message }),
          Effect.as(fallback),
        ),
      )

  const find = Effect.fnUntraced(function* (phrases: ReadonlyArray<string>) {
    const found = new Map<string, Found<PhraseEmbedderError>>()
    const paid = yield* kept
      .load(phrases.map((phrase) => phraseKey(space, phrase)))
      .pipe(orElse<ReadonlyMap<string, Float32Array>>(new Map()))
    for (const phrase of phrases) {
      const vector = paid.get(phraseKey(space, phrase))
      if (vector?.length === config.dimensions) found.set(phrase, Either.right(vector))
    }
    const unknown = phrases.filter((phrase) => !found.has(phrase))
    if (unknown.length > 0) {
      const computed = yield* embedder.embed(unknown)
      const fresh = new Map<string, Float32Array>()
      for (const [index, phrase] of unknown.entries()) {
        const result = computed[index]!
        found.set(phrase, result)
        if (Either.isRight(result)) fresh.set(phraseKey(space, phrase), result.right)
      }
      if (fresh.size > 0) yield* kept.save(fresh).pipe(orElse<void>(undefined))
    }
    return found
  })

  const ofPhrases = Effect.fnUntraced(function* (phrases: ReadonlyArray<string>) {
    const now = yield* Clock.currentTimeMillis
    const self = yield* Effect.fiberId
    const found = new Map<string, Found<PhraseEmbedderError>>()
    const awaited = new Map<string, Deferred.Deferred<Found<PhraseEmbedderError>>>()
    const mine = new Map<string, Deferred.Deferred<Found<PhraseEmbedderError>>>()
    for (const phrase of phrases) {
      const vector = recall(phrase, now)
      const other = inFlight.get(phrase)
      if (vector !== undefined) found.set(phrase, Either.right(vector))
      else if (other !== undefined) awaited.set(phrase, other)
      else mine.set(phrase, Deferred.unsafeMake(self))
    }
    for (const [phrase, deferred] of mine) inFlight.set(phrase, deferred)
    if (mine.size > 0) {
      // Uninterruptible, so that nobody waits for an answer that never comes; the parts have deadlines of their own.
      const results = yield* Effect.uninterruptible(find([...mine.keys()]))
      for (const [phrase, deferred] of mine) {
        const result = results.get(phrase)!
        found.set(phrase, result)
        if (Either.isRight(result)) remember(phrase, result.right, now)
        inFlight.delete(phrase)
        yield* Deferred.succeed(deferred, result)
      }
    }
    for (const [phrase, deferred] of awaited) found.set(phrase, yield* Deferred.await(deferred))
    return found
  })

  const ofProducts = Effect.fnUntraced(function* (ids: ReadonlyArray<string>) {
    const found = new Map<string, Found<EventVectorError>>()
    if (ids.length === 0) return found
    const loaded = yield* Effect.either(products.load(ids, space))
    for (const product_id of ids) {
      if (Either.isLeft(loaded)) {
        found.set(product_id, Either.left(loaded.left))
        continue
      }
      const vector = loaded.right.get(product_id)
      const detail = vector && Vector.problem(vector, config.dimensions)
      if (vector === undefined) found.set(product_id, Either.left(new ProductMissing({ product_id, space })))
      else if (detail !== undefined)
        found.set(product_id, Either.left(new UnusableVector({ product_id, detail })))
      else found.set(product_id, Either.right(Vector.normalise(vector)))
    }
    return found
  })

  const resolve = Effect.fnUntraced(function* (interactions: ReadonlyArray<Interaction>) {
    const [byPhrase, byProduct] = yield* Effect.all(
      [
        ofPhrases(Arr.dedupe(interactions.flatMap(({ search_phrase }) => search_phrase ?? []))),
        ofProducts(Arr.dedupe(interactions.flatMap(({ product_id }) => product_id ?? []))),
      ],
      { concurrency: 2 },
    )
    return interactions.map(
      ({ product_id, search_phrase }): Found<EventVectorError> =>
        search_phrase === null ? byProduct.get(product_id!)! : byPhrase.get(search_phrase)!,
    )
  })

  return { space, resolve, ofTexts: embedder.embed }
})

export const layer = Layer.effect(EventVectors, make)
