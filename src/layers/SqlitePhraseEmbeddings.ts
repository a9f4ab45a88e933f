/** Phrase vectors of the embedded stack; those not used for PHRASE_TTL_DAYS are removed hourly. */
import { Clock, Effect, Layer, Schedule } from "effect"
import { PhraseEmbeddings, PhraseEmbeddingsError } from "../services/PhraseEmbeddings.ts"
import * as Settings from "../services/Settings.ts"
import * as Vector from "../services/Vector.ts"
import { failingWith, Sqlite } from "./Sqlite.ts"

const dayMillis = 86_400_000

const make = Effect.gen(function* () {
  const sqlite = yield* Sqlite
  const days = yield* Settings.PHRASE_TTL_DAYS
  const failing = failingWith((failure) => new PhraseEmbeddingsError(failure))

  const expire = Effect.flatMap(Clock.currentTimeMillis, (now) =>
    sqlite.use((database) =>
      database.query("DELETE FROM phrase_embeddings WHERE last_used < ?").run(now - days * dayMillis),
    ),
  )
  yield* Effect.forkScoped(Effect.repeat(Effect.ignore(expire), Schedule.spaced("1 hour")))

  return PhraseEmbeddings.of({
    load: (keys) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        failing("load")(
          sqlite.transaction((database) => {
            const one = database.query<{ embedding: Uint8Array; last_used: number }, [string]>(
              "SELECT embedding, last_used FROM phrase_embeddings WHERE key = ?",
            )
            const use = database.query("UPDATE phrase_embeddings SET last_used = ? WHERE key = ?")
            return new Map(
              keys.flatMap((key) => {
                const row = one.get(key)
                if (row === null) return []
                // Once a day is enough to know what is in use, and keeps reading cheap.
                if (row.last_used < now - dayMillis) use.run(now, key)
                return [[key, Vector.fromBytes(row.embedding)] as const]
              }),
            )
          }),
        ),
      ),

    save: (vectors) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        failing("save")(
          sqlite.transaction((database) => {
            const write = database.query(
              `INSERT INTO phrase_embeddings (key, embedding, last_used) VALUES (?1, ?2, ?3)
               ON CONFLICT (key) DO UPDATE SET embedding = ?2, last_used = ?3`,
            )
            for (const [key, vector] of vectors) write.run(key, Vector.toBytes(vector), now)
          }),
        ),
      ),

    remove: (keys) =>
      failing("remove")(
        sqlite.transaction((database) => {
          const remove = database.query("DELETE FROM phrase_embeddings WHERE key = ?")
          return keys.reduce((removed, key) => removed + remove.run(key).changes, 0)
        }),
      ),
  })
})

export const layer = Layer.scoped(PhraseEmbeddings, make)
