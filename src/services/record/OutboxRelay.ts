/**
 * Step: InteractionLog → InteractionQueue. Rows are published right after their commit by the process that
 * committed them; what is left (a crash, a broker that was away) is swept up by one elected relay. A row is
 * marked published only when the broker has confirmed that it reached a queue, so a row may be published twice
 * and is never lost.
 */
import { Array as Arr, Clock, Context, Duration, Effect, Fiber, Layer, Schedule } from "effect"
import * as MessageTraces from "../MessageTraces.ts"
import type { MessageId } from "../model/Interaction.ts"
import { encodeMessage } from "../model/UpdateMessage.ts"
import { InteractionLog, type InteractionLogError, type LoggedInteraction } from "../ports/InteractionLog.ts"
import { InteractionQueue, type InteractionQueueError, type Message } from "../ports/InteractionQueue.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"

export class OutboxRelay extends Context.Tag("user-embeddings/OutboxRelay")<
  OutboxRelay,
  {
    /** Hands over rows just committed, to be published at once; never waits. */
    readonly offer: (rows: ReadonlyArray<LoggedInteraction>) => void
    /**
     * Publishes rows that were left in the outbox, page by page until it is empty or nothing gets through, while workers
     * keep up; answers how many were published. Does nothing while another relay is elected.
     */
    readonly sweep: Effect.Effect<number, InteractionLogError | InteractionQueueError>
  }
>() {}

/** Messages of one publish: the confirm window. */
const page = 1_000
/**
 * A busy relay publishes large pages, which cost the broker a fifth less: while so many rows come in a second, a page
 * begins no sooner than so many ms after the one before.
 */
const busyRate = 2_500
const busyPageMillis = 100
/** Rows that a sweep reads together. */
const rowsPerRead = 5_000
/** Pages of them on their way at the same time: while one is marked, the broker confirms the next. */
const pagesAtOnce = 3
/** Rows that may wait in memory; the rest is left to the sweep. */
const rowsWaiting = 20_000
/** How long a stopping process goes on publishing what it has just committed. */
const flushDeadline = Duration.seconds(5)

/** While so many interactions wait for workers, what is old waits too: what happens now is not to queue behind it. */
const mostWaiting = 5_000

/** Waits until workers have made room in the queue; without any there is nothing to wait for. */
export const roomInQueue = ({
  depths,
  eventsPerMessage,
}: Pick<InteractionQueue["Type"], "depths" | "eventsPerMessage">) =>
  Effect.repeat(depths, {
    schedule: Schedule.spaced("200 millis"),
    while: ({ main }) => main.consumers > 0 && main.ready * eventsPerMessage > mostWaiting,
  })

