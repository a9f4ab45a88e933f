/** The interaction log as one table of a SQL database. */
import { randomUUID } from "node:crypto"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import { Array as Arr, Chunk, Clock, type Context, Effect, Layer, Option, Stream } from "effect"
import { prefix } from "../../services/model/AppliedIds.ts"
import type { EventType } from "../../services/model/Interaction.ts"
import {
  type Appended,
  type Backlog,
  type BegunErasure,
  type FinishedErasure,
  InteractionLog,
  InteractionLogError,
  type LogFilter,
  type LoggedInteraction,
  type NewInteraction,
  type OrderRefund,
  type Outbox,
  type ProductCount,
  type ProductEvents,
} from "../../services/ports/InteractionLog.ts"
import { deadlockRetry } from "../../services/RetryPolicies.ts"
import { databaseSpan, untraced } from "../../services/Telemetry.ts"
import { databaseClock } from "./DatabaseClock.ts"
import { type ExistingRow, type KeyUpdate, plan } from "./IdempotencyPlan.ts"
import {
  columnOfMillis,
  columns,
  fromRow,
  insertParameters,
  insertStatement,
  keyOf,
  millisOfColumn,
  type Row,
  type StoredRow,
  tableName,
  toColumn,
} from "./InteractionRows.ts"
import { allAliases, appendMerge, forgetLinks, personOf, withLockedPeople } from "./SqlAliases.ts"
import { forgetCheckpoints, prunedRows } from "./SqlCheckpoints.ts"
import { forUpdate, type SqlDialect, SqlInserts, SqlReader, SqlServerName } from "./SqlDialect.ts"
import { historyChanges, touched, usersAfter } from "./SqlHistories.ts"
import { effectiveType, forgetRows, sign } from "./SqlProductTally.ts"

/** Rows of one INSERT, which is one commit. Equals the largest bulk request. */
const rowsPerInsert = 1_000
/**
 * A prepared INSERT costs less CPU, but each number of rows needs its own statement. Hence only numbers that recur are
 * prepared. InteractionRecorder makes batches of a power of two for this.
 */
const isPrepared = (rows: number): boolean =>
  rows <= 16 || (rows <= 500 && (rows % 50 === 0 || Number.isInteger(Math.log2(rows))))
/** Rows that one statement reads or changes. */
const rowsPerPage = 500
/** Message ids that one statement reads. */
const idsPerPage = 2_500
/** Message id prefixes that one statement looks up. */
const prefixesPerStatement = 100
/** Range of `id` that one statement of a stream over all users scans, however few rows match the filter. */
const idRangePerStatement = 50_000
/** Attempts of an append that conflicts with concurrent appends of the same interactions. */
const maxAppendAttempts = 20

/** Most statements meet no conflict: only one that does pays for the schedule. */
const afterConflicts = <A>({ isConflict }: SqlDialect, run: Effect.Effect<A, SqlError>) =>
  Effect.catchIf(run, isConflict, () => Effect.retry(run, { schedule: deadlockRetry, while: isConflict }))

