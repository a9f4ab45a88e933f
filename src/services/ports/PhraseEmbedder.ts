/** Computes vectors of phrases. */
import { Context, type Effect, type Either, Schema } from "effect"

export class PhraseEmbedderError extends Schema.TaggedError<PhraseEmbedderError>()("PhraseEmbedderError", {
  /**
   * `rate_limited`, `server_error`, `timeout`, `unreachable`: try again. `unauthorized`, `quota_exhausted`,
   * `misconfigured`: the service refuses all phrases. `invalid_input`, `bad_vector`: this phrase never succeeds.
   * `no_embedder`: the system embeds no phrases.
   */
  reason: Schema.Literal(
    "rate_limited",
    "server_error",
    "timeout",
    "unreachable",
    "unauthorized",
    "quota_exhausted",
    "misconfigured",
    "invalid_input",
    "bad_vector",
    "no_embedder",
  ),
  detail: Schema.String,
  /** The `Retry-After` of the service. */
  retryAfter: Schema.optional(Schema.DurationFromSelf),
  cause: Schema.optional(Schema.Defect),
}) {
  override get message() {
    return `${this.reason}: ${this.detail}`
  }
}

/** A text that every service embeds: it shows whether a failure comes from the service or from other texts. */
export const harmlessText = "shoes"

/** Some models embed search phrases and texts of products in different ways. */
export type TextKind = "query" | "document"

export class PhraseEmbedder extends Context.Tag("user-embeddings/PhraseEmbedder")<
  PhraseEmbedder,
  {
    /** Name of the vector space, such as `openai:text-embedding-3-small:1536`. */
    readonly space: string
    /**
     * Vectors of distinct, normalised phrases, in their order, of unit length and the configured dimension. The failure
     * of one phrase does not affect the others. They are search phrases unless `kind` says otherwise.
     */
    readonly embed: (
      phrases: ReadonlyArray<string>,
      kind?: TextKind,
    ) => Effect.Effect<ReadonlyArray<Either.Either<Float32Array, PhraseEmbedderError>>>
  }
>() {}
