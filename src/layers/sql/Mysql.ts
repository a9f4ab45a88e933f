/**
 * The MySQL or MariaDB server of the interaction log as `SqlClient`. The layer does not wait for the server, so that
 * programs start while it is down. Statements then fail within seconds, and succeed again when the server is back. A
 * statement that is interrupted or exceeds its deadline closes its connection, because its outcome is unknown.
 */
import { createHash } from "node:crypto"
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import { makeCompiler } from "@effect/sql-mysql2/MysqlClient"
import {
  Cause,
  Clock,
  Config,
  ConfigError,
  Duration,
  Effect,
  Either,
  Layer,
  Option,
  Redacted,
  Stream,
} from "effect"
import { createPool, type Pool, type PoolConnection, type RowDataPacket } from "mysql2"
import { ServerOutage, serverName } from "../../services/Outages.ts"
import { clockFindings, type Dependency, DependencyDown } from "../../services/ports/Dependencies.ts"
import { textOf } from "../../services/ports/PortFailure.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute } from "../../services/Telemetry.ts"
import { within } from "../Deadline.ts"
import { interactionLog } from "./migrations/interactionLog.ts"
import { type SqlDialect, SqlServerName } from "./SqlDialect.ts"
import { migrate, pending } from "./SqlMigrations.ts"

const connections = 8
const connectDeadline = Duration.seconds(5)
/** Longer than {@link connectDeadline}: a wait beyond it means that all connections are busy. */
const acquireDeadline = Duration.seconds(6)
const statementDeadline = Duration.seconds(10)
/** Well below {@link statementDeadline}, so that the server reports a blocked statement and keeps the connection. */
const lockWaitSeconds = 2
/** How long `setup` waits while another process runs migrations. */
const setupWaitSeconds = 8

const session = [
  "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
  `SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = ${lockWaitSeconds},
    sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'`,
]

/** The distance between the ids of consecutive rows, by connection. Clusters set it to their number of servers. */
const idSteps = new WeakMap<object, number>()

/** The server's error code, if the error is an answer of the server. */
const serverError = (cause: unknown): { readonly errno?: unknown; readonly sqlState?: unknown } =>
  typeof cause === "object" && cause !== null ? cause : {}

/** Error codes of a server that is starting, stopping, full, read-only or overloaded. */
const temporaryErrors = new Set<unknown>([
  1040, 1041, 1053, 1077, 1129, 1203, 1205, 1213, 1290, 1792, 1836, 1927, 3169,
])
/**
 * The server stops, ends the connection or has become read-only. After a failover the old writer keeps its connections,
 * and only a new connection reaches the new writer.
 */
const staleConnection = new Set<unknown>([1053, 1290, 1792, 1836, 1927, 3169])
/** The user has no right to the database, which may not exist. */
const accessDenied = 1044
/** Unknown database, column or table. */
const notSetUp = new Set<unknown>([1049, 1054, 1146])
const duplicateEntry = 1062
/** Lock wait timeout, deadlock. */
const conflicts = new Set<unknown>([1205, 1213])

const failureReason: SqlDialect["failureReason"] = ({ cause }) => {
  if (Cause.isTimeoutException(cause)) return "timeout"
  const { errno, sqlState } = serverError(cause)
  if (notSetUp.has(errno)) return "not_set_up"
  return sqlState === undefined || temporaryErrors.has(errno) ? "unavailable" : "rejected"
}

const nameOf = (url: Redacted.Redacted) => serverName("MySQL", Redacted.value(url), 3306)

const unavailable = (message: string) => new SqlError({ cause: new Error(message), message })

const poolExhausted = () => unavailable(`all ${connections} connections to MySQL are busy`)

const connectionFailed = (cause: unknown) => new SqlError({ cause, message: "cannot connect to MySQL" })

const deadlineExceeded = () =>
  new SqlError({ cause: new Cause.TimeoutException("MySQL did not answer in time") })

