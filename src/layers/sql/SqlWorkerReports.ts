/** The reports of workers: one row a worker in the database of the log. */
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer, Option, Schema } from "effect"
import { WorkerReports } from "../../services/ports/WorkerReports.ts"
import { databaseClock } from "./DatabaseClock.ts"
import { type SqlDialect, SqlReader } from "./SqlDialect.ts"
import { statementsOf } from "./SqlStatements.ts"

/** Older reports are of workers that died long ago. */
const shownMillis = 15 * 60_000
const keptMillis = 24 * 60 * 60_000
/** Characters: an error may quote a whole answer of a server. */
const longestReason = 500

/** Without the name of the worker, which is the key of the row. */
const Stored = Schema.parseJson(
  Schema.Struct({
    held: Schema.Number,
    acknowledged: Schema.Number,
    perSecond: Schema.Number,
    outage: Schema.NullOr(
      Schema.Struct({
        reason: Schema.String,
        seconds: Schema.Number,
        oldestSeconds: Schema.NullOr(Schema.Number),
      }),
    ),
  }),
)
const decode = Schema.decodeUnknownOption(Stored)

const make = (dialect: SqlDialect) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const reads = (yield* SqlReader) ?? sql
    const run = yield* statementsOf(dialect)
    const clock = databaseClock(sql)
    const age = clock.ageOf("reported_at")
    const removeOld = sql`DELETE FROM worker_reports WHERE ${age} > ${keptMillis}`
    return WorkerReports.of({
      report: ({ outage, worker, ...report }) => {
        const shortened = outage && { ...outage, reason: outage.reason.slice(0, longestReason) }
        const text = JSON.stringify({ ...report, outage: shortened })
        return sql`REPLACE INTO worker_reports (worker, reported_at, report)
          VALUES (${worker}, ${clock.now}, ${text})`.pipe(run("report"), Effect.asVoid)
      },
      forget: (worker) =>
        Effect.zipRight(removeOld, sql`DELETE FROM worker_reports WHERE worker = ${worker}`).pipe(
          run("forgetReport"),
          Effect.asVoid,
        ),
      latest: reads<{ worker: string; report: string; age: number }>`
        SELECT worker, report, ${age} AS age FROM worker_reports WHERE ${age} <= ${shownMillis} ORDER BY worker`.pipe(
        run("reports"),
        // A program of another release may write other reports.
        Effect.map((rows) =>
          rows.flatMap(({ age, report, worker }) =>
            Option.match(decode(report), {
              onNone: () => [],
              onSome: (stored) => [{ ...stored, worker, ageSeconds: Math.max(0, Number(age)) / 1_000 }],
            }),
          ),
        ),
      ),
    })
  })

/** The reports in the database of `SqlClient`, which must be one of this dialect. */
export const layer = (dialect: SqlDialect): Layer.Layer<WorkerReports, never, SqlClient.SqlClient> =>
  Layer.effect(WorkerReports, make(dialect))
