/**
 * The tables of what is pruned from the interaction log. They are in the log's database, because a row must be deleted in
 * the transaction that adds it to the checkpoint: a process that is killed at any step leaves each event in one of the two.
 *
 * - `pruned_interactions`: the ids, which tell a pruned event that is posted again or taken back.
 * - `user_checkpoints`: number and fingerprint of the ids, and the sums. Sums of different settings have different rows.
 * - `pruned_products`: what the user did with each product, for exclusions, buy-again and popularity.
 * - `pruned_orders`: see SqlOrderRefunds.ts.
 */
import { createHash } from "node:crypto"
import type { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Array as Arr, Chunk, Clock, Effect, Option, Stream } from "effect"
import { prefix } from "../../services/model/AppliedIds.ts"
import {
  add,
  addProducts,
  type Checkpoint,
  type PrunedIds,
  type PrunedPart,
  type PrunedProduct,
  productsOf,
} from "../../services/model/Checkpoint.ts"
import { Fingerprint } from "../../services/model/Fingerprint.ts"
import { describeWeights, type FoldSettings } from "../../services/model/Fold.ts"
import type { UserEmbedding } from "../../services/model/UserEmbedding.ts"
import * as Vector from "../../services/model/Vector.ts"
import type { PrunedRows, Pruning } from "../../services/ports/PrunedRows.ts"
import { columns, fromRow, type StoredRow, toColumn } from "./InteractionRows.ts"
import { forUpdate } from "./SqlDialect.ts"
import { keepPurchases, purchases } from "./SqlOrderRefunds.ts"
import { forgetPruned, forgetRows, keepRows } from "./SqlProductTally.ts"
import type { Table } from "./SqlTable.ts"

/** Events of one transaction. */
const eventsPerSlice = 5_000
/** Range of `id` that one statement scans, however few rows are old enough. */
const idRangePerStatement = 50_000
/** Rows that one statement reads or writes. A checkpoint has a vector. */
const rowsPerStatement = 500
const checkpointsPerStatement = 100

/** Joins the events `e` of the log with the retractions `r`, which have the user and the instant of their event. */
const takenBack = ({ name, sql }: Table) =>
  sql`${name} e JOIN ${name} r ON r.user_id = e.user_id AND r.occurred_at = e.occurred_at
    AND r.event_type = 'retraction' AND r.reference = e.message_id`

const slice =
  (table: Table): PrunedRows["slice"] =>
  ({ after, before, end }) =>
    Effect.gen(function* () {
      const { select, sql, withIndex } = table
      const range = Math.min(end, after + idRangePerStatement)
      const isOld = sql`occurred_at < ${toColumn(before)}`
      const events = yield* sql<StoredRow>`
        SELECT ${table.columns} FROM ${withIndex("PRIMARY")}
        WHERE id > ${after} AND id <= ${range} AND ${isOld} AND reference IS NULL
        ORDER BY id LIMIT ${eventsPerSlice}`.unprepared.pipe(select("slice"))
      const upTo = events.length === eventsPerSlice ? events.at(-1)!.id : range
      const retractions = yield* sql<StoredRow>`
        SELECT ${sql.literal(columns.map((column) => `r.${column}`).join(", "))} FROM ${takenBack(table)}
        WHERE e.id > ${after} AND e.id <= ${upTo} AND e.${isOld} AND e.reference IS NULL`.unprepared.pipe(
        select("slice"),
      )
      return { events: events.map(fromRow), retractions: retractions.map(fromRow), upTo }
    })

const erasing = ({ select, sql }: Table): PrunedRows["erasing"] =>
  sql<{ user_id: string }>`SELECT user_id FROM user_erasures`.pipe(
    select("erasing"),
    Effect.map((rows) => new Set(rows.map(({ user_id }) => user_id))),
  )

// ---------------------------------------------------------------------------------------------------------
// Checkpoints

