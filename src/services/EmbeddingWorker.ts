/**
 * The life of a worker: take what has arrived, update, settle. A batch is whatever came while the last write was
 * under way, so an idle worker adds no delay and a backlog makes large batches. With the batching window on,
 * interactions of a user wait for each other. While a dependency is out, messages are held and one at a time
 * probes it.
 */
import { Clock, Context, Deferred, Duration, Effect, Fiber, Layer, Option } from "effect"
import { EmbeddingConfig } from "./EmbeddingConfig.ts"
import { EmbeddingUpdater, type Outcome } from "./EmbeddingUpdater.ts"
import { type Delivery, InteractionQueue, type Settled, type Settlement } from "./InteractionQueue.ts"
import * as RetryPolicies from "./RetryPolicies.ts"
import * as Telemetry from "./Telemetry.ts"

export class EmbeddingWorker extends Context.Tag("user-embeddings/EmbeddingWorker")<
  EmbeddingWorker,
  {
    /** What the worker waits for while a dependency is out; none when it works. */
    readonly outage: Effect.Effect<Option.Option<string>>
  }
>() {}

/** Deliveries of one update at the most. */
const batchSize = 2_000
/** How long a stopping worker may finish its batch. */
const stopDeadline = Duration.seconds(25)

/** The user that a body names, without decoding it; bodies that name none wait together. */
const userIn = ({ body }: Delivery): string =>
  /"user_id"\s*:\s*"?([^",}]{1,64})/.exec(Buffer.from(body).toString("latin1", 0, 512))?.[1] ?? ""

