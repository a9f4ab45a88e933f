/**
 * Figures of the whole system: queue depths, rates, backlog, workers, users, what waits, and the time from event to
 * embedding.
 */
import { Clock, Effect, Schema } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { InteractionLog, type Outbox } from "../ports/InteractionLog.ts"
import { type Depths, InteractionQueue } from "../ports/InteractionQueue.ts"
import { ProductPairs } from "../ports/ProductPairs.ts"
import { UserEmbeddings } from "../ports/UserEmbeddings.ts"
import { type LastReport, WorkerReports } from "../ports/WorkerReports.ts"
import { Attention, attentionTo, recentSeconds } from "./Attention.ts"

const Count = Schema.Number

/** In seconds; `null` where the events at this rank have no embedding yet. */
const Percentiles = Schema.Struct({
  p50: Schema.NullOr(Schema.Number),
  p95: Schema.NullOr(Schema.Number),
  p99: Schema.NullOr(Schema.Number),
})
export type Percentiles = typeof Percentiles.Type

export const WorkerFigures = Schema.Struct({
  /** Host name and process id. */
  worker: Schema.String,
  /** Since its last report. A worker reports every ten seconds. */
  seen_s: Schema.Number,
  /** Messages that it holds. */
  held: Count,
  /** Messages acknowledged per second in the ten seconds before its last report. */
  per_second: Schema.Number,
  /** Why messages wait for a dependency, and for how long. */
  outage: Schema.NullOr(Schema.Struct({ reason: Schema.String, for_s: Schema.Number })),
})

/** A part that could not be determined is `null`, and `unavailable` says why. */
export const SystemStats = Schema.Struct({
  queues: Schema.NullOr(
    Schema.Struct({
      user_embedding_updates: Schema.Struct({
        ready: Count,
        /** `null` where only RabbitMQ's management API knows it and does not answer. */
        unacked: Schema.NullOr(Count),
        consumers: Count,
      }),
      /** Messages in quarantine. */
      isolated: Count,
      /** Messages in the retry queues, by delay in ms. */
      retry: Schema.Record({ key: Schema.String, value: Count }),
      failed: Count,
    }),
  ),
  /** Of the main queue, per second. */
  rates: Schema.NullOr(Schema.Struct({ publish: Count, deliver: Count, ack: Count })),
  log: Schema.NullOr(
    Schema.Struct({ total: Count, unpublished: Count, oldest_unpublished_s: Schema.NullOr(Schema.Number) }),
  ),
  /** Recorded events that are not applied yet: in the outbox, in a queue, or held by a worker. Without dead letters. */
  waiting: Schema.NullOr(Count),
  /** Age of the oldest of them: see {@link oldestWaiting}. `null` if none waits. */
  oldest_waiting_s: Schema.NullOr(Schema.Number),
  /** Since the last write that applied one of the newest 1,000 rows. */
  newest_applied_s: Schema.NullOr(Schema.Number),
  /** Those that reported in the last 15 minutes. */
  workers: Schema.NullOr(Schema.Array(WorkerFigures)),
  users: Schema.NullOr(Count),
  /** From recording a live event to writing its embedding, in the last five minutes; see {@link latency}. */
  event_to_embedding_s: Schema.NullOr(Percentiles),
  /**
   * Rows of the log that do not count in the pairs of products yet, by their ids. `null` with TOGETHER_WEIGHT=0. In steady
   * state those of the last half minute.
   */
  uncounted_pairs: Schema.NullOr(Count),
  attention: Schema.Array(Attention),
  unavailable: Schema.Array(Schema.String),
}).annotations({ identifier: "SystemStats" })
export type SystemStats = typeof SystemStats.Type

const toMillis = (seconds: number) => Math.round(seconds * 1_000) / 1_000

/** By nearest rank. An event without embedding counts as `Infinity`; a percentile of `Infinity` is `null`. */
export const percentiles = (seconds: ReadonlyArray<number>): Percentiles => {
  const sorted = seconds.toSorted((a, b) => a - b)
  const at = (share: number) => {
    const value = sorted[Math.ceil(share * sorted.length) - 1] ?? Number.POSITIVE_INFINITY
    return Number.isFinite(value) ? toMillis(value) : null
  }
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}

const rowsMeasured = 1_000
/** An older write tells nothing about the system now. */
const recentMillis = 5 * 60_000
/** An event that was recorded later than this after it occurred is history: of an import, or of a device that was offline. */
const liveMillis = 60 * 60_000

/**
 * Measured on the newest rows of the log: for each user whose last write applied one of them, the time from recording
 * the row to that write. The figure is exact over all workers, and nothing is stored for it. Of each write only the last
 * event counts, if it is live and the write is recent. A rebuild or a replay of these rows counts as late.
 * `waited` is `null` when there is none. `newestApplied` is the age of the last of all these writes in seconds.
 */
export const latency = Effect.fnUntraced(function* (withinMillis = recentMillis) {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const recorded = new Map(
    (yield* log.lastRecorded(rowsMeasured)).map(({ interaction, recordedAt }) => [
      AppliedIds.prefix(interaction.message_id),
      {
        user: interaction.user_id,
        recordedAt,
        isLive: recordedAt - Date.parse(interaction.occurred_at) <= liveMillis,
      },
    ]),
  )
  const writes = yield* users.lastWrites([...new Set(Array.from(recorded.values(), ({ user }) => user))])
  const now = yield* Clock.currentTimeMillis
  const seconds: Array<number> = []
  let newest = Number.NEGATIVE_INFINITY
  for (const { applied, updated_at } of writes.values()) {
    const [last = ""] = AppliedIds.toSet(applied.subarray(-AppliedIds.prefixBytes))
    const row = recorded.get(last)
    if (row === undefined) continue
    newest = Math.max(newest, updated_at)
    if (row.isLive && now - updated_at <= withinMillis)
      seconds.push(Math.max(0, updated_at - row.recordedAt) / 1_000)
  }
  return {
    waited: seconds.length === 0 ? null : percentiles(seconds),
    newestApplied: Number.isFinite(newest) ? toMillis(Math.max(0, now - newest) / 1_000) : null,
  }
})

