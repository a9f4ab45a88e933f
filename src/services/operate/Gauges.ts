/**
 * Keeps the gauges current while the scope lives. What is far away is asked at an interval and not per scrape, so that
 * any number of scrapers cost the same; what can't be found out keeps its last value.
 */
import { Clock, Duration, Effect, Layer, Metric, Schedule } from "effect"
import { InteractionLog } from "../ports/InteractionLog.ts"
import {
  failedQueue,
  InteractionQueue,
  quarantineQueue,
  queue,
  retryQueue,
} from "../ports/InteractionQueue.ts"
import * as Telemetry from "../Telemetry.ts"

const interval = Duration.seconds(5)
/** Between two looks at how late a timer comes. */
const tick = Duration.millis(500)

const polling = <E, R>(look: Effect.Effect<unknown, E, R>, every: Duration.Duration) =>
  Effect.ignore(look).pipe(
    Effect.repeat(Schedule.spaced(every)),
    Telemetry.untraced,
    Effect.forkScoped,
    Layer.scopedDiscard,
  )

/** Depths of all queues and the consumers of the main one. */
export const queues = polling(
  Effect.gen(function* () {
    const { failed, quarantined: isolated, main, retry } = yield* (yield* InteractionQueue).depths
    yield* Metric.set(Telemetry.queueDepth(queue), main.ready)
    yield* Metric.set(Telemetry.queueConsumers, main.consumers)
    yield* Metric.set(Telemetry.queueDepth(quarantineQueue), isolated)
    yield* Metric.set(Telemetry.queueDepth(failedQueue), failed)
    for (const [delay, waiting] of Object.entries(retry))
      yield* Metric.set(Telemetry.queueDepth(retryQueue(Number(delay))), waiting)
    if (main.ready === 0) yield* Metric.set(Telemetry.queueAge, 0)
  }),
  interval,
)

/** Rows that wait to be published. */
export const outbox = polling(
  Effect.gen(function* () {
    const { oldestUnpublishedSeconds, unpublished } = yield* (yield* InteractionLog).outbox
    yield* Metric.set(Telemetry.outboxRows, unpublished)
    yield* Metric.set(Telemetry.outboxAge, oldestUnpublishedSeconds ?? 0)
  }),
  interval,
)

/** Memory, and by how much the event loop was late at worst in the last interval. */
export const ownProcess = polling(
  Effect.gen(function* () {
    let worst = 0
    for (let left = Duration.toMillis(interval); left > 0; left -= Duration.toMillis(tick)) {
      const before = yield* Clock.currentTimeMillis
      yield* Effect.sleep(tick)
      worst = Math.max(worst, (yield* Clock.currentTimeMillis) - before - Duration.toMillis(tick))
    }
    yield* Metric.set(Telemetry.eventLoopDelay, worst / 1000)
    yield* Metric.set(Telemetry.residentMemory, process.memoryUsage.rss())
  }),
  Duration.zero,
)
