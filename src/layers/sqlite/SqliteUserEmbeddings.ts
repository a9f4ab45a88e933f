/** User embeddings of the embedded stack. A batch is one transaction. Each write is a compare-and-swap on the version. */
import { Chunk, Effect, Layer, Option, Stream } from "effect"
import type { UserEmbedding } from "../../services/model/UserEmbedding.ts"
import * as Vector from "../../services/model/Vector.ts"
import {
  type Bookkeeping,
  type LastWrite,
  UserEmbeddings,
  UserEmbeddingsError,
  type UserRecord,
} from "../../services/ports/UserEmbeddings.ts"
import { failingWith, Sqlite } from "./Sqlite.ts"

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

/** A stream of pages. `page` reads up to `size` rows after a key. */
const paged = <Row, Key>(
  size: number,
  first: Key,
  page: (after: Key) => Effect.Effect<ReadonlyArray<Row>, UserEmbeddingsError>,
  key: (row: Row) => Key,
): Stream.Stream<ReadonlyArray<Row>, UserEmbeddingsError> =>
  Stream.paginateEffect(first, (after) =>
    Effect.map(page(after), (rows) => [
      rows,
      rows.length === size ? Option.map(Option.fromNullable(rows.at(-1)), key) : Option.none(),
    ]),
  )

const make = Effect.map(Sqlite, (sqlite) => {
  const failing = failingWith((failure) => new UserEmbeddingsError(failure), "user_embeddings")

  const userId = ({ user_id }: { readonly user_id: string }) => user_id
  const users =
    <Row>(columns: string) =>
    (after: string) =>
      failing("stream")(
        sqlite.use((database) =>
          database
            .query<Row, [string, number]>(
              `SELECT ${columns} FROM user_embeddings WHERE user_id > ? ORDER BY user_id LIMIT ?`,
            )
            .all(after, rowsPerPage),
        ),
      )

  return UserEmbeddings.of({
    load: (users) =>
      failing("load")(
        sqlite.use((database) => {
          const select = database.query<Row, [string]>("SELECT * FROM user_embeddings WHERE user_id = ?")
          return new Map(
            users.flatMap((user) => {
              const row = select.get(user)
              return row === null ? [] : [[user, toRecord(row)] as const]
            }),
          )
        }),
      ),

    save: (writes) =>
      failing("save")(
        sqlite.transaction((database) => {
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
            const { changes } =
              expected === undefined ? insert.run(...values) : update.run(...values, expected)
            return changes === 1
          })
        }),
      ),

    saveOverflow: (entries) =>
      failing("archive")(
        sqlite.transaction((database) => {
          const insert = database.query(
            "INSERT INTO user_embedding_ledger (user_id, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
          )
          for (const { ids, user_id } of entries) for (const id of ids) insert.run(user_id, id)
        }),
      ),

    archived: (entries) =>
      failing("archived")(
        sqlite.use((database) => {
          const find = database.query("SELECT 1 FROM user_embedding_ledger WHERE user_id = ? AND id = ?")
          return new Map(
            entries.map(({ ids, user_id }) => [
              user_id,
              new Set(ids.filter((id) => find.get(user_id, id) !== null)),
            ]),
          )
        }),
      ),

    // Every commit is synced before it becomes visible to readers.
    awaitDurable: Effect.void,

    erase: (user, at) =>
      failing("erase")(
        sqlite.transaction((database) => {
          const previous = database
            .query<{ had: number }, [string]>(
              "SELECT embedding IS NOT NULL AS had FROM user_embeddings WHERE user_id = ?",
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
          return previous?.had === 1
        }),
      ),

    lastWrites: (users) =>
      failing("lastWrites")(
        sqlite.use((database) => {
          const select = database.query<LastWrite, [string]>(
            `SELECT applied, json_extract(facts, '$.updated_at') AS updated_at
             FROM user_embeddings WHERE user_id = ? AND facts IS NOT NULL`,
          )
          return new Map(
            users.flatMap((user) => {
              const row = select.get(user)
              return row === null ? [] : [[user, row] as const]
            }),
          )
        }),
      ),

    count: failing("count")(
      sqlite.use(
        (database) =>
          database
            .query<{ n: number }, []>("SELECT COUNT(*) AS n FROM user_embeddings WHERE embedding IS NOT NULL")
            .get()?.n ?? 0,
      ),
    ),

    countInOtherSpaces: (space) =>
      failing("count")(
        sqlite.use(
          (database) =>
            database
              .query<{ n: number }, [string]>(
                `SELECT COUNT(*) AS n FROM user_embeddings
                 WHERE embedding IS NOT NULL AND json_extract(facts, '$.space') <> ?`,
              )
              .get(space)?.n ?? 0,
        ),
      ),

    stream: Stream.mapConcatChunk(paged(rowsPerPage, "", users<Row>("*"), userId), (rows) =>
      Chunk.map(Chunk.unsafeFromArray(rows), toRecord),
    ),

    bookkeeping: Stream.mapConcatChunk(
      paged(
        rowsPerPage,
        "",
        users<Bookkeeping>(
          `user_id, version, applied, archived, erased_at,
           COALESCE(json_extract(facts, '$.event_count'), 0) AS event_count`,
        ),
        userId,
      ),
      Chunk.unsafeFromArray,
    ),

    overflow: (wanted) =>
      paged(
        idsPerPage,
        { user_id: "", id: "" },
        (after) =>
          failing("ledger")(
            sqlite.use((database) =>
              database
                .query<typeof after, [string, string, string, number]>(
                  `SELECT user_id, id FROM user_embedding_ledger
                   WHERE user_id IN (SELECT value FROM json_each(?)) AND (user_id, id) > (?, ?)
                   ORDER BY user_id, id LIMIT ?`,
                )
                .all(JSON.stringify(wanted), after.user_id, after.id, idsPerPage),
            ),
          ),
        (last) => last,
      ).pipe(
        Stream.map((rows) =>
          Array.from(
            Map.groupBy(rows, ({ user_id }) => user_id),
            ([user_id, own]) => ({ user_id, ids: own.map(({ id }) => id) }),
          ),
        ),
      ),
  })
})

export const layer = Layer.effect(UserEmbeddings, make)
