/**
 * Step: InteractionLog → InteractionQueue, as a transactional outbox. The process that commits rows publishes them at
 * once. Rows that remain unpublished, after a crash or an outage of the broker, are drained by the process that holds
 * the leader lock. A row is marked published only after the broker has confirmed its message, so a row may be
 * published twice but is never lost.
 */
import { Array as Arr, Clock, Context, Duration, Effect, Fiber, Layer, Schedule } from "effect"
import * as MessageTraces from "../MessageTraces.ts"
import { encodeMessage } from "../model/UpdateMessage.ts"
import { unlessReported } from "../Outages.ts"
import { InteractionLog, type InteractionLogError, type LoggedInteraction } from "../ports/InteractionLog.ts"
import { InteractionQueue, type InteractionQueueError, type Message } from "../ports/InteractionQueue.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"
import { WorkQueue } from "./WorkQueue.ts"

export class OutboxRelay extends Context.Tag("user-embeddings/OutboxRelay")<
  OutboxRelay,
  {
    /** Publishes rows that were just committed, in the background. */
    readonly offer: (rows: ReadonlyArray<LoggedInteraction>) => void
    /**
     * Publishes the rows that remain in the outbox, until it is empty or the broker confirms nothing. Pauses while the
     * queue is long. Succeeds with the number of published rows, which is 0 while another process holds the leader lock.
     */
    readonly drain: Effect.Effect<number, InteractionLogError | InteractionQueueError>
  }
>() {}

/** Messages of one publish: the confirm window. */
const rowsPerPublish = 1_000
/** Rows per second from which on rows are collected for some time, because large publishes cost the broker a fifth less. */
const busyRate = 2_500
/** Minimum time between the beginnings of two publishes at a busy rate. */
const busyPublishMillis = 100
/** Rows that a drain reads with one statement. */
const rowsPerRead = 5_000
/** Publishes of a drain at the same time: the broker confirms some while others are marked. */
const concurrentPublishes = 3
/** Maximum rows waiting in memory. Any further rows stay in the outbox and are drained. */
const maxWaitingRows = 20_000
/** How long a stopping process continues to publish the rows that it has committed. */
const flushDeadline = Duration.seconds(5)

/** A longer queue pauses a drain, so that new interactions do not wait behind old ones. */
const maxQueuedEvents = 5_000

/** Waits while the queue is long. Does not wait when there are no workers. */
export const awaitQueueCapacity = ({
  depths,
  eventsPerMessage,
}: Pick<InteractionQueue["Type"], "depths" | "eventsPerMessage">) =>
  Effect.repeat(depths, {
    schedule: Schedule.spaced("200 millis"),
    while: ({ main }) => main.consumers > 0 && main.ready * eventsPerMessage > maxQueuedEvents,
  })

/** The update message of a row. */
export const toMessage = ({ id, interaction, trace, recordedAt }: LoggedInteraction): Message => ({
  messageId: interaction.message_id,
  userId: interaction.user_id,
  eventType: interaction.event_type,
  body: encodeMessage(interaction),
  trace,
  logId: id,
  recordedAt,
})

/** Publishes rows and marks the confirmed ones. Succeeds with their number. */
const publish = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>) {
  const log = yield* InteractionLog
  const queue = yield* InteractionQueue
  const confirmations = yield* queue.publish(rows.map(toMessage))
  const confirmed = rows.filter((_, index) => confirmations[index] === "confirmed")
  if (confirmed.length > 0) yield* log.markPublished(confirmed, yield* Clock.currentTimeMillis)
  if (confirmed.length < rows.length)
    yield* Effect.logWarning("publish.unconfirmed").pipe(
      Effect.annotateLogs({ count: rows.length - confirmed.length, left_to: "drain" }),
    )
  return confirmed.length
})

/** Tells whether rows arrive at a busy rate, measured over {@link busyPublishMillis} or longer. */
class ArrivalRate {
  private rows = 0
  private isBusy = false
  constructor(private since: number) {}

  add(rows: number, now: number): boolean {
    this.rows += rows
    if (now - this.since >= busyPublishMillis) {
      this.isBusy = this.rows * 1_000 >= busyRate * (now - this.since)
      this.rows = 0
      this.since = now
    }
    return this.isBusy
  }
}

