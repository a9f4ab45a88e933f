import * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment } from "@effect/sql/Statement"
import { Array as Arr, Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import { prefix } from "../../services/model/AppliedIds.ts"
import type { EventType, UserId } from "../../services/model/Interaction.ts"
import {
  type Backlog,
  InteractionLog,
  type InteractionLogError,
  type LogFilter,
  type LoggedInteraction,
  type Outbox,
  type ProductCount,
  type ProductEvents,
} from "../../services/ports/InteractionLog.ts"
import { columnOfMillis, fromRow, millisOfColumn, type StoredRow, toColumn } from "./InteractionRows.ts"
import { allAliases, hasLinks } from "./SqlAliases.ts"
import { append, takeBack } from "./SqlAppend.ts"
import { prunedRows } from "./SqlCheckpoints.ts"
import { type SqlDialect, SqlInserts, SqlReader, SqlServerName } from "./SqlDialect.ts"
import {
  beginErasure,
  erase,
  finishErasure,
  finishedErasures,
  forgetErasure,
  renewSurvivors,
} from "./SqlErasures.ts"
import { historyChanges, touched, usersAfter } from "./SqlHistories.ts"
import { noteRefunds, refundsOf } from "./SqlOrderRefunds.ts"
import { effectiveType, sign } from "./SqlProductTally.ts"
import { makeTable, person, rowsPerPage, type Table } from "./SqlTable.ts"

/** Message ids that one statement reads. */
const idsPerPage = 2_500
/** Message id prefixes that one statement looks up. */
const prefixesPerStatement = 100
/** Range of `id` that one statement of a stream over all users scans, however few rows match the filter. */
const idRangePerStatement = 50_000

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
/** How many rows of pruned events that were posted again there are. Later rows than the newest pruned event need no look. */
const postedAgain = (log: Table, rows: Fragment, newest: number) => {
  const { name, select, sql, withIndex } = log
  return sql<ProductEvents>`
    SELECT product_id, event_type, COUNT(*) AS events FROM ${withIndex("user_interactions_history")}
    WHERE ${rows} AND occurred_at <= ${columnOfMillis(newest)} AND reference IS NULL AND EXISTS (
      SELECT 1 FROM pruned_interactions p
      WHERE p.user_id = ${name}.user_id AND p.id = UNHEX(SUBSTR(message_id, 1, 32)))
    GROUP BY product_id, event_type`.unprepared.pipe(select("productEvents"))
}

/** Adds counts, or takes them away with `sign` −1. */
const countEvents = (
  counts: Map<string, ProductEvents>,
  some: ReadonlyArray<ProductEvents>,
  sign: 1 | -1,
) => {
  for (const { event_type, events, product_id } of some) {
    const key = `${product_id} ${event_type}`
    const sum = (counts.get(key)?.events ?? 0) + sign * Number(events)
    counts.set(key, { product_id, event_type, events: sum })
  }
}

interface CountedEvents extends ProductEvents {
  /** Of pruned events: when the newest of them occurred (Unix ms). */
  readonly newest: number | null
}

/** The events in the log, those that were pruned, and in a row without a product, whether the person has other ids. */
const countedEvents = ({ select, sql, withIndex }: Table, user: UserId, rows: Fragment) =>
  // The index covers this. The type that is taken back is not in the index.
  sql<CountedEvents>`
    SELECT product_id, event_type, COUNT(*) AS events, NULL AS newest FROM ${withIndex("user_interactions_products")}
    WHERE ${rows} GROUP BY product_id, event_type
    UNION ALL
    SELECT product_id, event_type, events, newest FROM pruned_products WHERE ${rows}
    UNION ALL
    SELECT '', '', ${hasLinks(sql, user)}, NULL`.unprepared.pipe(select("productEvents"))

const productEvents = (log: Table) =>
  Effect.fnUntraced(function* (
    user: UserId,
    { among, types }: Parameters<InteractionLog["Type"]["productEvents"]>[1],
  ) {
    if (among.length === 0) return []
    const { select, sql, withIndex } = log
    const isWanted = types === undefined ? sql`TRUE` : sql.in("event_type", [...types, "retraction"])
    const rowsOf = (ids: ReadonlyArray<UserId>) =>
      sql.and([sql.in("user_id", ids), sql.in("product_id", among), isWanted])
    let rows = rowsOf([user])
    let found = yield* countedEvents(log, user, rows)
    if (found.some(({ events, product_id }) => product_id === "" && Number(events) > 0)) {
      rows = rowsOf((yield* person(log)(user)).ids)
      found = yield* countedEvents(log, user, rows)
    }
    const counts = new Map<string, ProductEvents>()
    countEvents(
      counts,
      found.filter(({ event_type, product_id }) => product_id !== "" && event_type !== "retraction"),
      1,
    )
    const pruned = found.flatMap(({ newest }) => (newest === null ? [] : Number(newest)))
    if (pruned.length > 0) countEvents(counts, yield* postedAgain(log, rows, Math.max(...pruned)), -1)
    if (found.some(({ event_type }) => event_type === "retraction")) {
      const type = effectiveType(sql)
      const retracted = yield* sql<ProductEvents>`
        SELECT product_id, ${type} AS event_type, COUNT(*) AS events FROM ${withIndex("user_interactions_products")}
        WHERE ${rows} AND event_type = 'retraction'
        GROUP BY product_id, ${type}`.unprepared.pipe(select("productEvents"))
      countEvents(counts, retracted, -1)
    }
    return [...counts.values()].filter(({ events }) => events > 0)
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
      takeBack: takeBack(table),
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
      noteRefunds: noteRefunds(table),
      refundsOf: refundsOf(table),
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
