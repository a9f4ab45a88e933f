/** Expiry of phrase vectors. PhraseEmbeddingsContract tests everything else. */
import { describe, expect } from "bun:test"
import { ConfigProvider, Effect, Layer } from "effect"
import * as Sqlite from "../../../src/layers/sqlite/Sqlite.ts"
import * as SqlitePhraseEmbeddings from "../../../src/layers/sqlite/SqlitePhraseEmbeddings.ts"
import { PhraseEmbeddings } from "../../../src/services/ports/PhraseEmbeddings.ts"
import { later } from "../../support/clocks.ts"
import { effectTest } from "../../support/effect.ts"
import { freshDirectory, setUp } from "../../support/sqliteQueue.ts"

const phrasesIn = (directory: string) =>
  SqlitePhraseEmbeddings.layer.pipe(
    Layer.provide(setUp),
    Layer.provideMerge(Sqlite.layer({ directory })),
    Layer.provide(Layer.setConfigProvider(ConfigProvider.fromMap(new Map([["PHRASE_TTL_DAYS", "3"]])))),
  )
const rows = Effect.flatMap(Sqlite.Sqlite, ({ use }) =>
  use((database) =>
    database
      .query<{ key: string }, []>("SELECT key FROM phrase_embeddings ORDER BY key")
      .all()
      .map(({ key }) => key),
  ),
)

describe("SQLite: expiry of phrase embeddings", () => {
  effectTest("a phrase that was not used for PHRASE_TTL_DAYS is deleted at the next start", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      const start = <A, E>(
        effect: Effect.Effect<A, E, PhraseEmbeddings | Sqlite.Sqlite>,
        after: "0 days" | "2 days" | "4 days",
      ) => Effect.provide(effect, phrasesIn(directory)).pipe(later(after))
      const vector = Float32Array.of(1, 2)
      const save = Effect.flatMap(PhraseEmbeddings, (phrases) =>
        phrases.save(
          new Map([
            ["unused", vector],
            ["used", vector],
          ]),
        ),
      )
      yield* start(save, "0 days")
      const use = Effect.flatMap(PhraseEmbeddings, (phrases) => phrases.load(["used", "unknown"]))
      expect([...(yield* start(use, "2 days"))]).toEqual([["used", vector]])
      const left = Effect.repeat(rows, { until: ({ length }) => length < 2 }).pipe(
        Effect.timeout("5 seconds"),
      )
      expect(yield* start(left, "4 days")).toEqual(["used"])
    }),
  )
})
