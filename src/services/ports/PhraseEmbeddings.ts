/** Keeps vectors of phrases already paid for, across restarts and workers. No phrase is stored, only its hash. */
import { createHash } from "node:crypto"
import { Context, type Effect, Schema } from "effect"
import { describeFailure, portFailure } from "./PortFailure.ts"

export class PhraseEmbeddingsError extends Schema.TaggedError<PhraseEmbeddingsError>()(
  "PhraseEmbeddingsError",
  portFailure,
) {
  override get message() {
    return describeFailure("phrase embeddings", this)
  }
}

/** Lower-case hex SHA-256 of space and normalised phrase. */
export const phraseKey = (space: string, phrase: string): string =>
  createHash("sha256").update(`${space}|${phrase}`).digest("hex")

export class PhraseEmbeddings extends Context.Tag("user-embeddings/PhraseEmbeddings")<
  PhraseEmbeddings,
  {
    /** Vectors of those keys that are kept; being read counts as use. */
    readonly load: (
      keys: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyMap<string, Float32Array>, PhraseEmbeddingsError>
    readonly save: (vectors: ReadonlyMap<string, Float32Array>) => Effect.Effect<void, PhraseEmbeddingsError>
    /** Removes vectors; answers how many there were. */
    readonly remove: (keys: ReadonlyArray<string>) => Effect.Effect<number, PhraseEmbeddingsError>
  }
>() {}
