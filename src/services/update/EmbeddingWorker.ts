/**
 * The life of a worker: take what has arrived, update, settle. A batch is whatever came since the last one was taken,
 * so an idle worker adds no delay and a backlog makes large batches. With the batching window on,
 * interactions of a user wait for each other. Searches whose phrase is still to be embedded are handled beside all
 * others, so that nothing waits for the embedder that needn't. While a dependency is out, messages are held and one at
 * a time probes it; when only phrases can't be embedded, everything else goes on.
 */
import { Clock, Context, Duration, Effect, Fiber, FiberRef, Layer, LogLevel, Option } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as MessageTraces from "../MessageTraces.ts"
import {
  type Delivery,
  InteractionQueue,
  Quarantine,
  routingKey,
  type Settled,
  type Settlement,
} from "../ports/InteractionQueue.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"
import { BatchWindow } from "./BatchWindow.ts"
import { EmbeddingUpdater, type Outcome } from "./EmbeddingUpdater.ts"

export class EmbeddingWorker extends Context.Tag("user-embeddings/EmbeddingWorker")<
  EmbeddingWorker,
  {
    /** What the worker waits for while a dependency is out; none when it works. */
    readonly outage: Effect.Effect<Option.Option<string>>
  }
>() {}

/** After a batch of a busy thread a worker pauses for so many times as long as the batch took, at most so many ms. */
const pauseShare = 3
const longestPauseMillis = 500
/** How long a stopping worker waits for the broker to send it nothing more. */
const stopIntakeDeadline = Duration.seconds(2)
/** How long it may finish what it holds. */
const stopDeadline = Duration.seconds(20)

interface Outage {
  readonly reason: string
  /** Only phrases can't be embedded: product events go on. */
  readonly searchesOnly: boolean
  readonly failedProbes: number
  /** Unix ms. */
  readonly nextProbe: number
}

/** What is to be done now. */
interface Work {
  readonly batch: ReadonlyArray<Delivery>
  /** Shows whether the dependency that was out is back. */
  readonly probe: boolean
}

/** What became of a message, in spans and metrics. */
const words = { Ack: "ack", Retry: "retry", DeadLetter: "dead_letter", Quarantine: "isolate" } as const

const verdictOf = (settlement: Settlement): MessageTraces.MessageOutcome => ({
  settlement: words[settlement._tag],
  ...("failure" in settlement && { error: settlement.failure.error }),
})

/** The line of a message: a warning when it failed, else for those who debug. */
const lineOf = {
  Ack: Effect.logDebug("message.processed"),
  Retry: Effect.logWarning("message.retried"),
  DeadLetter: Effect.logWarning("message.parked"),
  Quarantine: Effect.logWarning("message.isolated"),
} as const

const report = ([delivery, settlement]: Settled) =>
  lineOf[settlement._tag].pipe(
    Effect.annotateLogs({
      message_id: delivery.messageId,
      event_type: delivery.routingKey.slice(delivery.routingKey.lastIndexOf(".") + 1),
      attempt: delivery.retryCount + 1,
      ...verdictOf(settlement),
    }),
    MessageTraces.inMessageSpan(delivery),
  )

const isSearch = (delivery: Delivery): boolean => delivery.routingKey === routingKey("search")

const accused = (delivery: Delivery): Outcome => ({
  _tag: "Settle",
  settlement:
    RetryPolicies.quarantineDecision(delivery, RetryPolicies.quarantineAfterRedeliveries) ?? Quarantine,
})

/** Reached all that an update needs. A message that is bad in itself tells nothing about it. */
const provesWorking = (outcome: Outcome): boolean =>
  outcome._tag === "Settle" && (outcome.settlement._tag === "Ack" || outcome.settlement._tag === "Retry")

