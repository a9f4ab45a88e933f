/** A worker reports what it holds, its rate and its outage, so that the page and `stats` can show every worker. */
import { Clock, Duration, Effect, Layer, Schedule } from "effect"
import { warning } from "../Outages.ts"
import { WorkerReports } from "../ports/WorkerReports.ts"
import * as Telemetry from "../Telemetry.ts"
import { EmbeddingWorker, type Look } from "./EmbeddingWorker.ts"

/** One small write: a system at rest must cost next to nothing. */
export const reportEvery = Duration.seconds(10)
/** A start has more urgent things to do. */
const firstReportAfter = Duration.seconds(1)
/** A worker that stops does not wait longer for the database. */
const forgetDeadline = Duration.seconds(2)

type Outage = NonNullable<Look["outage"]>

const secondsSince = (millis: number, now: number) => Math.max(0, now - millis) / 1_000

const reported = (outage: Outage, now: number) => ({
  reason: outage.reason,
  seconds: secondsSince(outage.since, now),
  oldestSeconds: outage.oldestRecordedAt === undefined ? null : secondsSince(outage.oldestRecordedAt, now),
})

/** Reports until the scope closes. A report that fails is no failure of the worker, and the next one tells the same. */
export const reporting = (worker: string) =>
  Layer.scopedDiscard(
    Effect.gen(function* () {
      const { look } = yield* EmbeddingWorker
      const reports = yield* WorkerReports
      let before = { acknowledged: 0, at: yield* Clock.currentTimeMillis }
      const report = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const { acknowledged, held, outage } = yield* look
        const lapse = secondsSince(before.at, now)
        const perSecond = lapse === 0 ? 0 : (acknowledged - before.acknowledged) / lapse
        before = { acknowledged, at: now }
        yield* reports.report({
          worker,
          held,
          acknowledged,
          perSecond,
          outage: outage === undefined ? null : reported(outage, now),
        })
      })
      yield* Effect.addFinalizer(() =>
        reports.forget(worker).pipe(Effect.interruptible, Effect.timeout(forgetDeadline), Effect.ignore),
      )
      yield* report.pipe(
        warning("worker.report_failed"),
        Effect.repeat(Schedule.spaced(reportEvery)),
        Effect.delay(firstReportAfter),
        Telemetry.untraced,
        Effect.forkScoped,
      )
    }),
  )
