/** The tables that only the embedded stack has. */
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"
import type { Migrations } from "../SqlMigrations.ts"

const statements = (texts: ReadonlyArray<string>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.forEach(texts, (text) => sql.unsafe(text), { discard: true }),
  )

/**
 * A message is claimed by a holder until its lease ends; `rung` is the delay in ms of the rung it waits on, 0 for
 * none; `deliveries` counts claims without an answer.
 */
const queue = statements([
  `CREATE TABLE IF NOT EXISTS queue_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    body BLOB NOT NULL,
    headers TEXT NOT NULL,
    rung INTEGER NOT NULL DEFAULT 0,
    available_at INTEGER NOT NULL,
    holder TEXT NULL,
    lease_until INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0
  )`,
  "CREATE INDEX IF NOT EXISTS queue_messages_due ON queue_messages (queue, available_at, id)",
  "CREATE INDEX IF NOT EXISTS queue_messages_held ON queue_messages (holder) WHERE holder IS NOT NULL",
])

const userEmbeddings = statements([
  `CREATE TABLE IF NOT EXISTS user_embeddings (
    user_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    embedding BLOB NULL,
    facts TEXT NULL,
    applied BLOB NOT NULL,
    archived INTEGER NOT NULL,
    erased_at INTEGER NOT NULL
  ) WITHOUT ROWID`,
  `CREATE TABLE IF NOT EXISTS user_embedding_ledger (
    user_id TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (user_id, id)
  ) WITHOUT ROWID`,
])

const vectors = statements([
  `CREATE TABLE IF NOT EXISTS product_embeddings (
    product_id TEXT PRIMARY KEY,
    embedding BLOB NOT NULL,
    dimension_count INTEGER NOT NULL,
    product_name TEXT NULL,
    category TEXT NULL,
    space TEXT NOT NULL,
    text TEXT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
  )`,
  "CREATE INDEX IF NOT EXISTS product_embeddings_space ON product_embeddings (space, product_id)",
  `CREATE TABLE IF NOT EXISTS phrase_embeddings (
    key TEXT PRIMARY KEY,
    embedding BLOB NOT NULL,
    last_used INTEGER NOT NULL
  )`,
  "CREATE INDEX IF NOT EXISTS phrase_embeddings_use ON phrase_embeddings (last_used)",
])

export const embedded: Migrations = {
  table: "migrations_embedded",
  steps: { "0001_queue": queue, "0002_user_embeddings": userEmbeddings, "0003_vectors": vectors },
}
