/**
 * The stored counts of events with products. All writers lock the row of `product_tally_state` first, so that counting,
 * erasing and reading never mix.
 *
 * A decayed count is stored as Σ exp(λ · (day − since_day)), which needs no change when time passes.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { Array as Arr, Effect, Layer } from "effect"
import type { EventType } from "../../services/model/Interaction.ts"
import { ProductTally, type ProductTotal, type TallyState } from "../../services/ports/ProductTally.ts"
import { tableName } from "./InteractionRows.ts"
import { type SqlDialect, SqlReader } from "./SqlDialect.ts"
import { statementsOf } from "./SqlStatements.ts"

/** Rows of the log that one transaction counts, and products that one statement reads or writes. */
const rowsPerAdvance = 50_000
const productsPerStatement = 1_000
/**
 * Ids are assigned before their commit, so a greater id may be visible earlier. A statement that was running when an id
 * was seen has ended after this time.
 */
const settleSeconds = 30
/** Beyond this exponent, the decayed counts get a later `since_day`, because a double ends at exp(709). */
const greatestExponent = 500

const dayMillis = 86_400_000

interface StoredState {
  readonly counted_up_to: number
  readonly settled_up_to: number
  readonly lambda: string
  readonly since_day: number
  readonly erasures: number
}
const toState = (row: StoredState): TallyState => ({
  countedUpTo: row.counted_up_to,
  settledUpTo: row.settled_up_to,
  lambda: row.lambda,
  erasures: row.erasures,
})

const readState = (sql: SqlClient.SqlClient) =>
  Effect.flatMap(
    sql<StoredState>`SELECT counted_up_to, settled_up_to, lambda, since_day, erasures
      FROM product_tally_state WHERE id = 1`.unprepared,
    ([row]) =>
      row === undefined ? Effect.dieMessage("product_tally_state has no row") : Effect.succeed(row),
  )

/** For a transaction: waits for other writers. */
const lockState = (sql: SqlClient.SqlClient) =>
  Effect.zipRight(
    sql`UPDATE product_tally_state SET erasures = erasures WHERE id = 1`.unprepared,
    readState(sql),
  )

interface DayCount {
  readonly product_id: string
  readonly event_type: EventType
  readonly day: string
  readonly events: number
  /** The events, each weighted by exp(−λ · days before `day`). Left out, if all of them occurred on that day. */
  readonly decayed?: number
}

/** Adds counts, or takes them away with `sign` −1. */
const add = (
  sql: SqlClient.SqlClient,
  counts: ReadonlyArray<DayCount>,
  { lambda, since_day }: Pick<StoredState, "lambda" | "since_day">,
  sign: 1 | -1,
) => {
  const sums = new Map<string, { product_id: string; event_type: string; events: number; decayed: number }>()
  for (const { day, event_type, events, decayed = events, product_id } of counts) {
    const key = `${product_id} ${event_type}`
    const sum = sums.get(key) ?? { product_id, event_type, events: 0, decayed: 0 }
    sum.events += sign * events
    sum.decayed += sign * decayed * Math.exp(Number(lambda) * (Date.parse(day) / dayMillis - since_day))
    sums.set(key, sum)
  }
  const onConflict = sql.onDialectOrElse({
    mysql: () => `ON DUPLICATE KEY UPDATE interactions = interactions + VALUES(interactions),
      decayed = decayed + VALUES(decayed)`,
    orElse: () => `ON CONFLICT (product_id, event_type) DO UPDATE
      SET interactions = interactions + excluded.interactions, decayed = decayed + excluded.decayed`,
  })
  return Effect.forEach(
    Arr.chunksOf(sums.values(), productsPerStatement),
    (page) =>
      sql.unsafe(
        `INSERT INTO product_tally (product_id, event_type, interactions, decayed)
          VALUES ${page.map(() => "(?, ?, ?, ?)").join(", ")} ${onConflict}`,
        page.flatMap(({ decayed, event_type, events, product_id }) => [
          product_id,
          event_type,
          events,
          decayed,
        ]),
      ).unprepared,
    { discard: true },
  )
}

/**
 * The type that a row counts for, and how. A retraction has the product and the instant of its interaction, so it takes that
 * one out of the counts.
 */
