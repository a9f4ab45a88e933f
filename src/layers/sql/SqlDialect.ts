/**
 * What the interaction log needs to know about a SQL database beyond its `SqlClient`. A new database provides one
 * value of this type, its own `CREATE TABLE` in `migrations/interactionLog.ts`, and passes
 * `test/contracts/InteractionLogContract.ts`.
 */
import type { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Statement } from "@effect/sql/Statement"
import { Context, type Effect, type Option } from "effect"
import type { InteractionLogError } from "../../services/ports/InteractionLog.ts"

/** Names the server of the `SqlClient` in errors; `undefined` for a file. */
export class SqlServerName extends Context.Reference<SqlServerName>()("user-embeddings/SqlServerName", {
  defaultValue: (): string | undefined => undefined,
}) {}

/** A client for reads that may be slow; `undefined`: the `SqlClient` runs them. */
export class SqlReader extends Context.Reference<SqlReader>()("user-embeddings/SqlReader", {
  defaultValue: (): SqlClient | undefined => undefined,
}) {}

/** A client whose statements may take hours; `undefined`: the `SqlClient` runs them. */
export class SqlMigrator extends Context.Reference<SqlMigrator>()("user-embeddings/SqlMigrator", {
  defaultValue: (): SqlClient | undefined => undefined,
}) {}

/** An INSERT. A statement that recurs is worth preparing. */
export interface Insert {
  readonly sql: string
  readonly values: ReadonlyArray<string | number | null>
  readonly recurs: boolean
}

/**
 * Runs an INSERT outside a transaction, with the answer that {@link SqlDialect.runInsert} has. The scope and the spans of
 * the `SqlClient` cost more than the INSERT of a few rows. `undefined`: the `SqlClient` runs it.
 */
export class SqlInserts extends Context.Reference<SqlInserts>()("user-embeddings/SqlInserts", {
  defaultValue: (): ((insert: Insert) => Effect.Effect<unknown, SqlError>) | undefined => undefined,
}) {}

export interface SqlDialect {
  /** The attribute `db.system.name` of the spans of statements. */
  readonly system: string
  /** The reason that the port reports for a failed statement. */
  readonly failureReason: (error: SqlError) => InteractionLogError["reason"]
  /** The statement violated a unique key, and the database kept none of its changes. */
  readonly isDuplicateKey: (error: SqlError) => boolean
  /**
   * The connection was lost or leads to a server that takes no more writes, so the same statement may succeed on another
   * connection. Whether it had an effect is unknown.
   */
  readonly isConnectionLost: (error: SqlError) => boolean
  /** The statement was not run, because it is too large for the server. */
  readonly isTooLarge: (error: SqlError) => boolean
  /** A deadlock or a lock timeout rolled the statement back, so the same statement may be run again. */
  readonly isConflict: (error: SqlError) => boolean
  /** The clause after a table's name that makes the planner use an index; empty where the planner needs no hint. */
  readonly forceIndex: (index: string) => string
  /** Runs an INSERT for {@link insertedIds}. A statement that recurs is worth preparing. */
  readonly runInsert: (insert: Statement<object>, recurs: boolean) => Effect.Effect<unknown, SqlError>
  /** The ids of the rows of an INSERT, in the order of its rows. */
  readonly insertedIds: (answer: unknown, rows: number) => ReadonlyArray<number>
  /** The number of rows that a statement changed, from the driver's answer to a `raw` statement. */
  readonly affectedRows: (answer: unknown) => number
  /**
   * Runs an effect while this process holds the lock `name`, which all clients of the database share. Succeeds with
   * `None` when another process holds the lock. Fails and interrupts the effect when the lock is lost meanwhile.
   */
  readonly withNamedLock: (
    name: string,
  ) => <A, E, R>(
    effect: Effect.Effect<A, E, R>,
  ) => Effect.Effect<Option.Option<A>, E | SqlError, R | SqlClient>
}

/** Locks the rows that a SELECT of a transaction reads. SQLite locks its database instead. */
export const forUpdate = (sql: SqlClient) =>
  sql.onDialectOrElse({ mysql: () => sql.literal("FOR UPDATE"), orElse: () => sql.literal("") })
