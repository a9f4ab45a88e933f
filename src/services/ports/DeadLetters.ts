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
  /** The letter that it was before it was retried and died again, `x-retried-from`. */
  readonly retriedFrom: string | null
  /** When the interaction was recorded, `x-recorded-at`, Unix ms. */
  readonly recordedAt: number | null
  /** The original bytes. */
  readonly body: Uint8Array
}

/** What a letter says about itself, `null` where it can't be read: anybody may have written it. */
export interface Content {
  readonly message_id: string | null
  readonly user_id: string | null
  readonly event_type: string | null
}

const textOf = (value: unknown): string | null =>
  typeof value === "string" ? value : Number.isSafeInteger(value) ? String(value) : null

const parse = (body: Uint8Array): Readonly<Record<string, unknown>> => {
  try {
    return Object(JSON.parse(Buffer.from(body).toString("utf8")))
  } catch {
    return {}
  }
}

export const content = ({ body, messageId }: Pick<DeadLetter, "body" | "messageId">): Content => {
  const { event_type, message_id, user_id } = parse(body)
  return {
    message_id: messageId ?? textOf(message_id),
    user_id: textOf(user_id),
    event_type: textOf(event_type),
  }
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
