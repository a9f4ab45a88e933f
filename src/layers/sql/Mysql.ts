/**
 * The MySQL or MariaDB server of the interaction log as `SqlClient`. The layer is built without asking the
 * server, so that everything starts while it is down; statements then fail within seconds and work again once
 * it is back. A statement that is given up, by its deadline or an interruption, takes its connection with it.
 */
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
import { createPool, type Pool, type PoolConnection } from "mysql2"
import { clockFindings, type Dependency, DependencyDown } from "../../services/ports/Dependencies.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute } from "../../services/Telemetry.ts"
import { within } from "../Deadline.ts"
import { interactionLog } from "./migrations/interactionLog.ts"
import { migrate, pending } from "./SqlMigrations.ts"

const connections = 8
const connectDeadline = Duration.seconds(5)
/** Longer than connecting takes: then the pool is exhausted. */
const acquireDeadline = Duration.seconds(6)
const statementDeadline = Duration.seconds(10)
/** Well under the statement deadline: a blocked statement is told so rather than cut off. */
const lockWaitSeconds = 2
/** How long `setup` waits for another one to end. */
const setupWaitSeconds = 8

const session = [
  "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
  `SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = ${lockWaitSeconds},
    sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'`,
]

/** What the server's answer says, if the error is one. */
const answerOf = (cause: unknown): { readonly errno?: unknown; readonly sqlState?: unknown } =>
  typeof cause === "object" && cause !== null ? cause : {}

/** The codes by which a server says that it can't work right now: starting, stopping, full or read-only. */
const busyServer = new Set<unknown>([
  1040, 1041, 1053, 1077, 1129, 1203, 1205, 1213, 1290, 1792, 1836, 1927, 3169,
])
/** No such database, table or column. */
const noSuchDatabaseForUser = 1044
const notSetUp = new Set<unknown>([1049, 1054, 1146])

/** What a failed statement means to the caller of a port. */
export const failureReason = ({ cause }: SqlError): "unavailable" | "timeout" | "not_set_up" | "rejected" => {
  if (Cause.isTimeoutException(cause)) return "timeout"
  const { errno, sqlState } = answerOf(cause)
  if (notSetUp.has(errno)) return "not_set_up"
  return sqlState === undefined || busyServer.has(errno) ? "unavailable" : "rejected"
}

/** A unique key is taken; nothing of the statement was kept. */
export const isDuplicateKey = ({ cause }: SqlError): boolean => answerOf(cause).errno === 1062

/** A deadlock or a lock that was waited for too long; nothing of the statement was kept. */
export const isConflict = ({ cause }: SqlError): boolean =>
  [1205, 1213].some((code) => answerOf(cause).errno === code)

const unavailable = (message: string) => new SqlError({ cause: new Error(message), message })

const exhausted = () => unavailable(`all ${connections} connections to MySQL are busy`)

const unconnected = (cause: unknown) => new SqlError({ cause, message: "cannot connect to MySQL" })

const overdue = () => new SqlError({ cause: new Cause.TimeoutException("MySQL did not answer in time") })

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
  // Queued before the first statement of whoever asked for the connection.
  pool.on("connection", (connection) => {
    for (const statement of session)
      connection.query(statement, (cause) => {
        if (cause) connection.destroy()
      })
  })
  return pool
}

const closePool = (pool: Pool) =>
  Effect.async<void>((resume) => pool.end(() => resume(Effect.void))).pipe(
    Effect.timeoutOption("2 seconds"),
    Effect.asVoid,
  )

/** A connection for the scope, which gives it back even when it comes after nobody waits for it any more. */
const reserve = (pool: Pool) =>
  Effect.gen(function* () {
    let given: PoolConnection | undefined
    let closed = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
        given?.release()
      }),
    )
    return yield* within<PoolConnection, SqlError>(acquireDeadline, exhausted, (resume) =>
      pool.getConnection((cause, connection) => {
        if (cause) return resume(unconnected(cause))
        if (closed) return connection.release()
        given = connection
        resume(Effect.succeed(connection))
      }),
    )
  })

interface Sent {
  readonly method: "execute" | "query"
  readonly sql: string
  readonly values: ReadonlyArray<unknown>
  readonly rowsAsArray?: boolean
}
type Run = (sent: Sent) => Effect.Effect<unknown, SqlError>

const send = (
  connection: PoolConnection,
  { method, sql, values, rowsAsArray = false }: Sent,
  resume: (answer: Effect.Effect<unknown, SqlError>) => void,
) =>
  connection[method]({ sql, values: [...values], rowsAsArray }, (cause: unknown, answer: unknown) =>
    resume(cause ? new SqlError({ cause, message: "MySQL statement failed" }) : Effect.succeed(answer)),
  )

const onOne =
  (connection: PoolConnection): Run =>
  (sent) =>
    within(
      statementDeadline,
      overdue,
      (resume) => send(connection, sent, resume),
      () => connection.destroy(),
    )

