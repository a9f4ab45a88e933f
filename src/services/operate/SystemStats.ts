/** Figures of the whole system: queue depths, rates, backlog, users, and the time from event to embedding. */
import { Effect, Schema } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { InteractionQueue } from "../ports/InteractionQueue.ts"
import { UserEmbeddings } from "../ports/UserEmbeddings.ts"

const Count = Schema.Number

/** In seconds; `null` where the events at this rank have no embedding yet. */
const Percentiles = Schema.Struct({
  p50: Schema.NullOr(Schema.Number),
  p95: Schema.NullOr(Schema.Number),
  p99: Schema.NullOr(Schema.Number),
})
export type Percentiles = typeof Percentiles.Type

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
  users: Schema.NullOr(Count),
  /** From recording an event to writing its embedding; see {@link eventToEmbedding}. */
  event_to_embedding_s: Schema.NullOr(Percentiles),
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

/**
 * Measured on the newest rows of the log: for each user whose last write applied one of them, the time from
 * recording the row to that write. The figure is exact over all workers, and nothing is stored for it. Of
 * each write only the last event counts. A rebuild or a replay of these rows counts as late. `null` when none
 * of these rows is applied.
 */
export const eventToEmbedding = Effect.gen(function* () {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const recorded = new Map(
    (yield* log.lastRecorded(rowsMeasured)).map(({ interaction, recordedAt }) => [
      AppliedIds.prefix(interaction.message_id),
      { user: interaction.user_id, recordedAt },
    ]),
  )
  const writes = yield* users.lastWrites([...new Set(Array.from(recorded.values(), ({ user }) => user))])
  const seconds = Array.from(writes.values(), ({ applied, updated_at }) => {
    const [last = ""] = AppliedIds.toSet(applied.subarray(-AppliedIds.prefixBytes))
    const row = recorded.get(last)
    return row === undefined ? [] : [Math.max(0, updated_at - row.recordedAt) / 1_000]
  }).flat()
  return seconds.length === 0 ? null : percentiles(seconds)
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
  const [depths, traffic, backlog, count, waited] = yield* Effect.all(
    [
      orNull(queue.depths),
      orNull(queue.traffic),
      orNull(log.backlog),
      orNull(users.count),
      orNull(eventToEmbedding),
    ],
    { concurrency: "unbounded" },
  )
  const { unacked, ...rates } = traffic ?? { unacked: null }
  return {
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
    users: count,
    event_to_embedding_s: waited,
    unavailable: [...unavailable],
  } satisfies SystemStats
})