export const effectiveType = (sql: SqlClient.SqlClient) =>
  sql.onDialectOrElse({
    mysql: () =>
      sql.literal(`CASE event_type WHEN 'retraction'
        THEN JSON_UNQUOTE(JSON_EXTRACT(metadata, '$.retracted_type')) ELSE event_type END`),
    orElse: () =>
      sql.literal(
        "CASE event_type WHEN 'retraction' THEN json_extract(metadata, '$.retracted_type') ELSE event_type END",
      ),
  })
export const sign = (sql: SqlClient.SqlClient) =>
  sql.literal("CASE event_type WHEN 'retraction' THEN -1 ELSE 1 END")

/** The counts by day, of rows that satisfy the condition. `SUBSTR` gives text in every dialect. */
const countByDay = (sql: SqlClient.SqlClient, condition: ReturnType<SqlClient.SqlClient["and"]>) =>
  Effect.map(
    sql<DayCount>`
      SELECT product_id, ${effectiveType(sql)} AS event_type, SUBSTR(occurred_at, 1, 10) AS day,
        SUM(${sign(sql)}) AS events FROM ${sql(tableName)}
      WHERE ${condition} AND product_id IS NOT NULL
      GROUP BY product_id, ${effectiveType(sql)}, SUBSTR(occurred_at, 1, 10)`.unprepared,
    // MySQL answers a SUM as a decimal.
    Arr.map((count) => ({ ...count, events: Number(count.events) })),
  )

/** For the transaction that deletes rows of the log, before it does: takes them out of the counts. */
export const forgetRows = Effect.fnUntraced(function* (sql: SqlClient.SqlClient, ids: ReadonlyArray<number>) {
  const state = yield* lockState(sql)
  const counts = yield* countByDay(sql, sql.and([sql.in("id", ids), sql`id <= ${state.counted_up_to}`]))
  if (counts.length > 0) yield* add(sql, counts, state, -1)
  yield* sql`UPDATE product_tally_state SET erasures = erasures + 1 WHERE id = 1`.unprepared
})

/** For the transaction that prunes rows of the log, before it does: the counts keep them, also those not counted yet. */
export const keepRows = Effect.fnUntraced(function* (sql: SqlClient.SqlClient, ids: ReadonlyArray<number>) {
  const state = yield* lockState(sql)
  const counts = yield* countByDay(sql, sql.and([sql.in("id", ids), sql`id > ${state.counted_up_to}`]))
  if (counts.length > 0) yield* add(sql, counts, state, 1)
  // Processes that count rows of their own load the stored counts again.
  yield* sql`UPDATE product_tally_state SET erasures = erasures + 1 WHERE id = 1`.unprepared
})

/** The pruned events, by product, type and the day of each user's newest. */
const prunedByDay = (sql: SqlClient.SqlClient, condition: ReturnType<SqlClient.SqlClient["and"]>) => {
  const day = sql.literal(`FLOOR(newest / ${dayMillis})`)
  return Effect.map(
    sql<Omit<DayCount, "day"> & { readonly day: number }>`
      SELECT product_id, event_type, ${day} AS day, SUM(events) AS events, SUM(decayed) AS decayed
      FROM pruned_products WHERE ${condition} AND events > 0 GROUP BY product_id, event_type, ${day}`
      .unprepared,
    Arr.map((count) => ({
      ...count,
      day: new Date(Number(count.day) * dayMillis).toISOString(),
      events: Number(count.events),
      decayed: Number(count.decayed),
    })),
  )
}

/** For the transaction that removes what is kept of a user's pruned rows: takes them out of the counts. */
export const forgetPruned = Effect.fnUntraced(function* (sql: SqlClient.SqlClient, user: string) {
  const state = yield* lockState(sql)
  const counts = yield* prunedByDay(sql, sql`user_id = ${user}`)
  if (counts.length > 0) yield* add(sql, counts, state, -1)
  yield* sql`UPDATE product_tally_state SET erasures = erasures + 1 WHERE id = 1`.unprepared
})

/** Remembers the greatest id. After {@link settleSeconds}, all rows up to it are settled. */
const settle = Effect.fnUntraced(function* (sql: SqlClient.SqlClient) {
  const now = sql.onDialectOrElse({
    mysql: () => sql.literal("UNIX_TIMESTAMP()"),
    orElse: () => sql.literal("CAST(strftime('%s', 'now') AS INTEGER)"),
  })
  const greatest = sql`(SELECT COALESCE(MAX(id), 0) FROM ${sql(tableName)})`
  const due = sql`marked_at <= ${now} - ${settleSeconds}`
  // Assignments see the new values of earlier ones in MySQL, so the settled id comes first.
  yield* sql`UPDATE product_tally_state SET settled_up_to = marked_id, marked_id = ${greatest}, marked_at = ${now}
    WHERE id = 1 AND ${due}`.unprepared
})

