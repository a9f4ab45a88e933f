/**
 * The embedded database: one SQLite file under the data folder, in WAL mode and synced at every commit. One
 * connection serves the whole process; bun:sqlite is synchronous, so a permit is all it takes to keep the
 * transactions of concurrent fibers apart. Other processes may use the same file at the same time.
 */
import { Database, SQLiteError, type SQLQueryBindings } from "bun:sqlite"
import { randomUUID } from "node:crypto"
import { mkdirSync } from "node:fs"
import { join } from "node:path"
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import { Clock, Context, Effect, Layer, Option, Stream } from "effect"
import { type Dependency, DependencyDown } from "../../services/ports/Dependencies.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute, databaseSpan } from "../../services/Telemetry.ts"
import { embedded } from "../sql/migrations/embedded.ts"
import { interactionLog } from "../sql/migrations/interactionLog.ts"
import { migrate, pending } from "../sql/SqlMigrations.ts"

export class Sqlite extends Context.Tag("user-embeddings/Sqlite")<
  Sqlite,
  {
    /**
     * Runs synchronous statements on the connection, none of another fiber in between. Not for use inside
     * `SqlClient.withTransaction`, which holds the connection.
     */
    readonly use: <A>(statements: (database: Database) => A) => Effect.Effect<A, SqlError>
    /** The same in one write transaction: all or nothing. */
    readonly transaction: <A>(statements: (database: Database) => A) => Effect.Effect<A, SqlError>
  }
>() {}

/** Name of the file in the data folder. */
export const fileName = "user-embeddings.sqlite"

/** How long a statement waits for another process's transaction; it blocks this process meanwhile. */
const busyTimeoutMillis = 5_000

const codeOf = ({ cause }: SqlError): string => (cause instanceof SQLiteError && cause.code) || ""

/** What a failed statement means to the caller of a port. */
export const failureReason = (error: SqlError): "unavailable" | "not_set_up" | "rejected" => {
  if (/^SQLITE_(BUSY|LOCKED|IOERR|CANTOPEN|FULL|READONLY)/.test(codeOf(error))) return "unavailable"
  return error.cause instanceof SQLiteError && /^no such (table|column)/.test(error.cause.message)
    ? "not_set_up"
    : "rejected"
}

/** A unique key is taken; nothing of the statement was kept. */
export const isDuplicateKey = (error: SqlError): boolean =>
  ["SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"].includes(codeOf(error))

/** Never: writers wait for each other, and a statement is all or nothing. */
export const isConflict = (_: SqlError): boolean => false