const openPool = (url: Redacted.Redacted) => {
  const pool = createPool({
    uri: Redacted.value(url),
    connectionLimit: connections,
    connectTimeout: Duration.toMillis(connectDeadline),
    charset: "utf8mb4",
    timezone: "Z",
    dateStrings: true,
    jsonStrings: true,
    supportBigNumbers: true,
    maxPreparedStatements: 100,
  })
  // The driver queues these statements before the first statement of the connection's user.
  pool.on("connection", (connection) => {
    for (const statement of session)
      connection.query(statement, (cause) => {
        if (cause) connection.destroy()
      })
    connection.query<Array<RowDataPacket>>(
      "SELECT @@SESSION.auto_increment_increment AS step",
      (cause, rows) => {
        if (cause) connection.destroy()
        else idSteps.set(connection, Number(rows[0]?.step))
      },
    )
  })
  return pool
}

const closePool = (pool: Pool) =>
  Effect.async<void>((resume) => pool.end(() => resume(Effect.void))).pipe(
    Effect.interruptible,
    Effect.timeoutOption("2 seconds"),
    Effect.asVoid,
  )

/**
 * A connection for the scope. A connection that arrives after the scope has closed is returned to the pool at once.
 */
const reserve = (pool: Pool) =>
  Effect.gen(function* () {
    let reserved: PoolConnection | undefined
    let closed = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
        reserved?.release()
      }),
    )
    return yield* within<PoolConnection, SqlError>(acquireDeadline, poolExhausted, (resume) =>
      pool.getConnection((cause, connection) => {
        if (cause) return resume(connectionFailed(cause))
        if (closed) return connection.release()
        reserved = connection
        resume(Effect.succeed(connection))
      }),
    )
  })

interface Query {
  readonly method: "execute" | "query"
  readonly sql: string
  readonly values: ReadonlyArray<unknown>
  readonly rowsAsArray?: boolean
}
type Run = (query: Query) => Effect.Effect<unknown, SqlError>

const send = (
  connection: PoolConnection,
  { method, sql, values, rowsAsArray = false }: Query,
  resume: (answer: Effect.Effect<unknown, SqlError>) => void,
) =>
  connection[method]({ sql, values: [...values], rowsAsArray }, (cause: unknown, answer: unknown) => {
    if (cause) {
      if (staleConnection.has(serverError(cause).errno)) connection.destroy()
      return resume(new SqlError({ cause, message: "MySQL statement failed" }))
    }
    resume(
      Effect.succeed(Array.isArray(answer) ? answer : { ...Object(answer), idStep: idSteps.get(connection) }),
    )
  })

const runOn =
  (connection: PoolConnection): Run =>
  (query) =>
    within(
      statementDeadline,
      deadlineExceeded,
      (resume) => send(connection, query, resume),
      () => connection.destroy(),
    )

/**
 * Runs a query on any connection of the pool and returns the connection with the answer. This is written by hand,
 * because a scope for each statement costs as much CPU as a small statement.
 */
const runOnPool =
  (pool: Pool): Run =>
  (query) =>
    Effect.async<unknown, SqlError>((resume) => {
      let acquired: PoolConnection | undefined
      let ended = false
      const end = (dispose: (connection: PoolConnection) => void) => {
        clearTimeout(timer)
        ended = true
        if (acquired !== undefined) dispose(acquired)
      }
      const failWith = (error: () => SqlError) => () => {
        end(destroy)
        resume(error())
      }
      let timer = setTimeout(failWith(poolExhausted), Duration.toMillis(acquireDeadline))
      pool.getConnection((cause, connection) => {
        if (ended) return connection?.release()
        if (cause) {
          end(release)
          return resume(connectionFailed(cause))
        }
        acquired = connection
        clearTimeout(timer)
        timer = setTimeout(failWith(deadlineExceeded), Duration.toMillis(statementDeadline))
        send(connection, query, (answer) => {
          if (ended) return
          end(release)
          resume(answer)
        })
      })
      return Effect.sync(() => end(destroy))
    })