const make = Effect.gen(function* () {
  const config = yield* EmbeddingConfig
  const queue = yield* InteractionQueue
  const updater = yield* EmbeddingUpdater
  const consumer = yield* queue.consume(config.prefetch)

  /** Not settled yet, in order of arrival. */
  let held: Array<Delivery> = []
  let outage: string | undefined
  let stopping = false
  const arrival = yield* Effect.makeLatch(false)

  const settleAll = Effect.fnUntraced(function* (settled: ReadonlyArray<Settled>) {
    yield* consumer.settle(settled)
    const counts: Record<Settlement["_tag"], number> = { Ack: 0, Retry: 0, DeadLetter: 0, Isolate: 0 }
    for (const [delivery, settlement] of settled) {
      counts[settlement._tag] += 1
      if (settlement._tag === "Ack") continue
      const failure = "failure" in settlement ? settlement.failure : undefined
      yield* Effect.logWarning(`message.${settlement._tag === "Retry" ? "retried" : "parked"}`).pipe(
        Effect.annotateLogs({
          message_id: delivery.messageId,
          attempt: delivery.retryCount + 1,
          settlement: settlement._tag,
          ...failure,
        }),
      )
    }
    Telemetry.count(Telemetry.retries, counts.Retry)
    Telemetry.count(Telemetry.deadLetters, counts.DeadLetter)
  })

  /**
   * Updates and settles a batch; answers those that wait for a dependency. A lone message that fails in an outage is no
   * backlog: it climbs its rungs.
   */
  const handle = Effect.fnUntraced(function* (batch: ReadonlyArray<Delivery>, alone: boolean) {
    const started = yield* Clock.currentTimeMillis
    const outcomes: ReadonlyArray<Outcome> = yield* updater.update(batch)
    const waiting: Array<Delivery> = []
    const settled: Array<Settled> = []
    let reason: string | undefined
    for (const [index, outcome] of outcomes.entries()) {
      const delivery = batch[index]!
      if (outcome._tag === "Outage") reason = outcome.error.message
      if (outcome._tag === "Outage" && !alone) waiting.push(delivery)
      else settled.push([delivery, outcome.settlement])
    }
    if (settled.length > 0) yield* settleAll(settled)
    const duration_ms = (yield* Clock.currentTimeMillis) - started
    yield* Effect.logInfo("batch.processed").pipe(
      Effect.annotateLogs({ count: batch.length, waiting: waiting.length, duration_ms }),
    )
    return { waiting, reason }
  })

  /** Isolated messages are handled one by one, beside nothing else. */
  const handleInOrder = Effect.fnUntraced(function* (batch: ReadonlyArray<Delivery>) {
    const together = batch.filter(({ isolatedAttempts }) => isolatedAttempts === 0)
    const single = batch.filter(({ isolatedAttempts }) => isolatedAttempts > 0)
    const parts = [...(together.length > 0 ? [together] : []), ...single.map((delivery) => [delivery])]
    for (const [index, part] of parts.entries()) {
      const { waiting, reason } = yield* handle(part, batch.length === 1 && held.length === 0)
      if (reason === undefined) continue
      held = [...waiting, ...parts.slice(index + 1).flat(), ...held]
      return reason
    }
    return undefined
  })

  const stopped = yield* Deferred.make<void>()
  const rest = (length: Duration.Duration) => Effect.timeoutOption(Deferred.await(stopped), length)

  /** Until one message succeeds, one at a time; the least tried goes first, so that a backlog shares the risk. */
  const probe = Effect.fnUntraced(function* (first: string) {
    outage = first
    yield* Effect.logWarning("outage.began").pipe(Effect.annotateLogs({ reason: first }))
    for (let failures = 0; outage !== undefined && !stopping; failures++) {
      yield* rest(RetryPolicies.probeDelay(failures))
      if (stopping) return
      while (held.length === 0 && !stopping) {
        arrival.unsafeClose()
        yield* arrival.await
      }
      const next = held.reduce<Delivery | undefined>(
        (least, delivery) =>
          least !== undefined && least.retryCount <= delivery.retryCount ? least : delivery,
        undefined,
      )
      if (next === undefined) return
      held = held.filter((delivery) => delivery !== next)
      const alone = held.length === 0
      const { waiting, reason } = yield* handle([next], alone)
      held = [...waiting, ...held]
      outage = reason
    }
    if (outage === undefined) yield* Effect.logInfo("outage.ended")
  })

  /** Takes what may be handled now: all that is held, or with the window on the users whose window is over. */
  const opened = new Map<string, number>()
  const window = Duration.toMillis(config.batchWindow)
  const due = (
    now: number,
  ): { readonly batch: ReadonlyArray<Delivery>; readonly wait: number | undefined } => {
    if (!config.batchEnabled || stopping) {
      const batch = held.slice(0, batchSize)
      held = held.slice(batchSize)
      return { batch, wait: undefined }
    }
    const batch: Array<Delivery> = []
    const rest: Array<Delivery> = []
    const closed = new Set<string>()
    let earliest: number | undefined
    for (const delivery of held) {
      const user = userIn(delivery)
      const since = opened.get(user) ?? now
      opened.set(user, since)
      if (since + window <= now) {
        batch.push(delivery)
        closed.add(user)
      } else {
        rest.push(delivery)
        earliest = Math.min(earliest ?? since, since)
      }
    }
    for (const user of closed) opened.delete(user)
    held = rest
    return { batch, wait: earliest === undefined ? undefined : earliest + window - now }
  }

  const loop = Effect.gen(function* () {
    while (!stopping || held.length > 0) {
      const { batch, wait } = due(yield* Clock.currentTimeMillis)
      if (batch.length === 0) {
        arrival.unsafeClose()
        yield* wait === undefined ? arrival.await : Effect.timeoutOption(arrival.await, Duration.millis(wait))
        continue
      }
      const reason = yield* handleInOrder(batch)
      if (reason !== undefined) {
        if (stopping) return
        yield* probe(reason)
      }
    }
  })

  const intake = Effect.forever(
    Effect.flatMap(consumer.take(batchSize), (deliveries) =>
      Effect.sync(() => {
        held = held.concat(deliveries)
        arrival.unsafeOpen()
      }),
    ),
  )

  // Closing: no more intake, what is held is finished (the window does not wait), the rest goes back.
  yield* Effect.acquireRelease(
    Effect.all([
      Effect.forkDaemon(Effect.interruptible(intake)),
      Effect.forkDaemon(Effect.interruptible(loop)),
    ]),
    ([taking, running]) =>
      Effect.gen(function* () {
        yield* Fiber.interrupt(taking)
        stopping = true
        if (!config.batchEnabled) held = []
        yield* Deferred.succeed(stopped, undefined)
        arrival.unsafeOpen()
        yield* Effect.timeoutOption(Fiber.await(running), stopDeadline)
        yield* Fiber.interrupt(running)
      }),
  )

  return { outage: Effect.sync(() => Option.fromNullable(outage)) }
})

export const layer = Layer.scoped(EmbeddingWorker, make)
