/** Phrase vectors of the embedded stack. Vectors that were not used for PHRASE_TTL_DAYS are deleted hourly. */
import { Clock, Duration, Effect, Layer, Schedule } from "effect"
import * as Vector from "../../services/model/Vector.ts"
import { PhraseEmbeddings, PhraseEmbeddingsError } from "../../services/ports/PhraseEmbeddings.ts"
import * as Settings from "../../services/Settings.ts"
import { failingWith, failureReason, logWarning, Sqlite } from "./Sqlite.ts"

type Row = { readonly key: string; readonly last_used: number; readonly embedding: Uint8Array }

const make = Effect.gen(function* () {
  const sqlite = yield* Sqlite
  const ttlMillis = (yield* Settings.PHRASE_TTL_DAYS) * Duration.toMillis("1 day")
  /** `last_used` may be older than the last use by this much, so that most reads need no write. */
  const lastUsedToleranceMillis = ttlMillis / 30
  const failing = failingWith((failure) => new PhraseEmbeddingsError(failure))

  const deleteExpired = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    yield* sqlite.use((database) =>
      database.query("DELETE FROM phrase_embeddings WHERE last_used < ?").run(now - ttlMillis),
    )
  })
  yield* deleteExpired.pipe(
    // Before `setup` there is no table.
    Effect.catchIf(
      (error) => failureReason(error) === "not_set_up",
      () => Effect.void,
    ),
    Effect.catchAll(logWarning("phrases.expire_failed")),
    Effect.repeat(Schedule.spaced("1 hour")),
    Effect.forkScoped,
  )

  const updateLastUsed = (keys: ReadonlyArray<string>, now: number) =>
    sqlite
      .transaction((database) => {
        const update = database.query(
          "UPDATE phrase_embeddings SET last_used = MAX(last_used, ?) WHERE key = ?",
        )
        for (const key of keys) update.run(now, key)
      })
      .pipe(Effect.catchAll(logWarning("phrases.touch_failed")))

  return PhraseEmbeddings.of({
    load: (keys) =>
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const found = yield* sqlite
          .use((database) => {
            const select = database.query<Row, [string]>("SELECT * FROM phrase_embeddings WHERE key = ?")
            return keys.flatMap((key) => select.get(key) ?? [])
          })
          .pipe(failing("load"))
        const stale = found.filter(({ last_used }) => last_used < now - lastUsedToleranceMillis)
        if (stale.length > 0)
          yield* updateLastUsed(
            stale.map(({ key }) => key),
            now,
          )
        return new Map(found.map(({ embedding, key }) => [key, Vector.fromBytes(embedding)]))
      }),

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