const release = (connection: PoolConnection) => connection.release()
const destroy = (connection: PoolConnection) => connection.destroy()

const makeConnection = (run: Run): Connection => {
  // The answer to a write is one object.
  const rows = (answer: unknown) => (Array.isArray(answer) ? answer : [answer])
  const statement =
    (method: "execute" | "query"): Connection["execute"] =>
    (sql, values, transform) =>
      Effect.map(run({ method, sql, values }), (answer) => transform?.(rows(answer)) ?? rows(answer))
  return {
    execute: statement("execute"),
    executeUnprepared: statement("query"),
    executeRaw: (sql, values) => run({ method: "execute", sql, values }),
    executeValues: (sql, values) =>
      Effect.map(run({ method: "execute", sql, values, rowsAsArray: true }), rows),
    executeStream: () => Stream.dieMessage("streams of MySQL rows are not supported: read pages"),
  }
}

/** Answers that concern the rows of one statement: unique keys, conflicts, packets and values that are too large. */
const concernsRows = new Set<unknown>([duplicateEntry, ...conflicts, 1153, 1264, 1366, 1406])

/** Reports the results of statements by their first word, because a server may accept `SELECT` alone. */
const watched =
  (outage: ServerOutage, run: Run): Run =>
  (query) => {
    const verb = /\w+/.exec(query.sql)?.[0] ?? ""
    return outage.watch(verb, run(query), (error) =>
      concernsRows.has(serverError(error.cause).errno) ? undefined : `${verb}: ${textOf(error.cause)}`,
    )
  }

const make = Effect.fnUntraced(function* (options: { readonly url: Redacted.Redacted }) {
  const outage = new ServerOutage(nameOf(options.url))
  const pool = yield* Effect.acquireRelease(
    Effect.sync(() => openPool(options.url)),
    closePool,
  )
  return yield* SqlClient.make({
    acquirer: Effect.succeed(makeConnection(watched(outage, runOnPool(pool)))),
    transactionAcquirer: Effect.map(reserve(pool), (connection) =>
      makeConnection(watched(outage, runOn(connection))),
    ),
    compiler: makeCompiler(),
    spanAttributes: [[attribute.dbSystem, "mysql"]],
  })
})

/** The server at `url`, which does not need to be reachable yet. */
export const layer = (options: { readonly url: Redacted.Redacted }) =>
  Layer.scoped(SqlClient.SqlClient, make(options)).pipe(
    Layer.provide(Reactivity.layer),
    Layer.merge(Layer.sync(SqlServerName, () => nameOf(options.url))),
  )

/** The server at MYSQL_URL. */
export const layerConfig = Layer.unwrapEffect(
  Settings.MYSQL_URL.pipe(
    Config.mapOrFail(
      Option.match({
        onNone: () => Either.left(ConfigError.MissingData(["MYSQL_URL"], "MYSQL_URL is not set")),
        onSome: (url) => Either.right(layer({ url })),
      }),
    ),
  ),
)

/** How often the holder of a named lock checks that it still holds the lock. */
const lockCheckInterval = Duration.seconds(2)

