/** Databases of earlier releases. */
import { expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer, Record } from "effect"
import { embedded } from "../../../src/layers/sql/migrations/embedded.ts"
import { interactionLog } from "../../../src/layers/sql/migrations/interactionLog.ts"
import { migrate } from "../../../src/layers/sql/SqlMigrations.ts"
import * as Sqlite from "../../../src/layers/sqlite/Sqlite.ts"
import * as SqliteProductEmbeddings from "../../../src/layers/sqlite/SqliteProductEmbeddings.ts"
import * as SqliteUserEmbeddings from "../../../src/layers/sqlite/SqliteUserEmbeddings.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"

/** The steps of release 0.1.0. */
const firstRelease = Record.filter(embedded.steps, (_, name) => name < "0006")

test("user embeddings of release 0.1.0 keep all they have, and get their generation", async () => {
  const directory = mkdtempSync(join(tmpdir(), "user-embeddings-"))
  const facts = '{"space":"test","event_count":3}'
  const vector = Buffer.from(Float32Array.of(1, 0).buffer)
  const user = (id: string, version: number, archived: number, erased_at: number, isGone = false) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (
        sql,
      ) => sql`INSERT INTO user_embeddings (user_id, version, archived, erased_at, facts, applied, embedding)
        VALUES (${id}, ${version}, ${archived}, ${erased_at}, ${isGone ? null : facts}, x'', ${isGone ? null : vector})`,
    )
  const found = Effect.gen(function* () {
    yield* migrate({ ...embedded, steps: firstRelease })
    yield* user("never", 7, 65, 0)
    yield* user("back", 4, 0, 1_000)
    yield* user("much", 4, 65, 1_000)
    yield* user("gone", 3, 0, 1_000, true)
    yield* migrate(embedded)
    return yield* (yield* UserEmbeddings).load(["never", "back", "much", "gone"])
  }).pipe(Effect.provide(SqliteUserEmbeddings.layer.pipe(Layer.provideMerge(Sqlite.layer({ directory })))))
  const records = await Effect.runPromise(found).finally(() => rmSync(directory, { recursive: true }))
  const facets = Array.from(records.values(), ({ embedding, user_id, version, ...rest }) => [
    user_id,
    version,
    rest.archived,
    rest.erased_at,
    rest.erased_to,
    rest.generation,
    embedding?.event_count,
  ])
  expect(facets).toEqual([
    ["never", 7, 65, 0, null, 0, 3],
    ["back", 4, 0, 1_000, null, 4, 3],
    ["much", 4, 65, 1_000, null, 0, 3],
    ["gone", 3, 0, 1_000, null, 3, undefined],
  ])
})

test("the log of release 0.1.0 keeps its rows, and gives no id of an erased row again", async () => {
  const directory = mkdtempSync(join(tmpdir(), "user-embeddings-"))
  const { "0005_references": _, ...before } = interactionLog.steps
  const insert = (id: string) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`INSERT INTO user_interactions
        (message_id, user_id, event_type, product_id, occurred_at, metadata, created_at)
        VALUES (${id}, 'u', 'product_view', 'p', '2026-01-01 00:00:00.000', '{}', '2026-01-01 00:00:00.000')`,
    )
  const found = Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* migrate({ ...interactionLog, steps: before })
    for (const id of ["a", "b", "c"]) yield* insert(id)
    yield* sql`DELETE FROM user_interactions WHERE message_id = 'c'`
    yield* sql.withTransaction(migrate(interactionLog))
    yield* insert("d")
    return yield* sql`SELECT id, message_id, product_id, reference FROM user_interactions ORDER BY id`
  }).pipe(Effect.provide(Sqlite.layer({ directory })))
  const rows = await Effect.runPromise(found).finally(() => rmSync(directory, { recursive: true }))
  const rest = { product_id: "p", reference: null }
  expect(rows).toEqual([
    { id: 1, message_id: "a", ...rest },
    { id: 2, message_id: "b", ...rest },
    { id: 4, message_id: "d", ...rest },
  ])
})

test("products of release 0.1.0 are available, have no attributes, and can be deleted", async () => {
  const directory = mkdtempSync(join(tmpdir(), "user-embeddings-"))
  const vector = Buffer.from(Float32Array.of(3, 4).buffer)
  const found = Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* migrate({ ...embedded, steps: firstRelease })
    for (const id of ["old", "older"])
      yield* sql`INSERT INTO product_embeddings
        (product_id, space, product_name, category, created_at, updated_at, dimension_count, embedding, text)
        VALUES (${id}, 'test', 'Boot', 'shoes', 1, 2, 2, ${vector}, 'a boot')`
    yield* migrate(embedded)
    const products = yield* ProductEmbeddings
    yield* products.remove(["older"])
    const [old] = yield* products.find(["old"])
    return [old, yield* products.count, (yield* products.load(["older"], "test")).get("older")]
  }).pipe(Effect.provide(SqliteProductEmbeddings.layer.pipe(Layer.provideMerge(Sqlite.layer({ directory })))))
  const answers = await Effect.runPromise(found).finally(() => rmSync(directory, { recursive: true }))
  expect(answers).toEqual([
    {
      product_id: "old",
      product_name: "Boot",
      category: "shoes",
      available: true,
      attributes: {},
      embedding: Float32Array.of(3, 4),
      space: "test",
      text: "a boot",
      updated_at: 2,
      deleted: false,
    },
    1,
    Float32Array.of(3, 4),
  ])
})
