/**
 * The feed of changes on the embedded stack: a table with the users that changed, in the order of their last changes. A
 * write and its entry are one transaction. A subscriber reads the record of each user, so it may skip versions.
 */
import type { Database } from "bun:sqlite"
import { Clock, Duration, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { ofRecord } from "../../services/model/EmbeddingChange.ts"
import type { UserId } from "../../services/model/Interaction.ts"
import { EmbeddingFeed, EmbeddingFeedError, type Subscription } from "../../services/ports/EmbeddingFeed.ts"
import { countOf, failingWith, Sqlite } from "./Sqlite.ts"
import { type Row, toRecord } from "./SqliteUserEmbeddings.ts"

/** Between looks at the table. Other processes may write it. */
const interval = Duration.millis(100)
const expiresMillis = 7 * 86_400_000

interface Changed {
  readonly seq: number
  readonly user_id: UserId
}

const changedAfter = (database: Database, seq: number, most: number) => {
  const changed = database
    .query<Changed, [number, number]>(
      "SELECT seq, user_id FROM user_embedding_changes WHERE seq > ? ORDER BY seq LIMIT ?",
    )
    .all(seq, most)
  const select = database.query<Row, [string]>("SELECT * FROM user_embeddings WHERE user_id = ?")
  const changes = changed.flatMap(({ user_id }) => {
    const row = select.get(user_id)
    return row === null ? [] : [ofRecord(toRecord(row))]
  })
  return { changes, last: changed.at(-1)?.seq }
}

/** Where a subscriber begins: after the last acknowledgement of its name, or at the end. */
const begin = (database: Database, name: string | undefined, now: number): number => {
  database.query("DELETE FROM user_embedding_subscriptions WHERE seen_at < ?").run(now - expiresMillis)
  const end = countOf(database, "SELECT COALESCE(MAX(seq), 0) FROM user_embedding_changes")
  if (name === undefined) return end
  return (
    database
      .query<{ seq: number }, [string, number, number]>(
        `INSERT INTO user_embedding_subscriptions (name, seq, seen_at) VALUES (?, ?, ?)
         ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at RETURNING seq`,
      )
      .get(name, end, now)?.seq ?? end
  )
}

const make = Effect.gen(function* () {
  const { transaction, use } = yield* Sqlite
  const { feed: mode } = yield* EmbeddingConfig
  const failing = failingWith((fields) => new EmbeddingFeedError(fields))
  const subscribe = Effect.fnUntraced(function* (name: string | undefined) {
    const began = yield* Clock.currentTimeMillis
    let taken = yield* failing("subscribe")(transaction((database) => begin(database, name, began)))
    const take: Subscription["take"] = (most) =>
      Effect.flatMap(
        failing("take")(use((database) => changedAfter(database, taken, most))),
        ({ changes, last }) => {
          if (last === undefined) return Effect.zipRight(Effect.sleep(interval), take(most))
          taken = last
          return Effect.succeed(
            mode === "vectors"
              ? changes
              : changes.map((change) => {
                  if (change.type !== "updated") return change
                  const { embedding: _, ...ids } = change
                  return ids
                }),
          )
        },
      )
    const acknowledge = Effect.flatMap(Clock.currentTimeMillis, (now) =>
      name === undefined
        ? Effect.void
        : Effect.asVoid(
            failing("acknowledge")(
              use((database) =>
                database
                  .query("UPDATE user_embedding_subscriptions SET seq = ?, seen_at = ? WHERE name = ?")
                  .run(taken, now, name),
              ),
            ),
          ),
    )
    return { take, acknowledge } satisfies Subscription
  })
  // The write of an embedding has announced it.
  return EmbeddingFeed.of({ mode, publish: () => Effect.void, subscribe })
})

export const layer = Layer.effect(EmbeddingFeed, make)