const make = Effect.gen(function* () {
  const config = yield* EmbeddingConfig
  const queue = yield* InteractionQueue
  const updater = yield* EmbeddingUpdater
  const consumer = yield* queue.consume(config.prefetch)
  /**
   * Deliveries of one update at the most, while as many are on their way; fewer after one that failed for a dependency,
   * which may be slow, not out.
   */
  const batchSize = Math.ceil(config.prefetch / 2)

  /** Not settled yet, in order of arrival. */
  let held: Array<Delivery> = []
  /** Searches that have to wait for the embedder, in order of arrival. */
  let slow: Array<Delivery> = []
  /** Not due yet. */
  const window = config.batchEnabled ? new BatchWindow(Duration.toMillis(config.batchWindow)) : undefined
  let outage: Outage | undefined
  let batchLimit = batchSize
  let stopping = false
  const change = yield* Effect.makeLatch(false)
  const slowChange = yield* Effect.makeLatch(false)

  const settleAll = Effect.fnUntraced(function* (settled: ReadonlyArray<Settled>) {
    if (settled.length === 0) return
    yield* consumer.settle(settled)
    let acks = 0
    for (const [, settlement] of settled) {
      if (settlement._tag === "Ack") {
        acks += 1
        continue
      }
      Telemetry.count(Telemetry.consumedMessages(words[settlement._tag]))
      if (settlement._tag === "Retry") Telemetry.count(Telemetry.retries(settlement.failure.error))
      if (settlement._tag === "DeadLetter") Telemetry.count(Telemetry.deadLetters(settlement.failure.error))
    }
    if (acks > 0) Telemetry.count(Telemetry.consumedMessages(words.Ack), acks)
    const debugging = LogLevel.lessThanEqual(
      yield* FiberRef.get(FiberRef.currentMinimumLogLevel),
      LogLevel.Debug,
    )
    const told = debugging ? settled : settled.filter(([, { _tag }]) => _tag !== "Ack")
    yield* Effect.forEach(told, report, { discard: true })
  })

  /** What other workers hold is no part of the depths; where nobody can tell, a worker believes that it is alone. */
  const isOnlyOneHeld = Effect.map(queue.traffic, (traffic) => traffic === null || traffic.unacked === 1)
  /** A message with nothing beside it, here, in the queues or on the ladder, is no backlog: in an outage it climbs. */
  const isOnlyMessage = Effect.gen(function* () {
    if (held.length > 0 || slow.length > 0 || window?.closes !== undefined) return false
    const { quarantined: isolated, main, retry } = yield* queue.depths
    const climbing = Object.values(retry).reduce((sum, depth) => sum + depth, 0)
    if (main.ready + main.unacked + isolated + climbing > 1) return false
    return main.consumers < 2 || (yield* isOnlyOneHeld)
  }).pipe(Effect.orElseSucceed(() => false))

  /** Updates and settles a batch. What waits for a dependency that is out is held again. */
  const handle = Effect.fnUntraced(function* ({ batch, probe }: Work) {
    const started = yield* Clock.currentTimeMillis
    const oldest = batch[0]?.publishedAt
    if (oldest) Telemetry.set(Telemetry.queueAge, Math.max(0, started - oldest) / 1000)
    const suspects: Array<Settled> = []
    const innocent: Array<Delivery> = []
    for (const delivery of batch) {
      const settlement = RetryPolicies.quarantineDecision(delivery)
      if (settlement === undefined) innocent.push(delivery)
      else suspects.push([delivery, settlement])
    }
    if (suspects.length > 0)
      yield* MessageTraces.processing(
        queue.system,
        suspects.map(([delivery]) => delivery),
        (_, index) => verdictOf(suspects[index]![1]),
        settleAll(suspects),
      )
    if (innocent.length === 0) return

    const updated = updater.update(innocent).pipe(
      // One of them would have killed a worker less careful.
      Effect.catchAllDefect((defect) =>
        Effect.as(
          Effect.annotateLogs(Effect.logError("batch.threw"), {
            count: innocent.length,
            error: Telemetry.errorType(defect),
            detail: String(defect),
          }),
          innocent.map((delivery) => accused(delivery)),
        ),
      ),
    )
    const waiting: Array<Delivery> = []
    const settled: Array<Settled> = []
    const process = Effect.gen(function* () {
      const outcomes = yield* updated
      const failures = outcomes.flatMap((outcome) => (outcome._tag === "Outage" ? [outcome.error] : []))
      const lone = failures.length === 1 && batch.length === 1 && (yield* isOnlyMessage)
      for (const [index, outcome] of outcomes.entries())
        if (outcome._tag === "Outage" && !lone) waiting.push(innocent[index]!)
        else settled.push([innocent[index]!, outcome.settlement])
      held = waiting.concat(held)
      yield* settleAll(settled)
      return { failures, lone, outcomes }
    })
    const { failures, outcomes } = yield* MessageTraces.processing(
      queue.system,
      innocent,
      ({ lone, outcomes }, index) => {
        const { _tag, settlement } = outcomes[index]!
        const verdict = verdictOf(settlement)
        return _tag === "Outage" && !lone ? { ...verdict, settlement: "wait" } : verdict
      },
      process,
    )

    const now = yield* Clock.currentTimeMillis
    const duration_ms = now - started
    Telemetry.observe(Telemetry.processDuration, duration_ms / 1000)
    Telemetry.observe(Telemetry.batchSize, batch.length)
    const failed = settled.filter(([, { _tag }]) => _tag !== "Ack").length
    yield* Effect.logInfo("batch.processed").pipe(
      Effect.annotateLogs({ count: batch.length, failed, waiting: waiting.length, duration_ms }),
    )
    const failure = failures.at(-1)
    if (failure !== undefined) batchLimit = Math.max(1, batch.length >> 1)
    else if (!probe) batchLimit = Math.min(batchSize, 2 * batchLimit)
    if (failure !== undefined) {
      const failedProbes = probe && outage !== undefined ? outage.failedProbes + 1 : 0
      const reason = failure.message
      if (outage === undefined)
        yield* Effect.logWarning("outage.began").pipe(Effect.annotateLogs(Telemetry.described(failure)))
      outage = {
        reason,
        searchesOnly: failures.every(({ _tag }) => _tag === "PhraseEmbedderError"),
        failedProbes,
        nextProbe: now + Duration.toMillis(RetryPolicies.probeDelay(failedProbes)),
      }
    } else if (probe && outcomes.some(provesWorking)) {
      outage = undefined
      yield* Effect.logInfo("outage.ended")
    }
  })

  /** One message tries whether the dependency is back: the least tried, so that a backlog shares the risk. */
  const takeProbe = (waits: (delivery: Delivery) => boolean): Work | undefined => {
    let least: Delivery | undefined
    for (const delivery of held)
      if (waits(delivery) && (least === undefined || delivery.retryCount < least.retryCount)) least = delivery
    if (least === undefined) return undefined
    held = held.filter((delivery) => delivery !== least)
    return { batch: [least], probe: true }
  }

  /** What may be handled from now on. */
  const admit = (deliveries: ReadonlyArray<Delivery>) => {
    const waits = deliveries.filter((delivery) => isSearch(delivery) && updater.needsEmbedder(delivery))
    if (waits.length === 0) {
      held = held.concat(deliveries)
      return
    }
    const apart = new Set(waits)
    held = held.concat(deliveries.filter((delivery) => !apart.has(delivery)))
    slow = slow.concat(waits)
    slowChange.unsafeOpen()
  }

  /** Takes what may be handled now. */
  const next = (now: number): Work | undefined => {
    // Who holds all that it may, and all of it for the window, waits in vain for more: half of it goes early.
    if (window !== undefined) {
      const early = held.length === 0 && consumer.full() ? batchSize : 0
      admit(window.due(stopping ? Number.POSITIVE_INFINITY : now, early))
    }
    if (outage !== undefined || stopping) held = held.concat(slow.splice(0))
    if (outage === undefined || stopping) {
      const batch = held.slice(0, batchLimit)
      held = held.slice(batchLimit)
      return batch.length === 0 ? undefined : { batch, probe: false }
    }
    const { nextProbe, searchesOnly } = outage
    const waits = (delivery: Delivery) => !searchesOnly || isSearch(delivery)
    const probe = nextProbe <= now ? takeProbe(waits) : undefined
    if (probe !== undefined || !searchesOnly) return probe
    const batch = held.filter((delivery) => !waits(delivery)).slice(0, batchLimit)
    if (batch.length === 0) return undefined
    const taken = new Set(batch)
    held = held.filter((delivery) => !taken.has(delivery))
    return { batch, probe: false }
  }

  /** Until something changes, a window is over or the next probe is due. */
  const rest = (now: number) => {
    const times = [window?.closes, held.length > 0 ? outage?.nextProbe : undefined]
    const first = Math.min(...times.map((time) => time ?? Number.POSITIVE_INFINITY))
    return first === Number.POSITIVE_INFINITY
      ? change.await
      : Effect.timeoutOption(change.await, Duration.millis(Math.max(0, first - now)))
  }

  /** Whoever shares the thread gets on, and more events share the next write. A whole batch is not kept waiting. */
  const pause = ({ length }: Work["batch"], tookMillis: number) =>
    length < queue.pauseAbove || held.length >= batchLimit || outage !== undefined || stopping
      ? Effect.void
      : Effect.sleep(Math.min(longestPauseMillis, pauseShare * tookMillis))

  const loop = Effect.gen(function* () {
    while (true) {
      change.unsafeClose()
      const now = yield* Clock.currentTimeMillis
      const work = next(now)
      if (work !== undefined) {
        yield* handle(work)
        if (stopping && outage !== undefined) return
        yield* pause(work.batch, (yield* Clock.currentTimeMillis) - now)
      } else if (stopping) return
      else yield* rest(now)
    }
  })

  const searchLane = Effect.gen(function* () {
    while (!stopping) {
      const batch = slow.splice(0, batchLimit)
      if (batch.length > 0) {
        yield* handle({ batch, probe: false })
        change.unsafeOpen()
        continue
      }
      slowChange.unsafeClose()
      yield* slowChange.await
    }
  })

  /** What a lost connection held comes again, so it is dropped before it would pile up. */
  const hold = (deliveries: ReadonlyArray<Delivery>, now: number) => {
    // A suspect comes alone, and whatever waits for it needn't wait for the window too.
    if (window === undefined || deliveries[0]?.quarantined) admit(deliveries)
    else window.add(deliveries, now)
    if (held.length + slow.length > config.prefetch) {
      held = held.filter(consumer.holds)
      slow = slow.filter(consumer.holds)
    }
    change.unsafeOpen()
  }
  const intake = Effect.forever(
    Effect.flatMap(consumer.take(batchSize), (deliveries) =>
      Effect.map(Clock.currentTimeMillis, (now) => hold(deliveries, now)),
    ),
  )

  // Closing: no more intake, what is held is finished (the window does not wait), the rest goes back.
  yield* Effect.acquireRelease(
    Effect.all([
      Effect.forkDaemon(Effect.interruptible(intake)),
      Effect.forkDaemon(Effect.interruptible(Effect.all([loop, searchLane], { concurrency: 2 }))),
    ]),
    ([taking, running]) =>
      Effect.gen(function* () {
        yield* Effect.timeoutOption(Effect.interruptible(consumer.stop), stopIntakeDeadline)
        yield* Fiber.interrupt(taking)
        stopping = true
        change.unsafeOpen()
        slowChange.unsafeOpen()
        yield* Effect.timeoutOption(Effect.interruptible(Fiber.await(running)), stopDeadline)
        yield* Fiber.interrupt(running)
      }),
  )

  return { outage: Effect.sync(() => Option.map(Option.fromNullable(outage), ({ reason }) => reason)) }
})

export const layer = Layer.scoped(EmbeddingWorker, make)
