/** Computes vectors of phrases. */
import { Context, type Effect, type Either, Schema } from "effect"

export class PhraseEmbedderError extends Schema.TaggedError<PhraseEmbedderError>()("PhraseEmbedderError", {
  /**
   * `rate_limited`, `server_error`, `timeout`, `unreachable`: worth another try. `unauthorized`, `quota_exhausted`:
   * the service as such is out. `invalid_input`, `bad_vector`: this phrase never succeeds.
   */
  reason: Schema.Literal(
    "rate_limited",
    "server_error",
    "timeout",
    "unreachable",
    "unauthorized",
    "quota_exhausted",
    "invalid_input",
    "bad_vector",
  ),
  detail: Schema.String,
  /** How long the service asked us to wait. */
  retryAfter: Schema.optional(Schema.DurationFromSelf),
  cause: Schema.optional(Schema.Defect),
}) {
  override get message() {
    return `${this.reason}: ${this.detail}`
  }
}

export class PhraseEmbedder extends Context.Tag("user-embeddings/PhraseEmbedder")<
  PhraseEmbedder,
  {
    /** Name of the vector space, as `openai:text-embedding-3-small:1536`. */
    readonly space: string
    /**
     * Vectors of distinct, normalised phrases, in their order: unit length, of the configured dimension. One
     * phrase's failure does not touch the others.
     */
    readonly embed: (
      phrases: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlyArray<Either.Either<Float32Array, PhraseEmbedderError>>>
  }
>() {}
