/** User embeddings of the embedded stack. A batch is one transaction. Each write is a compare-and-swap on the version. */
import type { Database } from "bun:sqlite"
import { Chunk, Effect, Layer, Stream } from "effect"
import type { UserId } from "../../services/model/Interaction.ts"
import type { UserEmbedding } from "../../services/model/UserEmbedding.ts"
import * as Vector from "../../services/model/Vector.ts"
import {
  type Bookkeeping,
  type LastWrite,
  type OverflowEntry,
  UserEmbeddings,
  UserEmbeddingsError,
  type UserRecord,
  type Write,
} from "../../services/ports/UserEmbeddings.ts"
import { countOf, failingWith, paged, readById, Sqlite } from "./Sqlite.ts"

interface Row {
  readonly user_id: string
  readonly version: number
  readonly embedding: Uint8Array | null
  readonly facts: string | null
  readonly applied: Uint8Array
  readonly archived: number
  readonly erased_at: number
}

const rowsPerPage = 200
const idsPerPage = 2_000

const toRecord = ({ embedding, facts, ...row }: Row): UserRecord => {
  const parsed: Omit<UserEmbedding, "embedding"> | null = facts === null ? null : JSON.parse(facts)
  return {
    ...row,
    embedding:
      parsed === null || embedding === null
        ? undefined
        : { ...parsed, embedding: Vector.fromBytes(embedding) },
  }
}

const load = (database: Database, users: ReadonlyArray<UserId>) => {
  const select = database.query<Row, [string]>("SELECT * FROM user_embeddings WHERE user_id = ?")
  return readById(users, (user) => {
    const row = select.get(user)
    return row && toRecord(row)
  })
}

const save = (database: Database, writes: ReadonlyArray<Write>): ReadonlyArray<boolean> => {
  const insert = database.query(
    `INSERT INTO user_embeddings (version, embedding, facts, applied, archived, erased_at, user_id)
     VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user_id) DO NOTHING`,
  )
  const update = database.query(
    `UPDATE user_embeddings SET version = ?, embedding = ?, facts = ?, applied = ?, archived = ?, erased_at = ?
     WHERE user_id = ? AND version = ?`,
  )
  return writes.map(({ expected, record }) => {
    const { embedding, ...facts } = record.embedding
    const values = [
      record.version,
      Vector.toBytes(embedding),
      JSON.stringify(facts),
      record.applied,
      record.archived,
      record.erased_at,
      record.user_id,
    ] as const
    const { changes } = expected === undefined ? insert.run(...values) : update.run(...values, expected)
    return changes === 1
  })
}

const saveOverflow = (database: Database, entries: ReadonlyArray<OverflowEntry>): void => {
  const insert = database.query(
    "INSERT INTO user_embedding_ledger (user_id, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
  )
  for (const { ids, user_id } of entries) for (const id of ids) insert.run(user_id, id)
}

const findInOverflow = (database: Database, entries: ReadonlyArray<OverflowEntry>) => {
  const find = database.query("SELECT 1 FROM user_embedding_ledger WHERE user_id = ? AND id = ?")
  return new Map(
    entries.map(({ ids, user_id }) => [user_id, new Set(ids.filter((id) => find.get(user_id, id) !== null))]),
  )
}

/** Replaces the user's record by a tombstone, and tells whether there was an embedding. */
const erase = (database: Database, user: UserId, at: number): boolean => {
  const previous = database
    .query<{ has_embedding: number }, [string]>(
      "SELECT embedding IS NOT NULL AS has_embedding FROM user_embeddings WHERE user_id = ?",
    )
    .get(user)
  database
    .query(
      `INSERT INTO user_embeddings (user_id, version, applied, archived, erased_at) VALUES (?, 1, x'', 0, ?)
       ON CONFLICT (user_id) DO UPDATE SET version = version + 1, embedding = NULL, facts = NULL,
         applied = x'', archived = 0, erased_at = MAX(erased_at, excluded.erased_at)`,
    )
    .run(user, at)
  database.query("DELETE FROM user_embedding_ledger WHERE user_id = ?").run(user)
  return previous?.has_embedding === 1
}

