/**
 * Figures of the last 24 hours, one sample a minute, in the memory of the API: about 100 KB. They begin anew with the
 * process. The samples are made from the looks that also set the gauges, so the servers are asked no more often.
 */
import { Clock, Context, Duration, Effect, Layer, Option, Schema } from "effect"
import { InteractionLog, type Outbox } from "../ports/InteractionLog.ts"
import type { Depths } from "../ports/InteractionQueue.ts"
import { type LastReport, WorkerReports } from "../ports/WorkerReports.ts"
import * as Telemetry from "../Telemetry.ts"
import * as Gauges from "./Gauges.ts"
import { latency, oldestWaiting, retryingIn, waitingIn } from "./SystemStats.ts"

const sampleEvery = Duration.minutes(1)
const kept = 24 * 60
/** A server that does not answer must not hold up the samples. */
const firstLooksTimeout = Duration.seconds(5)

const Figure = Schema.NullOr(Schema.Number)
/** `null`: not known. */
export const Sample = Schema.Struct({
  /** Unix seconds. */
  at: Schema.Number,
  waiting: Figure,
  oldest_waiting_s: Figure,
  retrying: Figure,
  failed: Figure,
  /** Events recorded per second since the sample before. */
  recorded: Figure,
  /** Events that workers acknowledged per second since the sample before. */
  applied: Figure,
  /** From recording a live event to its embedding, in the minute before. */
  p50: Figure,
  p95: Figure,
})
export type Sample = typeof Sample.Type
export const HistoryFigures = Schema.Struct({
  interval_s: Schema.Number,
  samples: Schema.Array(Sample).annotations({ description: "oldest first" }),
}).annotations({ identifier: "History" })

export class History extends Context.Tag("user-embeddings/History")<
  History,
  {
    /** The samples of the last hours. */
    readonly since: (hours: number) => Effect.Effect<typeof HistoryFigures.Type>
  }
>() {}

/** What the sample before knew. */
interface Before {
  readonly at: number
  readonly maxId: number | null
  readonly acknowledged: ReadonlyMap<string, number>
}

/** Workers that reported at both samples count, and new ones with all that they have done. */
const acknowledgedSince = (before: Before, reports: ReadonlyArray<LastReport>) =>
  reports.reduce(
    (sum, { acknowledged, worker }) =>
      sum + Math.max(0, acknowledged - (before.acknowledged.get(worker) ?? 0)),
    0,
  )

const orNull = <A, E, R>(read: Effect.Effect<A, E, R>) => Effect.map(Effect.option(read), Option.getOrNull)

/** Makes a sample of what the gauges saw last. Only what has changed is measured. */
const take = Effect.fnUntraced(function* (
  depths: Depths | undefined,
  outbox: Outbox | undefined,
  before: Before | undefined,
) {
  const now = yield* Clock.currentTimeMillis
  const reports = yield* orNull((yield* WorkerReports).latest)
  const maxId = yield* orNull((yield* InteractionLog).maxId)
  const lapse = before === undefined ? 0 : (now - before.at) / 1_000
  const perSecond = (count: number) => (lapse > 0 ? count / lapse : null)
  const waiting = depths && outbox ? waitingIn(depths, outbox) : null
  const idBefore = before?.maxId ?? null
  const recordedSince = maxId === null || idBefore === null ? null : Math.max(0, maxId - idBefore)
  const applied = before === undefined || reports === null ? null : acknowledgedSince(before, reports)
  const isBusy = before !== undefined && (recordedSince !== 0 || applied !== 0)
  const measured = isBusy ? yield* orNull(latency(Duration.toMillis(sampleEvery))) : null
  const sample: Sample = {
    at: Math.round(now / 1_000),
    waiting,
    oldest_waiting_s:
      waiting === null
        ? null
        : ((yield* orNull(oldestWaiting(waiting, outbox?.oldestUnpublishedSeconds ?? null, reports ?? []))) ??
          0),
    retrying: depths ? retryingIn(depths) : null,
    failed: depths?.failed ?? null,
    recorded: recordedSince === null ? null : perSecond(recordedSince),
    applied: applied === null ? null : perSecond(applied),
    p50: measured?.waited?.p50 ?? null,
    p95: measured?.waited?.p95 ?? null,
  }
  const acknowledged = new Map(reports?.map(({ acknowledged, worker }) => [worker, acknowledged]))
  return { sample, before: { at: now, maxId, acknowledged } }
})

const make = Effect.gen(function* () {
  const samples: Array<Sample> = []
  let depths: Depths | undefined
  let outbox: Outbox | undefined
  let before: Before | undefined
  const looked = [yield* Effect.makeLatch(), yield* Effect.makeLatch()] as const
  // A figure of a server that does not answer is not known.
  const looking = Effect.gen(function* () {
    depths = Option.getOrUndefined(yield* Effect.option(Gauges.lookAtQueues))
    yield* looked[0].open
  })
  const lookingAtOutbox = Effect.gen(function* () {
    outbox = Option.getOrUndefined(yield* Effect.option(Gauges.lookAtOutbox))
    yield* looked[1].open
  })
  const sampling = Effect.gen(function* () {
    const taken = yield* take(depths, outbox, before)
    before = taken.before
    samples.push(taken.sample)
    if (samples.length > kept) samples.shift()
  })
  yield* Layer.build(
    Layer.merge(
      Gauges.polling(looking, Gauges.serverInterval),
      Gauges.polling(lookingAtOutbox, Gauges.serverInterval),
    ),
  )
  const firstLooks = Effect.timeoutOption(
    Effect.forEach(looked, (latch) => latch.await, { discard: true }),
    firstLooksTimeout,
  )
  // A start has more urgent things to do.
  yield* Effect.zipRight(firstLooks, Effect.delay(sampling, "1 second")).pipe(
    Effect.zipRight(Effect.forever(Effect.zipRight(Effect.sleep(sampleEvery), sampling))),
    Telemetry.untraced,
    Effect.forkScoped,
  )
  return History.of({
    since: (hours) =>
      Effect.map(Clock.currentTimeMillis, (now) => ({
        interval_s: Duration.toSeconds(sampleEvery),
        samples: samples.filter(({ at }) => at >= now / 1_000 - hours * 3_600),
      })),
  })
})

export const layer = Layer.scoped(History, make)
