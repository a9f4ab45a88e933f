/**
 * Counts the interactions with each product: reads the log once in slices, then only what is added. Rows may be committed
 * out of order, so the last rows are counted again each time. Interactions removed by an erasure count until the next start.
 */
import { Clock, Context, Duration, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { ProductId } from "../model/Interaction.ts"
import { InteractionLog, InteractionLogError } from "../ports/InteractionLog.ts"
import * as StaleWhileRevalidate from "./StaleWhileRevalidate.ts"

/** Rows counted by one statement: about 20 ms of the server's time. */
const rowsPerSlice = 10_000
/** Rows at the end of the log, where earlier ids may still be committed. */
const recentRows = 10_000
const freshFor = Duration.seconds(2)
const dayMillis = 86_400_000

/** A product and the sum of its interactions, each weighted by exp(−λ · days since the day it occurred). */
export interface Popular {
  readonly product_id: ProductId
  readonly decayed: number
}

export interface Counts {
  /** Interactions with the product, ever. */
  readonly of: (product: ProductId) => number
  readonly decayed: (product: ProductId) => number
  readonly most: number
}

export class Popularity extends Context.Tag("user-embeddings/Popularity")<
  Popularity,
  {
    readonly counts: Effect.Effect<Counts, InteractionLogError>
    /** All products with interactions, greatest decayed count first, ties by product id. */
    readonly ranking: Effect.Effect<ReadonlyArray<Popular>, InteractionLogError>
  }
>() {}

interface Tallied {
  readonly ever: number
  readonly decayed: number
}
type Tally = Map<ProductId, Tallied>
const none: Tallied = { ever: 0, decayed: 0 }

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const { eventTypes, lambda } = yield* EmbeddingConfig
  /** A negative event is no sign of popularity. */
  const types = eventTypes.all.flatMap(({ kind, name, weight }) =>
    kind === "product" && weight > 0 ? [name] : [],
  )

  /** Counts of the rows up to `countedUpTo`, which are final, and of the rows after it. */
  const old: Tally = new Map()
  let recent: Tally = new Map()
  let countedUpTo = 0
  /** `ever` of the most popular product: by the old rows, and by all rows. */
  let mostOld = 0
  let most = 0
  /** The day to which counts are decayed. A later day scales all counts alike. */
  let asOf = 0

  const tally = Effect.fnUntraced(function* (into: Tally, after: number, upTo: number, today: number) {
    for (const { day, interactions, product_id } of yield* log.productCounts(types, after, upTo)) {
      const { decayed, ever } = into.get(product_id) ?? none
      const days = Math.max(0, today - Date.parse(day) / dayMillis)
      into.set(product_id, {
        ever: ever + interactions,
        decayed: decayed + interactions * Math.exp(-lambda * days),
      })
    }
  })

  const refresh = Effect.gen(function* () {
    const today = Math.floor((yield* Clock.currentTimeMillis) / dayMillis)
    const fading = Math.exp(-lambda * (today - asOf))
    if (asOf !== today && asOf !== 0)
      for (const [id, { decayed, ever }] of old) old.set(id, { ever, decayed: decayed * fading })
    asOf = today
    const end = yield* log.maxId
    const target = end - recentRows
    while (countedUpTo < target) {
      const upTo = Math.min(target, countedUpTo + rowsPerSlice)
      yield* tally(old, countedUpTo, upTo, today)
      countedUpTo = upTo
    }
    const last: Tally = new Map()
    for (let after = countedUpTo; after < end; after += rowsPerSlice)
      yield* tally(last, after, Math.min(end, after + rowsPerSlice), today)
    recent = last
    for (const { ever } of old.values()) mostOld = Math.max(mostOld, ever)
    most = mostOld
    for (const id of recent.keys()) most = Math.max(most, of(id).ever)
  })

  const of = (id: ProductId): Tallied => {
    const before = old.get(id) ?? none
    const since = recent.get(id) ?? none
    return { ever: before.ever + since.ever, decayed: before.decayed + since.decayed }
  }

  const { current } = yield* StaleWhileRevalidate.make<InteractionLogError, never>({
    name: "popularity",
    freshFor,
    refresh,
    stillLoading: () =>
      new InteractionLogError({
        reason: "unavailable",
        operation: "count interactions",
        cause: new Error("the log is still being counted"),
      }),
  })

  return Popularity.of({
    counts: Effect.map(current, () => ({
      of: (product) => of(product).ever,
      decayed: (product) => of(product).decayed,
      most,
    })),
    ranking: Effect.map(current, () =>
      [...new Set([...old.keys(), ...recent.keys()])]
        .map((product_id) => ({ product_id, decayed: of(product_id).decayed }))
        .sort((a, b) => b.decayed - a.decayed || (a.product_id < b.product_id ? -1 : 1)),
    ),
  })
})

export const layer = Layer.scoped(Popularity, make)
