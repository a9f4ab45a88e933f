/**
 * Counts the interactions with each product: takes the stored counts, then counts only what is added. Rows may be
 * committed out of order, so the last rows are counted again each time. The stored counts are read again from time to
 * time, because they know of erasures and of rows that were committed very late.
 */
import { Clock, Context, Duration, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { EventType, ProductId } from "../model/Interaction.ts"
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

const isBehind = ({ countedUpTo, settledUpTo }: TallyState) => settledUpTo - countedUpTo >= rowsBehind

class ProductCounter {
  /** Counts of the rows up to `countedUpTo`, and of the rows after it. */
  private old: Tally = new Map()
  private recent: Tally = new Map()
  private countedUpTo = 0
  /** `ever` of the most popular product: by the old rows, and by all rows. */
  private mostOld = 0
  private most = 0
  /** The day to which counts are decayed. A later day scales all counts alike. */
  private asOf = 0
  /** The stored counts that `old` began with, and when they are looked at next (Unix ms). */
  private loaded: TallyState | undefined
  private consultAt = 0
  /** Sorted when it is first asked for after a refresh. */
  private ranked: ReadonlyArray<Popular> | undefined

  /** `types`: of the events that count. */
  constructor(
    private readonly log: InteractionLog["Type"],
    private readonly stored: ProductTally["Type"],
    private readonly types: ReadonlyArray<EventType>,
    private readonly lambda: number,
  ) {}

  readonly refresh = Effect.gen(this, function* () {
    const now = yield* Clock.currentTimeMillis
    const today = Math.floor(now / dayMillis)
    if (now >= this.consultAt && (yield* this.consultStored(today)))
      this.consultAt = now + Duration.toMillis(consultEvery)
    this.fadeTo(today)
    const end = yield* this.log.maxId
    const target = end - recentRows
    while (this.countedUpTo < target) {
      const upTo = Math.min(target, this.countedUpTo + rowsPerSlice)
      yield* this.tally(this.old, this.countedUpTo, upTo, today)
      this.countedUpTo = upTo
    }
    const last: Tally = new Map()
    for (let after = this.countedUpTo; after < end; after += rowsPerSlice)
      yield* this.tally(last, after, Math.min(end, after + rowsPerSlice), today)
    this.recent = last
    this.ranked = undefined
    for (const { ever } of this.old.values()) this.mostOld = Math.max(this.mostOld, ever)
    this.most = this.mostOld
    for (const id of last.keys()) this.most = Math.max(this.most, this.of(id).ever)
  })

  counts(): Counts {
    return {
      of: (product) => this.of(product).ever,
      decayed: (product) => this.of(product).decayed,
      most: this.most,
    }
  }

  ranking(): ReadonlyArray<Popular> {
    this.ranked ??= [...new Set([...this.old.keys(), ...this.recent.keys()])]
      .map((product_id) => ({ product_id, decayed: this.of(product_id).decayed }))
      .filter(({ decayed }) => decayed > 0)
      .sort((a, b) => b.decayed - a.decayed || (a.product_id < b.product_id ? -1 : 1))
    return this.ranked
  }

  private of(id: ProductId): Tallied {
    const before = this.old.get(id) ?? none
    const since = this.recent.get(id) ?? none
    // Of events that are all taken back, the decayed sums leave a rounding error.
    if (before.ever + since.ever <= 0) return none
    return { ever: before.ever + since.ever, decayed: before.decayed + since.decayed }
  }

  private fadeTo(today: number): void {
    const fading = Math.exp(-this.lambda * (today - this.asOf))
    if (this.asOf !== today && this.asOf !== 0)
      for (const [id, { decayed, ever }] of this.old) this.old.set(id, { ever, decayed: decayed * fading })
    this.asOf = today
  }

  /** Counts the rows with ids in (`after`, `upTo`]. */
  private readonly tally = Effect.fnUntraced(function* (
    this: ProductCounter,
    into: Tally,
    after: number,
    upTo: number,
    today: number,
  ) {
    for (const { day, interactions, product_id } of yield* this.log.productCounts(this.types, after, upTo)) {
      const { decayed, ever } = into.get(product_id) ?? none
      const days = Math.max(0, today - Date.parse(day) / dayMillis)
      into.set(product_id, {
        ever: ever + interactions,
        decayed: decayed + interactions * Math.exp(-this.lambda * days),
      })
    }
  })

  /**
   * Another λ means that a process of another configuration has taken over the stored counts, so they are left to it. An
   * empty one asks for a new count.
   */
  private readonly consultStored = Effect.fnUntraced(function* (this: ProductCounter, today: number) {
    const before = this.loaded && (yield* this.stored.state).lambda
    if (before === "") this.loaded = undefined
    else if (before !== this.loaded?.lambda) return true
    const state = yield* this.advance(today)
    const isDone = !isBehind(state)
    const hasNews =
      state.erasures !== this.loaded?.erasures || state.countedUpTo - this.loaded.countedUpTo >= rowsBehind
    if (this.loaded === undefined || (isDone && hasNews)) yield* this.load(today)
    return isDone
  })

  /** Counts what is settled, so that later starts need not. Other processes may do the same meanwhile. */
  private readonly advance = Effect.fnUntraced(function* (this: ProductCounter, today: number) {
    let state = yield* this.stored.advance(this.lambda, today)
    for (let left = advancesPerRefresh - 1; left > 0 && isBehind(state); left--)
      state = yield* this.stored.advance(this.lambda, today)
    return state
  })

  private readonly load = Effect.fnUntraced(function* (this: ProductCounter, today: number) {
    const { products, state } = yield* this.stored.totals(this.types, this.lambda, today)
    this.old = new Map(
      products.map(({ decayed, interactions, product_id }) => [product_id, { ever: interactions, decayed }]),
    )
    this.countedUpTo = state.countedUpTo
    this.mostOld = 0
    this.asOf = today
    this.loaded = state
  })
}

const make = Effect.gen(function* () {
  const { eventTypes, lambda } = yield* EmbeddingConfig
  /** A negative event is no sign of popularity. */
  const types = eventTypes.all.flatMap(({ kind, name, weight }) =>
    kind === "product" && weight > 0 ? [name] : [],
  )
  const counter = new ProductCounter(yield* InteractionLog, yield* ProductTally, types, lambda)
  const { current } = yield* StaleWhileRevalidate.make<InteractionLogError, never>({
    name: "popularity",
    freshFor,
    refresh: counter.refresh,
    stillLoading: () =>
      new InteractionLogError({
        reason: "unavailable",
        operation: "count interactions",
        cause: new Error("the log is still being counted"),
      }),
  })
  return Popularity.of({
    counts: Effect.map(current, () => counter.counts()),
    ranking: Effect.map(current, () => counter.ranking()),
  })
})

export const layer = Layer.scoped(Popularity, make)
