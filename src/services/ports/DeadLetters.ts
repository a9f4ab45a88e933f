/** Dead letters: messages in the queue `failed`, after their last retry or after an error that no retry can solve. */
import { Context, type Effect, Schema, type Stream } from "effect"
import { describeFailure, portFailure } from "./PortFailure.ts"

export interface DeadLetter {
  /** `x-dead-letter-id`: a UUID. */
  readonly id: string
  readonly messageId: string | null
  /** `x-error`: tag of the error. */
  readonly error: string
  readonly message: string
  readonly attempts: number
  /** ISO instants. */
  readonly firstFailedAt: string
  readonly lastFailedAt: string
  readonly worker: string
  readonly originalExchange: string
  readonly originalRoutingKey: string
  /** `x-retried-from`: id of the earlier dead letter that was retried. */
  readonly retriedFrom: string | null
  /** `x-log-id`: the id of the interaction's row in the log. */
  readonly logId: number | null
  /** `x-recorded-at`: when the interaction was recorded, Unix ms. */
  readonly recordedAt: number | null
  /** The original bytes. */
  readonly body: Uint8Array
}

/** Fields of the body. `null`: not readable, because other programs may publish to `failed` too. */
export interface Content {
  readonly message_id: string | null
  readonly user_id: string | null
  readonly event_type: string | null
  readonly product_id: string | null
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
  const { event_type, message_id, product_id, user_id } = parse(body)
  return {
    message_id: messageId ?? textOf(message_id),
    user_id: textOf(user_id),
    event_type: textOf(event_type),
    product_id: textOf(product_id),
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
    /** All dead letters, oldest first. They stay in the queue. */
    readonly list: Stream.Stream<DeadLetter, DeadLettersError>
    readonly count: Effect.Effect<number, DeadLettersError>
    /**
     * Publishes the picked dead letters to their original exchange and routing key, with `x-retry-count` 0. Each is
     * removed when its publishing is confirmed. Returns their number.
     */
    readonly retry: (pick: (deadLetter: DeadLetter) => boolean) => Effect.Effect<number, DeadLettersError>
    /** Removes the picked dead letters and returns their number. */
    readonly remove: (pick: (deadLetter: DeadLetter) => boolean) => Effect.Effect<number, DeadLettersError>
  }
>() {}
