/**
 * Announces changes of user embeddings to other programs, at least once. A change that nobody has subscribed to is
 * stored nowhere.
 */
import { Context, type Effect, Schema, type Scope } from "effect"
import type { EmbeddingChange, FeedMode } from "../model/EmbeddingChange.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

/** The exchange of the changes on RabbitMQ, a topic exchange. */
export const feedExchange = "user_embeddings"

export class EmbeddingFeedError extends Schema.TaggedError<EmbeddingFeedError>()(
  "EmbeddingFeedError",
  portFailure,
) {
  override get message() {
    return describeFailure("embedding feed", this)
  }
}

export class FeedIsOff extends Schema.TaggedError<FeedIsOff>()("FeedIsOff", {}) {
  override get message() {
    return "changes are announced only with EMBEDDING_FEED=ids or vectors: set it for every process, and start them again"
  }
}

export interface Subscription {
  /** Waits for changes and takes those that have arrived, in order, `most` at most. Fails when it is lost. */
  readonly take: (most: number) => Effect.Effect<ReadonlyArray<EmbeddingChange>, EmbeddingFeedError>
  /** Whatever was taken so far is not delivered again. Without it, it is, to the next subscription of the name. */
  readonly acknowledge: Effect.Effect<void, EmbeddingFeedError>
}

export class EmbeddingFeed extends Context.Tag("user-embeddings/EmbeddingFeed")<
  EmbeddingFeed,
  {
    readonly mode: FeedMode
    /** Succeeds when every change is stored for every subscription. */
    readonly publish: (changes: ReadonlyArray<EmbeddingChange>) => Effect.Effect<void, EmbeddingFeedError>
    /**
     * The changes from now on; under a name, from the last acknowledgement of that name on. A name without a subscriber
     * is forgotten after 7 days. One subscriber of a name receives at a time.
     */
    readonly subscribe: (name?: string) => Effect.Effect<Subscription, EmbeddingFeedError, Scope.Scope>
  }
>() {}
