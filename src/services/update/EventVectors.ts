/**
 * Step: interactions → event vectors. The vector of a product event is the product's stored embedding. The vector of a
 * search is the embedding of its phrase, from memory, else from the store of phrases, else from the embedder: no phrase
 * is paid for twice.
 */
import {
  Array as Arr,
  Clock,
  Context,
  Deferred,
  Duration,
  Effect,
  Either,
  FiberId,
  Layer,
  type Scope,
} from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as MessageTraces from "../MessageTraces.ts"
import type { Interaction } from "../model/Interaction.ts"
import * as Vector from "../model/Vector.ts"
import { unlessReported } from "../Outages.ts"
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

/** The fields that determine the vector, and `message_id`, which only selects the trace. */
type EventReference = Pick<Interaction, "message_id" | "product_id" | "search_phrase">

export class EventVectors extends Context.Tag("user-embeddings/EventVectors")<
  EventVectors,
  {
    /** Name of the vector space. */
    readonly space: string
    /**
     * Unit-length vectors of interactions, in their order. One failure does not affect the other vectors. With `store`
     * false, phrases that had to be embedded are kept in memory alone: for callers who cannot tell whether the user is
     * erased meanwhile.
     */
    readonly resolve: (
      interactions: ReadonlyArray<EventReference>,
      options?: { readonly store?: boolean },
    ) => Effect.Effect<ReadonlyArray<Found<EventVectorError>>>
    /** Whether the phrase's vector is in memory. */
    readonly remembers: (phrase: string) => boolean
    /** Vectors of texts of products, in their order. They are not stored. */
    readonly ofTexts: (
      texts: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyArray<Found<PhraseEmbedderError>>>
    /** Removes phrases from the memory of this process and from the store; answers how many the store had. */
    readonly forget: (phrases: ReadonlyArray<string>) => Effect.Effect<number, PhraseEmbeddingsError>
  }
>() {}

/** Vectors kept in memory: 6 KB each at 1536 dimensions. */
const phrasesInMemory = 4_000
const productsInMemory = 4_000
/** How long a product's old vector may be used after a change. A busy worker needs the same products in every batch. */
const productTtl = 2_000

/** The vectors used last, each for a limited time. */
class VectorMemory {
  private readonly capacity: number
  /** In ms. */
  private readonly ttl: number
  /** In order of use, oldest first. */
  private readonly entries = new Map<string, { readonly vector: Float32Array; readonly expires: number }>()

  constructor(capacity: number, ttl: number) {
    this.capacity = capacity
    this.ttl = ttl
  }

  has(key: string, now: number): boolean {
    return (this.entries.get(key)?.expires ?? 0) > now
  }

  get(key: string, now: number): Float32Array | undefined {
    const entry = this.entries.get(key)
    if (entry === undefined) return undefined
    this.entries.delete(key)
    if (entry.expires <= now) return undefined
    this.entries.set(key, entry)
    return entry.vector
  }

  delete(key: string): void {
    this.entries.delete(key)
  }

  set(key: string, vector: Float32Array, now: number): void {
    this.entries.set(key, { vector, expires: now + this.ttl })
    for (const oldest of this.entries.keys()) {
      if (this.entries.size <= this.capacity) break
      this.entries.delete(oldest)
    }
  }
}

// ---------------------------------------------------------------------------------------------------------
// Phrases

/** The result of a search for several phrases. */
type PhraseBatch = Deferred.Deferred<ReadonlyMap<string, Found<PhraseEmbedderError>>>

interface Phrases {
  readonly embedder: PhraseEmbedder["Type"]
  readonly store: PhraseEmbeddings["Type"]
  readonly memory: VectorMemory
  /** Phrases that are being looked for. */
  readonly inFlight: Map<string, PhraseBatch>
  readonly dimensions: number
  readonly scope: Scope.Scope
}

/** The store of phrases only saves money: without it phrases are embedded again. */
const orElse =
  <A>(fallback: A) =>
  (effect: Effect.Effect<A, PhraseEmbeddingsError>): Effect.Effect<A> =>
    Effect.catchAll(effect, (error) =>
      Effect.as(
        unlessReported(
          error,
          Effect.logWarning("phrases.store_failed").pipe(Effect.annotateLogs(Telemetry.described(error))),
        ),
        fallback,
      ),
    )

/** Finds phrases that are not in memory, and stores those that it had to embed. */
const findPhrases = Effect.fnUntraced(function* (
  { dimensions, embedder, memory, store }: Phrases,
  phrases: ReadonlyArray<string>,
  toKeep: boolean,
) {
  const found = new Map<string, Found<PhraseEmbedderError>>()
  const keyOf = new Map(phrases.map((phrase) => [phrase, phraseKey(embedder.space, phrase)]))
  const stored = yield* store
    .load([...keyOf.values()])
    .pipe(orElse<ReadonlyMap<string, Float32Array>>(new Map()))
  for (const [phrase, key] of keyOf) {
    const vector = stored.get(key)
    if (vector !== undefined && Vector.problem(vector, dimensions) === undefined)
      found.set(phrase, Either.right(vector))
  }
  Telemetry.count(Telemetry.phrasesFrom.store, found.size)
  const unknown = phrases.filter((phrase) => !found.has(phrase))
  if (unknown.length > 0) {
    Telemetry.count(Telemetry.phrasesFrom.embedder, unknown.length)
    const toStore = new Map<string, Float32Array>()
    for (const [phrase, result] of Arr.zip(unknown, yield* embedder.embed(unknown))) {
      found.set(phrase, result)
      if (Either.isRight(result)) toStore.set(phraseKey(embedder.space, phrase), result.right)
    }
    if (toKeep && toStore.size > 0) yield* store.save(toStore).pipe(orElse<void>(undefined))
  }
  const now = yield* Clock.currentTimeMillis
  for (const [phrase, result] of found) if (Either.isRight(result)) memory.set(phrase, result.right, now)
  return found
})

/** Looks for phrases in a fiber of its own: several callers may wait, and one of them may be interrupted. */
const startBatch = (context: Phrases, phrases: ReadonlyArray<string>, batch: PhraseBatch, toKeep: boolean) =>
  Effect.interruptible(findPhrases(context, phrases, toKeep)).pipe(
    Effect.onExit((exit) => {
      for (const phrase of phrases) context.inFlight.delete(phrase)
      return Deferred.done(batch, exit)
    }),
    Effect.forkIn(context.scope),
  )

const phraseVectors = Effect.fnUntraced(function* (
  context: Phrases,
  phrases: ReadonlyArray<string>,
  toKeep: boolean,
) {
  const { inFlight, memory } = context
  const now = yield* Clock.currentTimeMillis
  const found = new Map<string, Found<PhraseEmbedderError>>()
  // One uninterruptible step: no phrase is in two batches, and each phrase in flight has a batch that runs.
  const batches = yield* Effect.suspend(() => {
    const batch: PhraseBatch = Deferred.unsafeMake(FiberId.none)
    const started: Array<string> = []
    const awaited = new Map<string, PhraseBatch>()
    for (const phrase of phrases) {
      const vector = memory.get(phrase, now)
      if (vector !== undefined) {
        found.set(phrase, Either.right(vector))
        continue
      }
      const other = inFlight.get(phrase)
      if (other === undefined) started.push(phrase)
      inFlight.set(phrase, other ?? batch)
      awaited.set(phrase, other ?? batch)
    }
    Telemetry.count(Telemetry.phrasesFrom.memory, found.size)
    return Effect.as(started.length > 0 ? startBatch(context, started, batch, toKeep) : Effect.void, awaited)
  }).pipe(Effect.uninterruptible)
  for (const [phrase, batch] of batches) found.set(phrase, (yield* Deferred.await(batch)).get(phrase)!)
  return found
})

// ---------------------------------------------------------------------------------------------------------
// Products

interface Products {
  readonly store: ProductEmbeddings["Type"]
  readonly memory: VectorMemory
  readonly dimensions: number
  readonly space: string
}

const usableVector = (
  { dimensions, space }: Products,
  product_id: string,
  stored: Float32Array | undefined,
): Found<ProductVectorError> => {
  if (stored === undefined) return Either.left(new ProductMissing({ product_id, space }))
  const detail = Vector.problem(stored, dimensions)
  return detail === undefined
    ? Either.right(Vector.normalise(stored))
    : Either.left(new UnusableVector({ product_id, detail }))
}

const productVectors = Effect.fnUntraced(function* (context: Products, ids: ReadonlyArray<string>) {
  const { memory, space, store } = context
  const found = new Map<string, Found<ProductVectorError>>()
  const now = yield* Clock.currentTimeMillis
  for (const id of ids) {
    const vector = memory.get(id, now)
    if (vector !== undefined) found.set(id, Either.right(vector))
  }
  const unknown = ids.filter((id) => !found.has(id))
  if (unknown.length === 0) return found
  const loaded = yield* Effect.either(store.load(unknown, space))
  for (const id of unknown) {
    const result = Either.flatMap(loaded, (vectors) => usableVector(context, id, vectors.get(id)))
    found.set(id, result)
    if (Either.isRight(result)) memory.set(id, result.right, now)
  }
  return found
})

// ---------------------------------------------------------------------------------------------------------

const resolve = Effect.fnUntraced(function* (
  phrases: Phrases,
  products: Products,
  interactions: ReadonlyArray<EventReference>,
  { store = true }: { readonly store?: boolean } = {},
) {
  const [productEvents, searches] = Arr.partition(interactions, ({ search_phrase }) => search_phrase !== null)
  const distinctPhrases = [...new Set(searches.flatMap(({ search_phrase }) => search_phrase ?? []))]
  const distinctProducts = [...new Set(productEvents.flatMap(({ product_id }) => product_id ?? []))]
  const [byPhrase, byProduct] = yield* Effect.all(
    [
      phraseVectors(phrases, distinctPhrases, store).pipe(MessageTraces.forMessages(searches)),
      productVectors(products, distinctProducts).pipe(MessageTraces.forMessages(productEvents)),
    ],
    { concurrency: distinctPhrases.length > 0 && distinctProducts.length > 0 ? 2 : 1 },
  )
  return interactions.map(
    ({ product_id, search_phrase }): Found<EventVectorError> =>
      search_phrase === null ? byProduct.get(product_id!)! : byPhrase.get(search_phrase)!,
  )
})

const make = Effect.gen(function* () {
  const { cacheTtl, dimensions } = yield* EmbeddingConfig
  const embedder = yield* PhraseEmbedder
  const store = yield* PhraseEmbeddings
  const clock = yield* Effect.clock
  const { space } = embedder
  const memory = new VectorMemory(phrasesInMemory, Duration.toMillis(cacheTtl))
  const scope = yield* Effect.scope
  const phrases: Phrases = { embedder, store, memory, inFlight: new Map(), dimensions, scope }
  const products: Products = {
    store: yield* ProductEmbeddings,
    memory: new VectorMemory(productsInMemory, productTtl),
    dimensions,
    space,
  }
  return EventVectors.of({
    space,
    resolve: (interactions, options) => resolve(phrases, products, interactions, options),
    remembers: (phrase) => memory.has(phrase, clock.unsafeCurrentTimeMillis()),
    ofTexts: (texts) => embedder.embed(texts, "document"),
    forget: (forgotten) =>
      Effect.suspend(() => {
        for (const phrase of forgotten) memory.delete(phrase)
        return store.remove(forgotten.map((phrase) => phraseKey(space, phrase)))
      }),
  })
})

export const layer = Layer.scoped(EventVectors, make)
