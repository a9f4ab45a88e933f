/** The tables that exist only in the embedded stack. */
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"
import type { Migrations } from "../SqlMigrations.ts"

const statements = (texts: ReadonlyArray<string>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.forEach(texts, (text) => sql.unsafe(text), { discard: true }),
  )

/**
 * - `available_at` (Unix ms): when a message may be delivered; for a dead letter, when it was dead-lettered.
 * - `rung`: the delay in ms of the message's latest retry, 0 without one.
 * - `deliveries`: the number of deliveries that were not settled.
 * - `holder`: the consumer that the message was delivered to, valid while its lease in `queue_consumers` lasts.
 */
const queue = statements([
  `CREATE TABLE IF NOT EXISTS queue_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    available_at INTEGER NOT NULL,
    rung INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0,
    holder TEXT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL
  )`,
  `CREATE INDEX IF NOT EXISTS queue_messages_waiting
    ON queue_messages (queue, available_at, id) WHERE holder IS NULL`,
  "CREATE INDEX IF NOT EXISTS queue_messages_held ON queue_messages (holder) WHERE holder IS NOT NULL",
  `CREATE TABLE IF NOT EXISTS queue_consumers (
    holder TEXT PRIMARY KEY,
    lease_until INTEGER NOT NULL
  ) WITHOUT ROWID`,
])

/** Small columns come first, because SQLite reads the columns after a vector through its overflow pages. */
const userEmbeddings = statements([
  `CREATE TABLE IF NOT EXISTS user_embeddings (
    user_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    archived INTEGER NOT NULL,
    erased_at INTEGER NOT NULL,
    facts TEXT NULL,
    applied BLOB NOT NULL,
    embedding BLOB NULL
  )`,
  `CREATE TABLE IF NOT EXISTS user_embedding_ledger (
    user_id TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (user_id, id)
  ) WITHOUT ROWID`,
])

const vectors = statements([
  `CREATE TABLE IF NOT EXISTS product_embeddings (
    product_id TEXT PRIMARY KEY,
    space TEXT NOT NULL,
    product_name TEXT NULL,
    category TEXT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    dimension_count INTEGER NOT NULL,
    embedding BLOB NOT NULL,
    text TEXT NULL
  )`,
  "CREATE INDEX IF NOT EXISTS product_embeddings_space ON product_embeddings (space, product_id)",
  `CREATE TABLE IF NOT EXISTS phrase_embeddings (
    key TEXT PRIMARY KEY,
    last_used INTEGER NOT NULL,
    embedding BLOB NOT NULL
  )`,
  "CREATE INDEX IF NOT EXISTS phrase_embeddings_use ON phrase_embeddings (last_used)",
])

const productChanges = statements([
  "CREATE INDEX IF NOT EXISTS product_embeddings_changes ON product_embeddings (updated_at, product_id)",
])

const productStamps = statements([
  "DROP INDEX IF EXISTS product_embeddings_space",
  "CREATE INDEX IF NOT EXISTS product_embeddings_stamps ON product_embeddings (space, product_id, updated_at)",
])

/** Copies the table, because a column that is added later would come after the vector. */
const erasures = statements([
  `CREATE TABLE user_embeddings_2 (
    user_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    archived INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    erased_at INTEGER NOT NULL,
    erased_to INTEGER NULL,
    facts TEXT NULL,
    applied BLOB NOT NULL,
    embedding BLOB NULL
  )`,
  // An erasure of release 0.1.0 may have left ids in the ledger. They do not count unless the record moved ids there since.
  `INSERT INTO user_embeddings_2
     SELECT user_id, version, archived, IIF(erased_at > 0 AND archived = 0, version, 0), erased_at, NULL, facts,
       applied, embedding FROM user_embeddings`,
  "DROP TABLE user_embeddings",
  "ALTER TABLE user_embeddings_2 RENAME TO user_embeddings",
])

/** The columns come after the vector, because a copy of a large catalogue would take long. */
const productFacts = statements([
  "ALTER TABLE product_embeddings ADD COLUMN available INTEGER NOT NULL DEFAULT 1",
  "ALTER TABLE product_embeddings ADD COLUMN attributes TEXT NOT NULL DEFAULT '{}'",
  "ALTER TABLE product_embeddings ADD COLUMN deleted_at INTEGER NULL",
  `CREATE INDEX product_embeddings_deleted ON product_embeddings (product_id, space)
    WHERE deleted_at IS NOT NULL`,
])

/** Copies the table for the same reason. */
const links = statements([
  `CREATE TABLE user_embeddings_2 (
    user_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    archived INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    erased_at INTEGER NOT NULL,
    erased_to INTEGER NULL,
    links TEXT NULL,
    facts TEXT NULL,
    applied BLOB NOT NULL,
    embedding BLOB NULL
  )`,
  `INSERT INTO user_embeddings_2
     SELECT user_id, version, archived, generation, erased_at, erased_to, NULL, facts, applied, embedding
     FROM user_embeddings`,
  "DROP TABLE user_embeddings",
  "ALTER TABLE user_embeddings_2 RENAME TO user_embeddings",
])

/** `NULL` for a product of an earlier release: `updated_at` is the latest that it can be. */
const vectorTimes = statements(["ALTER TABLE product_embeddings ADD COLUMN vector_since INTEGER NULL"])

/** `pairs`: `id units id units …`, greatest first. */
const productPairs = statements([
  `CREATE TABLE product_pairs (
    product_id TEXT PRIMARY KEY,
    up_to INTEGER NOT NULL,
    pairs TEXT NOT NULL
  ) WITHOUT ROWID`,
  `CREATE TABLE product_pairs_state (
    id INTEGER PRIMARY KEY,
    counted_up_to INTEGER NOT NULL,
    begun_up_to INTEGER NOT NULL,
    rebuilding INTEGER NOT NULL
  )`,
])

/** Users in the order of their last changes, and how far the subscribers of the feed are. */
const embeddingChanges = statements([
  `CREATE TABLE IF NOT EXISTS user_embedding_changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT NOT NULL UNIQUE
  )`,
  `CREATE TABLE IF NOT EXISTS user_embedding_subscriptions (
    name TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
  ) WITHOUT ROWID`,
])

export const embedded: Migrations = {
  table: "migrations_embedded",
  steps: {
    "0001_queue": queue,
    "0002_user_embeddings": userEmbeddings,
    "0003_vectors": vectors,
    "0004_product_changes": productChanges,
    "0005_product_stamps": productStamps,
    "0006_erasures": erasures,
    "0007_product_facts": productFacts,
    "0008_links": links,
    "0009_vector_times": vectorTimes,
    "0010_product_pairs": productPairs,
    "0011_embedding_changes": embeddingChanges,
  },
}
