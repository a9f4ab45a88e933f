/**
 * A worker takes messages from the queue, updates embeddings and settles the messages. A batch is all that came since
 * the last batch was taken, at least WORKER_INTERVAL ago: an idle worker adds no delay, and a backlog makes large batches. Searches that must wait
 * for the embedder are handled in a lane of their own, so that product events do not wait for it. What happens while a
 * dependency is out is in OutageState.ts.
 */
import { Clock, Context, Duration, Effect, Fiber, FiberRef, Layer, LogLevel, Option } from "effect"
import { Cadence } from "../Cadence.ts"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as MessageTraces from "../MessageTraces.ts"
import type { EventTypes } from "../model/EventTypes.ts"
import {
  type Consumer,
  type Delivery,
  InteractionQueue,
  Return,
  SetAside,
  type Settled,
  type Settlement,
} from "../ports/InteractionQueue.ts"
import type { UpdateError } from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"
import { BatchWindow } from "./BatchWindow.ts"
import { EmbeddingUpdater, type Outcome } from "./EmbeddingUpdater.ts"
import { HeldMessages, type Work } from "./HeldMessages.ts"
import * as OutageState from "./OutageState.ts"
import { quarantineSettlement } from "./Quarantine.ts"
import {
  type DecodedMessage,
  isDecoded,
  logDefect,
  type ReceivedMessage,
  receive,
} from "./ReceivedMessage.ts"
import { WorkerLoad } from "./WorkerLoad.ts"

export class EmbeddingWorker extends Context.Tag("user-embeddings/EmbeddingWorker")<
  EmbeddingWorker,
  {
    /** Why messages wait for a dependency; none while all dependencies work. */
    readonly outage: Effect.Effect<Option.Option<string>>
    /** What the worker holds and has done. */
    readonly look: Effect.Effect<Look>
  }
>() {}

export interface Look {
  readonly held: number
  readonly acknowledged: number
  /** Times are Unix ms. `oldestRecordedAt`: of the events that the worker has given back, if there are any. */
  readonly outage:
    | { readonly reason: string; readonly since: number; readonly oldestRecordedAt: number | undefined }
    | undefined
}

/** The pause after a batch on a shared thread: this many times the duration of the batch, up to the longest pause. */
const pauseFactor = 3
const longestPauseMillis = 500
/** Messages that arrive in this time are decoded together. */
const intakeMillis = 10
/** A batch that takes longer is too large: what waits behind it is held meanwhile. */
const longBatchMillis = 10_000
/** The first batch of searches, before it is known how fast the embedder is. */
const firstSearches = 128
/** How long a stopping worker waits for the broker to stop sending. */
const stopIntakeDeadline = Duration.seconds(2)
/** How long a stopping worker may finish what it holds. */
const stopDeadline = Duration.seconds(20)

interface Worker {
  readonly queue: InteractionQueue["Type"]
  readonly consumer: Consumer
  readonly updater: EmbeddingUpdater["Type"]
  readonly held: HeldMessages
  readonly load: WorkerLoad
  readonly eventTypes: EventTypes
  readonly prefetch: number
  /** The largest batch: half the prefetch, so that the other half arrives meanwhile. */
  readonly batchSize: number
  /** In ms. */
  readonly intakePause: number
  /** Opens when the loop may have something to do. */
  readonly loopWaits: Effect.Latch
  /** Opens when the search lane may have something to do. */
  readonly laneWaits: Effect.Latch
  state: OutageState.OutageState
  readonly loopCadence: Cadence
  readonly laneCadence: Cadence
  readonly loopLimit: BatchLimit
  readonly laneLimit: BatchLimit
}

/** The largest batch at the moment. It shrinks when a batch fails or takes long: its dependency may be slow. */
interface BatchLimit {
  most: number
}

// ---------------------------------------------------------------------------------------------------------
// Settling

const settlementName = {
  Ack: "ack",
  Retry: "retry",
  DeadLetter: "dead_letter",
  Quarantine: "quarantine",
  Return: "return",
  SetAside: "set_aside",
} as const

