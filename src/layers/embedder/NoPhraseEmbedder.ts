/**
 * For a shop that has only vectors of its own, in dimensions that the local embedder does not have. It embeds no phrase:
 * a padded or cut vector of another model would be near a random product. Searches are recorded, but do not change the
 * embedding.
 */
import { Effect, Either, Layer } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import type { Dependency } from "../../services/ports/Dependencies.ts"
import { PhraseEmbedder, PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"

const why =
  "this system embeds no texts: without OPENAI_API_KEY, EMBEDDING_DIMENSIONS must be a multiple of 384 for that; product vectors of your own are used"

const make = Effect.gen(function* () {
  const { dimensions } = yield* EmbeddingConfig
  yield* Effect.annotateLogs(Effect.logWarning("embedder.none"), { detail: why })
  const refused = Either.left(new PhraseEmbedderError({ reason: "no_embedder", detail: why }))
  return PhraseEmbedder.of({
    space: `own:${dimensions}`,
    embed: (phrases) => Effect.succeed(phrases.map(() => refused)),
  })
})

export const layer = Layer.effect(PhraseEmbedder, make)

export const dependency: Dependency = {
  name: "embedder",
  essentialFor: [],
  ping: Effect.succeed(`none: ${why}`),
  missing: Effect.succeed([]),
  setup: Effect.succeed([]),
}
