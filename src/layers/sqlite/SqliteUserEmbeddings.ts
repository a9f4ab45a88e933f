/** User embeddings of the embedded stack. A batch is one transaction. Each write is a compare-and-swap on the version. */
import type { Database } from "bun:sqlite"
import { Chunk, Effect, Layer, Stream } from "effect"
import { idInLedger, type LedgerKind, ledgerPrefix, prefixBytes } from "../../services/model/AppliedIds.ts"
import type { UserId } from "../../services/model/Interaction.ts"
import type { UserEmbedding } from "../../services/model/UserEmbedding.ts"
import * as Vector from "../../services/model/Vector.ts"
import {
  type Bookkeeping,
  type Generation,
  type LastWrite,
  type LedgerEntry,
  UserEmbeddings,
  UserEmbeddingsError,
  type UserRecord,
  type Write,
} from "../../services/ports/UserEmbeddings.ts"
import * as Settings from "../../services/Settings.ts"
import { countOf, failingWith, paged, readById, Sqlite } from "./Sqlite.ts"

export interface Row extends Omit<UserRecord, "embedding" | "links"> {
  readonly embedding: Uint8Array | null
  readonly facts: string | null
  readonly links: string | null
}

const rowsPerPage = 200
const idsPerPage = 2_000

const toLinks = (links: string | null): Pick<UserRecord, "links"> =>
  links === null ? {} : { links: JSON.parse(links) }

export const toRecord = ({ embedding, facts, links, ...row }: Row): UserRecord => {
  const parsed: Omit<UserEmbedding, "embedding"> | null = facts === null ? null : JSON.parse(facts)
  return {
    ...row,
    embedding:
      parsed === null || embedding === null
        ? undefined
        : { ...parsed, embedding: Vector.fromBytes(embedding) },
    ...toLinks(links),
  }
}

/** Announces changes on the feed, see SqliteEmbeddingFeed.ts: the user goes to the end of the table. */
const announce = (database: Database, users: ReadonlyArray<UserId>): void => {
  const insert = database.query("INSERT OR REPLACE INTO user_embedding_changes (user_id) VALUES (?)")
  for (const user of users) insert.run(user)
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
    `INSERT INTO user_embeddings
       (version, embedding, facts, applied, archived, erased_at, erased_to, generation, links, user_id)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user_id) DO NOTHING`,
  )
  const update = database.query(
    `UPDATE user_embeddings SET version = ?, embedding = ?, facts = ?, applied = ?, archived = ?, erased_at = ?,
       erased_to = ?, generation = ?, links = ?
     WHERE user_id = ? AND version = ?`,
  )
  return writes.map(({ expected, record }) => {
    const { embedding, ...facts } = record.embedding ?? {}
    const values = [
      record.version,
      embedding === undefined ? null : Vector.toBytes(embedding),
      embedding === undefined ? null : JSON.stringify(facts),
      record.applied,
      record.archived,
      record.erased_at,
      record.erased_to,
      record.generation,
      record.links === undefined ? null : JSON.stringify(record.links),
      record.user_id,
    ] as const
    const { changes } = expected === undefined ? insert.run(...values) : update.run(...values, expected)
    return changes === 1
  })
}

const saveToLedger = (database: Database, kind: LedgerKind, entries: ReadonlyArray<LedgerEntry>): void => {
  const insert = database.query(
    "INSERT INTO user_embedding_ledger (user_id, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
  )
  for (const { generation, ids, user_id } of entries)
    for (const id of ids) insert.run(user_id, ledgerPrefix(kind, generation) + id)
}

const findInLedger = (database: Database, kind: LedgerKind, entries: ReadonlyArray<LedgerEntry>) => {
  const find = database.query("SELECT 1 FROM user_embedding_ledger WHERE user_id = ? AND id = ?")
  return new Map(
    entries.map(({ generation, ids, user_id }) => [
      user_id,
      new Set(ids.filter((id) => find.get(user_id, ledgerPrefix(kind, generation) + id) !== null)),
    ]),
  )
}

/** Generation 0 is the first one, so nothing is stale then. */
const removeStaleLedger = (database: Database, user: UserId): void => {
  const generation = database
    .query<{ generation: number }, [string]>("SELECT generation FROM user_embeddings WHERE user_id = ?")
    .get(user)?.generation
  if (!generation) return
  database
    .query("DELETE FROM user_embedding_ledger WHERE user_id = ? AND id NOT GLOB ? AND id NOT GLOB ?")
    .run(user, `${ledgerPrefix("applied", generation)}*`, `${ledgerPrefix("skipped", generation)}*`)
}

