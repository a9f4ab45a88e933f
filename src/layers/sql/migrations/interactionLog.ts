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

/**
 * The products of a user are read from the index alone. `id` stands before the columns that it covers, so that the index
 * still sorts a user's history. Both servers rebuild the index while the table takes writes.
 */
const historyCoversProducts = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const columns = sql.literal("(user_id, occurred_at, id, event_type, product_id)")
  yield* sql.onDialectOrElse({
    mysql: () =>
      Effect.gen(function* () {
        const covered = yield* sql`SELECT column_name FROM information_schema.statistics
          WHERE table_schema = DATABASE() AND table_name = 'user_interactions'
            AND index_name = 'user_interactions_history' AND column_name = 'product_id'`
        if (covered.length > 0) return
        yield* sql`ALTER TABLE user_interactions DROP KEY user_interactions_history,
          ADD KEY user_interactions_history ${columns}, ALGORITHM = INPLACE, LOCK = NONE`.unprepared
      }),
    orElse: () =>
      Effect.all([
        sql`DROP INDEX IF EXISTS user_interactions_history`,
        sql`CREATE INDEX user_interactions_history ON user_interactions ${columns}`,
      ]),
  })
})

/** One row, which all writers of the counts lock. */
const productTally = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const text = sql.onDialectOrElse({
    mysql: () => (length: number) => sql.literal(`VARCHAR(${length}) CHARACTER SET ascii COLLATE ascii_bin`),
    orElse: () => () => sql.literal("TEXT"),
  })
  yield* sql`CREATE TABLE IF NOT EXISTS product_tally (
    product_id ${text(64)} NOT NULL,
    event_type ${text(32)} NOT NULL,
    interactions BIGINT NOT NULL,
    decayed DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (product_id, event_type)
  )`
  yield* sql`CREATE TABLE IF NOT EXISTS product_tally_state (
    id INTEGER NOT NULL PRIMARY KEY,
    counted_up_to BIGINT NOT NULL,
    settled_up_to BIGINT NOT NULL,
    marked_id BIGINT NOT NULL,
    marked_at BIGINT NOT NULL,
    lambda ${text(32)} NOT NULL,
    since_day INTEGER NOT NULL,
    erasures BIGINT NOT NULL
  )`
  const states = yield* sql`SELECT id FROM product_tally_state`
  if (states.length === 0)
    yield* sql`INSERT INTO product_tally_state
      (id, counted_up_to, settled_up_to, marked_id, marked_at, lambda, since_day, erasures)
      VALUES (1, 0, 0, 0, 0, '', 0, 0)`
})

/**
 * The column `reference` of retractions and merges. The CHECK constraints of earlier releases forbid these rows. New
 * constraints would lock a large table, because MySQL copies it. The programs decode all that they write.
 */
const references = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql.onDialectOrElse({
    mysql: () =>
      Effect.gen(function* () {
        const columns = yield* sql`SELECT column_name FROM information_schema.columns
          WHERE table_schema = DATABASE() AND table_name = 'user_interactions' AND column_name = 'reference'`
        if (columns.length > 0) return
        yield* sql`ALTER TABLE user_interactions
          ADD COLUMN reference VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
          DROP CONSTRAINT user_interactions_search_phrase, DROP CONSTRAINT user_interactions_product_id,
          ALGORITHM = INSTANT`.unprepared
      }),
    // SQLite cannot drop a constraint, so the table is copied. Ids of erased rows must not come again.
    orElse: () =>
      Effect.forEach(
        [
          `CREATE TABLE user_interactions_2 (
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
            reference TEXT NULL
          )`,
          "INSERT INTO user_interactions_2 SELECT *, NULL FROM user_interactions",
          "DELETE FROM sqlite_sequence WHERE name = 'user_interactions_2'",
          `INSERT INTO sqlite_sequence (name, seq)
            SELECT 'user_interactions_2', seq FROM sqlite_sequence WHERE name = 'user_interactions'`,
          "DROP TABLE user_interactions",
          "ALTER TABLE user_interactions_2 RENAME TO user_interactions",
          `CREATE UNIQUE INDEX user_interactions_key
            ON user_interactions (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL`,
          "CREATE INDEX user_interactions_outbox ON user_interactions (processed_to_queue, id)",
          `CREATE INDEX user_interactions_history
            ON user_interactions (user_id, occurred_at, id, event_type, product_id)`,
        ],
        (text) => sql.unsafe(text),
      ),
  })
})

const userAliases = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql.onDialectOrElse({
    mysql: () => sql`
      CREATE TABLE IF NOT EXISTS user_aliases (
        alias VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
        user_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        message_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        KEY user_aliases_user (user_id)
      ) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4`,
    orElse: () =>
      Effect.all([
        sql`CREATE TABLE IF NOT EXISTS user_aliases (
          alias TEXT NOT NULL PRIMARY KEY, user_id TEXT NOT NULL, message_id TEXT NOT NULL)`,
        sql`CREATE INDEX IF NOT EXISTS user_aliases_user ON user_aliases (user_id)`,
      ]),
  })
})