/** On any connection, given back with the answer: no scope a statement, which would cost as much as a small one. */
const onAny =
  (pool: Pool): Run =>
  (sent) =>
    Effect.async<unknown, SqlError>((resume) => {
      let given: PoolConnection | undefined
      let over = false
      const end = (leave: (connection: PoolConnection) => void) => {
        clearTimeout(timer)
        over = true
        if (given !== undefined) leave(given)
      }
      const late = (failure: () => SqlError) => () => {
        end(destroyed)
        resume(failure())
      }
      let timer = setTimeout(late(exhausted), Duration.toMillis(acquireDeadline))
      pool.getConnection((cause, connection) => {
        if (over) return connection?.release()
        if (cause) {
          end(released)
          return resume(unconnected(cause))
        }
        given = connection
        clearTimeout(timer)
        timer = setTimeout(late(overdue), Duration.toMillis(statementDeadline))
        send(connection, sent, (answer) => {
          if (over) return
          end(released)
          resume(answer)
        })
      })
      return Effect.sync(() => end(destroyed))
    })
const released = (connection: PoolConnection) => connection.release()
const destroyed = (connection: PoolConnection) => connection.destroy()

const makeConnection = (run: Run): Connection => {
  const rows = (answer: unknown) => (Array.isArray(answer) ? answer : [])
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
    executeStream: () => Stream.dieMessage("MySQL rows are read in pages"),
  }
}

const make = Effect.fnUntraced(function* (options: { readonly url: Redacted.Redacted }) {
  const pool = yield* Effect.acquireRelease(
    Effect.sync(() => openPool(options.url)),
    closePool,
  )
  return yield* SqlClient.make({
    acquirer: Effect.succeed(makeConnection(onAny(pool))),
    transactionAcquirer: Effect.map(reserve(pool), (connection) => makeConnection(onOne(connection))),
    compiler: makeCompiler(),
    spanAttributes: [[attribute.dbSystem, "mysql"]],
  })
})

/** The server at `url`; built whether or not it can be reached. */
export const layer = (options: { readonly url: Redacted.Redacted }) =>
  Layer.scoped(SqlClient.SqlClient, make(options)).pipe(Layer.provide(Reactivity.layer))

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

/**
 * Runs an effect while this process holds a lock of the database, known to all its clients by `name`; `None`
 * when another one holds it for longer than `waitSeconds`. Fails when the lock is lost with its connection.
 */
export const exclusively =
  (name: string, waitSeconds = 0) =>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
  ): Effect.Effect<Option.Option<A>, E | SqlError, R | SqlClient.SqlClient> =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const connection = yield* sql.reserve
      // A hash, for names of locks end at 64 characters and are shared by all databases of a server.
      const lock = "SHA1(CONCAT(DATABASE(), '/', ?))"
      const query = (expression: string, ...params: ReadonlyArray<unknown>) =>
        Effect.map(
          connection.executeValues(`SELECT ${expression}`, [name, ...params]),
          (rows) => Number(rows[0]?.[0]) === 1,
        )
      const held = yield* Effect.acquireRelease(query(`GET_LOCK(${lock}, ?)`, waitSeconds), (held) =>
        held ? Effect.ignore(query(`RELEASE_LOCK(${lock})`)) : Effect.void,
      )
      if (!held) return Option.none<A>()
      const lost = query(`IS_USED_LOCK(${lock}) = CONNECTION_ID()`).pipe(
        Effect.filterOrFail(
          (held) => held,
          () => unavailable(`the lock ${name} was lost`),
        ),
        Effect.delay("2 seconds"),
        Effect.forever,
      )
      return Option.some(yield* Effect.raceFirst(effect, lost))
    }).pipe(Effect.scoped)

/** Ping, missing migrations and setup. */
export const dependency: Effect.Effect<Dependency, never, SqlClient.SqlClient> = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const down = (error: SqlError) => {
    const reason = failureReason(error)
    return new DependencyDown({
      dependency: "mysql",
      detail: error.cause instanceof Error ? error.cause.message : error.message,
      remedy:
        reason === "not_set_up" || answerOf(error.cause).errno === noSuchDatabaseForUser
          ? "create the database that MYSQL_URL names, and let its user in"
          : reason === "rejected"
            ? "check user, password and database in MYSQL_URL"
            : "start MySQL, or correct host and port in MYSQL_URL",
    })
  }
  const ask = <A>(effect: Effect.Effect<A, SqlError, SqlClient.SqlClient>) =>
    effect.pipe(Effect.mapError(down), Effect.provideService(SqlClient.SqlClient, sql))
  const look = <A>(effect: Effect.Effect<A, SqlError, SqlClient.SqlClient>) =>
    ask(Effect.timeoutFail(effect, { duration: connectDeadline, onTimeout: overdue }))
  return {
    name: "mysql",
    essentialFor: ["api", "relay"],
    ping: look(
      Effect.map(
        sql<{ version: string }>`SELECT VERSION() AS version`.unprepared,
        (rows) => rows[0]?.version ?? "",
      ),
    ),
    missing: look(Effect.map(pending(interactionLog), (names) => names.map((name) => `migration ${name}`))),
    inspect: look(
      Effect.zipWith(
        sql<{ now: string }>`SELECT UNIX_TIMESTAMP() AS now`.unprepared,
        Clock.currentTimeMillis,
        (rows, here) => clockFindings(Number(rows[0]?.now) * 1_000, here),
      ),
    ),
    setup: ask(
      migrate(interactionLog).pipe(
        exclusively("migrations", setupWaitSeconds),
        Effect.flatMap(
          Effect.mapError(() => unavailable("another process has been running migrations for too long")),
        ),
        Effect.map((names) => names.map((name) => `ran migration ${name}`)),
      ),
    ),
  }
})
