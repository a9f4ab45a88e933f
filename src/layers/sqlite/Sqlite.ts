/**
 * The embedded database: one SQLite file in the data folder, in WAL mode and synced at every commit. The process has
 * one connection. A semaphore keeps the transactions of concurrent fibers apart, which suffices because bun:sqlite is
 * synchronous. Other processes may use the same file at the same time.
 */
import { Database, SQLiteError, type SQLQueryBindings } from "bun:sqlite"
import { randomUUID } from "node:crypto"
import { chmodSync, closeSync, existsSync, mkdirSync, openSync } from "node:fs"
import { join } from "node:path"
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import { Clock, Context, Duration, Effect, Layer, Option, Stream } from "effect"
import { yieldToEventLoop } from "../../services/EventLoop.ts"
import { type Dependency, DependencyDown } from "../../services/ports/Dependencies.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute, databaseSpan } from "../../services/Telemetry.ts"
import { embedded } from "../sql/migrations/embedded.ts"
import { interactionLog } from "../sql/migrations/interactionLog.ts"
import { type SqlDialect, SqlInserts } from "../sql/SqlDialect.ts"
import { migrate, pending } from "../sql/SqlMigrations.ts"

export class Sqlite extends Context.Tag("user-embeddings/Sqlite")<
  Sqlite,
  {
    /**
     * Runs synchronous statements without statements of other fibers in between. Deadlocks inside
     * `SqlClient.withTransaction`, which holds the connection.
     */
    readonly use: <A>(statements: (database: Database) => A) => Effect.Effect<A, SqlError>
    /** The same, in one write transaction. */
    readonly transaction: <A>(statements: (database: Database) => A) => Effect.Effect<A, SqlError>
  }
>() {}

export const fileName = "user-embeddings.sqlite"

/** How long a statement waits for another process's transaction. The wait blocks this process. */
const busyTimeoutMillis = 5_000

const codeOf = ({ cause }: SqlError): string => (cause instanceof SQLiteError && cause.code) || ""

/** The reason that a port reports for a failed statement. */
export const failureReason = (
  error: SqlError,
): "unavailable" | "not_set_up" | "invalid_data" | "rejected" => {
  if (/^SQLITE_(BUSY|LOCKED|IOERR|CANTOPEN|FULL|READONLY)/.test(codeOf(error))) return "unavailable"
  if (/^SQLITE_(CONSTRAINT|TOOBIG|MISMATCH)/.test(codeOf(error))) return "invalid_data"
  return error.cause instanceof SQLiteError && /^no such (table|column)/.test(error.cause.message)
    ? "not_set_up"
    : "rejected"
}

/** Only the owner may read what users searched for. Files that SQLite adds get the permissions of the first. */
const protect = (file: string) => {
  closeSync(openSync(file, "a", 0o600))
  for (const each of [file, `${file}-wal`, `${file}-shm`]) if (existsSync(each)) chmodSync(each, 0o600)
}

/** How long the write-ahead log keeps deleted data at most, while no other process reads all the time. */
const emptyLogMillis = 60_000

/** Moves all changes from the write-ahead log into the file and empties the log, unless it is in use. */
const emptyWriteAheadLog = (database: Database) => {
  try {
    database.run("PRAGMA busy_timeout = 0")
    database.run("PRAGMA wal_checkpoint(TRUNCATE)")
  } catch {
    // A transaction is open. The next time will do.
  } finally {
    database.run(`PRAGMA busy_timeout = ${busyTimeoutMillis}`)
  }
}

const open = (directory: string) => {
  const file = join(directory, fileName)
  return Effect.try({
    try: () => {
      mkdirSync(directory, { recursive: true, mode: 0o700 })
      protect(file)
      const database = new Database(file, { create: true, readwrite: true, strict: true })
      for (const pragma of [
        `busy_timeout = ${busyTimeoutMillis}`,
        "journal_mode = WAL",
        "synchronous = FULL",
        // Overwrites what is deleted, so that no erased phrase stays in a free page.
        "secure_delete = ON",
        // 32 MB: a checkpoint copies an index page that many rows changed only once.
        "wal_autocheckpoint = 8000",
        "foreign_keys = ON",
      ])
        database.run(`PRAGMA ${pragma}`)
      return database
    },
    catch: (cause) =>
      new DependencyDown({
        dependency: "sqlite",
        detail: `cannot open ${file}: ${cause instanceof Error ? cause.message : String(cause)}`,
        remedy: "set DATA_DIR to a folder that this process may create and write to",
      }),
  })
}

const attempt = <A>(run: () => A) =>
  Effect.try({ try: run, catch: (cause) => new SqlError({ cause, message: "SQLite statement failed" }) })

