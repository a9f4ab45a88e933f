/** What each worker reports of itself, for operators. A worker that has stopped reporting may have died. */
import { Context, type Effect } from "effect"
import type { InteractionLogError } from "./InteractionLog.ts"

/** Messages wait for a dependency. */
export interface ReportedOutage {
  readonly reason: string
  readonly seconds: number
  /** Since the recording of the oldest event that the worker has given back, if it has given back any. */
  readonly oldestSeconds: number | null
}

export interface WorkerReport {
  /** Host name and process id. */
  readonly worker: string
  /** Messages that the worker holds unsettled. */
  readonly held: number
  /** Messages acknowledged since the worker started. */
  readonly acknowledged: number
  /** Messages acknowledged per second since the report before. */
  readonly perSecond: number
  readonly outage: ReportedOutage | null
}

export interface LastReport extends WorkerReport {
  /** Age of the report, by the clock of the database: the clocks of processes may be wrong. */
  readonly ageSeconds: number
}

export class WorkerReports extends Context.Tag("user-embeddings/WorkerReports")<
  WorkerReports,
  {
    /** Replaces the worker's report before. */
    readonly report: (report: WorkerReport) => Effect.Effect<void, InteractionLogError>
    /** Removes the report of a worker that stops. */
    readonly forget: (worker: string) => Effect.Effect<void, InteractionLogError>
    /** The reports of the last 15 minutes, by the name of the worker. */
    readonly latest: Effect.Effect<ReadonlyArray<LastReport>, InteractionLogError>
  }
>() {}
