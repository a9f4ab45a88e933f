/** The table of the interaction log, and the leases that replace named locks in SQLite. */
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"
import type { Migrations } from "../SqlMigrations.ts"

const userInteractions = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const references = sql.literal(`
    CONSTRAINT user_interactions_search_phrase CHECK ((event_type = 'search') = (search_phrase IS NOT NULL)),
    CONSTRAINT user_interactions_product_id CHECK ((event_type <> 'search') = (product_id IS NOT NULL))`)
  yield* sql.onDialectOrElse({
    mysql: () => sql`
      CREATE TABLE IF NOT EXISTS user_interactions (
        id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        message_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        user_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        event_type VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        search_phrase VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
        occurred_at DATETIME(3) NOT NULL,
        metadata JSON NOT NULL,
        traceparent VARCHAR(64) NULL,
        tracestate VARCHAR(512) NULL,
        created_at DATETIME(3) NOT NULL,
        processed_to_queue BOOLEAN NOT NULL DEFAULT FALSE,
        published_at DATETIME(3) NULL,
        idempotency_key VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NULL,
        UNIQUE KEY user_interactions_message (message_id),
        UNIQUE KEY user_interactions_key (user_id, idempotency_key),
        KEY user_interactions_history (user_id, occurred_at),
        KEY user_interactions_outbox (processed_to_queue, id),
        ${references}
      ) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4`,
    orElse: () => sql`
      CREATE TABLE IF NOT EXISTS user_interactions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        message_id TEXT NOT NULL UNIQUE,
        user_id TEXT NOT NULL,
        event_type TEXT NOT NULL,
        search_phrase TEXT NULL,
        product_id TEXT NULL,
        occurred_at TEXT NOT NULL,
        metadata TEXT NOT NULL,
        traceparent TEXT NULL,
        tracestate TEXT NULL,
        created_at TEXT NOT NULL,
        processed_to_queue BOOLEAN NOT NULL DEFAULT FALSE,
        published_at TEXT NULL,
        idempotency_key TEXT NULL,
        ${references}
      )`,
  })
  // MySQL declares its indexes in CREATE TABLE and has named locks instead of leases.
  yield* sql.onDialectOrElse({
    mysql: () => Effect.void,
    orElse: () =>
      Effect.all([
        sql`CREATE UNIQUE INDEX IF NOT EXISTS user_interactions_key
          ON user_interactions (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL`,
        sql`CREATE INDEX IF NOT EXISTS user_interactions_history ON user_interactions (user_id, occurred_at)`,
        sql`CREATE INDEX IF NOT EXISTS user_interactions_outbox ON user_interactions (processed_to_queue, id)`,
        sql`CREATE TABLE IF NOT EXISTS leases (
          name TEXT NOT NULL PRIMARY KEY, holder TEXT NOT NULL, expires_at INTEGER NOT NULL)`,
      ]),
  })
})

/**
 * Erasures of the last minutes. `renew_to` is set when the rows are deleted: rows with ids up to it that become visible
 * later were recorded after the erasure, and get new ids.
 */
const userErasures = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql.onDialectOrElse({
    mysql: () => sql`
      CREATE TABLE IF NOT EXISTS user_erasures (
        user_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
        token CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        renew_to BIGINT NULL,
        finished_at DATETIME(3) NULL
      ) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4`,
    orElse: () => sql`
      CREATE TABLE IF NOT EXISTS user_erasures (
        user_id TEXT NOT NULL PRIMARY KEY,
        token TEXT NOT NULL,
        renew_to INTEGER NULL,
        finished_at TEXT NULL
      )`,
  })
})

export const interactionLog: Migrations = {
  table: "migrations_interaction_log",
  steps: { "0001_user_interactions": userInteractions, "0002_user_erasures": userErasures },
}
