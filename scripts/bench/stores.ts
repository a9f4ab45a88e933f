/**
 * The same load on a small and on a large store: 1,000,000 users, 100,000 products and 5,000,000 rows of the log, with
 * short vectors to save disk space. The cost of an event must not grow with the stores.
 */
import { Binary, Double } from "mongodb"
import { createConnection } from "mysql2/promise"
import { type Arena, type Env, storeProducts, withMongo } from "./arena.ts"
import { type External, external, type Sequence } from "./pipeline.ts"

export const storeDimensions = 384
const more = { EMBEDDING_DIMENSIONS: String(storeDimensions) }
const space = `local:minilm-words:${storeDimensions}`

export interface Sizes {
  readonly users: number
  readonly products: number
  readonly rows: number
}

/** Stores documents as a worker writes them after a user's first event. */
const storeUsers = (env: Env, count: number) =>
  withMongo(env, async (database) => {
    const users = database.collection<{ readonly _id: string }>("user_embeddings")
    const embedding = Binary.fromFloat32Array(
      new Float32Array(storeDimensions).fill(1 / Math.sqrt(storeDimensions)),
    )
    const at = new Date(Date.now() - 30 * 86_400_000)
    const digest = "0".repeat(64)
    for (let from = 0; from < count; from += 5_000)
      await users.insertMany(
        Array.from({ length: Math.min(5_000, count - from) }, (_, i) => ({
          _id: `user-${from + i}`,
          user_id: `user-${from + i}`,
          embedding,
          dimension_count: storeDimensions,
          last_updated: at,
          event_count: 1,
          last_event_type: "product_view",
          last_event_id: digest,
          mass: new Double(0.3),
          total_weight: new Double(0.3),
          space,
          history: "cumulative",
          created_at: at,
          updated_at: at,
          version: 1,
          recent: [],
          metadata: {
            search_count: 0,
            view_count: 1,
            click_count: 0,
            purchase_count: 0,
            decay_lambda: new Double(0.023),
            last_recalculation: at,
          },
          applied: new Binary(Buffer.alloc(16)),
          archived: 0,
          erased_at: null,
        })),
        { ordered: false },
      )
  })

/** Stores rows that were published long ago, 1,000 in a statement. */
const storeRows = async (env: Env, count: number, users: number) => {
  const connection = await createConnection(env.MYSQL_URL ?? "")
  const columns =
    "message_id, user_id, event_type, product_id, occurred_at, metadata, created_at, processed_to_queue, published_at"
  const values = (
    n: string,
  ) => `SHA2(CONCAT('bench-', ${n}), 256), CONCAT('user-', ${n} % ${users}), 'product_view',
    CONCAT('product-', ${n} % 1000), '2026-01-01 00:00:00' + INTERVAL ${n} SECOND, '{"device":"mobile"}',
    '2026-01-01 00:00:00' + INTERVAL ${n} SECOND, TRUE, '2026-01-01 00:00:00' + INTERVAL ${n} SECOND`
  await connection.query("CREATE TEMPORARY TABLE numbers (n INT PRIMARY KEY)")
  const digits = Array.from({ length: 1_000 }, (_, i) => `(${i})`).join(", ")
  await connection.query(`INSERT INTO numbers VALUES ${digits}`)
  await connection.query("SET unique_checks = 0")
  for (let from = 0; from < count; from += 1_000)
    await connection.query(
      `INSERT INTO user_interactions (${columns}) SELECT ${values(`(${from} + n)`)} FROM numbers WHERE n < ${Math.min(1_000, count - from)}`,
    )
  await connection.end()
}

/** This project on stores of the given sizes. */
export const stocked = async (
  arena: Arena,
  next: Sequence,
  name: string,
  sizes: Sizes,
  say: (line: string) => void,
): Promise<External> => {
  const sized: Sequence = (count) => next(count, { users: sizes.users, products: sizes.products })
  const project = await external(arena, sized, more, { name, products: 0, byMetrics: true })
  say(`${name}: ${sizes.rows} rows`)
  await storeRows(project.env, sizes.rows, sizes.users)
  say(`${name}: ${sizes.products} products`)
  await storeProducts(project.env, sizes.products, space, storeDimensions)
  say(`${name}: ${sizes.users} users`)
  await storeUsers(project.env, sizes.users)
  return project
}