const sum = (numbers: ReadonlyArray<number>) => numbers.reduce((total, n) => total + n, 0)

/** Messages that wait for a retry, or in quarantine. */
export const retryingIn = ({ quarantined, retry }: Depths): number => quarantined + sum(Object.values(retry))

/** Rows leave the outbox some time after their messages are in the queue. Those of the last seconds would count twice. */
const markingSeconds = 2

/** `unacked`: what consumers of all processes hold, if that is known. */
export const waitingIn = (depths: Depths, outbox: Outbox, unacked = depths.main.unacked): number =>
  ((outbox.oldestUnpublishedSeconds ?? 0) < markingSeconds ? 0 : outbox.unpublished) +
  depths.main.ready +
  unacked +
  retryingIn(depths)

/** A worker that has died holds up nothing. */
const isRecent = ({ ageSeconds }: LastReport) => ageSeconds <= recentSeconds

/** The oldest event that a worker has given back in its outage, as of now. */
const oldestGivenBack = ({ ageSeconds, outage }: LastReport) =>
  outage === null || outage.oldestSeconds === null ? [] : [outage.oldestSeconds + ageSeconds]

/**
 * The age of the oldest event that waits, at least. No broker tells it, so it is the greatest of three figures: the age
 * of the oldest row of the outbox; of the oldest event that a worker has given back in an outage; and of the row that has
 * as many newer ones as messages wait, because the oldest of n events has at least n - 1 newer ones. It is exact while
 * messages keep their order. A message on a retry queue may be older, by the delays of the retry queues at most.
 */
export const oldestWaiting = Effect.fnUntraced(function* (
  waiting: number,
  outboxSeconds: number | null,
  reports: ReadonlyArray<LastReport>,
) {
  if (waiting === 0) return null
  const ofRank = yield* (yield* InteractionLog).ageOfNewest(waiting)
  const ages = [outboxSeconds, ofRank].filter((age) => age !== null)
  const oldest = Math.max(...ages, ...reports.filter(isRecent).flatMap(oldestGivenBack))
  return Number.isFinite(oldest) ? toMillis(oldest) : null
})

const workerFigures = ({ ageSeconds, held, outage, perSecond, worker }: LastReport) => ({
  worker,
  seen_s: toMillis(ageSeconds),
  held,
  per_second: toMillis(perSecond),
  outage: outage && { reason: outage.reason, for_s: toMillis(outage.seconds + ageSeconds) },
})

const uncountedPairs = Effect.gen(function* () {
  if ((yield* EmbeddingConfig).togetherWeight === 0) return null
  const { countedUpTo, rebuilding } = yield* (yield* ProductPairs).progress
  const newest = yield* (yield* InteractionLog).maxId
  return rebuilding ? newest : Math.max(0, newest - countedUpTo)
})

/** Reads all figures at once. Never fails. */
export const look = Effect.gen(function* () {
  const log = yield* InteractionLog
  const queue = yield* InteractionQueue
  const users = yield* UserEmbeddings
  const unavailable = new Set<string>()
  const orNull = <A, R>(part: Effect.Effect<A, { readonly message: string }, R>) =>
    Effect.catchAll(part, ({ message }) => {
      unavailable.add(message)
      return Effect.succeed(null)
    })
  const [depths, traffic, backlog, count, measured, reports, uncounted] = yield* Effect.all(
    [
      orNull(queue.depths),
      orNull(queue.traffic),
      orNull(log.backlog),
      orNull(users.count),
      orNull(latency()),
      orNull((yield* WorkerReports).latest),
      orNull(uncountedPairs),
    ],
    { concurrency: "unbounded" },
  )
  const { unacked, ...rates } = traffic ?? { unacked: null }
  const waiting =
    depths === null || backlog === null ? null : waitingIn(depths, backlog, unacked ?? depths.main.unacked)
  const oldest = yield* orNull(
    oldestWaiting(
      waiting ?? backlog?.unpublished ?? 0,
      backlog?.oldestUnpublishedSeconds ?? null,
      reports ?? [],
    ),
  )
  const figures = {
    queues: depths && {
      user_embedding_updates: { ...depths.main, unacked },
      isolated: depths.quarantined,
      retry: depths.retry,
      failed: depths.failed,
    },
    rates: "publish" in rates ? rates : null,
    log: backlog && {
      total: backlog.total,
      unpublished: backlog.unpublished,
      oldest_unpublished_s: backlog.oldestUnpublishedSeconds,
    },
    waiting,
    oldest_waiting_s: oldest,
    newest_applied_s: measured?.newestApplied ?? null,
    workers: reports?.map(workerFigures) ?? null,
    users: count,
    event_to_embedding_s: measured?.waited ?? null,
    uncounted_pairs: uncounted,
    unavailable: [...unavailable],
  }
  return { ...figures, attention: attentionTo(figures) } satisfies SystemStats
})