/** See {@link SqlDialect}. Waits up to `waitSeconds` for the lock. The server frees it when its connection closes. */
const withNamedLock =
  (name: string, waitSeconds = 0) =>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
  ): Effect.Effect<Option.Option<A>, E | SqlError, R | SqlClient.SqlClient> =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const connection = yield* sql.reserve
      const [[database] = []] = yield* connection.executeValues("SELECT DATABASE()", [])
      // Lock names are shared by all databases of a server and limited to 64 characters: hence the hash. It is computed
      // here, because MySQL 9.7 has no SHA1().
      const lock = createHash("sha1").update(`${database}/${name}`).digest("hex")
      const isTrue = (expression: string, ...params: ReadonlyArray<unknown>) =>
        Effect.map(
          connection.executeValues(`SELECT ${expression}`, [lock, ...params]),
          (rows) => Number(rows[0]?.[0]) === 1,
        )
      const acquired = yield* Effect.acquireRelease(isTrue("GET_LOCK(?, ?)", waitSeconds), (acquired) =>
        acquired ? Effect.ignore(isTrue("RELEASE_LOCK(?)")) : Effect.void,
      )
      if (!acquired) return Option.none<A>()
      const failWhenLost = isTrue("IS_USED_LOCK(?) = CONNECTION_ID()").pipe(
        Effect.filterOrFail(
          (held) => held,
          () => unavailable(`the lock ${name} was lost`),
        ),
        Effect.delay(lockCheckInterval),
        Effect.forever,
      )
      return Option.some(yield* Effect.raceFirst(effect, failWhenLost))
    }).pipe(Effect.scoped)

export const dialect: SqlDialect = {
  system: "mysql",
  failureReason,
  isDuplicateKey: ({ cause }) => serverError(cause).errno === duplicateEntry,
  isConflict: ({ cause }) => conflicts.has(serverError(cause).errno),
  forceIndex: (index) => `FORCE INDEX (${index})`,
  runInsert: (insert, recurs) => Effect.map(recurs ? insert : insert.unprepared, ([header]) => header),
  // InnoDB reserves the ids of an INSERT with a list of rows at once, in every innodb_autoinc_lock_mode.
  insertedIds: (answer, rows) => {
    const { idStep = 1, insertId } = Object(answer)
    return Array.from({ length: rows }, (_, index) => Number(insertId) + index * Number(idStep))
  },
  affectedRows: (answer) => Number(Object(answer).affectedRows ?? 0),
  withNamedLock,
}

/** The server as a dependency of `doctor`, `setup` and the health checks. */
export const dependency: Effect.Effect<Dependency, never, SqlClient.SqlClient> = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const down = (error: SqlError) => {
    const reason = failureReason(error)
    return new DependencyDown({
      dependency: "mysql",
      detail: error.cause instanceof Error ? error.cause.message : error.message,
      remedy:
        reason === "not_set_up" || serverError(error.cause).errno === accessDenied
          ? "create the database that MYSQL_URL names, and grant its user access"
          : reason === "rejected"
            ? "check user, password and database in MYSQL_URL"
            : "start MySQL, or correct host and port in MYSQL_URL",
    })
  }
  const run = <A>(effect: Effect.Effect<A, SqlError, SqlClient.SqlClient>) =>
    effect.pipe(Effect.mapError(down), Effect.provideService(SqlClient.SqlClient, sql))
  const inspect = <A>(effect: Effect.Effect<A, SqlError, SqlClient.SqlClient>) =>
    run(Effect.timeoutFail(effect, { duration: connectDeadline, onTimeout: deadlineExceeded }))
  return {
    name: "mysql",
    essentialFor: ["api", "relay"],
    ping: inspect(
      Effect.map(
        sql<{ version: string }>`SELECT VERSION() AS version`.unprepared,
        (rows) => rows[0]?.version ?? "",
      ),
    ),
    missing: inspect(
      Effect.map(pending(interactionLog), (names) => names.map((name) => `migration ${name}`)),
    ),
    inspect: inspect(
      Effect.zipWith(
        sql<{ now: string }>`SELECT UNIX_TIMESTAMP() AS now`.unprepared,
        Clock.currentTimeMillis,
        (rows, here) => clockFindings(Number(rows[0]?.now) * 1_000, here),
      ),
    ),
    setup: run(
      migrate(interactionLog).pipe(
        withNamedLock("migrations", setupWaitSeconds),
        Effect.flatMap(
          Effect.mapError(() => unavailable("another process has been running migrations for too long")),
        ),
        Effect.map((names) => names.map((name) => `ran migration ${name}`)),
      ),
    ),
  }
})
