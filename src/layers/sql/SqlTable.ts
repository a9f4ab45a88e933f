/** The table of the interaction log, with what its statements have in common. */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { type Context, Effect } from "effect"
import { InteractionLogError } from "../../services/ports/InteractionLog.ts"
import { deadlockRetry } from "../../services/RetryPolicies.ts"
import { databaseSpan, untraced } from "../../services/Telemetry.ts"
import { columns, tableName } from "./InteractionRows.ts"
import { personOf } from "./SqlAliases.ts"
import type { SqlDialect, SqlInserts } from "./SqlDialect.ts"

/** Rows that one statement reads or changes. */
export const rowsPerPage = 500

/** Most statements meet no conflict: only one that does pays for the schedule. */
export const afterConflicts = <A>({ isConflict }: SqlDialect, run: Effect.Effect<A, SqlError>) =>
  Effect.catchIf(run, isConflict, () => Effect.retry(run, { schedule: deadlockRetry, while: isConflict }))

export const makeTable = (
  sql: SqlClient.SqlClient,
  dialect: SqlDialect,
  server: string | undefined,
  /** For INSERTs outside a transaction. */
  runInsert: Context.Tag.Service<SqlInserts>,
) => {
  const portError = (operation: string) => (error: SqlError) => {
    const reason = dialect.failureReason(error)
    const cause =
      reason === "not_set_up"
        ? new Error(`the table ${tableName} is missing or old: run \`user-embeddings setup\``, {
            cause: error.cause,
          })
        : error.cause
    return new InteractionLogError({ reason, operation, cause, server })
  }

  /** One statement: with a span, and run again after a deadlock. The client's own span would repeat that span. */
  const statement =
    (operation: "INSERT" | "SELECT" | "UPDATE" | "DELETE") =>
    <A>(run: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> =>
      afterConflicts(dialect, untraced(run)).pipe(databaseSpan(dialect.system, operation, tableName))

  return {
    sql,
    dialect,
    runInsert,
    portError,
    statement,
    /** A SELECT of the port's `operation`. */
    select:
      (operation: string) =>
      <A>(query: Effect.Effect<A, SqlError>) =>
        Effect.mapError(statement("SELECT")(query), portError(operation)),
    /** Statements of the port's `operation` on the notes of erasures and refunds. All of them run again after a deadlock. */
    erasing:
      (operation: string) =>
      <A>(run: Effect.Effect<A, SqlError>) =>
        run.pipe(
          untraced,
          Effect.retry({ schedule: deadlockRetry, while: dialect.isConflict }),
          Effect.mapError(portError(operation)),
        ),
    name: sql(tableName),
    columns: sql.literal(columns.join(", ")),
    /** The table's name with a hint to use an index. */
    withIndex: (index: "PRIMARY" | `user_interactions_${"outbox" | "history" | "products"}`) =>
      sql.literal(`${tableName} ${dialect.forceIndex(index)}`),
  }
}
export type Table = ReturnType<typeof makeTable>

/** The ids of a person, by one of them. */
export const person =
  ({ select, sql }: Table) =>
  (user: string) =>
    select("person")(personOf(sql, user))
