/**
 * Interactions of a shop's users, and the vectors they must lead to. The vectors are computed from the rows of the log
 * alone, without the system's own arithmetic.
 */
import { Effect, Either, Layer } from "effect"
import * as LocalPhraseEmbedder from "../../src/layers/embedder/LocalPhraseEmbedder.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import { PhraseEmbedder } from "../../src/services/ports/PhraseEmbedder.ts"

export const dimensions = 384

/** An item of the bulk route. */
export interface Item {
  readonly user_id: string
  readonly event_type: "search" | "product_view" | "product_click" | "product_purchase"
  readonly search_phrase?: string
  readonly product_id?: string
  readonly occurred_at: string
}

/** A row of the log. */
export interface Row {
  readonly message_id: string
  readonly user_id: string
  readonly event_type: Item["event_type"]
  readonly search_phrase: string | null
  readonly product_id: string | null
  /** Unix ms. */
  readonly occurred_at: number
}

/** Random numbers from 0 to 1, the same for the same seed. */
export const randomness = (seed: number) => {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const phrases = [
  "running shoes",
  "red wine",
  "board games",
  "cordless drill",
  "baby blanket",
  "garden hose",
  "espresso machine",
  "yoga mat",
]
const kinds = ["search", "product_view", "product_click", "product_purchase"] as const
const productCount = 24
const hour = 3_600_000

const random = randomness(7)
const direction = () => Float32Array.from({ length: dimensions }, () => random() - 0.5)
export const products: ReadonlyMap<string, Float32Array> = new Map(
  Array.from({ length: productCount }, (_, i) => [`p-${i}`, direction()]),
)

const embedPhrases = Effect.flatMap(PhraseEmbedder, ({ embed }) => embed(phrases)).pipe(
  Effect.flatMap(Effect.forEach(Either.match({ onLeft: Effect.fail, onRight: Effect.succeed }))),
  Effect.provide(LocalPhraseEmbedder.layer.pipe(Layer.provide(EmbeddingConfig.layer({ dimensions })))),
)
const phraseVectors = new Map(
  (await Effect.runPromise(embedPhrases)).map((vector, i) => [phrases[i], vector]),
)

/** The vector of a phrase by the embedder in use. */
export type VectorOfPhrase = (phrase: string) => Float32Array | undefined
export const localVector: VectorOfPhrase = (phrase) => phraseVectors.get(phrase)

/** Different events of each user within the last 60 days, in mixed order. */
export const happenings = (users: number, eventsEach: number, prefix = "u"): ReadonlyArray<Item> => {
  const random = randomness(users * 7919 + eventsEach)
  const pick = <A>(some: ReadonlyArray<A>): A => some[Math.floor(random() * some.length)]!
  const latest = Date.now() - hour
  return Array.from({ length: users * eventsEach }, (_, i) => {
    const event_type = pick(kinds)
    return {
      user_id: `${prefix}-${i % users}`,
      event_type,
      ...(event_type === "search"
        ? { search_phrase: pick(phrases) }
        : { product_id: `p-${Math.floor(random() * productCount)}` }),
      // The index in the last digits makes each time of a user unique.
      occurred_at: new Date(
        Math.floor((latest - random() * 60 * 24 * hour) / 100_000) * 100_000 +
          (Math.floor(i / users) % 100_000),
      ).toISOString(),
    }
  })
}

/** One search of one user for each text. */
export const searches = (texts: ReadonlyArray<string>): ReadonlyArray<Item> =>
  texts.map((search_phrase, i) => ({
    user_id: `searcher-${search_phrase.replaceAll(" ", "-")}`,
    event_type: "search",
    search_phrase,
    occurred_at: new Date(Date.now() - hour + i).toISOString(),
  }))

const weights = { search: 0.7, product_view: 0.3, product_click: 0.5, product_purchase: 1 }
const lambda = 0.023

const lengthOf = (v: ArrayLike<number>) => {
  let sum = 0
  for (let i = 0; i < v.length; i++) sum += v[i]! ** 2
  return Math.sqrt(sum)
}

/** The direction of a user's decayed weighted sum of events, and the length of the sum. */
export const expected = (
  rows: ReadonlyArray<Row>,
  vectorOfPhrase: VectorOfPhrase,
): { readonly direction: Float64Array; readonly mass: number } => {
  const newest = Math.max(...rows.map(({ occurred_at }) => occurred_at))
  const sum = new Float64Array(dimensions)
  for (const { event_type, occurred_at, product_id, search_phrase } of rows) {
    const vector = products.get(product_id ?? "") ?? vectorOfPhrase(search_phrase ?? "")
    if (vector === undefined) throw new Error(`no vector for ${product_id ?? search_phrase}`)
    const weight = weights[event_type] * Math.exp((-lambda * (newest - occurred_at)) / 86_400_000)
    const length = lengthOf(vector)
    for (let i = 0; i < dimensions; i++) sum[i]! += (weight * vector[i]!) / length
  }
  const mass = lengthOf(sum)
  return { direction: sum.map((x) => x / mass), mass }
}