const spanOutcome = (settlement: Settlement): MessageTraces.MessageOutcome => ({
  settlement: settlementName[settlement._tag],
  ...("failure" in settlement && { error: settlement.failure.error }),
})

const logEvent = {
  Ack: Effect.logDebug("message.processed"),
  Retry: Effect.logWarning("message.retried"),
  DeadLetter: Effect.logWarning("message.parked"),
  Quarantine: Effect.logWarning("message.quarantined"),
  Return: Effect.logDebug("message.returned"),
  SetAside: Effect.logDebug("message.set_aside"),
} as const
const isRoutine = ({ _tag }: Settlement): boolean => _tag === "Ack" || isWaiting({ _tag })
const isWaiting = ({ _tag }: Pick<Settlement, "_tag">): boolean => _tag === "Return" || _tag === "SetAside"

const logSettled = ([delivery, settlement]: Settled) =>
  logEvent[settlement._tag].pipe(
    Effect.annotateLogs({
      message_id: delivery.messageId,
      event_type: delivery.routingKey.slice(delivery.routingKey.lastIndexOf(".") + 1),
      attempt: delivery.retryCount + 1,
      ...spanOutcome(settlement),
    }),
    MessageTraces.inMessageSpan(delivery),
  )

const countSettled = (system: string, settled: ReadonlyArray<Settled>) => {
  const acks = settled.filter(([, { _tag }]) => _tag === "Ack").length
  if (acks > 0) Telemetry.count(Telemetry.consumedMessages(system, settlementName.Ack), acks)
  for (const [, settlement] of settled) {
    if (settlement._tag === "Ack") continue
    Telemetry.count(Telemetry.consumedMessages(system, settlementName[settlement._tag]))
    if (settlement._tag === "Retry") Telemetry.count(Telemetry.retries(settlement.failure.error))
    if (settlement._tag === "DeadLetter") Telemetry.count(Telemetry.deadLetters(settlement.failure.error))
  }
}

const settleAll = Effect.fnUntraced(function* (
  { consumer, load, queue }: Pick<Worker, "consumer" | "load" | "queue">,
  settled: ReadonlyArray<Settled>,
) {
  if (settled.length === 0) return
  yield* consumer.settle(settled)
  load.settled(settled)
  countSettled(queue.system, settled)
  const level = yield* FiberRef.get(FiberRef.currentMinimumLogLevel)
  const all = LogLevel.lessThanEqual(level, LogLevel.Debug)
  for (const one of settled) if (all || !isRoutine(one[1])) yield* logSettled(one)
})

/** Poison-message candidates go to quarantine before anything else is done. */
const quarantine = (worker: Worker, deliveries: ReadonlyArray<Delivery>) => {
  const settled = deliveries.map((delivery): Settled => [delivery, quarantineSettlement(delivery)])
  return MessageTraces.processing(
    worker.queue.system,
    deliveries,
    (_, index) => spanOutcome(settled[index]![1]),
    settleAll(worker, settled),
  )
}

// ---------------------------------------------------------------------------------------------------------
// Handling a batch

/** Whether there is no other message here, in the queues or, as far as the broker can tell, in another worker. */
const isOnlyMessage = (worker: Worker) =>
  Effect.gen(function* () {
    if (!worker.held.isEmpty) return false
    const { main, quarantined, retry } = yield* worker.queue.depths
    const retrying = Object.values(retry).reduce((sum, depth) => sum + depth, 0)
    if (main.ready + main.unacked + quarantined + retrying > 1) return false
    if (main.consumers < 2) return true
    // The depths do not include what other workers hold.
    const traffic = yield* worker.queue.traffic
    return traffic === null || traffic.unacked === 1
  }).pipe(Effect.orElseSucceed(() => false))

const outageErrors = (outcomes: ReadonlyArray<Outcome>) =>
  outcomes.flatMap((outcome) => (outcome._tag === "Outage" ? [outcome.error] : []))

