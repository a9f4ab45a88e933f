/** Step: users → vectors for other programs, stored or as taste. Many users cost as many reads of the stores as one. */
import { Array as Arr, Clock, Effect, Either, Option, Schema } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import { yieldToEventLoop } from "../EventLoop.ts"
import type { UserId } from "../model/Interaction.ts"
import * as Taste from "../model/Taste.ts"
import type { RecentEvent, UserEmbedding } from "../model/UserEmbedding.ts"
import { loadReadable, UserEmbeddings } from "../ports/UserEmbeddings.ts"
import { EventVectors } from "../update/EventVectors.ts"
import { ownersOf } from "../update/People.ts"
import { Catalogue } from "./Catalogue.ts"

/** `stored`: the embedding that events change. `taste`: the vector that recommendations use. */
export const Read = Schema.Literal("stored", "taste")
export type Read = typeof Read.Type

/** For the vectors of the newest search phrases. */
const phraseTimeout = "2 seconds"

/** What a taste is computed from, beside the user's embedding. */
export interface TasteSources {
  readonly catalogue: Catalogue["Type"]
  readonly config: Pick<EmbeddingConfig["Type"], "eventTypes">
  readonly vectors: EventVectors["Type"]
}

/**
 * The vectors of events, by message id. Those of products are in the catalogue, unless they are deleted. Phrases that the
 * embedder does not answer in time are left out.
 */
const loadEventVectors = Effect.fnUntraced(function* (
  { catalogue, vectors }: TasteSources,
  events: ReadonlyArray<RecentEvent>,
) {
  const find = (some: ReadonlyArray<RecentEvent>) =>
    Effect.map(vectors.resolve(some, { store: false }), (found) => Arr.zip(some, found))
  const ids = new Set(events.flatMap(({ product_id }) => product_id ?? []))
  const inMemory = yield* catalogue.vectors([...ids])
  const known = new Map<string, Float32Array>()
  for (const { message_id, product_id } of events) {
    const vector = product_id === null ? undefined : inMemory.get(product_id)
    if (vector !== undefined) known.set(message_id, vector)
  }
  const unknown = events.filter(({ message_id }) => !known.has(message_id))
  const [phrases, products] = Arr.partition(unknown, ({ product_id }) => product_id !== null)
  const inTime = Effect.map(
    Effect.timeoutOption(find(phrases), phraseTimeout),
    Option.getOrElse(() => []),
  )
  const found = yield* Effect.all([find(products), inTime], { concurrency: 2 })
  for (const [{ message_id }, vector] of found.flat())
    if (Either.isRight(vector)) known.set(message_id, vector.right)
  return known
})

export interface ReadTaste {
  /** `undefined`: the taste has no direction. */
  readonly taste: Taste.Taste | undefined
  /** Whether the vectors of all newest searches were found. */
  readonly isComplete: boolean
}

/** The tastes of embeddings in the space of the catalogue, in their order. */
export const readTastes = Effect.fnUntraced(function* (
  sources: TasteSources,
  embeddings: ReadonlyArray<UserEmbedding>,
) {
  const { catalogue, config } = sources
  const vectorOf = yield* loadEventVectors(
    sources,
    embeddings.flatMap(({ recent }) => recent),
  )
  const mean = yield* catalogue.mean
  const { weights } = config.eventTypes
  const now = yield* Clock.currentTimeMillis
  return yield* Effect.forEach(embeddings, (embedding, index) => {
    const recent = embedding.recent.map((event) => ({ event, vector: vectorOf.get(event.message_id) }))
    const result: ReadTaste = {
      taste: Taste.read(embedding, recent, mean, weights, now),
      isComplete: recent.every(({ event, vector }) => vector !== undefined || event.search_phrase === null),
    }
    // A taste takes about 0.1 ms: other requests get a turn.
    return index % 16 === 15 ? Effect.as(yieldToEventLoop, result) : Effect.succeed(result)
  })
})

/** A user's vector, under the id that was asked for. */
export interface UserVector {
  readonly user_id: UserId
  readonly space: string
  /** Of the stored embedding: each write adds 1. */
  readonly version: number
  /** Unit length. */
  readonly embedding: Float32Array
}

/**
 * The vectors of users, in their order. `null`: the user has none, or has it in another space. One read of the store
 * finds all users. Aliases cost one more.
 */
export const readVectors = Effect.fn("vectors.read")(function* (ids: ReadonlyArray<UserId>, read: Read) {
  const users = yield* UserEmbeddings
  const sources = yield* Effect.all({ catalogue: Catalogue, config: EmbeddingConfig, vectors: EventVectors })
  const owners = yield* ownersOf((some) => loadReadable(users, some), ids)
  const stored = new Map<UserId, { readonly version: number; readonly embedding: UserEmbedding }>()
  for (const { record, user_id } of owners.values()) {
    const embedding = record?.embedding
    if (record !== undefined && embedding?.space === sources.catalogue.space)
      stored.set(user_id, { version: record.version, embedding })
  }
  const embeddings = [...stored.values()].map(({ embedding }) => embedding)
  const tastes =
    read === "stored"
      ? undefined
      : new Map(Arr.zip([...stored.keys()], yield* readTastes(sources, embeddings)))
  return ids.map((id): UserVector | null => {
    const owner = owners.get(id)!.user_id
    const found = stored.get(owner)
    const vector = tastes === undefined ? found?.embedding.embedding : tastes.get(owner)?.taste?.direction
    if (found === undefined || vector === undefined) return null
    return { user_id: id, space: found.embedding.space, version: found.version, embedding: vector }
  })
})
