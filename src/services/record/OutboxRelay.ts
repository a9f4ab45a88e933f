/**
 * Step: InteractionLog → InteractionQueue, as a transactional outbox. The process that commits rows publishes them at
 * once. Rows that remain unpublished, after a crash or an outage of the broker, are drained by the process that holds
 * the leader lock. A row is marked published only after the broker has confirmed its message, so a row may be
 * published twice but is never lost. Before that, what refunds have waited for is taken back: see OrderRefunds.ts.
 */
import { Array as Arr, Clock, Context, Duration, Effect, Fiber, Layer, Schedule } from "effect"
import * as MessageTraces from "../MessageTraces.ts"
import { encodeMessage } from "../model/UpdateMessage.ts"
import { warning } from "../Outages.ts"
import { InteractionLog, type InteractionLogError, type LoggedInteraction } from "../ports/InteractionLog.ts"
import { InteractionQueue, type InteractionQueueError, type Message } from "../ports/InteractionQueue.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Settings from "../Settings.ts"
import * as Telemetry from "../Telemetry.ts"
import * as OrderRefunds from "./OrderRefunds.ts"
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
/** Publishes of hundreds of messages cost the broker a fifth less. */
const busyPublishes = { perSecond: 2_500, interval: 100 }
/** Rows of one statement that marks rows as published. */
const rowsPerMark = 1_000
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

/** Publishes rows; succeeds with those that the broker has confirmed. */
const publish = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>) {
  const queue = yield* InteractionQueue
  const confirmations = yield* queue.publish(rows.map(toMessage))
  const confirmed = rows.filter((_, index) => confirmations[index] === "confirmed")
  if (confirmed.length < rows.length)
    yield* Effect.logWarning("publish.unconfirmed").pipe(
      Effect.annotateLogs({ count: rows.length - confirmed.length, left_to: "drain" }),
    )
  return confirmed
})

/** Succeeds with new rows to publish. */
const markPublished = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>) {
  const log = yield* InteractionLog
  if (rows.length === 0) return []
  const retractions = yield* OrderRefunds.takeBackFor(rows)
  yield* log.markPublished(rows, yield* Clock.currentTimeMillis)
  return retractions
})

/** A round of a lane. Rows of a failed round stay in the outbox. */
const round =
  (span: string, rows: ReadonlyArray<LoggedInteraction>) =>
  <R>(work: Effect.Effect<void, InteractionLogError | InteractionQueueError, R>) =>
    work.pipe(
      MessageTraces.withBatchSpan(span, rows.map(MessageTraces.traced)),
      warning("publish.failed", { count: rows.length, left_to: "drain" }),
    )

/**
 * Publishes rows that this process has just committed, and marks them, in two lanes: a statement marks the rows of many
 * publishes. `inProgress` has the ids of the rows in both lanes.
 */
const lanes = Effect.gen(function* () {
  const inProgress = new Set<number>()
  const waiting = new WorkQueue<LoggedInteraction>({
    pace: { interval: yield* Settings.PUBLISH_INTERVAL, busy: busyPublishes },
    full: rowsPerPublish,
  })
  const confirmed = new WorkQueue<LoggedInteraction>({
    pace: { interval: yield* Settings.MARK_INTERVAL },
    full: rowsPerMark,
  })
  const forget = (rows: Iterable<LoggedInteraction>) => {
    for (const { id } of rows) inProgress.delete(id)
  }
  const offer = (rows: ReadonlyArray<LoggedInteraction>) => {
    for (const row of rows.slice(0, Math.max(0, maxWaitingRows - waiting.weight))) {
      inProgress.add(row.id)
      waiting.offer(row)
    }
  }
  const publishNext = Effect.suspend(() => {
    const rows = waiting.take(rowsPerPublish)
    const unmarked = new Set(rows)
    return publish(rows).pipe(
      Effect.map((published) =>
        published.forEach((row) => {
          unmarked.delete(row)
          confirmed.offer(row)
        }),
      ),
      round("relay interactions", rows),
      Effect.ensuring(Effect.sync(() => forget(unmarked))),
    )
  })
  const markNext = Effect.suspend(() => {
    const rows = confirmed.take(rowsPerMark)
    return Effect.map(markPublished(rows), offer).pipe(
      round("mark interactions", rows),
      Effect.ensuring(Effect.sync(() => forget(rows))),
    )
  })
  const publishing = Effect.ensuring(waiting.consume(publishNext), confirmed.close)
  const run = Effect.all([publishing, confirmed.consume(markNext)], { concurrency: 2, discard: true })
  return { inProgress, offer, run, close: waiting.close }
})

/** At most this many of the rows that stay in the outbox longer than a publish takes. */
const leftRows = Effect.fnUntraced(function* (limit: number) {
  const log = yield* InteractionLog
  const recordedBy = (yield* Clock.currentTimeMillis) - Duration.toMillis(RetryPolicies.drainGrace)
  return yield* log.unpublished({ limit, recordedBy })
})

/** Publishes the rows of the outbox that this process is not publishing already. */
const drainOutbox = Effect.fnUntraced(function* ({ inProgress, offer }: Effect.Effect.Success<typeof lanes>) {
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
          Effect.tap((confirmed) => Effect.map(markPublished(confirmed), offer)),
          MessageTraces.withBatchSpan("drain interactions", page.map(MessageTraces.traced)),
          Effect.withTracerEnabled(true),
          Effect.map((confirmed) => (published += confirmed.length)),
        ),
      { concurrency: concurrentPublishes, discard: true },
    )
    if (published === before || rows.length < rowsPerRead) return published
  }
})

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const ports = yield* Effect.context<InteractionLog | InteractionQueue>()
  const ownRows = yield* lanes
  const { close, offer, run } = ownRows
  yield* Effect.acquireRelease(Effect.forkDaemon(Effect.interruptible(Effect.provide(run, ports))), (fiber) =>
    close.pipe(
      Effect.zipRight(Fiber.await(fiber)),
      Effect.interruptible,
      Effect.timeoutOption(flushDeadline),
      Effect.zipRight(Fiber.interrupt(fiber)),
    ),
  )

  const drain = Effect.gen(function* () {
    // One statement every two seconds in a system at rest. The lock takes three more.
    if ((yield* Telemetry.untraced(Effect.provide(leftRows(1), ports))).length === 0) return 0
    let published = 0
    const drained = Effect.map(Effect.provide(drainOutbox(ownRows), ports), (count) => {
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
    const drain = relay.drain.pipe(warning("outbox.drain_failed"))
    yield* Effect.forkScoped(Effect.repeat(drain, RetryPolicies.drainInterval))
  }),
)