/** The message reached all dependencies. One that is bad in itself proves nothing about them. */
const provesWorking = (outcome: Outcome): boolean =>
  outcome._tag === "Settle" && (outcome.settlement._tag === "Ack" || outcome.settlement._tag === "Retry")

interface Tried {
  readonly now: number
  readonly probe: boolean
}

/** Changes the state at once, so that it can't overwrite a change by another fiber; answers what to log. */
const changeState = (worker: Worker, outcomes: ReadonlyArray<Outcome>, tried: Tried): Effect.Effect<void> => {
  const errors = outageErrors(outcomes)
  const error = errors.at(-1)
  if (error !== undefined) {
    const isNew = OutageState.reasonOf(worker.state) === undefined
    if (isNew) worker.load.outageBegins()
    worker.state = OutageState.afterFailure(worker.state, errors, tried)
    worker.consumer.receive(OutageState.intakeOf(worker.state, tried.now))
    return isNew
      ? Effect.annotateLogs(Effect.logWarning("outage.began"), Telemetry.described(error))
      : Effect.void
  }
  if (!tried.probe || !outcomes.some(provesWorking)) return Effect.void
  worker.state = OutageState.afterProbe(worker.state)
  return Effect.logInfo("outage.ended")
}

/** A message that waits for a dependency is not held meanwhile, because brokers limit how long that may take. */
const waitingSettlement = (error: UpdateError): Settlement =>
  OutageState.concernsSearches(error) ? SetAside : Return

/** Applies a batch and settles it. */
const updateAndSettle = Effect.fnUntraced(function* (
  worker: Worker,
  messages: ReadonlyArray<DecodedMessage>,
  isAlone: boolean,
  probe: boolean,
) {
  const outcomes = yield* Effect.catchAllDefect(worker.updater.update(messages), (defect) =>
    Effect.as(
      logDefect(messages.length, defect),
      messages.map(({ delivery }): Outcome => {
        return { _tag: "Settle", settlement: quarantineSettlement(delivery) }
      }),
    ),
  )
  // A single message is no backlog that must be spared: it goes through the retry queues.
  const mayRetry = isAlone && outcomes[0]?._tag === "Outage" && (yield* isOnlyMessage(worker))
  const settled = outcomes.map((outcome, index): Settled => {
    const waits = outcome._tag === "Outage" && !mayRetry
    return [messages[index]!.delivery, waits ? waitingSettlement(outcome.error) : outcome.settlement]
  })
  // Before anything is given back, so that it is not delivered again at once.
  yield* changeState(worker, outcomes, { now: yield* Clock.currentTimeMillis, probe })
  yield* settleAll(worker, settled)
  return { outcomes, settled }
})
type Handled = Effect.Effect.Success<ReturnType<typeof updateAndSettle>>

const traced = (worker: Worker, messages: ReadonlyArray<DecodedMessage>, isAlone: boolean, probe: boolean) =>
  MessageTraces.processing(
    worker.queue.system,
    messages.map(({ delivery }) => delivery),
    ({ outcomes, settled }: Handled, index) => ({
      ...spanOutcome(outcomes[index]!.settlement),
      settlement: settlementName[settled[index]![1]._tag],
    }),
    updateAndSettle(worker, messages, isAlone, probe),
  )

