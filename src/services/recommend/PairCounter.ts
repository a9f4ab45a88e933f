/**
 * Step: counts which products people interact with together, from the log, off the path of events. One process at a time
 * walks the log by id, in slices. A slice counts once, whatever crashes: its end is stored before its first pair is, and a
 * product's pairs know the last row that counts in them.
 *
 * In steady state the pairs of a product with at most 200 others are exact. Of more, the rarest are forgotten now and then,
 * and a rebuild counts them again.
 */
import { Array as Arr, Context, Duration, Effect, Layer, Schedule, Schema } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import { yieldToEventLoop } from "../EventLoop.ts"
import type { ProductId, UserId } from "../model/Interaction.ts"
import { countPairs, type PairCounts, type Pairs } from "../model/Together.ts"
import { warning } from "../Outages.ts"
import {
  type HistoryEvent,
  InteractionLog,
  type InteractionLogError,
  type TouchedUser,
} from "../ports/InteractionLog.ts"
import type { ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { type PairProgress, ProductPairs } from "../ports/ProductPairs.ts"
import { ProductTally } from "../ports/ProductTally.ts"
import * as Telemetry from "../Telemetry.ts"

/** Rows counted together: products that recur are written once. */
const rowsPerSlice = 5_000
/** People whose histories are read together, and events counted before other fibers run. */
const peopleAtOnce = 25
const eventsAtOnce = 250
/** Products whose pairs are changed before other fibers run: about 2 ms. */
const productsAtOnce = 50
/** Events whose pairs a rebuild holds in memory: about 200 MB. A longer log is read several times. */
const eventsInMemory = 250_000
const usersPerPage = 500
/** A user who is active all the time has the history read, and a product its pairs written, once in this time. */
const interval = Duration.seconds(30)
/**
 * In the background, the pause after a slice of a longer backlog is so many times as long as the slice took: counting a
 * large import takes no more than a quarter of the servers' time from recording and recommending.
 */
const restPerWork = 3
/** How long a command waits until rows are settled, or for another process that counts. */
const patience = Schedule.spaced("1 second").pipe(Schedule.upTo("2 minutes"))

type Progress = (reached: { readonly done: number; readonly total: number }) => Effect.Effect<void>
export type PairCounterError = InteractionLogError | ProductEmbeddingsError

export class PairsBusy extends Schema.TaggedError<PairsBusy>()("PairsBusy", {}) {
  override get message() {
    return "another process is counting pairs, so they were not counted anew: run it again"
  }
}

export class PairCounter extends Context.Tag("user-embeddings/PairCounter")<
  PairCounter,
  {
    /** Counts all rows that are settled, unless another process does. Succeeds with the last row that is counted. */
    readonly catchUp: Effect.Effect<number, PairCounterError>
    /** The same for a command: without pauses, and after another process that counts, for which it waits two minutes. */
    readonly finish: Effect.Effect<number, PairCounterError>
    /** Counts all pairs again, from the rows that the log has now. Succeeds with the greatest id of them. */
    readonly rebuild: (progress: Progress) => Effect.Effect<number, PairCounterError | PairsBusy>
  }
>() {}

const services = Effect.all({
  config: EmbeddingConfig,
  log: InteractionLog,
  tally: ProductTally,
  stored: ProductPairs,
})
type Services = Effect.Effect.Success<typeof services>

interface Range {
  readonly after: number
  readonly upTo: number
  /** The products whose pairs are wanted; default: all. */
  readonly isCounted?: ((product: ProductId) => boolean) | undefined
}

const count = Effect.fnUntraced(function* (
  counts: PairCounts,
  events: ReadonlyArray<ProductId | undefined>,
  sign: 1 | -1,
  isCounted: Range["isCounted"],
) {
  for (let from = 0; from < events.length; from += eventsAtOnce) {
    countPairs(counts, events, { sign, isCounted, from, to: from + eventsAtOnce })
    if (from > 0) yield* yieldToEventLoop
  }
})

/** Adds what rows change. Searches and negative events keep their places and make no pairs. */
const countChanges = Effect.fnUntraced(function* (
  { config, log }: Services,
  counts: PairCounts,
  /** Ids of people that are counted already and have several. */
  seen: Set<UserId>,
  touched: ReadonlyArray<TouchedUser>,
  { after, isCounted, upTo }: Range,
) {
  const { weights } = config.eventTypes
  const toProducts = (events: ReadonlyArray<HistoryEvent>) =>
    events.map(({ event_type, product_id }) =>
      product_id !== null && (weights[event_type] ?? 0) > 0 ? product_id : undefined,
    )
  for (const some of Arr.chunksOf(touched, peopleAtOnce)) {
    for (const { after: now, before, ids } of yield* log.historyChanges(some, after, upTo)) {
      if (seen.has(ids[0]!)) continue
      if (ids.length > 1) for (const id of ids) seen.add(id)
      for (const history of before) yield* count(counts, toProducts(history), -1, isCounted)
      yield* count(counts, toProducts(now), 1, isCounted)
    }
    yield* yieldToEventLoop
  }
})

/** Adds counted pairs to the stored ones, or replaces them. Products that have these rows already stay as they are. */
const save = Effect.fnUntraced(function* (
  { stored }: Services,
  counts: PairCounts,
  upTo: number,
  mode: "add" | "replace",
) {
  for (const some of Arr.chunksOf(counts, productsAtOnce)) {
    const before = yield* stored.load(some.map(([product]) => product))
    const rows = some.flatMap(([product_id, added]) => {
      const found = before.get(product_id)
      if (found !== undefined && found.upTo >= upTo) return []
      const pairs: Pairs = mode === "add" && found !== undefined ? found.pairs : new Map()
      for (const [other, units] of added) pairs.set(other, (pairs.get(other) ?? 0) + units)
      return [{ product_id, pairs, known: found !== undefined }]
    })
    yield* stored.save(upTo, rows)
    yield* yieldToEventLoop
  }
})

/** Counts the rows up to `upTo` that are not counted, and none of them if another process moves the progress meanwhile. */
const countSlice = Effect.fnUntraced(function* (services: Services, begun: PairProgress) {
  const { log, stored } = services
  const { begunUpTo, countedUpTo } = begun
  const counts: PairCounts = new Map()
  const range = { after: countedUpTo, upTo: begunUpTo }
  yield* countChanges(services, counts, new Set(), yield* log.touched(range.after, range.upTo), range)
  yield* save(services, counts, begunUpTo, "add")
  const done = { ...begun, countedUpTo: begunUpTo }
  return (yield* stored.advance(begun, done)) ? done : undefined
})

/** Counts all rows up to `begunUpTo`, in as many passes as the memory asks for. */
const recount = Effect.fnUntraced(function* (services: Services, begun: PairProgress, progress: Progress) {
  const { log, stored } = services
  const upTo = begun.begunUpTo
  const passes = Math.max(1, Math.ceil(upTo / eventsInMemory))
  const passOf = (product: ProductId) => Bun.hash.crc32(product) % passes
  yield* stored.outdate
  for (let pass = 0; pass < passes; pass++) {
    const counts: PairCounts = new Map()
    const seen = new Set<UserId>()
    const isCounted = passes === 1 ? undefined : (product: ProductId) => passOf(product) === pass
    for (let last: UserId | undefined = ""; last !== undefined; ) {
      const users: ReadonlyArray<TouchedUser> = yield* log.usersAfter(last, usersPerPage)
      yield* countChanges(services, counts, seen, users, { after: 0, upTo, isCounted })
      last = users.length === usersPerPage ? users.at(-1)?.user_id : undefined
    }
    yield* save(services, counts, upTo, "replace")
    yield* progress({ done: pass + 1, total: passes })
  }
  yield* stored.removeBefore(upTo)
  const done = { countedUpTo: upTo, begunUpTo: upTo, rebuilding: false }
  return (yield* stored.advance(begun, done)) ? done : undefined
})

/** Ends what a process that died has begun. `undefined` if another process has moved the progress. */
const finishBegun = (services: Services, at: PairProgress) => {
  if (at.rebuilding) return recount(services, at, () => Effect.void)
  return at.begunUpTo > at.countedUpTo ? countSlice(services, at) : Effect.succeed(at)
}

/** Counts the next rows. Succeeds with whether more rows wait. */
const countNext = Effect.fnUntraced(function* (services: Services, settled: number) {
  const { stored } = services
  const at = yield* finishBegun(services, yield* stored.progress)
  if (at === undefined || at.countedUpTo >= settled) return false
  const begun: PairProgress = { ...at, begunUpTo: Math.min(settled, at.countedUpTo + rowsPerSlice) }
  if (!(yield* stored.advance(at, begun))) return false
  return (yield* countSlice(services, begun)) !== undefined && begun.begunUpTo < settled
})

/** The lock of the pairs is free during the pauses, so that a command can count at once. */
const countWithPauses = Effect.fnUntraced(function* (services: Services, settled: number) {
  let more = true
  const next = Effect.map(countNext(services, settled), (waiting) => {
    more = waiting
  })
  while (more) {
    const [took, held] = yield* Effect.timed(services.log.withLeaderLock(next, "pairs"))
    if (!held) return
    if (more) yield* Effect.sleep(Duration.times(took, restPerWork))
  }
})

const catchUp = Effect.fnUntraced(function* (services: Services) {
  const { log, stored, tally } = services
  const settled = yield* tally.settled
  const { begunUpTo, countedUpTo, rebuilding } = yield* stored.progress
  const isBehind = settled > countedUpTo || begunUpTo > countedUpTo || rebuilding
  if (!isBehind) return countedUpTo
  // The second lock is held during the pauses too: another process must not count in them.
  yield* log.withLeaderLock(countWithPauses(services, settled), "pairs_in_background")
  return (yield* stored.progress).countedUpTo
}, Telemetry.untraced)

/** Runs the work as soon as no other process counts, and never if another process counts for two minutes. */
const alone = ({ log }: Services, work: Effect.Effect<void, PairCounterError>) =>
  Effect.repeat(log.withLeaderLock(work, "pairs"), { schedule: patience, until: (held) => held })

const walk = (services: Services, settled: number) =>
  Effect.repeat(countNext(services, settled), { while: (more) => more })

const finish = Effect.fn("PairCounter.finish")(function* (services: Services) {
  yield* alone(services, walk(services, yield* services.tally.settled))
  return (yield* services.stored.progress).countedUpTo
})

const rebuild = Effect.fn("PairCounter.rebuild")(function* (services: Services, progress: Progress) {
  const { log, stored, tally } = services
  const end = yield* log.maxId
  yield* Effect.repeat(tally.settled, { schedule: patience, until: (id) => id >= end })
  const upTo = Math.min(end, yield* tally.settled)
  let isDone = false
  const again = Effect.gen(function* () {
    const at = yield* stored.progress
    const begun = { ...at, begunUpTo: upTo, rebuilding: true }
    if (yield* stored.advance(at, begun)) isDone = (yield* recount(services, begun, progress)) !== undefined
  })
  yield* alone(services, again)
  if (!isDone) return yield* new PairsBusy()
  return upTo
})

export const layer = Layer.effect(
  PairCounter,
  Effect.map(services, (services) => ({
    catchUp: catchUp(services),
    finish: finish(services),
    rebuild: (progress: Progress) => rebuild(services, progress),
  })),
)

/** Counts for the lifetime of the scope, if recommendations use the pairs. */
export const counting = Layer.scopedDiscard(
  Effect.gen(function* () {
    const counter = yield* PairCounter
    if ((yield* EmbeddingConfig).togetherWeight === 0) return
    yield* counter.catchUp.pipe(
      warning("pairs.count_failed"),
      Effect.repeat(Schedule.spaced(interval)),
      Effect.forkScoped,
    )
  }),
).pipe(Layer.provide(layer))
