/** Messages that gave up or could never succeed, parked in the queue `failed`: looked at, retried, removed. */
import { Context, type Effect, Schema, type Stream } from "effect"
import { describeFailure, portFailure } from "./PortFailure.ts"

export interface DeadLetter {
  /** `x-dead-letter-id`, a UUID. */
  readonly id: string
  readonly messageId: string | null
  /** Tag of the error, `x-error`. */
  readonly error: string
  readonly message: string
  readonly attempts: number
  /** ISO instants. */
  readonly firstFailedAt: string
  readonly lastFailedAt: string
  readonly worker: string
  readonly originalExchange: string
  readonly originalRoutingKey: string
  /** The original bytes. */
  readonly body: Uint8Array
}

export class DeadLettersError extends Schema.TaggedError<DeadLettersError>()(
  "DeadLettersError",
  portFailure,
) {
  override get message() {
    return describeFailure("dead letters", this)
  }
}

export class DeadLetters extends Context.Tag("user-embeddings/DeadLetters")<
  DeadLetters,
  {
    /** Everything in `failed`, oldest first, without consuming it. */
    readonly list: Stream.Stream<DeadLetter, DeadLettersError>
    readonly count: Effect.Effect<number, DeadLettersError>
    /**
     * Publishes the letters that the predicate picks to their original exchange and routing key, with
     * `x-retry-count` reset, and removes each once its copy is confirmed. Answers how many.
     */
    readonly retry: (pick: (letter: DeadLetter) => boolean) => Effect.Effect<number, DeadLettersError>
    /** Removes the letters that the predicate picks. Answers how many. */
    readonly remove: (pick: (letter: DeadLetter) => boolean) => Effect.Effect<number, DeadLettersError>
  }
>() {}
