/** The interaction log as one table, on MySQL, MariaDB or SQLite. */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import { Array as Arr, Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import { prefix } from "../../services/model/AppliedIds.ts"
import type { EventType } from "../../services/model/Interaction.ts"
import {
  type Appended,
  InteractionLog,
  InteractionLogError,
  type LogFilter,
  type NewInteraction,
  type ProductCount,
  type ProductEvents,
} from "../../services/ports/InteractionLog.ts"
import { deadlockRetry } from "../../services/RetryPolicies.ts"
import { databaseSpan, untraced } from "../../services/Telemetry.ts"
import * as Sqlite from "../sqlite/Sqlite.ts"
import { type ExistingRow, plan } from "./IdempotencyPlan.ts"
import {
  columnOfMillis,
  columns,
  fromRow,
  insertOf,
  keyOf,
  millisOfColumn,
  type Row,
  type StoredRow,
  table,
  toColumn,
  valuesOf,
} from "./InteractionRows.ts"
import * as Mysql from "./Mysql.ts"

/** Rows of one INSERT, which is one commit; the largest bulk request. */
const rowsPerInsert = 1_000
/** Prepared INSERTs are cheaper to run, but each number of rows is another one: the sizes that come again and again. */
const isPrepared = (rows: number): boolean =>
  rows <= 16 || (rows <= 500 && (rows % 50 === 0 || Number.isInteger(Math.log2(rows))))
/** Rows read or marked by one statement. */
const page = 500
/** Identities read by one statement. */
const idsPerPage = 2_500
/** Ids looked through by one statement of a stream of all users, whatever its filter leaves of them. */
const idsPerStatement = 50_000
/** How often an append plans anew, because others write the same interactions at the same time. */
const mostRounds = 20

/** Where a page in the order of users ended. */
interface Place {
  readonly user_id: string
  readonly occurred_at: string
  readonly id: number
}
type Identity = Place & { readonly message_id: string }

/** mysql2 says `affectedRows`, bun:sqlite `changes`. */
const affectedRows = (answer: unknown): number => {
  const { affectedRows, changes }: { affectedRows?: unknown; changes?: unknown } = Object(answer)
  return Number(affectedRows ?? changes ?? 0)
}

const make = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const dialect = sql.onDialectOrElse({
    mysql: () => ({ ...Mysql, system: "mysql", force: (index: string) => sql`FORCE INDEX (${sql(index)})` }),
    orElse: () => ({ ...Sqlite, system: "sqlite", force: (_: string) => sql`` }),
  })
  const log = sql(table)
  const fields = sql.literal(columns.join(", "))

  const toLogError = (operation: string) => (error: SqlError) => {
    const reason = dialect.failureReason(error)
    const cause =
      reason === "not_set_up"
        ? new Error(`the table ${table} is missing or old: run \`user-embeddings setup\``, {
            cause: error.cause,
          })
        : error.cause
    return new InteractionLogError({ reason, operation, cause })
  }

  /** One statement on the table: its span, and another try after a deadlock. */
  const statement =
    (operation: "INSERT" | "SELECT" | "UPDATE" | "DELETE") =>
    <A>(run: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> =>
      run.pipe(
        // The span of the statement says it all.
        untraced,
        Effect.retry({ schedule: deadlockRetry, while: dialect.isConflict }),
        databaseSpan(dialect.system, operation, table),
      )

  const insert = (rows: ReadonlyArray<Row>) => {
    if (rows.length === 0) return Effect.void
    const into = sql.unsafe(insertOf(rows.length), valuesOf(rows))
    return statement("INSERT")(isPrepared(rows.length) ? into : into.unprepared)
  }

  const bind = ({ message_id, idempotency_key }: Pick<Row, "message_id" | "idempotency_key">) =>
    statement("UPDATE")(
      sql`UPDATE ${log} SET idempotency_key = ${idempotency_key}
        WHERE message_id = ${message_id} AND idempotency_key IS NULL`,
    )

  /** The rows with a message id or a key of these entries. */
  const alike = Effect.fnUntraced(function* (entries: ReadonlyArray<NewInteraction>) {
    const conditions = Arr.chunksOf(entries, page).flatMap((some) => {
      const ids = sql.in(
        "message_id",
        some.map(({ interaction }) => interaction.message_id),
      )
      const keys = some.flatMap((entry) => {
        const key = keyOf(entry)
        return key === null ? [] : sql`(user_id = ${entry.interaction.user_id} AND idempotency_key = ${key})`
      })
      return keys.length === 0 ? [ids] : [ids, sql.or(keys)]
    })
    const rows = yield* Effect.forEach(conditions, (condition) =>
      statement("SELECT")(sql<StoredRow>`SELECT ${fields} FROM ${log} WHERE ${condition}`.unprepared),
    )
    return rows
      .flat()
      .map((row): ExistingRow => ({ ...fromRow(row), row: undefined, key: row.idempotency_key }))
  })

  /**
   * Inserts as if nothing were known; when a unique key says otherwise, reads what is and plans again. Nothing
   * is answered as recorded but by the INSERT that ends this.
   */
  const appendPart = (
    entries: ReadonlyArray<NewInteraction>,
    stored: ReadonlyArray<ExistingRow> = [],
    rounds = 1,
  ): Effect.Effect<ReadonlyArray<Appended>, SqlError> => {
    const { answers, bindings, inserts } = plan(entries, stored)
    return Effect.forEach(bindings, bind, { discard: true }).pipe(
      Effect.zipRight(insert(inserts)),
      Effect.as(answers),
      Effect.catchIf(
        (error) => dialect.isDuplicateKey(error) && rounds < mostRounds,
        () => Effect.flatMap(alike(entries), (stored) => appendPart(entries, stored, rounds + 1)),
      ),
    )
  }

  const append = (entries: ReadonlyArray<NewInteraction>) =>
    Effect.forEach(Arr.chunksOf(entries, rowsPerInsert), (part) => appendPart(part)).pipe(
      Effect.map(Arr.flatten),
      Effect.mapError(toLogError("append")),
    )

  const unpublished = (options: { readonly limit: number; readonly recordedBy: number }) =>
    sql<StoredRow>`
      SELECT ${fields} FROM ${log} ${dialect.force("user_interactions_outbox")}
      WHERE processed_to_queue = FALSE AND created_at <= ${columnOfMillis(options.recordedBy)}
      ORDER BY id LIMIT ${options.limit}`.unprepared.pipe(
      statement("SELECT"),
      Effect.map(Arr.map(fromRow)),
      Effect.mapError(toLogError("unpublished")),
    )

  const markPublished = (ids: ReadonlyArray<string>, at: number) =>
    Effect.forEach(
      Arr.chunksOf(ids.toSorted(), page),
      (some) =>
        statement("UPDATE")(
          sql`UPDATE ${log} SET processed_to_queue = TRUE, published_at = ${columnOfMillis(at)}
            WHERE ${sql.in("message_id", some)}`.unprepared,
        ),
      { discard: true },
    ).pipe(Effect.mapError(toLogError("markPublished")))

  const select = (condition: Fragment, order: Fragment, limit = page) =>
    sql<StoredRow>`SELECT ${fields} FROM ${log} WHERE ${condition} ORDER BY ${order} LIMIT ${limit}`.unprepared.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("stream")),
    )
  const chronologically = sql.literal("occurred_at, id")
  /** Rows of one user after a place, by the index of the history: its seek ends at the instant. */
  const after = ({ id, occurred_at, user_id }: Place) =>
    sql`user_id = ${user_id} AND occurred_at >= ${occurred_at} AND (occurred_at > ${occurred_at} OR id > ${id})`

  const ofUser = (user_id: string, conditions: ReadonlyArray<Fragment>) =>
    Stream.paginateChunkEffect({ user_id, occurred_at: "", id: 0 }, (place: Place) =>
      Effect.map(
        select(
          sql.and([place.id === 0 ? sql`user_id = ${user_id}` : after(place), ...conditions]),
          chronologically,
        ),
        (rows) => [
          Chunk.map(Chunk.unsafeFromArray(rows), fromRow),
          Option.filter(Option.fromNullable(rows.at(-1)), () => rows.length === page),
        ],
      ),
    )

  const newestId = Effect.map(
    sql<{ id: number | null }>`SELECT MAX(id) AS id FROM ${log}`.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("stream")),
    ),
    ([row]) => row?.id ?? 0,
  )
  const ofAll = (conditions: ReadonlyArray<Fragment>) =>
    Stream.unwrap(
      Effect.map(newestId, (newest) =>
        Stream.paginateChunkEffect(0, (from) => {
          const to = Math.min(newest, from + idsPerStatement)
          return Effect.map(
            select(sql.and([sql`id > ${from}`, sql`id <= ${to}`, ...conditions]), sql.literal("id")),
            (rows) => {
              const next = rows.length === page ? rows.at(-1)!.id : to
              return [
                Chunk.map(Chunk.unsafeFromArray(rows), fromRow),
                next < newest ? Option.some(next) : Option.none(),
              ]
            },
          )
        }),
      ),
    )

  const stream = ({ recordedSince, since, type, until, user }: LogFilter) => {
    const conditions = [
      ...(type === undefined ? [] : [sql`event_type = ${type}`]),
      ...(since === undefined ? [] : [sql`occurred_at >= ${toColumn(since)}`]),
      ...(until === undefined ? [] : [sql`occurred_at < ${toColumn(until)}`]),
      ...(recordedSince === undefined ? [] : [sql`created_at >= ${toColumn(recordedSince)}`]),
    ]
    return user === undefined ? ofAll(conditions) : ofUser(user, conditions)
  }

  const identitiesWhere = (condition: Fragment) =>
    sql<Identity>`
      SELECT user_id, message_id, occurred_at, id FROM ${log} ${dialect.force("user_interactions_history")}
      WHERE ${condition} ORDER BY user_id, occurred_at, id LIMIT ${idsPerPage}`.unprepared.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("messageIds")),
    )
  // The rest of the user at whom the last page ended, else the users after him: two seeks that any planner finds.
  const messageIds = Stream.paginateEffect({ within: false, user_id: "", occurred_at: "", id: 0 }, (place) =>
    Effect.map(
      identitiesWhere(place.within ? after(place) : sql`user_id > ${place.user_id}`),
      (rows): readonly [ReadonlyArray<Identity>, Option.Option<typeof place>] => {
        const last = rows.at(-1)
        if (rows.length === idsPerPage && last !== undefined)
          return [rows, Option.some({ ...last, within: true })]
        return [rows, place.within ? Option.some({ ...place, within: false }) : Option.none()]
      },
    ),
  )

  const existingIds = Effect.fnUntraced(function* (prefixes: ReadonlyArray<string>) {
    const found = new Set<string>()
    for (const some of Arr.chunksOf(prefixes, 100)) {
      const ranges = some.map((prefix) => sql`message_id BETWEEN ${prefix} AND ${`${prefix}g`}`)
      const rows = yield* sql<{ message_id: string }>`
        SELECT message_id FROM ${log} WHERE ${sql.or(ranges)}`.unprepared.pipe(
        statement("SELECT"),
        Effect.mapError(toLogError("existingIds")),
      )
      for (const { message_id } of rows) found.add(prefix(message_id))
    }
    return found
  })

  const newest = (user: string, limit: number) =>
    sql<StoredRow>`
      SELECT ${fields} FROM ${log} WHERE user_id = ${user}
      ORDER BY occurred_at DESC, message_id DESC LIMIT ${limit}`.unprepared.pipe(
      statement("SELECT"),
      Effect.map(Arr.map(fromRow)),
      Effect.mapError(toLogError("newest")),
    )

  const lastRecorded = (limit: number) =>
    sql<StoredRow>`SELECT ${fields} FROM ${log} ORDER BY id DESC LIMIT ${limit}`.unprepared.pipe(
      statement("SELECT"),
      Effect.map(Arr.map(fromRow)),
      Effect.mapError(toLogError("lastRecorded")),
    )

  const productEvents = (user: string, types?: ReadonlyArray<EventType>) =>
    sql<ProductEvents>`
      SELECT product_id, event_type, COUNT(*) AS events
      FROM ${log} ${dialect.force("user_interactions_history")}
      WHERE user_id = ${user} AND product_id IS NOT NULL
        AND ${types === undefined ? sql`TRUE` : sql.in("event_type", types)}
      GROUP BY product_id, event_type`.unprepared.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("productEvents")),
    )

  const maxId = sql<{ id: number | null }>`SELECT MAX(id) AS id FROM ${log}`.pipe(
    statement("SELECT"),
    Effect.map(([row]) => row?.id ?? 0),
    Effect.mapError(toLogError("maxId")),
  )

  const productCounts = (types: ReadonlyArray<EventType>, after: number, upTo: number) =>
    sql<ProductCount>`
      SELECT product_id, SUBSTR(occurred_at, 1, 10) AS day, COUNT(*) AS interactions FROM ${log}
      WHERE id > ${after} AND id <= ${upTo} AND product_id IS NOT NULL AND ${sql.in("event_type", types)}
      GROUP BY product_id, SUBSTR(occurred_at, 1, 10)`.unprepared.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("productCounts")),
    )

  const outbox = Effect.gen(function* () {
    const [counted] = yield* sql<{ unpublished: number; oldest: string | null }>`
      SELECT (SELECT COUNT(*) FROM ${log} WHERE processed_to_queue = FALSE) AS unpublished,
        (SELECT created_at FROM ${log} WHERE processed_to_queue = FALSE ORDER BY id LIMIT 1) AS oldest`.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("outbox")),
    )
    const { unpublished, oldest } = counted ?? { unpublished: 0, oldest: null }
    const age = oldest === null ? null : (yield* Clock.currentTimeMillis) - millisOfColumn(oldest)
    return { unpublished, oldestUnpublishedSeconds: age === null ? null : Math.max(0, age / 1_000) }
  })

  const backlog = Effect.zipWith(
    sql<{ total: number }>`SELECT COUNT(*) AS total FROM ${log}`.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("backlog")),
    ),
    outbox,
    ([counted], waiting) => ({ total: counted?.total ?? 0, ...waiting }),
  )

  const newestRecordedAt = (user: string) =>
    sql<{ newest: string | null }>`SELECT MAX(created_at) AS newest FROM ${log} WHERE user_id = ${user}`.pipe(
      statement("SELECT"),
      Effect.map(([row]) => (row?.newest ? millisOfColumn(row.newest) : null)),
      Effect.mapError(toLogError("newestRecordedAt")),
    )

  // Page by page: one statement for all would hold locks for long and run into its deadline.
  const erase = (user: string, recordedBy: number) =>
    Effect.gen(function* () {
      let erased = 0
      while (true) {
        const rows = yield* statement("SELECT")(
          sql<{ id: number }>`
            SELECT id FROM ${log} WHERE user_id = ${user} AND created_at <= ${columnOfMillis(recordedBy)}
            LIMIT ${page}`,
        )
        if (rows.length === 0) return erased
        const ids = sql.in(
          "id",
          rows.map(({ id }) => id),
        )
        erased += affectedRows(yield* statement("DELETE")(sql`DELETE FROM ${log} WHERE ${ids}`.raw))
        if (rows.length < page) return erased
      }
    }).pipe(Effect.mapError(toLogError("erase")))

  const withLeaderLock = <E, R>(effect: Effect.Effect<void, E, R>) =>
    Effect.exit(effect).pipe(
      dialect.exclusively("relay"),
      Effect.provideService(SqlClient.SqlClient, sql),
      Effect.mapError(toLogError("withLeaderLock")),
      Effect.flatMap(Option.match({ onNone: () => Effect.succeed(false), onSome: Effect.as(true) })),
    )

  return {
    append,
    unpublished,
    markPublished,
    stream,
    messageIds,
    existingIds,
    newest,
    lastRecorded,
    productEvents,
    maxId,
    productCounts,
    outbox,
    backlog,
    newestRecordedAt,
    erase,
    withLeaderLock,
  }
})

export const layer: Layer.Layer<InteractionLog, never, SqlClient.SqlClient> = Layer.effect(
  InteractionLog,
  make,
)
