/** Stores vectors of phrases, so that no phrase is paid for twice. It stores the hash of a phrase, not the phrase. */
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

/** SHA-256 of space and normalised phrase, in lower-case hex. */
export const phraseKey = (space: string, phrase: string): string =>
  createHash("sha256").update(`${space}|${phrase}`).digest("hex")

export class PhraseEmbeddings extends Context.Tag("user-embeddings/PhraseEmbeddings")<
  PhraseEmbeddings,
  {
    /** The stored vectors. Reading counts as use: unused vectors expire. */
    readonly load: (
      keys: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyMap<string, Float32Array>, PhraseEmbeddingsError>
    readonly save: (vectors: ReadonlyMap<string, Float32Array>) => Effect.Effect<void, PhraseEmbeddingsError>
    /** Removes vectors; answers how many were stored. */
    readonly remove: (keys: ReadonlyArray<string>) => Effect.Effect<number, PhraseEmbeddingsError>
  }
>() {}
