/**
 * What each stage of the embedded stack costs by itself: its tables, one connection, every commit synced. All stages
 * share one thread with the HTTP server, so one core divided by the sum of their costs is the limit.
 */
import { Database } from "bun:sqlite"
import { join } from "node:path"
import { fileName } from "../../src/layers/sqlite/Sqlite.ts"
import * as AppliedIds from "../../src/services/model/AppliedIds.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import { type Arena, dimensions } from "./arena.ts"
import { event, interaction, productVector } from "./events.ts"
import { type Floor, measured } from "./floors.ts"
import { type Sequence, users } from "./pipeline.ts"

const perCommit = 100

export const sqliteFloors = async (arena: Arena, next: Sequence): Promise<ReadonlyArray<Floor>> => {
  const env = arena.embedded("floors")
  await arena.setUp(env)
  const database = new Database(join(env.DATA_DIR ?? "", fileName), { strict: true })
  arena.onClose(async () => database.close())
  for (const pragma of ["journal_mode = WAL", "synchronous = FULL"]) database.run(`PRAGMA ${pragma}`)

  const interactions = (count: number) => {
    const range = next(count)
    return Array.from({ length: count }, (_, i) => interaction(event(range, range.from + i)))
  }
  const commits = (count: number, work: (from: number) => void) =>
    measured(count, {}, () => {
      for (let from = 0; from < count; from += perCommit) database.transaction(work).immediate(from)
    })

  const insertRow = database.query(
    `INSERT INTO user_interactions (message_id, user_id, event_type, product_id, occurred_at, metadata, created_at)
     VALUES (?, ?, ?, ?, ?, ?, ?)`,
  )
  const insert = (count: number) => {
    const rows = interactions(count).map((one) => {
      const at = one.occurred_at.slice(0, 23).replace("T", " ")
      const metadata = JSON.stringify(one.metadata)
      return [one.message_id, one.user_id, one.event_type, one.product_id, at, metadata, at] as const
    })
    return commits(count, (from) => {
      for (const row of rows.slice(from, from + perCommit)) insertRow.run(...row)
    })
  }

  const enqueue = database.query(
    "INSERT INTO queue_messages (queue, available_at, headers, body) VALUES ('floor', ?, '{}', ?)",
  )
  const claim = database.query<{ readonly id: number }, [number]>(
    `UPDATE queue_messages SET holder = 'floor', deliveries = deliveries + 1
     WHERE id IN (SELECT id FROM queue_messages WHERE queue = 'floor' AND holder IS NULL
                  ORDER BY available_at, id LIMIT ?) RETURNING id, headers, body`,
  )
  const remove = database.query("DELETE FROM queue_messages WHERE id = ?")
  const queue = (count: number) => {
    const bodies = interactions(count).map((one) => encodeMessage(one))
    return measured(count, {}, () => {
      for (let from = 0; from < count; from += perCommit) {
        const some = bodies.slice(from, from + perCommit)
        database
          .transaction(() => {
            for (const body of some) enqueue.run(from, body)
          })
          .immediate()
        const claimed = database.transaction(() => claim.all(perCommit)).immediate()
        database
          .transaction(() => {
            for (const { id } of claimed) remove.run(id)
          })
          .immediate()
      }
    })
  }

  const embedding = Vector.toBytes(Vector.normalise(productVector(0, dimensions)))
  const { kept: applied } = AppliedIds.append(
    AppliedIds.none,
    interactions(AppliedIds.keptIds).map(({ message_id }) => message_id),
  )
  const facts = JSON.stringify({ recent: interactions(10) })
  const upsert = database.query(
    `INSERT INTO user_embeddings (user_id, version, archived, generation, erased_at, facts, applied, embedding)
     VALUES (?, 1, 0, 0, 0, ?, ?, ?)
     ON CONFLICT (user_id) DO UPDATE SET version = version + 1, facts = excluded.facts, applied = excluded.applied,
       embedding = excluded.embedding`,
  )
  const write = (count: number) =>
    commits(count, (from) => {
      for (let i = from; i < from + perCommit; i++) upsert.run(`user-${i % users}`, facts, applied, embedding)
    })

  return [
    { name: `SQLite: INSERT of ${perCommit} rows`, events: 10_000, run: insert },
    { name: "SQLite: publish, claim and remove", events: 10_000, run: queue },
    { name: `SQLite: write of ${perCommit} documents`, events: 4_000, run: write },
  ]
}