interface StoredIds {
  readonly user_id: string
  readonly row_count: number
  readonly retractions: number
  readonly fingerprint: string
}
interface StoredCheckpoint extends StoredIds {
  readonly facts: string | null
  readonly embedding: string | null
}

const toIds = ({ fingerprint, retractions, row_count, user_id }: StoredIds): PrunedIds => ({
  user_id,
  rows: row_count,
  retractions,
  fingerprint,
})
const toCheckpoint = ({ embedding, facts, ...ids }: StoredCheckpoint): Checkpoint => {
  const sums: Omit<UserEmbedding, "embedding"> | undefined = facts === null ? undefined : JSON.parse(facts)
  return {
    ...toIds(ids),
    sums: sums && { ...sums, embedding: Vector.fromBytes(Buffer.from(embedding ?? "", "hex")) },
  }
}

/** Names the settings of sums that add up. */
const basisOf = ({ lambda, space, weights }: FoldSettings): string =>
  createHash("sha256")
    .update(`${space} ${lambda} ${describeWeights(weights)}`)
    .digest("hex")
    .slice(0, 32)

const selectCheckpoints = (sql: SqlClient) =>
  sql`SELECT user_id, row_count, retractions, fingerprint, facts, HEX(embedding) AS embedding FROM user_checkpoints`

/** `ON DUPLICATE KEY UPDATE`: replaces these columns of a row with this key. */
const replacing = (sql: SqlClient, key: ReadonlyArray<string>, columns: ReadonlyArray<string>): string =>
  sql.onDialectOrElse({
    mysql: () => `ON DUPLICATE KEY UPDATE ${columns.map((name) => `${name} = VALUES(${name})`).join(", ")}`,
    orElse: () =>
      `ON CONFLICT (${key.join(", ")}) DO UPDATE SET ${columns.map((name) => `${name} = excluded.${name}`).join(", ")}`,
  })

/** For a transaction. */
const addToCheckpoints = Effect.fnUntraced(function* (
  sql: SqlClient,
  parts: ReadonlyArray<PrunedPart>,
  settings: FoldSettings,
) {
  const now = yield* Clock.currentTimeMillis
  const basis = basisOf(settings)
  const columns = ["row_count", "retractions", "fingerprint", "facts", "embedding"]
  for (const some of Arr.chunksOf(parts, checkpointsPerStatement)) {
    const users = some.map(({ user_id }) => user_id)
    const stored = yield* sql<StoredCheckpoint>`${selectCheckpoints(sql)}
      WHERE basis = ${basis} AND ${sql.in("user_id", users)} ${forUpdate(sql)}`.unprepared
    const before = new Map(stored.map((row) => [row.user_id, toCheckpoint(row)]))
    yield* sql.unsafe(
      `INSERT INTO user_checkpoints (user_id, basis, ${columns.join(", ")})
        VALUES ${some.map(() => "(?, ?, ?, ?, ?, ?, UNHEX(?))").join(", ")}
        ${replacing(sql, ["user_id", "basis"], columns)}`,
      some.flatMap((part) => {
        const { fingerprint, retractions, rows, sums, user_id } = add(
          before.get(part.user_id),
          part,
          settings,
          now,
        )
        const { embedding, ...facts } = sums ?? {}
        return [
          user_id,
          basis,
          rows,
          retractions,
          fingerprint,
          embedding ? JSON.stringify(facts) : null,
          embedding ? Buffer.from(Vector.toBytes(embedding)).toString("hex") : null,
        ]
      }),
    ).unprepared
  }
})

const toProduct = (row: PrunedProduct): PrunedProduct => ({
  ...row,
  events: Number(row.events),
  newest: Number(row.newest),
})
const productColumns = "user_id, product_id, event_type, events, decayed, newest"