/** The update message of a row. */
export const toMessage = ({ interaction, trace, recordedAt }: LoggedInteraction): Message => ({
  messageId: interaction.message_id,
  eventType: interaction.event_type,
  body: encodeMessage(interaction),
  trace,
  recordedAt,
})

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const queue = yield* InteractionQueue
  const work = yield* Effect.makeLatch(false)
  let waiting: Array<LoggedInteraction> = []
  /** Waiting or being published by this process right now: the sweep leaves them alone. */
  const own = new Set<MessageId>()
  let closing = false

  const publish = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>) {
    const confirmations = yield* queue.publish(rows.map(toMessage))
    const confirmed = rows
      .filter((_, index) => confirmations[index] === "confirmed")
      .map(({ interaction }) => interaction.message_id)
    if (confirmed.length > 0) yield* log.markPublished(confirmed, yield* Clock.currentTimeMillis)
    if (confirmed.length < rows.length)
      yield* Effect.logWarning("publish.unconfirmed").pipe(
        Effect.annotateLogs({ count: rows.length - confirmed.length, left_to: "sweep" }),
      )
    return confirmed.length
  })

  const publishWaiting = Effect.gen(function* () {
    const rows = waiting.slice(0, page)
    waiting = waiting.slice(page)
    yield* publish(rows).pipe(
      MessageTraces.withBatchSpan("relay interactions", rows.map(MessageTraces.traced)),
      Effect.catchAll((error) =>
        Effect.logWarning("publish.failed").pipe(
          Effect.annotateLogs({ count: rows.length, left_to: "sweep", ...Telemetry.described(error) }),
        ),
      ),
      Effect.ensuring(
        Effect.sync(() => {
          for (const { interaction } of rows) own.delete(interaction.message_id)
        }),
      ),
    )
  })

  const lane = Effect.gen(function* () {
    /** Rows that came in since then, Unix ms. */
    let rows = 0
    let since = yield* Clock.currentTimeMillis
    let isBusy = false
    while (!closing || waiting.length > 0) {
      if (waiting.length === 0) {
        work.unsafeClose()
        yield* work.await
        continue
      }
      const began = yield* Clock.currentTimeMillis
      rows += Math.min(waiting.length, page)
      if (began - since >= busyPageMillis) {
        isBusy = rows * 1_000 >= busyRate * (began - since)
        rows = 0
        since = began
      }
      yield* publishWaiting
      if (isBusy && waiting.length < page && !closing)
        yield* Effect.sleep(Math.max(0, began + busyPageMillis - (yield* Clock.currentTimeMillis)))
    }
  })

  yield* Effect.acquireRelease(Effect.forkDaemon(Effect.interruptible(lane)), (fiber) =>
    Effect.sync(() => {
      closing = true
      work.unsafeOpen()
    }).pipe(
      Effect.zipRight(Fiber.await(fiber)),
      Effect.timeoutOption(flushDeadline),
      Effect.zipRight(Fiber.interrupt(fiber)),
    ),
  )

  const sweepPages = Effect.gen(function* () {
    const recordedBy = (yield* Clock.currentTimeMillis) - Duration.toMillis(RetryPolicies.sweepGrace)
    let published = 0
    while (true) {
      const rows = yield* log.unpublished({ limit: rowsPerRead, recordedBy })
      // There is more than a short outage leaves. A broker that tells no depths may still take messages.
      if (rows.length === rowsPerRead) yield* Effect.ignore(roomInQueue(queue))
      const left = rows.filter(({ interaction }) => !own.has(interaction.message_id))
      const before = published
      yield* Effect.forEach(
        Arr.chunksOf(left, page),
        (some) =>
          publish(some).pipe(
            MessageTraces.withBatchSpan("sweep interactions", some.map(MessageTraces.traced)),
            Effect.withTracerEnabled(true),
            Effect.map((confirmed) => (published += confirmed)),
          ),
        { concurrency: pagesAtOnce, discard: true },
      )
      if (published === before || rows.length < rowsPerRead) return published
    }
  })

  const sweep = Effect.gen(function* () {
    let published = 0
    const counting = Effect.map(sweepPages, (count) => {
      published = count
    })
    yield* Telemetry.untraced(log.withLeaderLock(counting))
    if (published > 0) yield* Effect.logInfo("outbox.swept").pipe(Effect.annotateLogs({ count: published }))
    return published
  })

  return {
    offer: (rows: ReadonlyArray<LoggedInteraction>) => {
      const room = rows.slice(0, Math.max(0, rowsWaiting - waiting.length))
      for (const row of room) own.add(row.interaction.message_id)
      waiting = waiting.concat(room)
      work.unsafeOpen()
    },
    sweep,
  }
})

export const layer = Layer.scoped(OutboxRelay, make)

/** Sweeps for as long as the scope lives. */
export const sweeping = Layer.scopedDiscard(
  Effect.gen(function* () {
    const relay = yield* OutboxRelay
    const quietly = relay.sweep.pipe(
      Effect.catchAll((error) =>
        Effect.logWarning("outbox.sweep_failed").pipe(Effect.annotateLogs(Telemetry.described(error))),
      ),
    )
    yield* Effect.forkScoped(Effect.repeat(quietly, RetryPolicies.sweepInterval))
  }),
)