const makeConnection = (database: Database): Connection => {
  const execute: Connection["execute"] = (sql, params, transform) =>
    Effect.map(
      attempt(() => database.query<object, Array<SQLQueryBindings>>(sql).all(...bindings(params))),
      (rows) => transform?.(rows) ?? rows,
    )
  return {
    execute,
    executeUnprepared: execute,
    executeRaw: (sql, params) => attempt(() => database.query(sql).run(...bindings(params))),
    executeValues: (sql, params) => attempt(() => database.query(sql).values(...bindings(params))),
    executeStream: () => Stream.dieMessage("streams of SQLite rows are not supported: read pages"),
  }
}

/** Safe, because SQLite itself rejects any parameter that is not a primitive. */
const bindings = (params: ReadonlyArray<unknown>) => params as ReadonlyArray<SQLQueryBindings>

/** How long statements may run before timers and requests get a turn. */
const turnMillis = 10

/**
 * Statements are synchronous and fibers continue in microtasks. Without a pause, a worker with a backlog would block
 * the event loop for thousands of statements, and with it the HTTP server of the same process.
 */
const makeYieldWhenDue = () => {
  let turnBegan = 0
  return Effect.clockWith((clock) => {
    if (clock.unsafeCurrentTimeMillis() - turnBegan < turnMillis) return Effect.void
    return Effect.map(yieldToEventLoop, () => {
      turnBegan = clock.unsafeCurrentTimeMillis()
    })
  })
}

export const make = Effect.fnUntraced(function* (options: { readonly directory: string }) {
  const database = yield* Effect.acquireRelease(open(options.directory), (database) =>
    Effect.sync(() => database.close()),
  )
  yield* Effect.acquireRelease(
    Effect.sync(() => setInterval(() => emptyWriteAheadLog(database), emptyLogMillis)),
    (timer) =>
      Effect.sync(() => {
        clearInterval(timer)
        emptyWriteAheadLog(database)
      }),
  )
  const semaphore = yield* Effect.makeSemaphore(1)
  const connection = makeConnection(database)
  const yieldWhenDue = makeYieldWhenDue()
  const lockForScope = Effect.uninterruptibleMask((restore) =>
    Effect.zipRight(
      restore(semaphore.take(1)),
      Effect.addFinalizer(() => semaphore.release(1)),
    ),
  )
  const client = yield* SqlClient.make({
    acquirer: Effect.zipRight(yieldWhenDue, Effect.as(lockForScope, connection)),
    beginTransaction: "BEGIN IMMEDIATE",
    compiler: Statement.makeCompilerSqlite(),
    spanAttributes: [[attribute.dbSystem, "sqlite"]],
  })
  const use = <A>(statements: (database: Database) => A) =>
    Effect.zipRight(yieldWhenDue, semaphore.withPermits(1)(attempt(() => statements(database))))
  const sqlite = Sqlite.of({
    use,
    transaction: (statements) => use(() => database.transaction(() => statements(database)).immediate()),
  })
  return Context.make(Sqlite, sqlite).pipe(
    Context.add(SqlClient.SqlClient, client),
    Context.add(SqlInserts, ({ sql, values }) => use((database) => database.query(sql).run(...values))),
  )
})

/** The database in `directory`. Fails only when the file cannot be opened. */
export const layer = (options: { readonly directory: string }) =>
  Layer.scopedContext(make(options)).pipe(Layer.provide(Reactivity.layer))

export const layerConfig = Layer.unwrapEffect(
  Effect.map(Settings.DATA_DIR, (directory) => layer({ directory })),
)

/** How long the lease of a dead process keeps other processes waiting. */
const leaseMillis = 10_000
const leaseRenewal = Duration.seconds(2)

/**
 * See {@link SqlDialect}. SQLite has no named locks, so the lock is a lease in a table. A process that is stopped for
 * longer than the lease loses it.
 */
const withNamedLock: SqlDialect["withNamedLock"] =
  (name) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const holder = randomUUID()
      const acquireOrRenew = Effect.flatMap(
        Clock.currentTimeMillis,
        (now) => sql`
          INSERT INTO leases (name, holder, expires_at) VALUES (${name}, ${holder}, ${now + leaseMillis})
          ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
            WHERE holder = excluded.holder OR expires_at <= ${now}
          RETURNING holder`,
      ).pipe(Effect.map((rows) => rows.length === 1))
      const release = Effect.ignore(sql`DELETE FROM leases WHERE name = ${name} AND holder = ${holder}`)
      const acquired = yield* Effect.acquireRelease(acquireOrRenew, (acquired) =>
        acquired ? release : Effect.void,
      )
      if (!acquired) return Option.none<A>()
      const failWhenLost = acquireOrRenew.pipe(
        Effect.filterOrFail(
          (held) => held,
          () => new SqlError({ cause: new Error(`the lease ${name} was lost`) }),
        ),
        Effect.delay(leaseRenewal),
        Effect.forever,
      )
      return Option.some(yield* Effect.raceFirst(effect, failWhenLost))
    }).pipe(Effect.scoped)