const lastWrites = (database: Database, users: ReadonlyArray<UserId>) => {
  const select = database.query<LastWrite, [string]>(
    `SELECT applied, json_extract(facts, '$.updated_at') AS updated_at
     FROM user_embeddings WHERE user_id = ? AND facts IS NOT NULL`,
  )
  return readById(users, (user) => select.get(user))
}

const withEmbedding = "SELECT COUNT(*) FROM user_embeddings WHERE embedding IS NOT NULL"
const count = (database: Database) => countOf(database, withEmbedding)

const countInOtherSpaces = (database: Database, space: string) =>
  countOf(database, `${withEmbedding} AND json_extract(facts, '$.space') <> ?`, space)

const pageOfUsers = <Row>(database: Database, columns: string, after: string): ReadonlyArray<Row> =>
  database
    .query<Row, [string, number]>(
      `SELECT ${columns} FROM user_embeddings WHERE user_id > ? ORDER BY user_id LIMIT ?`,
    )
    .all(after, rowsPerPage)

interface OverflowRow {
  readonly user_id: UserId
  readonly id: string
}
const pageOfOverflow = (database: Database, users: ReadonlyArray<UserId>, after: OverflowRow) =>
  database
    .query<OverflowRow, [string, string, string, number]>(
      `SELECT user_id, id FROM user_embedding_ledger
       WHERE user_id IN (SELECT value FROM json_each(?)) AND (user_id, id) > (?, ?)
       ORDER BY user_id, id LIMIT ?`,
    )
    .all(JSON.stringify(users), after.user_id, after.id, idsPerPage)

const groupByUser = (rows: ReadonlyArray<OverflowRow>): ReadonlyArray<OverflowEntry> =>
  Array.from(
    Map.groupBy(rows, ({ user_id }) => user_id),
    ([user_id, ofUser]) => ({ user_id, ids: ofUser.map(({ id }) => id) }),
  )

const make = Effect.map(Sqlite, ({ transaction, use }) => {
  const failing = failingWith((fields) => new UserEmbeddingsError(fields), "user_embeddings")
  const users = <Row extends { readonly user_id: string }>(columns: string) =>
    paged(
      rowsPerPage,
      "",
      (after) => failing("stream")(use((database) => pageOfUsers<Row>(database, columns, after))),
      ({ user_id }) => user_id,
    )

  return UserEmbeddings.of({
    load: (users) => failing("load")(use((database) => load(database, users))),
    save: (writes) => failing("save")(transaction((database) => save(database, writes))),
    saveOverflow: (entries) =>
      failing("saveOverflow")(transaction((database) => saveOverflow(database, entries))),
    findInOverflow: (entries) =>
      failing("findInOverflow")(use((database) => findInOverflow(database, entries))),
    // Every commit is synced before it becomes visible to readers.
    awaitDurable: Effect.void,
    erase: (user, at) => failing("erase")(transaction((database) => erase(database, user, at))),
    lastWrites: (users) => failing("lastWrites")(use((database) => lastWrites(database, users))),
    count: failing("count")(use(count)),
    countInOtherSpaces: (space) => failing("count")(use((database) => countInOtherSpaces(database, space))),
    stream: Stream.mapConcatChunk(users<Row>("*"), (rows) =>
      Chunk.map(Chunk.unsafeFromArray(rows), toRecord),
    ),
    bookkeeping: Stream.mapConcatChunk(
      users<Bookkeeping>(
        `user_id, version, applied, archived, erased_at,
         COALESCE(json_extract(facts, '$.event_count'), 0) AS event_count`,
      ),
      Chunk.unsafeFromArray,
    ),
    overflow: (users) =>
      paged(
        idsPerPage,
        { user_id: "", id: "" },
        (after) => failing("overflow")(use((database) => pageOfOverflow(database, users, after))),
        (last) => last,
      ).pipe(Stream.map(groupByUser)),
  })
})

export const layer = Layer.effect(UserEmbeddings, make)
