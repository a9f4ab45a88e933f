/**
 * Step: interactions → event vectors. A product's stored embedding, or the embedding of the search phrase: from
 * memory, else from the phrases already paid for, else from the embedder, which never sees a phrase twice.
 */
import { Array as Arr, Clock, Context, Deferred, Duration, Effect, Either, FiberId, Layer } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as MessageTraces from "../MessageTraces.ts"
import type { Interaction } from "../model/Interaction.ts"
import * as Vector from "../model/Vector.ts"
import { PhraseEmbedder, type PhraseEmbedderError } from "../ports/PhraseEmbedder.ts"
import { PhraseEmbeddings, type PhraseEmbeddingsError, phraseKey } from "../ports/PhraseEmbeddings.ts"
import {
  ProductEmbeddings,
  ProductMissing,
  type ProductVectorError,
  UnusableVector,
} from "../ports/ProductEmbeddings.ts"
import * as Telemetry from "../Telemetry.ts"

export type EventVectorError = ProductVectorError | PhraseEmbedderError

type Found<E> = Either.Either<Float32Array, E>

/** What of an interaction its vector depends on; `message_id` only tells whose trace this belongs to. */
export type Asked = Pick<Interaction, "message_id" | "product_id" | "search_phrase">

export class EventVectors extends Context.Tag("user-embeddings/EventVectors")<
  EventVectors,
  {
    /** Name of the vector space. */
    readonly space: string
    /** Unit-length vectors of interactions, in their order; one's failure does not touch the others. */
    readonly resolve: (
      interactions: ReadonlyArray<Asked>,
    ) => Effect.Effect<ReadonlyArray<Found<EventVectorError>>>
    /** Whether the phrase's vector is in memory. */
    readonly remembers: (phrase: string) => boolean
    /** Vectors of texts that are not kept, in their order. */
    readonly ofTexts: (
      texts: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyArray<Found<PhraseEmbedderError>>>
    /** Removes phrases from this process's memory and from the store; answers how many the store had. */
    readonly forget: (phrases: ReadonlyArray<string>) => Effect.Effect<number, PhraseEmbeddingsError>
  }
>() {}

/** Phrases that are found together, and what became of them. */
type Batch = Deferred.Deferred<ReadonlyMap<string, Found<PhraseEmbedderError>>>

/** Phrases, and products, kept in memory: 6 KB each at 1536 dimensions. */
const phrasesInMemory = 4_000
const productsInMemory = 4_000
/** How long a product's new vector may go unnoticed, in ms; a busy worker asks for the same products in every batch. */
const productTtl = 2_000

/** The vectors used last, each for a time. */
class VectorMemory {
  private readonly most: number
  private readonly ttl: number
  /** In order of use, oldest first. */
  private readonly entries = new Map<string, { readonly vector: Float32Array; readonly until: number }>()

  constructor(most: number, ttl: number) {
    this.most = most
    this.ttl = ttl
  }

  has(key: string, now: number): boolean {
    return (this.entries.get(key)?.until ?? 0) > now
  }

  recall(key: string, now: number): Float32Array | undefined {
    const entry = this.entries.get(key)
    if (entry === undefined) return undefined
    this.entries.delete(key)
    if (entry.until <= now) return undefined
    this.entries.set(key, entry)
    return entry.vector
  }

  forget(key: string): void {
    this.entries.delete(key)
  }

  remember(key: string, vector: Float32Array, now: number): void {
    this.entries.set(key, { vector, until: now + this.ttl })
    for (const oldest of this.entries.keys()) {
      if (this.entries.size <= this.most) break
      this.entries.delete(oldest)
    }
  }
}

const make = Effect.gen(function* () {
  const config = yield* EmbeddingConfig
  const products = yield* ProductEmbeddings
  const kept = yield* PhraseEmbeddings
  const embedder = yield* PhraseEmbedder
  const scope = yield* Effect.scope
  const clock = yield* Effect.clock
  const { space } = embedder
  const memory = new VectorMemory(phrasesInMemory, Duration.toMillis(config.cacheTtl))
  const catalogue = new VectorMemory(productsInMemory, productTtl)
  /** Phrases that are being found right now. */
  const inFlight = new Map<string, Batch>()

  /** The store of phrases only saves money: without it they are computed. */
  const orElse =
    <A>(fallback: A) =>
    (effect: Effect.Effect<A, PhraseEmbeddingsError>): Effect.Effect<A> =>
      Effect.catchAll(effect, (error) =>
        Effect.logWarning("phrases.store_failed").pipe(
          Effect.annotateLogs(Telemetry.described(error)),
          Effect.as(fallback),
        ),
      )

  /** Finds phrases that are not in memory, and keeps what it had to compute. */
  const find = Effect.fnUntraced(function* (phrases: ReadonlyArray<string>) {
    const found = new Map<string, Found<PhraseEmbedderError>>()
    const keyOf = new Map(phrases.map((phrase) => [phrase, phraseKey(space, phrase)]))
    const paid = yield* kept
      .load([...keyOf.values()])
      .pipe(orElse<ReadonlyMap<string, Float32Array>>(new Map()))
    for (const [phrase, key] of keyOf) {
      const vector = paid.get(key)
      if (vector !== undefined && Vector.problem(vector, config.dimensions) === undefined)
        found.set(phrase, Either.right(vector))
    }
    Telemetry.count(Telemetry.phrasesFrom.store, found.size)
    const unknown = phrases.filter((phrase) => !found.has(phrase))
    if (unknown.length > 0) {
      Telemetry.count(Telemetry.phrasesFrom.embedder, unknown.length)
      const computed = Arr.zip(unknown, yield* embedder.embed(unknown))
      const fresh = new Map<string, Float32Array>()
      for (const [phrase, result] of computed) {
        found.set(phrase, result)
        if (Either.isRight(result)) fresh.set(phraseKey(space, phrase), result.right)
      }
      if (fresh.size > 0) yield* kept.save(fresh).pipe(orElse<void>(undefined))
    }
    const now = yield* Clock.currentTimeMillis
    for (const [phrase, result] of found)
      if (Either.isRight(result)) memory.remember(phrase, result.right, now)
    return found
  })

  /** Finds phrases for everybody who wants them, on behalf of nobody: it goes on when a caller is interrupted. */
  const start = (phrases: ReadonlyArray<string>, batch: Batch) =>
    Effect.interruptible(find(phrases)).pipe(
      Effect.onExit((exit) => {
        for (const phrase of phrases) inFlight.delete(phrase)
        return Deferred.done(batch, exit)
      }),
      Effect.forkIn(scope),
    )

  const ofPhrases = Effect.fnUntraced(function* (phrases: ReadonlyArray<string>) {
    const now = yield* Clock.currentTimeMillis
    const found = new Map<string, Found<PhraseEmbedderError>>()
    // In one step, so that no phrase is claimed twice and no claim stays without its batch.
    const batches = yield* Effect.suspend(() => {
      const batch: Batch = Deferred.unsafeMake(FiberId.none)
      const mine: Array<string> = []
      const awaited = new Map<string, Batch>()
      for (const phrase of phrases) {
        const vector = memory.recall(phrase, now)
        if (vector !== undefined) {
          found.set(phrase, Either.right(vector))
          continue
        }
        const other = inFlight.get(phrase)
        if (other === undefined) mine.push(phrase)
        inFlight.set(phrase, other ?? batch)
        awaited.set(phrase, other ?? batch)
      }
      Telemetry.count(Telemetry.phrasesFrom.memory, found.size)
      return Effect.as(mine.length > 0 ? start(mine, batch) : Effect.void, awaited)
    }).pipe(Effect.uninterruptible)
    for (const [phrase, batch] of batches) found.set(phrase, (yield* Deferred.await(batch)).get(phrase)!)
    return found
  })

  const ofProducts = Effect.fnUntraced(function* (ids: ReadonlyArray<string>) {
    const found = new Map<string, Found<ProductVectorError>>()
    const now = yield* Clock.currentTimeMillis
    for (const id of ids) {
      const vector = catalogue.recall(id, now)
      if (vector !== undefined) found.set(id, Either.right(vector))
    }
    const unknown = ids.filter((id) => !found.has(id))
    if (unknown.length === 0) return found
    const loaded = yield* Effect.either(products.load(unknown, space))
    for (const product_id of unknown) {
      if (Either.isLeft(loaded)) {
        found.set(product_id, Either.left(loaded.left))
        continue
      }
      const stored = loaded.right.get(product_id)
      const detail = stored && Vector.problem(stored, config.dimensions)
      if (stored === undefined) found.set(product_id, Either.left(new ProductMissing({ product_id, space })))
      else if (detail !== undefined)
        found.set(product_id, Either.left(new UnusableVector({ product_id, detail })))
      else {
        const vector = Vector.normalise(stored)
        catalogue.remember(product_id, vector, now)
        found.set(product_id, Either.right(vector))
      }
    }
    return found
  })

  const resolve = Effect.fnUntraced(function* (interactions: ReadonlyArray<Asked>) {
    const searches = interactions.filter(({ search_phrase }) => search_phrase !== null)
    const others = interactions.filter(({ search_phrase }) => search_phrase === null)
    const [byPhrase, byProduct] = yield* Effect.all(
      [
        ofPhrases([...new Set(searches.flatMap(({ search_phrase }) => search_phrase ?? []))]).pipe(
          MessageTraces.forMessages(searches),
        ),
        ofProducts([...new Set(others.flatMap(({ product_id }) => product_id ?? []))]).pipe(
          MessageTraces.forMessages(others),
        ),
      ],
      { concurrency: 2 },
    )
    return interactions.map(
      ({ product_id, search_phrase }): Found<EventVectorError> =>
        search_phrase === null ? byProduct.get(product_id!)! : byPhrase.get(search_phrase)!,
    )
  })

  const forget = (phrases: ReadonlyArray<string>) =>
    Effect.suspend(() => {
      for (const phrase of phrases) memory.forget(phrase)
      return kept.remove(phrases.map((phrase) => phraseKey(space, phrase)))
    })

  return {
    space,
    resolve,
    remembers: (phrase: string) => memory.has(phrase, clock.unsafeCurrentTimeMillis()),
    ofTexts: embedder.embed,
    forget,
  }
})

export const layer = Layer.scoped(EventVectors, make)
