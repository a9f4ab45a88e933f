/**
 * Connections to MySQL or MariaDB. They are opened on demand, so that programs start while the server is down. A
 * statement that is interrupted or exceeds its deadline closes its connection, because its outcome is unknown.
 */
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import { Cause, Duration, Effect, Stream } from "effect"
import { createPool, type Pool, type PoolConnection, type RowDataPacket } from "mysql2"
import { within } from "../Deadline.ts"
import type { MysqlUrl } from "./MysqlUrl.ts"

export interface PoolOptions {
  readonly connections: number
  /** How long a statement may take, with the wait for a connection. */
  readonly deadline: Duration.Duration
  /** Further variables of the session. */
  readonly session?: string
}

export const connectDeadline = Duration.seconds(5)
/** Longer than {@link connectDeadline}: a wait beyond it means that all connections are busy. */
const acquireDeadline = Duration.seconds(6)
/** Well below the deadline of statements, so that the server reports a blocked statement and keeps the connection. */
const lockWaitSeconds = 2

/** What the server tells about a new connection. */
interface Facts {
  readonly openedAt: number
  /** The distance between the ids of consecutive rows. Clusters set it to their number of servers. */
  readonly idStep: number
  readonly maxPacket: number
}
const facts = new WeakMap<object, Facts>()

/** The server's error code, if the error is an answer of the server. */
export const serverError = (
  cause: unknown,
): { readonly errno?: unknown; readonly sqlState?: unknown; readonly code?: unknown } =>
  typeof cause === "object" && cause !== null ? cause : {}

/**
 * The server stops, ends the connection or has become read-only. After a failover the old writer keeps its connections,
 * and only a new connection reaches the new writer.
 */
const staleConnection = new Set<unknown>([1053, 1290, 1792, 1836, 1927, 3169])
export const isStale = (cause: unknown): boolean => staleConnection.has(serverError(cause).errno)
const lostCodes = new Set<unknown>(["PROTOCOL_CONNECTION_LOST", "ECONNRESET", "EPIPE"])
const statementFailed = "MySQL statement failed"
/** The connection was closed when a statement used it, as servers do with idle connections. */
export const isConnectionLost = ({ cause, message }: SqlError): boolean =>
  message === statementFailed && lostCodes.has(serverError(cause).code)
const noTls = "HANDSHAKE_NO_SSL_SUPPORT"
export const packetTooLarge = 1153

const busy = "connections to MySQL are busy"
/** All connections of the pool were in use for too long. */
export const isExhausted = ({ message }: SqlError): boolean => message === busy

export const unavailable = (message: string) => new SqlError({ cause: new Error(message), message })

const connectionFailed = (cause: unknown) => new SqlError({ cause, message: "cannot connect to MySQL" })

export const deadlineExceeded = () =>
  new SqlError({ cause: new Cause.TimeoutException("MySQL did not answer in time") })

export interface Query {
  readonly method: "execute" | "query"
  readonly sql: string
  readonly values: ReadonlyArray<unknown>
  readonly rowsAsArray?: boolean
}
export type Run = (query: Query) => Effect.Effect<unknown, SqlError>
type Resume = (answer: Effect.Effect<unknown, SqlError>) => void

/** An upper bound of the bytes of a statement. `query` writes the values into the text and escapes quotes. */
const bytesOf = ({ method, sql, values }: Query): number => {
  let characters = 0
  for (const value of values) characters += typeof value === "string" ? value.length : 0
  const perValue = 32
  // Exact sizes are computed only for statements that may be large.
  if (characters < 100_000) return sql.length + 6 * characters + perValue * values.length
  let bytes = 0
  for (const value of values) bytes += typeof value === "string" ? Buffer.byteLength(value) : 0
  return sql.length + (method === "query" ? 2 * bytes : bytes) + perValue * values.length
}

export class MysqlPool {
  private readonly pool: Pool
  private plaintextAllowed: boolean
  /** Connections that were opened before this instant are closed, or lead to a server that takes no more writes. */
  private staleBefore = 0

  constructor(
    { connection, plaintextAllowed }: MysqlUrl,
    private readonly options: PoolOptions,
  ) {
    this.pool = createPool({
      ...connection,
      connectionLimit: options.connections,
      connectTimeout: Duration.toMillis(connectDeadline),
      charset: "utf8mb4",
      timezone: "Z",
      dateStrings: true,
      jsonStrings: true,
      supportBigNumbers: true,
      maxPreparedStatements: 100,
    })
    this.plaintextAllowed = plaintextAllowed
    this.pool.on("connection", (opened) => this.prepare(opened))
  }

  /** The driver queues these statements before the first statement of the connection's user. */
  private prepare(connection: PoolConnection): void {
    const session = [
      "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
      `SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = ${lockWaitSeconds},
        sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'${this.options.session ?? ""}`,
    ]
    for (const statement of session)
      connection.query(statement, (cause) => {
        if (cause) connection.destroy()
      })
    connection.query<Array<RowDataPacket>>(
      "SELECT @@SESSION.auto_increment_increment AS step, @@SESSION.max_allowed_packet AS packet",
      (cause, rows) => {
        if (cause) return connection.destroy()
        const { packet, step } = Object(rows[0])
        facts.set(connection, {
          openedAt: performance.now(),
          idStep: Number(step),
          maxPacket: Number(packet),
        })
      },
    )
  }

