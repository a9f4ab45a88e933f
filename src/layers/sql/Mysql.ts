/**
 * The MySQL or MariaDB server of the interaction log as `SqlClient`. The layer does not wait for the server, so that
 * programs start while it is down. Statements then fail within seconds, and succeed again when the server is back. A
 * statement that is interrupted or exceeds its deadline closes its connection, because its outcome is unknown.
 */
import { createHash } from "node:crypto"
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { makeCompiler } from "@effect/sql-mysql2/MysqlClient"
import {
  Cause,
  Clock,
  Config,
  ConfigError,
  Context,
  Duration,
  Effect,
  Either,
  Layer,
  Option,
  Redacted,
} from "effect"
import { ServerOutage, serverName } from "../../services/Outages.ts"
import {
  clockFindings,
  type Dependency,
  DependencyDown,
  type Finding,
} from "../../services/ports/Dependencies.ts"
import { textOf } from "../../services/ports/PortFailure.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute } from "../../services/Telemetry.ts"
import { tableName } from "./InteractionRows.ts"
import {
  connectDeadline,
  deadlineExceeded,
  isConnectionLost,
  isExhausted,
  isStale,
  MysqlPool,
  makeConnection,
  type PoolOptions,
  packetTooLarge,
  type Query,
  type Run,
  serverError,
  unavailable,
} from "./MysqlPool.ts"
import { type MysqlUrl, parseUrl } from "./MysqlUrl.ts"
import { createsTable, interactionLog, rebuildsIndex } from "./migrations/interactionLog.ts"
import { type SqlDialect, SqlInserts, SqlMigrator, SqlReader, SqlServerName } from "./SqlDialect.ts"
import { migrate, pending } from "./SqlMigrations.ts"

interface ClientOptions extends PoolOptions {
  /** Statements fail at once while the server is known to be out. */
  readonly isImpatient?: boolean
}

/**
 * Slow reads must not delay recording, so they have connections of their own. A migration may take hours, but must not
 * hold up other statements while it waits for the table.
 */
const pools = {
  recording: { connections: 8, deadline: Duration.seconds(10) },
  reading: {
    connections: 2,
    deadline: Duration.seconds(10),
    isImpatient: true,
    // A statement whose client has gone would run on. Each server runs the comment that is meant for it.
    session: "/*!50708 , max_execution_time = 9000 */ /*M!100101 , max_statement_time = 9 */",
  },
  migrating: { connections: 1, deadline: Duration.days(1), session: ", lock_wait_timeout = 5" },
} satisfies Record<string, ClientOptions>
/** How long `setup` waits while another process runs migrations. */
const setupWaitSeconds = 8

/** Error codes of a server that is starting, stopping, full, read-only or overloaded. */
const temporaryErrors = new Set<unknown>([
  1020, 1040, 1041, 1053, 1077, 1129, 1203, 1205, 1213, 1290, 1792, 1836, 1927, 3169,
])
/** The user has no right to the database, which may not exist. */
const accessDenied = 1044
/** Unknown database, column or table. */
const notSetUp = new Set<unknown>([1049, 1054, 1146])
const duplicateEntry = 1062
/** The server has ended a statement that took too long: MySQL, MariaDB. */
const tooSlow = new Set<unknown>([3024, 1969])
/** Lock wait timeout, deadlock, and what MariaDB 11.6 and later treat like a deadlock: a row that changed after the snapshot. */
const conflicts = new Set<unknown>([1205, 1213, 1020])

const failureReason: SqlDialect["failureReason"] = ({ cause }) => {
  if (Cause.isTimeoutException(cause)) return "timeout"
  const { errno, sqlState } = serverError(cause)
  if (notSetUp.has(errno)) return "not_set_up"
  if (tooSlow.has(errno)) return "timeout"
  return sqlState === undefined || temporaryErrors.has(errno) ? "unavailable" : "rejected"
}

const nameOf = (url: Redacted.Redacted) => serverName("MySQL", Redacted.value(url), 3306)

/**
 * Answers that concern one statement: unique keys, conflicts, packets and values that are too large, statements that are
 * too slow.
 */
