/** Step: the system in figures: depths, rates, backlog, users, and how long events wait for their embedding. */
import { Effect } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { InteractionQueue } from "../ports/InteractionQueue.ts"
import { UserEmbeddings } from "../ports/UserEmbeddings.ts"

/** In seconds. `null`: of too few the time is known. */
export interface Percentiles {
  readonly p50: number | null
  readonly p95: number | null
  readonly p99: number | null
}

/** What could not be found out is `null`, and `unavailable` says why. */
export interface SystemStats {
  readonly queues: {
    readonly user_embedding_updates: {
      readonly ready: number
      /** `null` where only RabbitMQ's management API could tell, and it is not reachable. */
      readonly unacked: number | null
      readonly consumers: number
    }
    /** Suspected of killing workers, handled one at a time. */
    readonly isolated: number
    /** Waiting, by delay in ms. */
    readonly retry: Readonly<Record<string, number>>
    readonly failed: number
  } | null
  /** Of the main queue, per second. */
  readonly rates: { readonly publish: number; readonly deliver: number; readonly ack: number } | null
  readonly log: {
    readonly total: number
    readonly unpublished: number
    readonly oldest_unpublished_s: number | null
  } | null
  readonly users: number | null
  /** From recording an event to writing the embedding with it; see {@link eventToEmbedding}. */
  readonly event_to_embedding_s: Percentiles | null
  readonly unavailable: ReadonlyArray<string>
}

const toMillis = (seconds: number) => Math.round(seconds * 1_000) / 1_000

/** Nearest rank. What never came (`Infinity`) counts, and a percentile among it is `null`. */
export const percentiles = (seconds: ReadonlyArray<number>): Percentiles => {
  const sorted = seconds.toSorted((a, b) => a - b)
  const at = (share: number) => {
    const value = sorted[Math.ceil(share * sorted.length) - 1] ?? Number.POSITIVE_INFINITY
    return Number.isFinite(value) ? toMillis(value) : null
  }
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}

const rowsLookedAt = 1_000

/**
 * Measured on the newest rows of the log: for each user whose last write added one of them, the time from recording
 * it to that write. Exact, over all workers, and nothing has to be kept for it; of one write only the last event
 * counts. A rebuild or a replay among the newest rows counts as late. `null` when no row has been folded yet.
 */
export const eventToEmbedding = Effect.gen(function* () {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const recorded = new Map(
    (yield* log.lastRecorded(rowsLookedAt)).map(({ interaction, recordedAt }) => [
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

/** All figures, looked at together; never fails. */
export const look: Effect.Effect<SystemStats, never, InteractionLog | InteractionQueue | UserEmbeddings> =
  Effect.gen(function* () {
    const log = yield* InteractionLog
    const queue = yield* InteractionQueue
    const users = yield* UserEmbeddings
    const unavailable = new Set<string>()
    const orNull = <A>(
      part: Effect.Effect<A, { readonly message: string }, InteractionLog | UserEmbeddings>,
    ) =>
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
    }
  })