/** One writer at a time commits in SQLite, so there every row that is visible is settled. */
const settled = (sql: SqlClient.SqlClient) =>
  sql.onDialectOrElse({
    mysql: () =>
      Effect.zipRight(
        settle(sql),
        Effect.map(readState(sql), (state) => state.settled_up_to),
      ),
    orElse: () =>
      Effect.map(
        sql<{ id: number }>`SELECT COALESCE(MAX(id), 0) AS id FROM ${sql(tableName)}`.unprepared,
        ([row]) => row?.id ?? 0,
      ),
  })

/** Another λ begins from the pruned rows and the first row. A `since_day` that is too long ago is moved. */
const prepare = Effect.fnUntraced(function* (sql: SqlClient.SqlClient, lambda: number, today: number) {
  yield* settle(sql)
  const state = yield* lockState(sql)
  if (state.lambda !== String(lambda)) {
    yield* sql`DELETE FROM product_tally`.unprepared
    const begun = { ...state, counted_up_to: 0, lambda: String(lambda), since_day: today }
    yield* add(sql, yield* prunedByDay(sql, sql`TRUE`), begun, 1)
    return begun
  }
  const exponent = lambda * (today - state.since_day)
  if (exponent <= greatestExponent) return state
  yield* sql`UPDATE product_tally SET decayed = decayed * ${Math.exp(-exponent)}`.unprepared
  return { ...state, since_day: today }
})

const advance = Effect.fnUntraced(function* (sql: SqlClient.SqlClient, lambda: number, today: number) {
  const state = yield* prepare(sql, lambda, today)
  const upTo = Math.min(state.settled_up_to, state.counted_up_to + rowsPerAdvance)
  if (upTo > state.counted_up_to) {
    const inRange = sql.and([sql`id > ${state.counted_up_to}`, sql`id <= ${upTo}`])
    yield* add(sql, yield* countByDay(sql, inRange), state, 1)
  }
  const counted_up_to = Math.max(upTo, state.counted_up_to)
  yield* sql`UPDATE product_tally_state SET counted_up_to = ${counted_up_to}, lambda = ${state.lambda},
    since_day = ${state.since_day} WHERE id = 1`.unprepared
  return toState({ ...state, counted_up_to })
})

const totals = Effect.fnUntraced(function* (
  sql: SqlClient.SqlClient,
  types: ReadonlyArray<EventType>,
  lambda: number,
  today: number,
) {
  const state = yield* lockState(sql)
  const fading = Math.exp(-lambda * (today - state.since_day))
  const products: Array<ProductTotal> = []
  let after = ""
  while (types.length > 0) {
    const page: ReadonlyArray<ProductTotal> = yield* sql<ProductTotal>`
      SELECT product_id, SUM(interactions) + 0 AS interactions, SUM(decayed) AS decayed FROM product_tally
      WHERE product_id > ${after} AND ${sql.in("event_type", types)}
      GROUP BY product_id ORDER BY product_id LIMIT ${10 * productsPerStatement}`.unprepared
    for (const { decayed, interactions, product_id } of page)
      if (Number(interactions) > 0)
        products.push({ product_id, interactions: Number(interactions), decayed: Number(decayed) * fading })
    const last = page.at(-1)
    if (last === undefined || page.length < 10 * productsPerStatement) break
    after = last.product_id
  }
  return { state: toState(state), products }
})

const make = (dialect: SqlDialect) =>
  Effect.gen(function* () {
    const sql = (yield* SqlReader) ?? (yield* SqlClient.SqlClient)
    const run = yield* statementsOf(dialect)
    return ProductTally.of({
      state: Effect.map(readState(sql), toState).pipe(run("tally")),
      settled: settled(sql).pipe(run("settle")),
      advance: (lambda, today) => sql.withTransaction(advance(sql, lambda, today)).pipe(run("advanceTally")),
      totals: (types, lambda, today) =>
        sql.withTransaction(totals(sql, types, lambda, today)).pipe(run("readTally")),
    })
  })

/** The counts in the database of `SqlClient`, which must be one of this dialect. */
export const layer = (dialect: SqlDialect): Layer.Layer<ProductTally, never, SqlClient.SqlClient> =>
  Layer.effect(ProductTally, make(dialect))