const concernsStatement = new Set<unknown>([
  duplicateEntry,
  ...conflicts,
  ...tooSlow,
  packetTooLarge,
  1264,
  1366,
  1406,
])

/** A lost connection is no outage yet: if the server is down, the next connection is refused. */
const isNoOutage = (error: SqlError) =>
  concernsStatement.has(serverError(error.cause).errno) || isConnectionLost(error) || isExhausted(error)

/** By its first word, because a server may accept `SELECT` alone. */
const operationOf = ({ sql }: Query) => /\w+/.exec(sql)?.[0] ?? ""

/** Reports the results of statements. */
const watched =
  (outage: ServerOutage, run: Run): Run =>
  (query) => {
    const operation = operationOf(query)
    return outage.watch(operation, run(query), (error) =>
      isNoOutage(error) ? undefined : `${operation}: ${textOf(error.cause)}`,
    )
  }

/** A client that reads has no time to wait for a server that is known to be out. */
const impatient =
  (outage: ServerOutage, run: Run): Run =>
  (query) =>
    outage.failFast(operationOf(query), run(query))

const makeClient = Effect.fnUntraced(function* (url: MysqlUrl, outage: ServerOutage, options: ClientOptions) {
  const pool = yield* Effect.acquireRelease(
    Effect.sync(() => new MysqlPool(url, options)),
    ({ close }) => close,
  )
  const run = watched(outage, pool.run)
  const client = yield* SqlClient.make({
    acquirer: Effect.succeed(makeConnection(options.isImpatient ? impatient(outage, run) : run)),
    transactionAcquirer: Effect.map(pool.reserve, (run) => makeConnection(watched(outage, run))),
    compiler: makeCompiler(),
    spanAttributes: [[attribute.dbSystem, "mysql"]],
  })
  return { client, run }
})

const make = (url: MysqlUrl, server: string) =>
  Effect.gen(function* () {
    const outage = new ServerOutage(server)
    const { client, run } = yield* makeClient(url, outage, pools.recording)
    return Context.make(SqlClient.SqlClient, client).pipe(
      Context.add(SqlInserts, ({ recurs, sql, values }) =>
        run({ method: recurs ? "execute" : "query", sql, values }),
      ),
      Context.add(SqlReader, (yield* makeClient(url, outage, pools.reading)).client),
      Context.add(SqlMigrator, (yield* makeClient(url, outage, pools.migrating)).client),
      Context.add(SqlServerName, server),
    )
  })

/** The server at `url`, which does not need to be reachable yet. A problem of the URL names its variable. */
export const layer = ({ url }: { readonly url: Redacted.Redacted }) =>
  Either.match(parseUrl(Redacted.value(url)), {
    onLeft: (problem) => Layer.fail(ConfigError.InvalidData(["MYSQL_URL"], `MYSQL_URL: ${problem}`)),
    onRight: (parsed) => Layer.scopedContext(make(parsed, nameOf(url))),
  }).pipe(Layer.provide(Reactivity.layer))

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
  isConnectionLost: (error) => isConnectionLost(error) || isStale(error.cause),
  isTooLarge: ({ cause }) => serverError(cause).errno === packetTooLarge,
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

/** Each asks for a right without changing a row, because no row has the id 0. A read-only server refuses them too. */
const writes = {
  INSERT: `INSERT INTO ${tableName} (message_id, user_id, event_type, occurred_at, metadata, created_at)
    SELECT message_id, user_id, event_type, occurred_at, metadata, created_at FROM ${tableName} WHERE id = 0`,
  UPDATE: `UPDATE ${tableName} SET processed_to_queue = TRUE WHERE id = 0`,
  DELETE: `DELETE FROM ${tableName} WHERE id = 0`,
}

/** The writes that the server refuses, with its reasons; none while the table is missing. */
const refusedWrites = (
  verbs: ReadonlyArray<keyof typeof writes>,
): Effect.Effect<ReadonlyArray<Finding>, SqlError, SqlClient.SqlClient> =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const findings: Array<Finding> = []
    for (const verb of verbs) {
      const error = yield* Effect.flip(sql.unsafe(writes[verb]).unprepared).pipe(Effect.option)
      if (Option.isNone(error) || failureReason(error.value) === "not_set_up") continue
      const { cause } = error.value
      if (serverError(cause).sqlState === undefined) return yield* error.value
      findings.push({
        problem: `the server refuses ${verb}: ${textOf(cause)}`,
        remedy: isStale(cause)
          ? "connect to the primary server, or end its read-only mode"
          : "grant the user of MYSQL_URL the rights of docs/security.md",
      })
    }
    return findings
  })