/** The table, with what its statements have in common. */
const makeTable = (
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

/** Inserts rows, and answers their ids by message id. */
const insert = ({ dialect, runInsert, sql, statement }: Table, rows: ReadonlyArray<Row>) => {
  if (rows.length === 0) return Effect.succeed(new Map<string, number>())
  const [text, values, recurs] = [
    insertStatement(rows.length),
    insertParameters(rows),
    isPrepared(rows.length),
  ]
  const inserted =
    runInsert === undefined
      ? statement("INSERT")(dialect.runInsert(sql.unsafe<object>(text, values), recurs))
      : afterConflicts(dialect, runInsert({ sql: text, values, recurs })).pipe(
          databaseSpan(dialect.system, "INSERT", tableName),
        )
  return Effect.map(inserted, (answer) => {
    const ids = dialect.insertedIds(answer, rows.length)
    return new Map(rows.map(({ message_id }, index) => [message_id, ids[index]!]))
  })
}

const updateKey = ({ name, sql, statement }: Table, { idempotency_key, message_id }: KeyUpdate) =>
  statement("UPDATE")(
    sql`UPDATE ${name} SET idempotency_key = ${idempotency_key}
      WHERE message_id = ${message_id} AND idempotency_key IS NULL`,
  )

/** The rows with a message id or a key of these entries. */
const existingRows = Effect.fnUntraced(function* (
  { columns, name, sql, statement }: Table,
  entries: ReadonlyArray<NewInteraction>,
) {
  const conditions = Arr.chunksOf(entries, rowsPerPage).flatMap((page) => {
    const ids = sql.in(
      "message_id",
      page.map(({ interaction }) => interaction.message_id),
    )
    const keys = page.flatMap((entry) => {
      const key = keyOf(entry)
      return key === null ? [] : sql`(user_id = ${entry.interaction.user_id} AND idempotency_key = ${key})`
    })
    return keys.length === 0 ? [ids] : [ids, sql.or(keys)]
  })
  const rows = yield* Effect.forEach(conditions, (condition) =>
    statement("SELECT")(sql<StoredRow>`SELECT ${columns} FROM ${name} WHERE ${condition}`.unprepared),
  )
  return rows
    .flat()
    .map((row): ExistingRow => ({ ...fromRow(row), row: undefined, key: row.idempotency_key }))
})

const halves = <A>(all: ReadonlyArray<A>) => Arr.chunksOf(all, Math.ceil(all.length / 2))

/**
 * An optimistic insert. On a duplicate key, it reads the existing rows, plans again and inserts again. An interaction
 * counts as recorded only by the INSERT that succeeds.
 */
const appendBatch = (
  table: Table,
  entries: ReadonlyArray<NewInteraction>,
  existing: ReadonlyArray<ExistingRow> = [],
  attempt = 1,
): Effect.Effect<ReadonlyArray<Appended>, SqlError> => {
  const again = Effect.flatMap(existingRows(table, entries), (rows) =>
    appendBatch(table, entries, rows, attempt + 1),
  )
  const { answers, inserts, keysToRead, keyUpdates } = plan(entries, existing)
  if (keysToRead && attempt === 1) return again
  const inserted = insert(table, inserts)
  const written =
    keyUpdates.length === 0
      ? inserted
      : Effect.zipRight(
          Effect.forEach(keyUpdates, (update) => updateKey(table, update), { discard: true }),
          inserted,
        )
  return written.pipe(
    Effect.map((ids) =>
      answers.map(
        ({ _tag, interaction }): Appended =>
          _tag === "Recorded"
            ? { _tag, interaction, id: ids.get(interaction.message_id)! }
            : { _tag, interaction },
      ),
    ),
    Effect.catchIf(
      (error) => table.dialect.isDuplicateKey(error) && attempt < maxAppendAttempts,
      () => again,
    ),
    // The server had closed an idle connection, or has failed over.
    Effect.catchIf(
      (error) => table.dialect.isConnectionLost(error) && attempt === 1,
      () => again,
    ),
    Effect.catchIf(
      (error) => table.dialect.isTooLarge(error) && entries.length > 1,
      () =>
        Effect.map(
          Effect.forEach(halves(entries), (half) => appendBatch(table, half)),
          Arr.flatten,
        ),
    ),
  )
}

const isMerge = ({ interaction }: NewInteraction): boolean => interaction.event_type === "merge"

/** A merge is a transaction of its own, which may wait for others of the same people. */
const appendOneMerge = (table: Table, entry: NewInteraction) => {
  // A deadlock ends the transaction, so its statements can't run again one by one.
  const inTransaction: Table = { ...table, runInsert: undefined, statement: () => (run) => run }
  const merge = appendMerge(
    table.sql,
    entry,
    (id) =>
      Effect.map(
        table.sql<StoredRow>`SELECT ${table.columns} FROM ${table.name} WHERE message_id = ${id}`.unprepared,
        ([row]) => row && fromRow(row).interaction,
      ),
    (one) => Effect.map(appendBatch(inTransaction, [one]), ([answer]) => answer!),
  )
  return table
    .statement("INSERT")(merge)
    .pipe(Effect.retry({ times: 1, while: table.dialect.isConnectionLost }), Effect.map(Arr.of))
}

const appendAll = (table: Table, entries: ReadonlyArray<NewInteraction>) =>
  Effect.forEach(
    Arr.chop(entries, (rest: Arr.NonEmptyReadonlyArray<NewInteraction>) =>
      isMerge(rest[0]) ? Arr.splitAt(rest, 1) : Arr.span(rest, (one) => !isMerge(one)),
    ).flatMap((run) => Arr.chunksOf(run, rowsPerInsert)),
    (batch) => (isMerge(batch[0]) ? appendOneMerge(table, batch[0]) : appendBatch(table, batch)),
  ).pipe(Effect.map(Arr.flatten))

const append = (table: Table) => (entries: ReadonlyArray<NewInteraction>) => {
  const isOneBatch = entries.length <= rowsPerInsert && !entries.some(isMerge)
  const appended = isOneBatch ? appendBatch(table, entries) : appendAll(table, entries)
  return Effect.mapError(appended, table.portError("append"))
}

const unpublished =
  ({ columns, select, sql, withIndex }: Table) =>
  ({ limit, recordedBy }: { readonly limit: number; readonly recordedBy: number }) =>
    sql<StoredRow>`
      SELECT ${columns} FROM ${withIndex("user_interactions_outbox")}
      WHERE processed_to_queue = FALSE AND created_at <= ${columnOfMillis(recordedBy)}
      ORDER BY id LIMIT ${limit}`.unprepared.pipe(select("unpublished"), Effect.map(Arr.map(fromRow)))

/** Compares message ids as well, so that no row of another message is ever marked, whatever ids an INSERT reported. */
const markPublished =
  ({ portError, sql, statement, withIndex }: Table) =>
  (rows: ReadonlyArray<Pick<LoggedInteraction, "id" | "interaction">>, at: number) =>
    Effect.forEach(
      Arr.chunksOf(
        rows.toSorted((a, b) => a.id - b.id),
        rowsPerPage,
      ),
      (page) => {
        const ids = page.map(({ id }) => id)
        const messageIds = page.map(({ interaction }) => interaction.message_id)
        return statement("UPDATE")(
          sql`UPDATE ${withIndex("PRIMARY")}
            SET processed_to_queue = TRUE, published_at = ${columnOfMillis(at)}
            WHERE ${sql.in("id", ids)} AND ${sql.in("message_id", messageIds)}`.unprepared,
        )
      },
      { discard: true },
    ).pipe(Effect.mapError(portError("markPublished")))

/** A row's place in the order of users, and of each user's history. */
interface Position {
  readonly user_id: string
  readonly occurred_at: string
  readonly id: number
}

/** Rows after a position in a history. The condition on `occurred_at` alone lets the index seek. */
const laterInHistory = ({ sql }: Table, { id, occurred_at }: Omit<Position, "user_id">) =>
  sql`occurred_at >= ${occurred_at} AND (occurred_at > ${occurred_at} OR id > ${id})`

const streamPage = ({ columns, name, select, sql }: Table, condition: Fragment, order: string) =>
  sql<StoredRow>`
    SELECT ${columns} FROM ${name} WHERE ${condition}
    ORDER BY ${sql.literal(order)} LIMIT ${rowsPerPage}`.unprepared.pipe(select("stream"))

const person =
  ({ select, sql }: Table) =>
  (user: string) =>
    select("person")(personOf(sql, user))

const streamOfUsers = (table: Table, users: ReadonlyArray<string>, conditions: ReadonlyArray<Fragment>) =>
  Stream.paginateChunkEffect({ occurred_at: "", id: 0 }, (position: Omit<Position, "user_id">) => {
    const { sql } = table
    const inRange = [
      sql.in("user_id", users),
      ...(position.id === 0 ? [] : [laterInHistory(table, position)]),
    ]
    return Effect.map(streamPage(table, sql.and([...inRange, ...conditions]), "occurred_at, id"), (rows) => [
      Chunk.map(Chunk.unsafeFromArray(rows), fromRow),
      Option.filter(Option.fromNullable(rows.at(-1)), () => rows.length === rowsPerPage),
    ])
  })

const maxId = ({ name, select, sql }: Table, operation: string) =>
  sql<{ id: number | null }>`SELECT MAX(id) AS id FROM ${name}`.pipe(
    select(operation),
    Effect.map(([row]) => row?.id ?? 0),
  )

/** Ends at the row that was the last one when the stream began. */
const streamOfAll = (table: Table, conditions: ReadonlyArray<Fragment>) =>
  Stream.unwrap(
    Effect.map(maxId(table, "stream"), (last) =>
      Stream.paginateChunkEffect(0, (after) => {
        const { sql } = table
        const upTo = Math.min(last, after + idRangePerStatement)
        const inRange = [sql`id > ${after}`, sql`id <= ${upTo}`]
        return Effect.map(streamPage(table, sql.and([...inRange, ...conditions]), "id"), (rows) => {
          const next = rows.length === rowsPerPage ? rows.at(-1)!.id : upTo
          return [
            Chunk.map(Chunk.unsafeFromArray(rows), fromRow),
            next < last ? Option.some(next) : Option.none(),
          ]
        })
      }),
    ),
  )

const stream =
  (table: Table) =>
  ({ postedAs, recordedSince, since, type, until, user }: LogFilter) => {
    const { sql } = table
    const conditions = [
      ...(type === undefined ? [] : [sql`event_type = ${type}`]),
      ...(since === undefined ? [] : [sql`occurred_at >= ${toColumn(since)}`]),
      ...(until === undefined ? [] : [sql`occurred_at < ${toColumn(until)}`]),
      ...(recordedSince === undefined ? [] : [sql`created_at >= ${toColumn(recordedSince)}`]),
    ]
    if (postedAs !== undefined) return streamOfUsers(table, [postedAs], conditions)
    if (user === undefined) return streamOfAll(table, conditions)
    return Stream.unwrap(Effect.map(person(table)(user), ({ ids }) => streamOfUsers(table, ids, conditions)))
  }

type IdRow = Position & { readonly message_id: string; readonly event_type: EventType }

/**
 * A page is either the rest of one user's history or a range of users. One condition for both would need an OR, for
 * which some query planners do not seek in the index.
 */
const messageIds = (table: Table) =>
  Stream.paginateEffect({ withinUser: false, user_id: "", occurred_at: "", id: 0 }, (position) => {
    const { select, sql, withIndex } = table
    const condition = position.withinUser
      ? sql`user_id = ${position.user_id} AND ${laterInHistory(table, position)}`
      : sql`user_id > ${position.user_id}`
    return sql<IdRow>`
      SELECT user_id, message_id, event_type, occurred_at, id FROM ${withIndex("user_interactions_history")}
      WHERE ${condition} ORDER BY user_id, occurred_at, id LIMIT ${idsPerPage}`.unprepared.pipe(
      select("messageIds"),
      Effect.map((rows): readonly [ReadonlyArray<IdRow>, Option.Option<typeof position>] => {
        const last = rows.at(-1)
        if (rows.length === idsPerPage && last !== undefined)
          return [rows, Option.some({ ...last, withinUser: true })]
        return [rows, position.withinUser ? Option.some({ ...position, withinUser: false }) : Option.none()]
      }),
    )
  })

const existingIds = ({ name, select, sql }: Table) =>
  Effect.fnUntraced(function* (prefixes: ReadonlyArray<string>) {
    const found = new Set<string>()
    for (const some of Arr.chunksOf(prefixes, prefixesPerStatement)) {
      // "g" sorts after every hexadecimal digit.
      const ranges = some.map((prefix) => sql`message_id BETWEEN ${prefix} AND ${`${prefix}g`}`)
      const rows = yield* sql<{ message_id: string }>`
        SELECT message_id FROM ${name} WHERE ${sql.or(ranges)}`.unprepared.pipe(select("existingIds"))
      for (const { message_id } of rows) found.add(prefix(message_id))
    }
    return found
  })

const find = ({ columns, name, select, sql }: Table) =>
  Effect.fnUntraced(function* (ids: ReadonlyArray<string>) {
    const found = new Map<string, LoggedInteraction>()
    for (const some of Arr.chunksOf(ids, rowsPerPage)) {
      const rows = yield* sql<StoredRow>`
        SELECT ${columns} FROM ${name} WHERE ${sql.in("message_id", some)}`.unprepared.pipe(select("find"))
      for (const row of rows) found.set(row.message_id, fromRow(row))
    }
    return found
  })

/** A retraction has the user and the instant of its interaction, so the index finds it. */
const newest = (table: Table) =>
  Effect.fnUntraced(function* (user: string, limit: number) {
    const { columns, name, select, sql } = table
    const { ids } = yield* person(table)(user)
    const rows = yield* sql<StoredRow>`
      SELECT ${columns} FROM ${name} i WHERE ${sql.in("user_id", ids)} AND reference IS NULL
        AND NOT EXISTS (SELECT 1 FROM ${name} r WHERE r.user_id = i.user_id AND r.occurred_at = i.occurred_at
          AND r.event_type = 'retraction' AND r.reference = i.message_id)
      ORDER BY occurred_at DESC, message_id DESC LIMIT ${limit}`.unprepared.pipe(select("newest"))
    return rows.map(fromRow)
  })

const lastRecorded =
  ({ columns, name, select, sql }: Table) =>
  (limit: number) =>
    sql<StoredRow>`SELECT ${columns} FROM ${name} ORDER BY id DESC LIMIT ${limit}`.unprepared.pipe(
      select("lastRecorded"),
      Effect.map(Arr.map(fromRow)),
    )

const ageOfNewest =
  ({ name, select, sql }: Table) =>
  (rank: number) =>
    Effect.gen(function* () {
      // The ids of as many rows span at least this range, so it begins at the row of this rank or at a newer one.
      const [row] = yield* sql<{ created_at: string }>`
        SELECT created_at FROM ${name} WHERE id > (SELECT MAX(id) FROM ${name}) - ${rank}
        ORDER BY id LIMIT 1`.pipe(select("ageOfNewest"))
      const now = yield* Clock.currentTimeMillis
      return row === undefined ? null : Math.max(0, now - millisOfColumn(row.created_at)) / 1_000
    })

const productEvents = (log: Table) =>
  Effect.fnUntraced(function* (
    user: string,
    { among, types }: Parameters<InteractionLog["Type"]["productEvents"]>[1],
  ) {
    if (among.length === 0) return []
    const { select, sql, withIndex } = log
    const table = withIndex("user_interactions_products")
    const ofPerson = sql.and([sql.in("user_id", (yield* person(log)(user)).ids), sql.in("product_id", among)])
    const isWanted = types === undefined ? sql`TRUE` : sql.in("event_type", [...types, "retraction"])
    // The index covers this. The type that is taken back is not in the index, so it is read only where there is one.
    const rows = yield* sql<ProductEvents>`
      SELECT product_id, event_type, COUNT(*) AS events FROM ${table}
      WHERE ${ofPerson} AND ${isWanted}
      GROUP BY product_id, event_type`.unprepared.pipe(select("productEvents"))
    const pruned = yield* sql<ProductEvents>`
      SELECT product_id, event_type, events FROM pruned_products
      WHERE ${ofPerson} AND ${isWanted}`.unprepared.pipe(select("productEvents"))
    const [retractions, events] = Arr.partition(rows, ({ event_type }) => event_type !== "retraction")
    if (retractions.length === 0) return [...events, ...pruned]
    const type = effectiveType(sql)
    const retracted = yield* sql<ProductEvents>`
      SELECT product_id, ${type} AS event_type, COUNT(*) AS events FROM ${table}
      WHERE ${ofPerson} AND event_type = 'retraction'
      GROUP BY product_id, ${type}`.unprepared.pipe(select("productEvents"))
    const key = ({ event_type, product_id }: ProductEvents) => `${product_id} ${event_type}`
    const takenBack = new Map(retracted.map((one) => [key(one), one.events]))
    const left = events.flatMap((one) => {
      const left = one.events - (takenBack.get(key(one)) ?? 0)
      return left > 0 ? [{ ...one, events: left }] : []
    })
    return [...left, ...pruned]
  })

const productCounts =
  ({ name, select, sql }: Table) =>
  (types: ReadonlyArray<EventType>, after: number, upTo: number) =>
    sql<ProductCount>`
      SELECT product_id, SUBSTR(occurred_at, 1, 10) AS day, SUM(${sign(sql)}) AS interactions FROM ${name}
      WHERE id > ${after} AND id <= ${upTo} AND product_id IS NOT NULL AND ${effectiveType(sql)} IN ${sql.in(types)}
      GROUP BY product_id, SUBSTR(occurred_at, 1, 10)`.unprepared.pipe(
      select("productCounts"),
      // MySQL answers a SUM as a decimal.
      Effect.map(Arr.map((count) => ({ ...count, interactions: Number(count.interactions) }))),
    )

/** As a product id: all products of the order. */
const allProducts = ""

const noteRefund =
  ({ erasing, sql }: Table) =>
  ({ order_id, products, user_id }: OrderRefund) => {
    const onConflict = sql.onDialectOrElse({
      mysql: () => sql.literal("ON DUPLICATE KEY UPDATE user_id = user_id"),
      orElse: () => sql.literal("ON CONFLICT DO NOTHING"),
    })
    const rows = (products.length === 0 ? [allProducts] : products.toSorted()).map((product_id) => ({
      user_id,
      order_id,
      product_id,
    }))
    return Effect.forEach(
      Arr.chunksOf(rows, rowsPerPage),
      (page) => sql`INSERT INTO order_refunds ${sql.insert(page)} ${onConflict}`.unprepared,
      { discard: true },
    ).pipe(erasing("noteRefund"))
  }

const refundOf = (table: Table) =>
  Effect.fnUntraced(function* (user_id: string, order_id: string) {
    const { select, sql } = table
    const { ids } = yield* person(table)(user_id)
    const rows = yield* sql<{ product_id: string }>`
      SELECT product_id FROM order_refunds WHERE ${sql.in("user_id", ids)} AND order_id = ${order_id}`.unprepared.pipe(
      select("refundOf"),
    )
    if (rows.length === 0) return undefined
    const products = rows.map(({ product_id }) => product_id)
    return { user_id, order_id, products: products.includes(allProducts) ? [] : products }
  })

const outbox = ({ name, select, sql }: Table): Effect.Effect<Outbox, InteractionLogError> =>
  Effect.gen(function* () {
    const [row] = yield* sql<{ unpublished: number; oldest: string | null }>`
      SELECT (SELECT COUNT(*) FROM ${name} WHERE processed_to_queue = FALSE) AS unpublished,
        (SELECT created_at FROM ${name} WHERE processed_to_queue = FALSE ORDER BY id LIMIT 1) AS oldest`.pipe(
      select("outbox"),
    )
    const { oldest, unpublished } = row ?? { unpublished: 0, oldest: null }
    const ageMillis = oldest === null ? null : (yield* Clock.currentTimeMillis) - millisOfColumn(oldest)
    return {
      unpublished,
      oldestUnpublishedSeconds: ageMillis === null ? null : Math.max(0, ageMillis / 1_000),
    }
  })

const backlog = (table: Table): Effect.Effect<Backlog, InteractionLogError> =>
  Effect.zipWith(
    table.sql<{ total: number }>`SELECT COUNT(*) AS total FROM ${table.name}`.pipe(table.select("backlog")),
    outbox(table),
    ([row], waiting) => ({ total: row?.total ?? 0, ...waiting }),
  )

/** Deletes page by page: one statement for all rows would hold locks for long and might exceed its deadline. */
const erase =
  ({ dialect, name, portError, sql, statement }: Table) =>
  (user: string, upTo: number) =>
    Effect.gen(function* () {
      yield* statement("DELETE")(sql`DELETE FROM order_refunds WHERE user_id = ${user}`)
      let erased = 0
      while (true) {
        const rows = yield* statement("SELECT")(
          sql<{ id: number }>`
            SELECT id FROM ${name} WHERE user_id = ${user} AND id <= ${upTo} LIMIT ${rowsPerPage}`,
        )
        if (rows.length === 0) break
        const ids = rows.map(({ id }) => id)
        const forget = Effect.zipRight(forgetRows(sql, ids), forgetLinks(sql, user, ids))
        const removed = sql.withTransaction(
          Effect.zipRight(forget, sql`DELETE FROM ${name} WHERE ${sql.in("id", ids)}`.raw),
        )
        erased += dialect.affectedRows(yield* statement("DELETE")(removed))
        if (rows.length < rowsPerPage) break
      }
      // After the rows: a prune that runs meanwhile keeps their sums.
      yield* statement("DELETE")(forgetCheckpoints(sql, user))
      return erased
    }).pipe(Effect.mapError(portError("erase")))

/** Ids of erasures that have not finished: if one failed half-way, the links between them may be gone. */
const unfinishedWith = (sql: SqlClient.SqlClient, users: ReadonlyArray<string>) =>
  sql<{ user_id: string }>`
    SELECT other.user_id FROM user_erasures e JOIN user_erasures other ON other.token = e.token
    WHERE ${sql.in("e.user_id", users)} AND e.renew_to IS NULL AND other.renew_to IS NULL`.unprepared

const beginErasure =
  ({ erasing, name, sql }: Table) =>
  (wanted: ReadonlyArray<string>) => {
    const token = randomUUID()
    const onConflict = sql.onDialectOrElse({
      mysql: () => sql.literal("ON DUPLICATE KEY UPDATE token = VALUES(token), renew_to = NULL"),
      orElse: () =>
        sql.literal("ON CONFLICT (user_id) DO UPDATE SET token = excluded.token, renew_to = NULL"),
    })
    const begin = (users: ReadonlyArray<string>): Effect.Effect<BegunErasure, SqlError> =>
      Effect.gen(function* () {
        const notes = users.map((user_id) => ({ user_id, token }))
        yield* sql`INSERT INTO user_erasures ${sql.insert(notes)} ${onConflict}`.unprepared
        const [row] = yield* sql<{ id: number | null }>`SELECT MAX(id) AS id FROM ${name}`
        return { token, users, upTo: row?.id ?? 0 }
      })
    return unfinishedWith(sql, wanted).pipe(
      Effect.flatMap((unfinished) =>
        withLockedPeople(
          sql,
          [...new Set([...wanted, ...unfinished.map(({ user_id }) => user_id)])],
          ({ ids }) => begin(ids),
        ),
      ),
      erasing("beginErasure"),
    )
  }

const finishErasure =
  ({ erasing, sql }: Table) =>
  (user: string, token: string, renewTo: number) =>
    sql`UPDATE user_erasures SET renew_to = ${renewTo}, finished_at = ${databaseClock(sql).now}
      WHERE user_id = ${user} AND token = ${token}`.pipe(erasing("finishErasure"), Effect.asVoid)

/**
 * Inserts a page of the rows again, in place of the old ones. An erasure that begins meanwhile waits for the lock on the
 * note, so it finds either the old rows or the new ones.
 */
const renewPage = ({ columns, dialect, name, sql }: Table, user: string) =>
  sql.withTransaction(
    Effect.gen(function* () {
      const [note] = yield* sql<{ renew_to: number }>`
        SELECT renew_to FROM user_erasures WHERE user_id = ${user} AND renew_to IS NOT NULL ${forUpdate(sql)}`
      if (note === undefined) return 0
      const rows = yield* sql<StoredRow>`
        SELECT ${columns} FROM ${name} WHERE user_id = ${user} AND id <= ${note.renew_to}
        ORDER BY id LIMIT ${rowsPerPage}`.unprepared
      if (rows.length === 0) return 0
      const ids = rows.map(({ id }) => id)
      // The counts of products would count the rows twice.
      yield* forgetRows(sql, ids)
      yield* sql`DELETE FROM ${name} WHERE ${sql.in("id", ids)}`.unprepared
      yield* dialect.runInsert(
        sql.unsafe<object>(insertStatement(rows.length), insertParameters(rows)),
        false,
      )
      return rows.length
    }),
  )

const renewSurvivors = (table: Table) =>
  Effect.fnUntraced(function* (user: string) {
    let renewed = 0
    while (true) {
      const rows = yield* table.erasing("renewSurvivors")(renewPage(table, user))
      renewed += rows
      if (rows < rowsPerPage) return renewed
    }
  })

const finishedErasures = ({ erasing, name, sql }: Table) =>
  sql<{ user_id: string; token: string; age: number; survivors: number }>`
    SELECT user_id, token, ${databaseClock(sql).ageOf("finished_at")} AS age,
      EXISTS (SELECT 1 FROM ${name} i WHERE i.user_id = e.user_id AND i.id <= e.renew_to) AS survivors
    FROM user_erasures e WHERE renew_to IS NOT NULL`.pipe(
    erasing("finishedErasures"),
    Effect.map(
      Arr.map(({ age, survivors, token, user_id }) => ({
        user_id,
        token,
        ageMillis: Number(age),
        hasSurvivors: survivors === 1,
      })),
    ),
  )

const forgetErasure =
  ({ erasing, sql }: Table) =>
  ({ token, user_id }: FinishedErasure) =>
    sql`DELETE FROM user_erasures WHERE user_id = ${user_id} AND token = ${token}`.pipe(
      erasing("forgetErasure"),
      Effect.asVoid,
    )

const withLeaderLock =
  ({ dialect, portError, sql }: Table) =>
  <E, R>(effect: Effect.Effect<void, E, R>, job = "relay") =>
    // The effect's own errors pass the lock as an exit, so that only errors of the lock are converted.
    Effect.exit(effect).pipe(
      dialect.withNamedLock(job),
      Effect.provideService(SqlClient.SqlClient, sql),
      Effect.mapError(portError("withLeaderLock")),
      Effect.flatMap(Option.match({ onNone: () => Effect.succeed(false), onSome: Effect.as(true) })),
    )

const make = (dialect: SqlDialect) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const server = yield* SqlServerName
    const table = makeTable(sql, dialect, server, yield* SqlInserts)
    const reads = makeTable((yield* SqlReader) ?? sql, dialect, server, undefined)
    return InteractionLog.of({
      append: append(table),
      unpublished: unpublished(table),
      markPublished: markPublished(table),
      person: person(reads),
      aliases: reads.select("aliases")(allAliases(reads.sql)),
      stream: stream(reads),
      messageIds: messageIds(reads),
      existingIds: existingIds(reads),
      find: find(table),
      newest: newest(reads),
      lastRecorded: lastRecorded(reads),
      ageOfNewest: ageOfNewest(reads),
      productEvents: productEvents(reads),
      maxId: maxId(reads, "maxId"),
      productCounts: productCounts(reads),
      touched: touched(reads),
      historyChanges: historyChanges(reads),
      usersAfter: usersAfter(reads),
      noteRefund: noteRefund(table),
      refundOf: refundOf(table),
      outbox: outbox(reads),
      backlog: backlog(reads),
      beginErasure: beginErasure(table),
      erase: erase(table),
      finishErasure: finishErasure(table),
      renewSurvivors: renewSurvivors(table),
      finishedErasures: finishedErasures(table),
      forgetErasure: forgetErasure(table),
      withLeaderLock: withLeaderLock(table),
      pruned: prunedRows(table, reads),
    })
  })

/** The log in the database of `SqlClient`, which must be one of this dialect. */
export const layer = (dialect: SqlDialect): Layer.Layer<InteractionLog, never, SqlClient.SqlClient> =>
  Layer.effect(InteractionLog, make(dialect))