const handleBatch = Effect.fnUntraced(function* (
  worker: Worker,
  limit: BatchLimit,
  { batch: taken, probe }: Work,
) {
  const started = yield* Clock.currentTimeMillis
  // After a lost connection the broker delivers again what the worker held.
  const batch = taken.filter(({ delivery }) => worker.consumer.holds(delivery))
  const oldest = batch[0]?.delivery.publishedAt
  if (oldest) Telemetry.set(Telemetry.queueAge, Math.max(0, started - oldest) / 1000)
  const decoded = batch.filter(isDecoded)
  if (decoded.length < batch.length) {
    const candidates = batch.filter((message) => !isDecoded(message))
    yield* quarantine(
      worker,
      candidates.map(({ delivery }) => delivery),
    )
  }
  if (decoded.length === 0) return
  const handled = yield* traced(worker, decoded, batch.length === 1, probe)

  const duration_ms = (yield* Clock.currentTimeMillis) - started
  Telemetry.observe(Telemetry.processDuration(worker.queue.system), duration_ms / 1000)
  Telemetry.observe(Telemetry.batchSize, batch.length)
  const waiting = handled.settled.filter(([, settlement]) => isWaiting(settlement)).length
  const failed = handled.settled.filter(([, settlement]) => !isRoutine(settlement)).length
  yield* Effect.logInfo("batch.processed").pipe(
    Effect.annotateLogs({ count: batch.length, failed, waiting, duration_ms }),
  )
  if (probe) return
  if (outageErrors(handled.outcomes).length > 0 || duration_ms > longBatchMillis)
    limit.most = Math.max(1, batch.length >> 1)
  else if (batch.length >= limit.most) limit.most = Math.min(worker.batchSize, 2 * limit.most)
})

const handle = (worker: Worker, limit: BatchLimit, work: Work) =>
  Effect.suspend(() => {
    const { load } = worker
    const count = work.batch.length
    load.inBatches += count
    const ended = Effect.sync(() => {
      load.inBatches -= count
    })
    return Effect.ensuring(handleBatch(worker, limit, work), ended)
  })

// ---------------------------------------------------------------------------------------------------------
// The fibers of a worker

const intake = (worker: Worker) =>
  Effect.gen(function* () {
    const { consumer, held, prefetch } = worker
    const messages = yield* receive(yield* consumer.take(worker.batchSize), worker.eventTypes)
    held.add(messages, yield* Clock.currentTimeMillis)
    // What was held on a lost connection is delivered again: drop it before it piles up.
    if (held.size > prefetch) held.dropUnless(consumer.holds)
    if (held.readyCount >= worker.loopLimit.most) worker.loopCadence.hurry()
    worker.laneWaits.unsafeOpen()
    worker.loopWaits.unsafeOpen()
    if (messages.length < worker.batchSize) yield* Effect.sleep(worker.intakePause)
  })

const takeWork = (worker: Worker, now: number) => {
  const { batchSize, consumer, held, laneWaits, loopLimit, state } = worker
  consumer.receive(OutageState.intakeOf(state, now))
  // A worker that is full and holds nothing but open windows would wait in vain for more: half of it goes early.
  held.closeWindows(
    state._tag === "Stopping" || state._tag === "ProbingAll" ? Number.POSITIVE_INFINITY : now,
    consumer.full() && !held.laneIsBusy ? batchSize : 0,
  )
  laneWaits.unsafeOpen()
  return held.take(state, loopLimit.most, now, consumer.draining())
}

/** Waits until messages come, a window closes or the next probe is due. */
const rest = ({ held, loopWaits, state }: Worker, now: number) => {
  const at = held.wakeAt(state, now)
  return at === Number.POSITIVE_INFINITY
    ? loopWaits.await
    : Effect.timeoutOption(loopWaits.await, Duration.millis(Math.max(0, at - now)))
}

/** Other work on this thread gets its turn, and more events share the next write. A full batch does not wait. */
const pause = ({ held, loopLimit, queue, state }: Worker, { batch }: Work, tookMillis: number) =>
  batch.length < queue.pauseAbove || held.readyCount >= loopLimit.most || state._tag !== "Working"
    ? Effect.void
    : Effect.sleep(Math.min(longestPauseMillis, pauseFactor * tookMillis))

/** Gives back messages that no one has tried: they came during an outage, or wait in a slow search lane. */
const giveBack = (worker: Worker, waiting: ReadonlyArray<ReceivedMessage>) => {
  const isStoreOut = worker.state._tag === "ProbingAll" || worker.state._tag === "Stopping"
  return settleAll(
    worker,
    waiting.map(({ delivery }) => [delivery, isStoreOut ? Return : SetAside]),
  )
}