/** Replaces the user's record by a tombstone, and tells whether there was an embedding. */
const erase = (
  database: Database,
  user: UserId,
  { erased_at, erased_to }: { readonly erased_at: number; readonly erased_to: number },
): boolean => {
  const previous = database
    .query<{ has_embedding: number }, [string]>(
      "SELECT embedding IS NOT NULL AS has_embedding FROM user_embeddings WHERE user_id = ?",
    )
    .get(user)
  database
    .query(
      `INSERT INTO user_embeddings (user_id, version, applied, archived, erased_at, erased_to, generation)
       VALUES (?, 1, x'', 0, ?, ?, 1)
       ON CONFLICT (user_id) DO UPDATE SET version = version + 1, generation = version + 1, embedding = NULL,
         facts = NULL, links = NULL, applied = x'', archived = 0, erased_at = MAX(erased_at, excluded.erased_at),
         erased_to = MAX(COALESCE(erased_to, 0), excluded.erased_to)`,
    )
    .run(user, erased_at, erased_to)
  removeStaleLedger(database, user)
  return previous?.has_embedding === 1
}

const usersAfter = (database: Database, user: UserId, limit: number) =>
  database
    .query<{ user_id: UserId }, [string, number]>(
      `SELECT user_id FROM user_embeddings WHERE user_id > ? AND embedding IS NOT NULL
       ORDER BY user_id LIMIT ?`,
    )
    .all(user, limit)
    .map(({ user_id }) => user_id)

const lastWrites = (database: Database, users: ReadonlyArray<UserId>) => {
  const select = database.query<LastWrite, [string]>(
    `SELECT applied, generation, json_extract(facts, '$.updated_at') AS updated_at
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

interface LedgerRow {
  readonly user_id: UserId
  readonly id: string
}
const pageOfOverflow = (database: Database, users: ReadonlyArray<Generation>, after: LedgerRow) => {
  const wanted = users.map(({ generation, user_id }) => {
    const prefix = ledgerPrefix("applied", generation)
    return { user_id, ids: `${prefix}${"[0-9a-f]".repeat(2 * prefixBytes)}` }
  })
  return database
    .query<LedgerRow, [string, string, string, number]>(
      `SELECT l.user_id, l.id FROM json_each(?) w CROSS JOIN user_embedding_ledger l
         ON l.user_id = w.value ->> 'user_id' AND l.id GLOB w.value ->> 'ids'
       WHERE (l.user_id, l.id) > (?, ?) ORDER BY l.user_id, l.id LIMIT ?`,
    )
    .all(JSON.stringify(wanted), after.user_id, after.id, idsPerPage)
}

const groupByUser = (rows: ReadonlyArray<LedgerRow>) =>
  Array.from(
    Map.groupBy(rows, ({ user_id }) => user_id),
    ([user_id, ofUser]) => ({ user_id, ids: ofUser.map(({ id }) => idInLedger(id)) }),
  )

const make = Effect.gen(function* () {
  const { transaction, use } = yield* Sqlite
  const hasFeed = (yield* Settings.EMBEDDING_FEED) !== "off"
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
    save: (writes) =>
      failing("save")(
        transaction((database) => {
          const saved = save(database, writes)
          const written = writes.filter((_, index) => saved[index] === true)
          if (hasFeed)
            announce(
              database,
              written.map(({ record }) => record.user_id),
            )
          return saved
        }),
      ),
    // A write and its announcement are one transaction.
    announce: () => Effect.void,
    saveToLedger: (kind, entries) =>
      failing("saveToLedger")(transaction((database) => saveToLedger(database, kind, entries))),
    findInLedger: (kind, entries) =>
      failing("findInLedger")(use((database) => findInLedger(database, kind, entries))),
    // Every commit is synced before it becomes visible to readers.
    awaitDurable: Effect.void,
    erase: (user, erasure) =>
      failing("erase")(
        transaction((database) => {
          const hadEmbedding = erase(database, user, erasure)
          if (hasFeed) announce(database, [user])
          return hadEmbedding
        }),
      ),
    removeStaleLedger: (user) =>
      failing("removeStaleLedger")(transaction((database) => removeStaleLedger(database, user))),
    lastWrites: (users) => failing("lastWrites")(use((database) => lastWrites(database, users))),
    count: failing("count")(use(count)),
    countInOtherSpaces: (space) => failing("count")(use((database) => countInOtherSpaces(database, space))),
    stream: Stream.mapConcatChunk(users<Row>("*"), (rows) =>
      Chunk.map(Chunk.unsafeFromArray(rows), toRecord),
    ),
    // No other program writes the file.
    unreadable: Stream.empty,
    usersAfter: (user, limit) => failing("usersAfter")(use((database) => usersAfter(database, user, limit))),
    bookkeeping: Stream.mapConcatChunk(
      users<Omit<Bookkeeping, "links"> & Pick<Row, "links">>(
        `user_id, version, applied, archived, erased_at, erased_to, generation, links,
         COALESCE(json_extract(facts, '$.event_count'), 0) AS event_count`,
      ),
      (rows) =>
        Chunk.unsafeFromArray(rows.map(({ links, ...row }): Bookkeeping => ({ ...row, ...toLinks(links) }))),
    ),
    versions: Stream.mapConcatChunk(
      users<Pick<Row, "user_id" | "version"> & { readonly hasEmbedding: number }>(
        "user_id, version, embedding IS NOT NULL AS hasEmbedding",
      ),
      (rows) => Chunk.unsafeFromArray(rows.map((row) => ({ ...row, hasEmbedding: row.hasEmbedding === 1 }))),
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