/** Rows whose index a server builds in a second, at least. */
const indexedRowsPerSecond = 50_000

/** Migrations that have not run. A large table makes one take long, and the operator should know before it begins. */
const missingMigrations = Effect.gen(function* () {
  const names = yield* pending(interactionLog)
  if (names.length === 0) return []
  const sql = yield* SqlClient.SqlClient
  const [table] = yield* sql<{
    row_count: number
  }>`SELECT table_rows AS row_count FROM information_schema.tables
    WHERE table_schema = DATABASE() AND table_name = ${tableName}`.unprepared
  const minutes = Math.ceil(Number(table?.row_count ?? 0) / indexedRowsPerSecond / 60)
  return names.map((name) => {
    const isLong = minutes > 1 && rebuildsIndex.has(name)
    return `migration ${name}${isLong ? ` (up to ${minutes} minutes for ${table?.row_count} rows; the log takes interactions meanwhile)` : ""}`
  })
})

const leastPacket = 4 * 1024 * 1024

/** A small `max_allowed_packet` costs a commit for each part of a large request. */
const packetFindings = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ packet: number }>`SELECT @@SESSION.max_allowed_packet AS packet`.unprepared
  const packet = Number(row?.packet)
  return packet >= leastPacket
    ? []
    : [
        {
          problem: `max_allowed_packet is ${packet} bytes: larger requests are recorded in several commits`,
          remedy: `set max_allowed_packet to ${leastPacket} or more on the server`,
        },
      ]
})

const serverClock = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ now: string }>`SELECT UNIX_TIMESTAMP() AS now`.unprepared
  return clockFindings(Number(row?.now) * 1_000, yield* Clock.currentTimeMillis)
})

const tlsError = /^(HANDSHAKE_|ERR_TLS|ERR_SSL|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO|CERT_)/
const remedyOf = (error: SqlError): string => {
  const reason = failureReason(error)
  const { code, errno } = serverError(error.cause)
  if (tlsError.test(String(code)))
    return "correct ssl-mode and ssl-ca in MYSQL_URL, or the server's certificate"
  if (reason === "not_set_up" || errno === accessDenied)
    return "create the database that MYSQL_URL names, and grant its user access"
  return reason === "rejected"
    ? "check user, password and database in MYSQL_URL"
    : "start MySQL, or correct host and port in MYSQL_URL"
}

/** The server as a dependency of `doctor`, `setup` and the health checks. */
export const dependency: Effect.Effect<Dependency, never, SqlClient.SqlClient> = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const migrator = (yield* SqlMigrator) ?? sql
  const run = <A>(effect: Effect.Effect<A, SqlError, SqlClient.SqlClient>) =>
    effect.pipe(
      Effect.mapError(
        (error) =>
          new DependencyDown({ dependency: "mysql", detail: textOf(error.cause), remedy: remedyOf(error) }),
      ),
      Effect.provideService(SqlClient.SqlClient, sql),
    )
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
    missing: inspect(missingMigrations),
    isUselessWithout: (parts) => parts.some((part) => part.startsWith(`migration ${createsTable}`)),
    impaired: inspect(
      Effect.map(refusedWrites(["INSERT"]), (findings) => findings.map(({ problem }) => problem)),
    ),
    inspect: inspect(
      Effect.map(
        Effect.all([serverClock, packetFindings, refusedWrites(["INSERT", "UPDATE", "DELETE"])]),
        (findings) => findings.flat(),
      ),
    ),
    setup: run(
      migrate(interactionLog).pipe(
        Effect.provideService(SqlClient.SqlClient, migrator),
        withNamedLock("migrations", setupWaitSeconds),
        Effect.flatMap(
          Effect.mapError(() => unavailable("another process has been running migrations for too long")),
        ),
        Effect.map((names) => names.map((name) => `ran migration ${name}`)),
      ),
    ),
  }
})
