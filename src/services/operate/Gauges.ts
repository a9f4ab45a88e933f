/**
 * Updates the gauges while the scope is open. Servers are polled at an interval instead of at each scrape, so
 * that more scrapers cost nothing more. A gauge keeps its last value when its server does not answer.
 */
import { Duration, Effect, Layer, Metric, Schedule } from "effect"
import { warning } from "../Outages.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import {
  failedQueue,
  InteractionQueue,
  quarantineQueue,
  queue,
  retryQueue,
} from "../ports/InteractionQueue.ts"
import * as Telemetry from "../Telemetry.ts"

export const serverInterval = Duration.seconds(10)
const tickMillis = 1_000
const ticksPerInterval = 5

/** The health checks tell why a server does not answer. */
export const polling = <E, R>(update: Effect.Effect<unknown, E, R>, every: Duration.Duration) =>
  Effect.ignore(update).pipe(
    warning("gauges.failed"),
    Effect.repeat(Schedule.spaced(every)),
    Telemetry.untraced,
    Effect.forkScoped,
    Layer.scopedDiscard,
  )

/** Reads the depths of the queues and sets their gauges. */
export const lookAtQueues = Effect.gen(function* () {
  const depths = yield* (yield* InteractionQueue).depths
  const { failed, main, quarantined, retry } = depths
  yield* Metric.set(Telemetry.queueDepth(queue), main.ready)
  yield* Metric.set(Telemetry.queueConsumers, main.consumers)
  yield* Metric.set(Telemetry.queueDepth(quarantineQueue), quarantined)
  yield* Metric.set(Telemetry.queueDepth(failedQueue), failed)
  for (const [delay, waiting] of Object.entries(retry))
    yield* Metric.set(Telemetry.queueDepth(retryQueue(Number(delay))), waiting)
  if (main.ready === 0) yield* Metric.set(Telemetry.queueAge, 0)
  return depths
})
export const queues = polling(lookAtQueues, serverInterval)

/** Reads the state of the outbox and sets its gauges. */
export const lookAtOutbox = Effect.gen(function* () {
  const outbox = yield* (yield* InteractionLog).outbox
  yield* Metric.set(Telemetry.outboxRows, outbox.unpublished)
  yield* Metric.set(Telemetry.outboxAge, outbox.oldestUnpublishedSeconds ?? 0)
  return outbox
})
export const outbox = polling(lookAtOutbox, serverInterval)

const micros = 1_000_000
let counted = { user: 0, system: 0 }
/** Adds what the process has used since the last time. */
const countCpu = () => {
  const used = process.cpuUsage()
  for (const mode of ["user", "system"] as const)
    Telemetry.count(Telemetry.cpuTimes[mode], (used[mode] - counted[mode]) / micros)
  counted = used
}

/** Memory, CPU, and the longest delay of the event loop in the last interval. A plain timer: a fiber costs ten times as much. */
export const ownProcess = Layer.scopedDiscard(
  Effect.acquireRelease(
    Effect.sync(() => {
      countCpu()
      let due = performance.now() + tickMillis
      let ticks = 0
      let worst = 0
      return setInterval(() => {
        const now = performance.now()
        worst = Math.max(worst, now - due)
        due = now + tickMillis
        ticks += 1
        if (ticks % ticksPerInterval !== 0) return
        countCpu()
        Telemetry.set(Telemetry.eventLoopDelay, worst / 1000)
        Telemetry.set(Telemetry.residentMemory, process.memoryUsage.rss())
        worst = 0
      }, tickMillis)
    }),
    (timer) => Effect.sync(() => clearInterval(timer)),
  ),
)