const orderRefunds = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql.onDialectOrElse({
    mysql: () => sql`
      CREATE TABLE IF NOT EXISTS order_refunds (
        user_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        order_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        PRIMARY KEY (user_id, order_id, product_id)
      ) ENGINE = InnoDB`,
    orElse: () => sql`
      CREATE TABLE IF NOT EXISTS order_refunds (
        user_id TEXT NOT NULL, order_id TEXT NOT NULL, product_id TEXT NOT NULL,
        PRIMARY KEY (user_id, order_id, product_id))`,
  })
})

/** What is kept of pruned rows: see SqlCheckpoints.ts. */
const pruned = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const types = sql.onDialectOrElse({
    mysql: () => ({
      text: (length: number) => sql.literal(`VARCHAR(${length}) CHARACTER SET ascii COLLATE ascii_bin`),
      id: sql.literal("BINARY(16)"),
      facts: sql.literal("TEXT"),
      vector: sql.literal("MEDIUMBLOB"),
    }),
    orElse: () => ({
      text: () => sql.literal("TEXT"),
      id: sql.literal("BLOB"),
      facts: sql.literal("TEXT"),
      vector: sql.literal("BLOB"),
    }),
  })
  const { facts, id, text, vector } = types
  yield* sql`CREATE TABLE IF NOT EXISTS pruned_interactions (
    user_id ${text(64)} NOT NULL,
    id ${id} NOT NULL,
    PRIMARY KEY (user_id, id)
  )`
  yield* sql`CREATE TABLE IF NOT EXISTS user_checkpoints (
    user_id ${text(64)} NOT NULL,
    basis ${text(32)} NOT NULL,
    row_count BIGINT NOT NULL,
    retractions BIGINT NOT NULL,
    fingerprint ${text(32)} NOT NULL,
    facts ${facts} NULL,
    embedding ${vector} NULL,
    PRIMARY KEY (user_id, basis)
  )`
  yield* sql`CREATE TABLE IF NOT EXISTS pruned_products (
    user_id ${text(64)} NOT NULL,
    product_id ${text(64)} NOT NULL,
    event_type ${text(32)} NOT NULL,
    events BIGINT NOT NULL,
    decayed DOUBLE PRECISION NOT NULL,
    newest BIGINT NOT NULL,
    PRIMARY KEY (user_id, product_id, event_type)
  )`
})

/**
 * Events of a user with some products are looked up, where `historyCoversProducts` let them be searched for among all events
 * of the user. The server builds the indexes while the table takes writes. SQLite stays as it is: another index costs 8 % of
 * an event there, and few embedded systems have users with 100,000 events.
 */
const productsOfUsers = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql.onDialectOrElse({
    mysql: () =>
      Effect.gen(function* () {
        const existing = yield* sql`SELECT column_name FROM information_schema.statistics
          WHERE table_schema = DATABASE() AND table_name = 'user_interactions'
            AND index_name = 'user_interactions_products'`
        if (existing.length > 0) return
        yield* sql`ALTER TABLE user_interactions
          DROP KEY user_interactions_history,
          ADD KEY user_interactions_history (user_id, occurred_at, id, event_type),
          ADD KEY user_interactions_products (user_id, product_id, event_type),
          ALGORITHM = INPLACE, LOCK = NONE`.unprepared
      }),
    orElse: () => Effect.void,
  })
})

/** The last report of each worker. `report` is JSON, so that a new figure needs no migration. */
const workerReports = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql.onDialectOrElse({
    mysql: () => sql`
      CREATE TABLE IF NOT EXISTS worker_reports (
        worker VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL PRIMARY KEY,
        reported_at DATETIME(3) NOT NULL,
        report TEXT CHARACTER SET utf8mb4 NOT NULL
      ) ENGINE = InnoDB`,
    orElse: () => sql`
      CREATE TABLE IF NOT EXISTS worker_reports (
        worker TEXT NOT NULL PRIMARY KEY, reported_at TEXT NOT NULL, report TEXT NOT NULL)`,
  })
})

/** The purchases of orders that are pruned: see SqlOrderRefunds.ts. */
const prunedOrders = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const text = sql.onDialectOrElse({
    mysql: () => (length: number) => sql.literal(`VARCHAR(${length}) CHARACTER SET ascii COLLATE ascii_bin`),
    orElse: () => () => sql.literal("TEXT"),
  })
  yield* sql`CREATE TABLE IF NOT EXISTS pruned_orders (
    user_id ${text(64)} NOT NULL,
    order_id ${text(32)} NOT NULL,
    product_id ${text(64)} NOT NULL,
    taken_back BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, order_id, product_id, taken_back)
  )`
})

/** Nothing can be recorded before it. */
export const createsTable = "0001_user_interactions"

/** Migrations that take as long as the table is large. */
export const rebuildsIndex: ReadonlySet<string> = new Set([
  "0003_history_covers_products",
  "0009_products_of_users",
])

export const interactionLog: Migrations = {
  table: "migrations_interaction_log",
  steps: {
    [createsTable]: userInteractions,
    "0002_user_erasures": userErasures,
    "0003_history_covers_products": historyCoversProducts,
    "0004_product_tally": productTally,
    "0005_references": references,
    "0006_user_aliases": userAliases,
    "0007_order_refunds": orderRefunds,
    "0008_pruned": pruned,
    "0009_products_of_users": productsOfUsers,
    "0010_worker_reports": workerReports,
    "0011_pruned_orders": prunedOrders,
  },
}