/** For a transaction. */
const addToProducts = Effect.fnUntraced(function* (
  sql: SqlClient,
  parts: ReadonlyArray<PrunedPart>,
  lambda: number,
) {
  const products = parts.flatMap((part) => productsOf(part, lambda))
  for (const some of Arr.chunksOf(products, rowsPerStatement)) {
    const keys = some.flatMap(({ event_type, product_id, user_id }) => [user_id, product_id, event_type])
    const stored = yield* sql.unsafe<PrunedProduct>(
      `SELECT ${productColumns} FROM pruned_products
        WHERE (user_id, product_id, event_type) IN (${some.map(() => "(?, ?, ?)").join(", ")})`,
      keys,
    ).unprepared
    const rows = addProducts([...stored.map(toProduct), ...some], lambda)
    yield* sql.unsafe(
      `INSERT INTO pruned_products (${productColumns}) VALUES ${rows.map(() => "(?, ?, ?, ?, ?, ?)").join(", ")}
        ${replacing(sql, ["user_id", "product_id", "event_type"], ["events", "decayed", "newest"])}`,
      rows.flatMap((row) => [
        row.user_id,
        row.product_id,
        row.event_type,
        row.events,
        row.decayed,
        row.newest,
      ]),
    ).unprepared
  }
})

// ---------------------------------------------------------------------------------------------------------
// Pruning

/** Whether the rows are still there, and nothing has begun that needs them. Locks the rows. */
const mayPrune = Effect.fnUntraced(function* (table: Table, { again, ids, parts }: Pruning) {
  const { name, sql } = table
  const all = [...ids, ...again]
  const found = yield* sql`SELECT id FROM ${name} WHERE ${sql.in("id", all)} ${forUpdate(sql)}`.unprepared
  const retractions = yield* sql`
    SELECT r.id FROM ${takenBack(table)} WHERE ${sql.in("e.id", ids)}`.unprepared
  const known = parts.flatMap(({ interactions }) =>
    interactions.filter(({ reference }) => reference !== null),
  )
  const erased = yield* sql`SELECT user_id FROM user_erasures
    WHERE ${sql.in(
      "user_id",
      parts.map(({ user_id }) => user_id),
    )}`.unprepared
  return found.length === all.length && retractions.length === known.length && erased.length === 0
})

const prune =
  (table: Table): PrunedRows["prune"] =>
  (pruning) => {
    const { again, ids, parts, settings } = pruning
    const { name, portError, sql, statement } = table
    const run = Effect.gen(function* () {
      // The order of the locks is that of an erasure: the counts of products, then rows.
      yield* keepRows(sql, ids)
      if (again.length > 0) yield* forgetRows(sql, again)
      if (!(yield* mayPrune(table, pruning))) return false
      yield* sql`INSERT INTO pruned_interactions (user_id, id)
        SELECT user_id, UNHEX(SUBSTR(message_id, 1, 32)) FROM ${name} WHERE ${sql.in("id", ids)}`.unprepared
      yield* addToCheckpoints(sql, parts, settings)
      yield* addToProducts(sql, parts, settings.lambda)
      yield* keepPurchases(sql, parts)
      yield* sql`DELETE FROM ${name} WHERE ${sql.in("id", [...ids, ...again])}`.unprepared
      return true
    })
    const undone = Effect.filterOrFail(
      run,
      (done) => done,
      () => "undone" as const,
    )
    return sql.withTransaction(undone).pipe(
      Effect.catchIf(
        (error) => error === "undone",
        () => Effect.succeed(false),
      ),
      statement("DELETE"),
      Effect.mapError(portError("prune")),
    )
  }

/** For the erasure of a user, when the rows are deleted. */
export const forgetCheckpoints = (sql: SqlClient, user: string): Effect.Effect<void, SqlError> =>
  sql.withTransaction(
    Effect.gen(function* () {
      yield* forgetPruned(sql, user)
      for (const table of ["pruned_interactions", "user_checkpoints", "pruned_products", "pruned_orders"])
        yield* sql`DELETE FROM ${sql(table)} WHERE user_id = ${user}`
    }),
  )

// ---------------------------------------------------------------------------------------------------------
// Reading