/** Publishes rows that this process has just committed, until `waiting` is closed and empty. */
const publishCommitted = Effect.fnUntraced(function* (
  waiting: WorkQueue<LoggedInteraction>,
  inProgress: Set<number>,
) {
  const rate = new ArrivalRate(yield* Clock.currentTimeMillis)
  const publishNext = Effect.gen(function* () {
    const began = yield* Clock.currentTimeMillis
    const rows = waiting.take(rowsPerPublish)
    const isBusy = rate.add(rows.length, began)
    yield* publish(rows).pipe(
      MessageTraces.withBatchSpan("relay interactions", rows.map(MessageTraces.traced)),
      Effect.catchAll((error) =>
        unlessReported(
          error,
          Effect.logWarning("publish.failed").pipe(
            Effect.annotateLogs({ count: rows.length, left_to: "drain", ...Telemetry.described(error) }),
          ),
        ),
      ),
      Effect.ensuring(
        Effect.sync(() => {
          for (const { id } of rows) inProgress.delete(id)
        }),
      ),
    )
    if (isBusy && waiting.weight < rowsPerPublish && !waiting.isClosed)
      yield* Effect.sleep(Math.max(0, began + busyPublishMillis - (yield* Clock.currentTimeMillis)))
  })
  yield* waiting.consume(publishNext)
})

/** At most this many of the rows that stay in the outbox longer than a publish takes. */
const leftRows = Effect.fnUntraced(function* (limit: number) {
  const log = yield* InteractionLog
  const recordedBy = (yield* Clock.currentTimeMillis) - Duration.toMillis(RetryPolicies.drainGrace)
  return yield* log.unpublished({ limit, recordedBy })
})

/** Publishes the rows of the outbox that this process is not publishing already. */
const drainOutbox = Effect.fnUntraced(function* (inProgress: ReadonlySet<number>) {
  const queue = yield* InteractionQueue
  let published = 0
  while (true) {
    const rows = yield* leftRows(rowsPerRead)
    // A short outage leaves fewer rows. A broker that cannot report depths may still take messages.
    if (rows.length === rowsPerRead) yield* Effect.ignore(awaitQueueCapacity(queue))
    const left = rows.filter(({ id }) => !inProgress.has(id))
    const before = published
    yield* Effect.forEach(
      Arr.chunksOf(left, rowsPerPublish),
      (page) =>
        publish(page).pipe(
          MessageTraces.withBatchSpan("drain interactions", page.map(MessageTraces.traced)),
          Effect.withTracerEnabled(true),
          Effect.map((confirmed) => (published += confirmed)),
        ),
      { concurrency: concurrentPublishes, discard: true },
    )
    if (published === before || rows.length < rowsPerRead) return published
  }
})

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const ports = yield* Effect.context<InteractionLog | InteractionQueue>()
  const waiting = new WorkQueue<LoggedInteraction>()
  const inProgress = new Set<number>()

  const publisher = Effect.provide(publishCommitted(waiting, inProgress), ports)
  yield* Effect.acquireRelease(Effect.forkDaemon(Effect.interruptible(publisher)), (fiber) =>
    waiting.close.pipe(
      Effect.zipRight(Fiber.await(fiber)),
      Effect.interruptible,
      Effect.timeoutOption(flushDeadline),
      Effect.zipRight(Fiber.interrupt(fiber)),
    ),
  )

  const offer = (rows: ReadonlyArray<LoggedInteraction>) => {
    for (const row of rows.slice(0, Math.max(0, maxWaitingRows - waiting.weight))) {
      inProgress.add(row.id)
      waiting.offer(row)
    }
  }

  const drain = Effect.gen(function* () {
    // One statement a second in a system at rest. The lock takes three more.
    if ((yield* Telemetry.untraced(Effect.provide(leftRows(1), ports))).length === 0) return 0
    let published = 0
    const drained = Effect.map(Effect.provide(drainOutbox(inProgress), ports), (count) => {
      published = count
    })
    yield* Telemetry.untraced(log.withLeaderLock(drained))
    if (published > 0) yield* Effect.logInfo("outbox.drained").pipe(Effect.annotateLogs({ count: published }))
    return published
  })

  return { offer, drain }
})

export const layer = Layer.scoped(OutboxRelay, make)

/** Drains the outbox every second for the lifetime of the scope. */
export const draining = Layer.scopedDiscard(
  Effect.gen(function* () {
    const relay = yield* OutboxRelay
    const drain = relay.drain.pipe(
      Effect.catchAll((error) =>
        unlessReported(
          error,
          Effect.logWarning("outbox.drain_failed").pipe(Effect.annotateLogs(Telemetry.described(error))),
        ),
      ),
    )
    yield* Effect.forkScoped(Effect.repeat(drain, RetryPolicies.drainInterval))
  }),
)
