/** Erasures of users: their rows, and the rows that a transaction committed behind an erasure. */
import { randomUUID } from "node:crypto"
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Array as Arr, Effect } from "effect"
import type { BegunErasure, FinishedErasure } from "../../services/ports/InteractionLog.ts"
import { databaseClock } from "./DatabaseClock.ts"
import { insertParameters, insertStatement, type StoredRow } from "./InteractionRows.ts"
import { forgetLinks, withLockedPeople } from "./SqlAliases.ts"
import { forgetCheckpoints } from "./SqlCheckpoints.ts"
import { forUpdate } from "./SqlDialect.ts"
import { forgetRows } from "./SqlProductTally.ts"
import { rowsPerPage, type Table } from "./SqlTable.ts"

/** Deletes page by page: one statement for all rows would hold locks for long and might exceed its deadline. */
export const erase =
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

export const beginErasure =
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

export const finishErasure =
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

export const renewSurvivors = (table: Table) =>
  Effect.fnUntraced(function* (user: string) {
    let renewed = 0
    while (true) {
      const rows = yield* table.erasing("renewSurvivors")(renewPage(table, user))
      renewed += rows
      if (rows < rowsPerPage) return renewed
    }
  })

export const finishedErasures = ({ erasing, name, sql }: Table) =>
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

export const forgetErasure =
  ({ erasing, sql }: Table) =>
  ({ token, user_id }: FinishedErasure) =>
    sql`DELETE FROM user_erasures WHERE user_id = ${user_id} AND token = ${token}`.pipe(
      erasing("forgetErasure"),
      Effect.asVoid,
    )