const loop = Effect.fnUntraced(function* (worker: Worker) {
  while (true) {
    if (worker.state._tag === "Working") yield* worker.loopCadence.untilDue
    worker.loopWaits.unsafeClose()
    const now = yield* Clock.currentTimeMillis
    const { waiting, work } = takeWork(worker, now)
    yield* giveBack(worker, waiting)
    if (work !== undefined) {
      worker.loopCadence.begin()
      yield* handle(worker, worker.loopLimit, work)
      yield* pause(worker, work, (yield* Clock.currentTimeMillis) - now)
    } else if (worker.state._tag === "Stopping") return
    else yield* rest(worker, now)
  }
})

const searchLane = Effect.fnUntraced(function* (worker: Worker) {
  while (worker.state._tag !== "Stopping") {
    yield* worker.laneCadence.untilDue
    const batch = worker.held.takeSearches(worker.state, worker.laneLimit.most)
    if (batch.length > 0) {
      worker.laneCadence.begin()
      yield* handle(worker, worker.laneLimit, { batch, probe: false })
      worker.held.laneEnds()
      worker.loopWaits.unsafeOpen()
      continue
    }
    worker.laneWaits.unsafeClose()
    yield* worker.laneWaits.await
  }
})

/** Ends intake, finishes what is held, whatever its window, and leaves the rest to the broker. */
const stop = Effect.fnUntraced(function* (
  worker: Worker,
  taking: Fiber.RuntimeFiber<never>,
  handling: Fiber.RuntimeFiber<unknown>,
) {
  yield* Effect.timeoutOption(Effect.interruptible(worker.consumer.stop), stopIntakeDeadline)
  yield* Fiber.interrupt(taking)
  worker.state = OutageState.stop(worker.state)
  worker.loopCadence.hurry()
  worker.laneCadence.hurry()
  worker.loopWaits.unsafeOpen()
  worker.laneWaits.unsafeOpen()
  yield* Effect.timeoutOption(Effect.interruptible(Fiber.await(handling)), stopDeadline)
  yield* Fiber.interrupt(handling)
})

const lookAt = ({ held, load, state }: Worker): Look => {
  const outage = OutageState.outageOf(state)
  return {
    held: held.count + load.inBatches,
    acknowledged: load.acknowledged,
    outage: outage && {
      reason: outage.reason,
      since: outage.since,
      oldestRecordedAt: load.oldestGivenBack,
    },
  }
}

const make = Effect.gen(function* () {
  const { batchEnabled, batchWindow, eventTypes, prefetch, workerInterval } = yield* EmbeddingConfig
  const queue = yield* InteractionQueue
  const updater = yield* EmbeddingUpdater
  const window = batchEnabled ? new BatchWindow(Duration.toMillis(batchWindow)) : undefined
  const batchSize = Math.ceil(prefetch / 2)
  const worker: Worker = {
    queue,
    consumer: yield* queue.consume(prefetch),
    updater,
    held: new HeldMessages(window, updater.needsEmbedder),
    load: new WorkerLoad(),
    eventTypes,
    prefetch,
    batchSize,
    intakePause: Math.min(intakeMillis, workerInterval),
    loopWaits: yield* Effect.makeLatch(false),
    laneWaits: yield* Effect.makeLatch(false),
    loopCadence: new Cadence({ interval: workerInterval }),
    laneCadence: new Cadence({ interval: workerInterval }),
    state: OutageState.working,
    loopLimit: { most: batchSize },
    laneLimit: { most: Math.min(batchSize, firstSearches) },
  }
  const handling = Effect.all([loop(worker), searchLane(worker)], { concurrency: 2 })
  yield* Effect.acquireRelease(
    Effect.all([
      Effect.forkDaemon(Effect.interruptible(Effect.forever(intake(worker)))),
      Effect.forkDaemon(Effect.interruptible(handling)),
    ]),
    ([takingFiber, handlingFiber]) => stop(worker, takingFiber, handlingFiber),
  )
  return {
    outage: Effect.sync(() => Option.fromNullable(OutageState.reasonOf(worker.state))),
    look: Effect.sync(() => lookAt(worker)),
  }
})

export const layer = Layer.scoped(EmbeddingWorker, make)