/** A user's ids under all settings, added. */
const addIds = (some: ReadonlyArray<PrunedIds>): PrunedIds => {
  const ids = new Fingerprint()
  for (const { fingerprint, rows } of some) ids.addSet(rows, fingerprint)
  return {
    user_id: some[0]!.user_id,
    rows: ids.count,
    retractions: some.reduce((sum, { retractions }) => sum + retractions, 0),
    fingerprint: ids.toHex(),
  }
}

const allIds = ({ select, sql }: Table): PrunedRows["allIds"] =>
  Stream.paginateChunkEffect("", (after: string) =>
    sql<StoredIds>`
      SELECT user_id, row_count, retractions, fingerprint FROM user_checkpoints WHERE user_id IN (
        SELECT user_id FROM (SELECT DISTINCT user_id FROM user_checkpoints WHERE user_id > ${after}
          ORDER BY user_id LIMIT ${rowsPerStatement}) page) ORDER BY user_id`.unprepared.pipe(
      select("allIds"),
      Effect.map((rows) => {
        const users = Array.from(Map.groupBy(rows.map(toIds), ({ user_id }) => user_id).values(), addIds)
        return [
          Chunk.unsafeFromArray(users),
          Option.filter(Option.fromNullable(users.at(-1)?.user_id), () => users.length === rowsPerStatement),
        ] as const
      }),
    ),
  )

const checkpoints =
  ({ select, sql }: Table): PrunedRows["checkpoints"] =>
  (users) =>
    sql<StoredCheckpoint>`${selectCheckpoints(sql)} WHERE ${sql.in("user_id", users)}`.unprepared.pipe(
      select("checkpoints"),
      Effect.map(Arr.map(toCheckpoint)),
    )

const idsOf =
  ({ select, sql }: Table): PrunedRows["idsOf"] =>
  (users) =>
    Stream.flatMap(Stream.fromIterable(users), (user) =>
      Stream.paginateEffect("", (after: string) =>
        sql<{ id: string }>`
          SELECT HEX(id) AS id FROM pruned_interactions WHERE user_id = ${user} AND id > UNHEX(${after})
          ORDER BY id LIMIT ${rowsPerStatement}`.unprepared.pipe(
          select("idsOf"),
          Effect.map((rows) => [
            rows.map(({ id }) => id.toLowerCase()),
            Option.filter(Option.fromNullable(rows.at(-1)?.id), () => rows.length === rowsPerStatement),
          ]),
        ),
      ),
    )

const among =
  ({ select, sql }: Table): PrunedRows["among"] =>
  (some) =>
    Effect.map(
      Effect.forEach(Arr.chunksOf(some, rowsPerStatement), (page) =>
        sql
          .unsafe<{ id: string }>(
            `SELECT HEX(id) AS id FROM pruned_interactions
              WHERE (user_id, id) IN (${page.map(() => "(?, UNHEX(?))").join(", ")})`,
            page.flatMap(({ message_id, user_id }) => [user_id, prefix(message_id)]),
          )
          .unprepared.pipe(select("among")),
      ),
      (pages) => new Set(pages.flat().map(({ id }) => id.toLowerCase())),
    )

const products =
  ({ select, sql }: Table): PrunedRows["products"] =>
  (users) =>
    sql<PrunedProduct>`
      SELECT ${sql.literal(productColumns)} FROM pruned_products WHERE ${sql.in("user_id", users)}`.unprepared.pipe(
      select("products"),
      Effect.map(Arr.map(toProduct)),
    )

/** `reads`: the same tables through the client for slow reads. */
export const prunedRows = (table: Table, reads: Table): PrunedRows => ({
  slice: slice(reads),
  erasing: erasing(reads),
  prune: prune(table),
  checkpoints: checkpoints(reads),
  allIds: allIds(reads),
  idsOf: idsOf(reads),
  among: among(reads),
  products: products(reads),
  purchases: purchases(reads),
})
