/** Appends interactions to the log, each once, by its message id and its idempotency key. */
import type { SqlError } from "@effect/sql/SqlError"
import { Array as Arr, Effect } from "effect"
import type { Retraction } from "../../services/model/Interaction.ts"
import type {
  Appended,
  InteractionLog,
  LoggedInteraction,
  NewInteraction,
} from "../../services/ports/InteractionLog.ts"
import { databaseSpan } from "../../services/Telemetry.ts"
import { type ExistingRow, type KeyUpdate, plan } from "./IdempotencyPlan.ts"
import {
  fromRow,
  insertParameters,
  insertStatement,
  keyOf,
  type Row,
  type StoredRow,
  tableName,
} from "./InteractionRows.ts"
import { appendMerge, withLockedPeople } from "./SqlAliases.ts"
import { afterConflicts, rowsPerPage, type Table } from "./SqlTable.ts"

/** Rows of one INSERT, which is one commit. Equals the largest bulk request. */
const rowsPerInsert = 1_000
/**
 * A prepared INSERT costs less CPU, but each number of rows needs its own statement. Hence only numbers that recur are
 * prepared. InteractionRecorder makes batches of a power of two for this.
 */
const isPrepared = (rows: number): boolean =>
  rows <= 16 || (rows <= 500 && (rows % 50 === 0 || Number.isInteger(Math.log2(rows))))
/** Attempts of an append that conflicts with concurrent appends of the same interactions. */
const maxAppendAttempts = 20

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
    Effect.catchAll((error) => {
      const { isDuplicateKey, isTooLarge } = table.dialect
      if (isDuplicateKey(error) && attempt < maxAppendAttempts) return again
      if (!isTooLarge(error) || entries.length === 1) return Effect.fail(error)
      return Effect.map(
        Effect.forEach(halves(entries), (half) => appendBatch(table, half)),
        Arr.flatten,
      )
    }),
    // The server had closed an idle connection, or has failed over.
    Effect.catchIf(
      (error) => table.dialect.isConnectionLost(error) && attempt === 1,
      () => again,
    ),
  )
}

const isMerge = ({ interaction }: NewInteraction): boolean => interaction.event_type === "merge"

/** A deadlock ends the transaction, so its statements can't run again one by one. */
const inTransaction = (table: Table): Table => ({
  ...table,
  runInsert: undefined,
  statement: () => (run) => run,
})

/** A merge is a transaction of its own, which may wait for others of the same people. */
const appendOneMerge = (table: Table, entry: NewInteraction) => {
  const merge = appendMerge(
    table.sql,
    entry,
    (id) =>
      Effect.map(
        table.sql<StoredRow>`SELECT ${table.columns} FROM ${table.name} WHERE message_id = ${id}`.unprepared,
        ([row]) => row && fromRow(row).interaction,
      ),
    (one) => Effect.map(appendBatch(inTransaction(table), [one]), ([answer]) => answer!),
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

export const append = (table: Table) => (entries: ReadonlyArray<NewInteraction>) => {
  const isOneBatch = entries.length <= rowsPerInsert && !entries.some(isMerge)
  const appended = isOneBatch ? appendBatch(table, entries) : appendAll(table, entries)
  return Effect.mapError(appended, table.portError("append"))
}

type TakeBackEntry = NewInteraction & { readonly interaction: Retraction }

/** Those of these entries whose interactions are in the log, if no erasure of the people with these ids has begun. */
const stillWanted = Effect.fnUntraced(function* (
  { name, sql }: Table,
  ids: ReadonlyArray<string>,
  entries: ReadonlyArray<TakeBackEntry>,
) {
  const erasures = yield* sql`SELECT user_id FROM user_erasures
    WHERE ${sql.in("user_id", ids)} AND renew_to IS NULL`.unprepared
  if (erasures.length > 0) return []
  const references = entries.map(({ interaction }) => interaction.reference)
  const rows = yield* sql<{ message_id: string }>`
    SELECT message_id FROM ${name} WHERE ${sql.in("message_id", references)}`.unprepared
  const found = new Set(rows.map(({ message_id }) => message_id))
  return entries.filter(({ interaction }) => found.has(interaction.reference))
})

/** The transaction keeps erasures of the person from beginning: one that comes later covers the new rows. */
const takeBackOf = (table: Table, user: string, entries: ReadonlyArray<TakeBackEntry>) =>
  table.statement("INSERT")(
    withLockedPeople(table.sql, [user], ({ ids }) =>
      Effect.gen(function* () {
        const wanted = yield* stillWanted(table, ids, entries)
        const answers = wanted.length === 0 ? [] : yield* appendBatch(inTransaction(table), wanted)
        return wanted.flatMap((entry, index): ReadonlyArray<LoggedInteraction> => {
          const answer = answers[index]
          return answer?._tag === "Recorded" ? [{ ...entry, id: answer.id }] : []
        })
      }),
    ),
  )

export const takeBack =
  (table: Table): InteractionLog["Type"]["takeBack"] =>
  (entries) =>
    Effect.forEach(
      [...Map.groupBy(entries, ({ interaction }) => interaction.user_id)].flatMap(([user, all]) =>
        Arr.chunksOf(all, rowsPerPage).map((some) => [user, some] as const),
      ),
      ([user, some]) => takeBackOf(table, user, some),
    ).pipe(Effect.map(Arr.flatten), Effect.mapError(table.portError("takeBack")))