export const dialect: SqlDialect = {
  system: "sqlite",
  failureReason,
  isDuplicateKey: (error) =>
    ["SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"].includes(codeOf(error)),
  isConnectionLost: () => false,
  isTooLarge: () => false,
  // Writers wait for each other, so no statement is rolled back in favour of another.
  isConflict: () => false,
  // Of two lists in a condition, SQLite looks for each pair of their values in the index of the second.
  forceIndex: (index) => (index === "PRIMARY" ? "NOT INDEXED" : ""),
  // Without the rows of a RETURNING clause, which cost 30 µs an event.
  runInsert: (insert) => insert.raw,
  // There is one writer at a time, so the rows of an INSERT have consecutive ids in their order.
  insertedIds: (answer, rows) => {
    const last = Number(Object(answer).lastInsertRowid)
    return Array.from({ length: rows }, (_, index) => last - rows + 1 + index)
  },
  affectedRows: (answer) => Number(Object(answer).changes ?? 0),
  withNamedLock,
}

/** The file as a dependency of `doctor`, `setup` and the health checks. */
export const dependency: Effect.Effect<Dependency, never, SqlClient.SqlClient> = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const run = <A>(effect: Effect.Effect<A, SqlError, SqlClient.SqlClient>) =>
    effect.pipe(
      Effect.mapError(
        (error) =>
          new DependencyDown({
            dependency: "sqlite",
            detail: error.cause instanceof Error ? error.cause.message : error.message,
            remedy: "free space on the disk, or stop the other program that locks the file",
          }),
      ),
      Effect.provideService(SqlClient.SqlClient, sql),
    )
  const migrations = [interactionLog, embedded]
  return {
    name: "sqlite",
    essentialFor: ["api", "worker", "relay"],
    ping: run(
      Effect.map(
        sql<{ version: string }>`SELECT sqlite_version() AS version`,
        (rows) => rows[0]?.version ?? "",
      ),
    ),
    missing: run(
      Effect.map(Effect.forEach(migrations, pending), (names) =>
        names.flat().map((name) => `migration ${name}`),
      ),
    ),
    setup: run(
      Effect.map(sql.withTransaction(Effect.forEach(migrations, migrate)), (names) =>
        names.flat().map((name) => `ran migration ${name}`),
      ),
    ),
  }
})

/** The values of the ids that have one. */
export const readById = <Id, Value>(ids: ReadonlyArray<Id>, read: (id: Id) => Value | null | undefined) =>
  new Map(
    ids.flatMap((id) => {
      const value = read(id) ?? undefined
      return value === undefined ? [] : [[id, value] as const]
    }),
  )

/** The first column of the first row: a count. */
export const countOf = (database: Database, sql: string, ...params: Array<SQLQueryBindings>): number =>
  Number(database.query(sql).values(...params)[0]?.[0] ?? 0)

/** A stream of pages, until one is not full. `page` reads up to `size` rows after a key. Other fibers run in between. */
export const paged = <Row, Key, E>(
  size: number,
  first: Key,
  page: (after: Key) => Effect.Effect<ReadonlyArray<Row>, E>,
  key: (row: Row) => Key,
) =>
  Stream.paginateEffect(first, (after) =>
    Effect.map(page(after), (rows) => [
      rows,
      rows.length === size ? Option.map(Option.fromNullable(rows.at(-1)), key) : Option.none(),
    ]),
  )

/** Logs a failed statement that is tried again, or whose failure changes nothing. */
export const logWarning = (event: string) => (error: { readonly cause?: unknown }) =>
  Effect.logWarning(event).pipe(Effect.annotateLogs({ error: "SqlError", detail: String(error.cause) }))

/**
 * Converts a failed statement into a port's error: `failingWith((fields) => new XError(fields))("save")(effect)`. With
 * a `table`, the effect gets a span.
 */
export const failingWith =
  <E>(
    makeError: (fields: { reason: ReturnType<typeof failureReason>; operation: string; cause: unknown }) => E,
    table?: string,
  ) =>
  (operation: string) =>
  <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, E> => {
    const failing = Effect.mapError(effect, (error) =>
      makeError({ reason: failureReason(error), operation, cause: error.cause ?? error }),
    )
    return table === undefined ? failing : databaseSpan("sqlite", operation, table)(failing)
  }
