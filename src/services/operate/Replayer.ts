/**
 * Step: InteractionLog → InteractionQueue. Publishes rows of the log again with their ids and timestamps, so workers
 * recognise interactions that are applied, and drop those recorded before the user's erasure.
 */
import { Chunk, Clock, Context, Effect, Layer, Schedule, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as MessageTraces from "../MessageTraces.ts"
import { isReferenceEventType } from "../model/EventTypes.ts"
import type { InteractionLogError, LogFilter, LogRow } from "../ports/InteractionLog.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { InteractionQueue, InteractionQueueError } from "../ports/InteractionQueue.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import { awaitQueueCapacity, toMessage } from "../record/OutboxRelay.ts"

export interface ReplayReport {
  readonly matched: number
  /** Messages confirmed by the broker; 0 in a dry run. */
  readonly published: number
  /** Rows left out by event type, because EVENT_WEIGHTS has the type no more: workers would refuse them. */
  readonly unknown_event_types?: Readonly<Record<string, number>>
}

/** The broker did not confirm a page within the time-out, despite retries. */
export class ReplayStopped extends Schema.TaggedError<ReplayStopped>()("ReplayStopped", {
  published: Schema.Number,
  cause: Schema.Defect,
}) {
  override get message() {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `stopped after ${this.published} messages: ${why}; it is safe to start the replay again`
  }
}

export class Replayer extends Context.Tag("user-embeddings/Replayer")<
  Replayer,
  {
    /** Publishes rows page by page. A dry run only counts them. `progress` receives the number published so far. */
    readonly replay: (
      filter: LogFilter,
      options?: { readonly dryRun?: boolean; readonly progress?: (published: number) => Effect.Effect<void> },
    ) => Effect.Effect<ReplayReport, InteractionLogError | ReplayStopped>
  }
>() {}

/** Rows published together, up to the publisher's confirm window. */
const page = 1_000
const publishTimeout = "1 minute"

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const queue = yield* InteractionQueue
  const { eventTypes } = yield* EmbeddingConfig

  const publish = (rows: ReadonlyArray<LogRow>) => {
    let left = rows
    return Effect.gen(function* () {
      const confirmations = yield* queue.publish(left.map(toMessage))
      left = left.filter((_, index) => confirmations[index] !== "confirmed")
      if (left.length === 0) return
      return yield* new InteractionQueueError({
        reason: "rejected",
        operation: "publish",
        cause: `${left.length} messages were not confirmed`,
      })
    }).pipe(Effect.retry(RetryPolicies.reconnectRetry.pipe(Schedule.upTo(publishTimeout))))
  }

  const send = (rows: ReadonlyArray<LogRow>) =>
    Effect.gen(function* () {
      yield* publish(rows)
      const waiting = rows.filter((row) => !row.published)
      if (waiting.length > 0) yield* log.markPublished(waiting, yield* Clock.currentTimeMillis)
    })

  const replay: Replayer["Type"]["replay"] = Effect.fn("Replayer.replay")(function* (
    filter,
    { dryRun = false, progress = () => Effect.void } = {},
  ) {
    let matched = 0
    let published = 0
    const unknown: Record<string, number> = {}
    const isKnown = ({ interaction: { event_type } }: LogRow) => {
      matched += 1
      if (eventTypes.has(event_type) || isReferenceEventType(event_type)) return true
      unknown[event_type] = (unknown[event_type] ?? 0) + 1
      return false
    }
    const rows = Stream.filter(log.stream(filter), isKnown)
    const report = () => ({
      matched,
      published,
      ...(Object.keys(unknown).length > 0 && { unknown_event_types: unknown }),
    })
    if (dryRun) return yield* Effect.map(Stream.runDrain(rows), report)
    const stopped = (cause: InteractionQueueError) => new ReplayStopped({ published, cause })
    yield* rows.pipe(
      Stream.grouped(page),
      Stream.map(Chunk.toReadonlyArray),
      Stream.runForEach((some) =>
        Effect.gen(function* () {
          yield* Effect.mapError(awaitQueueCapacity(queue), stopped)
          yield* send(some).pipe(
            MessageTraces.withBatchSpan("replay interactions", some.map(MessageTraces.traced)),
            Effect.catchTag("InteractionQueueError", (cause) => Effect.fail(stopped(cause))),
          )
          published += some.length
          yield* progress(published)
        }),
      ),
    )
    return report()
  })

  return { replay }
})

export const layer = Layer.effect(Replayer, make)
