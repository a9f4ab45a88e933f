/**
 * Counts the interactions with each product: takes the stored counts, then counts only what is added. Rows may be
 * committed out of order, so the last rows are counted again each time. The stored counts are read again from time to
 * time, because they know of erasures and of rows that were committed very late.
 */
import { Clock, Context, Duration, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { ProductId } from "../model/Interaction.ts"
import { InteractionLog, InteractionLogError } from "../ports/InteractionLog.ts"
import { ProductTally, type TallyState } from "../ports/ProductTally.ts"
import * as StaleWhileRevalidate from "./StaleWhileRevalidate.ts"

/** Rows counted by one statement: about 20 ms of the server's time. */
const rowsPerSlice = 10_000
/** Rows at the end of the log, where earlier ids may still be committed. */
const recentRows = 10_000
/** Settled rows from which on the stored counts are brought up to date. */
const rowsBehind = 20_000
/** Limits the time of one refresh, when the stored counts are far behind. */
const advancesPerRefresh = 4
const freshFor = Duration.seconds(2)
/** How often the stored counts are brought up to date. */
const consultEvery = Duration.minutes(1)
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
  const stored = yield* ProductTally
  const { eventTypes, lambda } = yield* EmbeddingConfig
  /** A negative event is no sign of popularity. */
  const types = eventTypes.all.flatMap(({ kind, name, weight }) =>
    kind === "product" && weight > 0 ? [name] : [],
  )

  /** Counts of the rows up to `countedUpTo`, and of the rows after it. */
  let old: Tally = new Map()
  let recent: Tally = new Map()
  let countedUpTo = 0
  /** `ever` of the most popular product: by the old rows, and by all rows. */
  let mostOld = 0
  let most = 0
  /** The day to which counts are decayed. A later day scales all counts alike. */
  let asOf = 0
  /** The stored counts that `old` began with, and when they are looked at next (Unix ms). */
  let loaded: TallyState | undefined
  let consultAt = 0
  /** Sorted when it is first asked for after a refresh. */
  let ranked: ReadonlyArray<Popular> | undefined

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

  const isBehind = ({ countedUpTo, settledUpTo }: TallyState) => settledUpTo - countedUpTo >= rowsBehind

  /** Counts what is settled, so that later starts need not. Other processes may do the same meanwhile. */
  const advance = Effect.fnUntraced(function* (today: number) {
    let state = yield* stored.advance(lambda, today)
    for (let left = advancesPerRefresh - 1; left > 0 && isBehind(state); left--)
      state = yield* stored.advance(lambda, today)
    return state
  })

  const load = Effect.fnUntraced(function* (today: number) {
    const { products, state } = yield* stored.totals(types, lambda, today)
    old = new Map(
      products.map(({ decayed, interactions, product_id }) => [product_id, { ever: interactions, decayed }]),
    )
    countedUpTo = state.countedUpTo
    mostOld = 0
    asOf = today
    loaded = state
  })

  /**
   * Another λ means that a process of another configuration has taken over the stored counts, so they are left to it. An
   * empty one asks for a new count.
   */
  const consultStored = Effect.fnUntraced(function* (today: number) {
    const before = loaded && (yield* stored.state).lambda
    if (before === "") loaded = undefined
    else if (before !== loaded?.lambda) return true
    const state = yield* advance(today)
    const isDone = !isBehind(state)
    const hasNews =
      state.erasures !== loaded?.erasures || state.countedUpTo - loaded.countedUpTo >= rowsBehind
    if (loaded === undefined || (isDone && hasNews)) yield* load(today)
    return isDone
  })

  const refresh = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const today = Math.floor(now / dayMillis)
    if (now >= consultAt && (yield* consultStored(today))) consultAt = now + Duration.toMillis(consultEvery)
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
    ranked = undefined
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

  const rank = () =>
    (ranked ??= [...new Set([...old.keys(), ...recent.keys()])]
      .map((product_id) => ({ product_id, decayed: of(product_id).decayed }))
      .sort((a, b) => b.decayed - a.decayed || (a.product_id < b.product_id ? -1 : 1)))

  return Popularity.of({
    counts: Effect.map(current, () => ({
      of: (product) => of(product).ever,
      decayed: (product) => of(product).decayed,
      most,
    })),
    ranking: Effect.map(current, rank),
  })
})

export const layer = Layer.scoped(Popularity, make)