const open = (directory: string) => {
  const file = join(directory, fileName)
  return Effect.try({
    try: () => {
      mkdirSync(directory, { recursive: true })
      const database = new Database(file, { create: true, readwrite: true, strict: true })
      for (const pragma of [
        `busy_timeout = ${busyTimeoutMillis}`,
        "journal_mode = WAL",
        "synchronous = FULL",
        // 32 MB: a page of an index that many rows touch is then copied back once for all of them.
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
        remedy: "let DATA_DIR name a folder that this process may create and write to",
      }),
  })
}

const attempt = <A>(run: () => A) =>
  Effect.try({ try: run, catch: (cause) => new SqlError({ cause, message: "SQLite statement failed" }) })

const makeConnection = (database: Database): Connection => {
  const all = (sql: string, params: ReadonlyArray<unknown>) =>
    attempt(() => database.query<object, Array<SQLQueryBindings>>(sql).all(...bindings(params)))
  return {
    execute: (sql, params, transform) => Effect.map(all(sql, params), (rows) => transform?.(rows) ?? rows),
    executeUnprepared: (sql, params, transform) =>
      Effect.map(all(sql, params), (rows) => transform?.(rows) ?? rows),
    executeRaw: (sql, params) => attempt(() => database.query(sql).run(...bindings(params))),
    executeValues: (sql, params) => attempt(() => database.query(sql).values(...bindings(params))),
    executeStream: () => Stream.dieMessage("SQLite rows are read in pages"),
  }
}

/** Bind parameters are primitives by convention of this project; SQLite refuses anything else itself. */
const bindings = (params: ReadonlyArray<unknown>) => params as ReadonlyArray<SQLQueryBindings>

/** How long statements may follow each other before timers and requests get a turn. */
const turnMillis = 10

/**
 * Statements are synchronous, and fibers go on in microtasks: a worker with a backlog would keep the event loop for
 * thousands of them, and the HTTP server beside it would answer nobody.
 */
const makeYielding = () => {
  let since = 0
  const turn = Effect.async<void>((resume) => {
    const immediate = setImmediate(() => resume(Effect.void))
    return Effect.sync(() => clearImmediate(immediate))
  })
  return Effect.clockWith((clock) => {
    if (clock.unsafeCurrentTimeMillis() - since < turnMillis) return Effect.void
    return Effect.map(turn, () => {
      since = clock.unsafeCurrentTimeMillis()
    })
  })
}

/** Opens the database in `directory`, which is created. */
export const make = Effect.fnUntraced(function* (options: { readonly directory: string }) {
  const database = yield* Effect.acquireRelease(open(options.directory), (database) =>
    Effect.sync(() => database.close()),
  )
  const permit = yield* Effect.makeSemaphore(1)
  const connection = makeConnection(database)
  const yieldToEventLoop = makeYielding()
  const hold = Effect.uninterruptibleMask((restore) =>
    Effect.zipRight(
      restore(permit.take(1)),
      Effect.addFinalizer(() => permit.release(1)),
    ),
  )
  const client = yield* SqlClient.make({
    acquirer: Effect.zipRight(yieldToEventLoop, Effect.as(hold, connection)),
    beginTransaction: "BEGIN IMMEDIATE",
    compiler: Statement.makeCompilerSqlite(),
    spanAttributes: [[attribute.dbSystem, "sqlite"]],
  })
  const use = <A>(statements: (database: Database) => A) =>
    Effect.zipRight(yieldToEventLoop, permit.withPermits(1)(attempt(() => statements(database))))
  const sqlite = Sqlite.of({
    use,
    transaction: (statements) => use(() => database.transaction(() => statements(database)).immediate()),
  })
  return Context.make(Sqlite, sqlite).pipe(Context.add(SqlClient.SqlClient, client))
})

/** The database in `directory`. Fails only when its file can't be opened. */
export const layer = (options: { readonly directory: string }) =>
  Layer.scopedContext(make(options)).pipe(Layer.provide(Reactivity.layer))

/** The database under DATA_DIR. */
export const layerConfig = Layer.unwrapEffect(
  Effect.map(Settings.DATA_DIR, (directory) => layer({ directory })),
)

/** How long a lease outlives a process that died with it. */
const leaseMillis = 10_000

/**
 * Runs an effect while this process holds the lease `name` of the file; `None` when another one holds it. Fails
 * when the lease is lost, which takes a process that was stopped for longer than the lease.
 */
export const exclusively =
  (name: string) =>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
  ): Effect.Effect<Option.Option<A>, E | SqlError, R | SqlClient.SqlClient> =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const holder = randomUUID()
      const take = Effect.flatMap(
        Clock.currentTimeMillis,
        (now) => sql`
          INSERT INTO leases (name, holder, expires_at) VALUES (${name}, ${holder}, ${now + leaseMillis})
          ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
            WHERE holder = excluded.holder OR expires_at <= ${now}
          RETURNING holder`,
      ).pipe(Effect.map((rows) => rows.length === 1))
      const release = Effect.ignore(sql`DELETE FROM leases WHERE name = ${name} AND holder = ${holder}`)
      const held = yield* Effect.acquireRelease(take, (held) => (held ? release : Effect.void))
      if (!held) return Option.none<A>()
      const lost = take.pipe(
        Effect.filterOrFail(
          (held) => held,
          () => new SqlError({ cause: new Error(`the lease ${name} was lost`) }),
        ),
        Effect.delay("2 seconds"),
        Effect.forever,
      )
      return Option.some(yield* Effect.raceFirst(effect, lost))
    }).pipe(Effect.scoped)

/** Ping, missing migrations and setup. */
export const dependency: Effect.Effect<Dependency, never, SqlClient.SqlClient> = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const ask = <A>(effect: Effect.Effect<A, SqlError, SqlClient.SqlClient>) =>
    effect.pipe(
      Effect.mapError(
        (error) =>
          new DependencyDown({
            dependency: "sqlite",
            detail: error.cause instanceof Error ? error.cause.message : error.message,
            remedy: "free the disk, or stop the other program that holds the file",
          }),
      ),
      Effect.provideService(SqlClient.SqlClient, sql),
    )
  const lists = [interactionLog, embedded]
  return {
    name: "sqlite",
    essentialFor: ["api", "worker", "relay"],
    ping: ask(
      Effect.map(
        sql<{ version: string }>`SELECT sqlite_version() AS version`,
        (rows) => rows[0]?.version ?? "",
      ),
    ),
    missing: ask(
      Effect.map(Effect.forEach(lists, pending), (names) => names.flat().map((name) => `migration ${name}`)),
    ),
    setup: ask(
      Effect.map(sql.withTransaction(Effect.forEach(lists, migrate)), (names) =>
        names.flat().map((name) => `ran migration ${name}`),
      ),
    ),
  }
})

/**
 * Turns a failed statement into the error of a port: `failingWith((f) => new XError(f))("save")(effect)`; with a
 * `table` in a span of its own.
 */
export const failingWith =
  <E>(
    error: (failure: { reason: ReturnType<typeof failureReason>; operation: string; cause: unknown }) => E,
    table?: string,
  ) =>
  (operation: string) =>
  <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, E> => {
    const failing = Effect.mapError(effect, (failed) =>
      error({ reason: failureReason(failed), operation, cause: failed.cause ?? failed }),
    )
    return table === undefined ? failing : databaseSpan("sqlite", operation, table)(failing)
  }