  private acquire(resume: (cause: Error | null, connection?: PoolConnection) => void): void {
    this.pool.getConnection((cause, connection) => {
      if (cause !== null && this.plaintextAllowed && serverError(cause).code === noTls) {
        this.plaintextAllowed = false
        // mysql2 has no public way to change the options of a pool.
        Object(this.pool).config.connectionConfig.ssl = false
        return this.acquire(resume)
      }
      if (cause) return resume(cause)
      if ((facts.get(connection)?.openedAt ?? Number.POSITIVE_INFINITY) < this.staleBefore) {
        connection.destroy()
        return this.acquire(resume)
      }
      resume(null, connection)
    })
  }

  private send(connection: PoolConnection, query: Query, resume: Resume): void {
    const { maxPacket = Number.POSITIVE_INFINITY } = facts.get(connection) ?? {}
    // The server would close the connection, and its error often gets lost.
    if (bytesOf(query) > maxPacket) {
      const message = `a statement is larger than the server's max_allowed_packet of ${maxPacket} bytes`
      const cause = Object.assign(new Error(message), { errno: packetTooLarge, sqlState: "08S01" })
      resume(new SqlError({ cause }))
      return
    }
    const { method, rowsAsArray = false, sql, values } = query
    connection[method]({ sql, values: [...values], rowsAsArray }, (cause: unknown, answer: unknown) => {
      if (cause) {
        const error = new SqlError({ cause, message: statementFailed })
        if (isStale(cause) || isConnectionLost(error)) {
          this.staleBefore = performance.now()
          connection.destroy()
        }
        return resume(error)
      }
      resume(
        Effect.succeed(
          Array.isArray(answer) ? answer : { ...Object(answer), idStep: facts.get(connection)?.idStep },
        ),
      )
    })
  }

  private readonly exhausted = () =>
    new SqlError({ cause: new Error(`all ${this.options.connections} ${busy}`), message: busy })

  private readonly runOn = (connection: PoolConnection): Run => {
    const close = () => connection.destroy()
    const run: Run = (query) =>
      within(this.options.deadline, deadlineExceeded, (resume) => this.send(connection, query, resume), close)
    // The server rolls back when the connection closes, which it has if a statement of the transaction was interrupted.
    return (query) =>
      query.sql === "ROLLBACK" ? Effect.catchAll(run(query), () => Effect.sync(close)) : run(query)
  }

  /** A connection for the scope. A connection that arrives after the scope has closed is returned at once. */
  readonly reserve = Effect.gen(this, function* () {
    let reserved: PoolConnection | undefined
    let closed = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
        reserved?.release()
      }),
    )
    return yield* within<Run, SqlError>(acquireDeadline, this.exhausted, (resume) =>
      this.acquire((cause, connection) => {
        if (connection === undefined) return resume(connectionFailed(cause))
        if (closed) return connection.release()
        reserved = connection
        resume(Effect.succeed(this.runOn(connection)))
      }),
    )
  })

  /**
   * Runs a query on any connection and returns the connection with the answer. This is written by hand, because a scope
   * for each statement costs as much CPU as a small statement.
   */
  private readonly runOnce: Run = (query) =>
    Effect.async<unknown, SqlError>((resume) => {
      let acquired: PoolConnection | undefined
      let ended = false
      const began = performance.now()
      const end = (dispose: (connection: PoolConnection) => void) => {
        clearTimeout(timer)
        ended = true
        if (acquired !== undefined) dispose(acquired)
      }
      const failWith = (error: () => SqlError) => () => {
        end(destroy)
        resume(error())
      }
      let timer = setTimeout(failWith(this.exhausted), Duration.toMillis(acquireDeadline))
      this.acquire((cause, connection) => {
        if (ended) return connection?.release()
        if (connection === undefined) {
          end(release)
          return resume(connectionFailed(cause))
        }
        acquired = connection
        clearTimeout(timer)
        const left = Duration.toMillis(this.options.deadline) - (performance.now() - began)
        timer = setTimeout(failWith(deadlineExceeded), left)
        this.send(connection, query, (answer) => {
          if (ended) return
          end(release)
          resume(answer)
        })
      })
      return Effect.sync(() => end(destroy))
    })

  /** An INSERT is not repeated here, because the caller must know whether it had an effect. */
  readonly run: Run = (query) => {
    const once = this.runOnce(query)
    return repeatable.test(query.sql)
      ? Effect.catchIf(once, isConnectionLost, () => this.runOnce(query))
      : once
  }

  readonly close = Effect.async<void>((resume) => this.pool.end(() => resume(Effect.void))).pipe(
    Effect.interruptible,
    Effect.timeoutOption("2 seconds"),
    Effect.asVoid,
  )
}
const repeatable = /^\s*(SELECT|UPDATE)\b/
const release = (connection: PoolConnection) => connection.release()
const destroy = (connection: PoolConnection) => connection.destroy()

export const makeConnection = (run: Run): Connection => {
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
