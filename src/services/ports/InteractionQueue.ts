/**
 * The queue between the log and the workers. Publishing answers per message, once the broker has taken
 * responsibility; consuming is at least once, and nothing is acknowledged before the next hop has confirmed.
 */
import { Context, type Effect, Schema, type Scope } from "effect"
import type { EventType, MessageId } from "../model/Interaction.ts"
import type { TraceContext } from "../Telemetry.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

export const exchange = "user_events"
export const queue = "user_embedding_updates"
/** Suspects wait here, each to be handled alone. */
export const quarantineQueue = `${queue}.isolated`
export const failedQueue = "failed"
export const routingKey = (type: EventType): string => `user.embedding.${type}`
/** The delay queue of a rung; its name tells the delay in ms. */
export const retryQueue = (delayMillis: number): string => `${queue}.retry.${delayMillis}`

/** An update message to be published. */
export interface Message {
  readonly messageId: MessageId
  readonly eventType: EventType
  readonly body: Uint8Array
  readonly trace: TraceContext | null
  /** When the interaction was recorded, Unix ms. */
  readonly recordedAt: number
}

/** `confirmed`: durable and routed to a queue. Anything else may be published again. */
export type Confirmation = "confirmed" | "returned" | "nacked"

/** A message as delivered; compare by identity. */
export interface Delivery {
  readonly body: Uint8Array
  readonly routingKey: string
  /** The property `message_id`, unchecked. */
  readonly messageId: string | null
  readonly trace: TraceContext | null
  /** `x-retry-count`: failed attempts so far. */
  readonly retryCount: number
  /** `x-isolated-attempts`: how often it was handled alone as a suspect, this time included. */
  readonly quarantineAttempts: number
  /** A suspect that came alone: its consumer holds nothing else. */
  readonly quarantined: boolean
  /** How often the broker says that it was delivered before without an answer. */
  readonly redeliveries: number
  /** `x-published-at`, Unix ms. */
  readonly publishedAt: number | null
  /** `x-recorded-at`, Unix ms. */
  readonly recordedAt: number | null
}

/** Why a message failed: the tag of the error and a text for people. */
export interface Failure {
  readonly error: string
  readonly message: string
}

/** What is to become of a delivery. */
export type Settlement =
  | { readonly _tag: "Ack" }
  /** Comes back after the delay, counted as one attempt more. `delayMillis` is one of the rungs. */
  | { readonly _tag: "Retry"; readonly delayMillis: number; readonly failure: Failure }
  | { readonly _tag: "DeadLetter"; readonly failure: Failure }
  /** Comes back at once and alone; counted as one attempt more if it already came alone. */
  | { readonly _tag: "Quarantine" }

/** Of a delivery that is not done with. */
export type NotAcked = Exclude<Settlement, { readonly _tag: "Ack" }>

export const Ack: Settlement = { _tag: "Ack" }
export const Quarantine: Settlement = { _tag: "Quarantine" }
export const Retry = (delayMillis: number, failure: Failure): Settlement => ({
  _tag: "Retry",
  delayMillis,
  failure,
})
export const DeadLetter = (failure: Failure): Settlement => ({ _tag: "DeadLetter", failure })

export type Settled = readonly [Delivery, Settlement]

/** `x-isolated-attempts` of the copy that is isolated; what the ladder brought back goes on where it was. */
export const nextQuarantineAttempt = ({
  quarantined: isolated,
  quarantineAttempts: isolatedAttempts,
}: Pick<Delivery, "quarantined" | "quarantineAttempts">): number =>
  isolated ? isolatedAttempts + 1 : Math.max(1, isolatedAttempts)

export class InteractionQueueError extends Schema.TaggedError<InteractionQueueError>()(
  "InteractionQueueError",
  portFailure,
) {
  override get message() {
    return describeFailure("interaction queue", this)
  }
}

export interface Consumer {
  /**
   * Waits for at least one delivery and takes up to `most` of what has arrived, in order. The consumer
   * survives a lost connection by itself; deliveries of the lost one come again.
   *
   * A suspect comes alone: intake stops until all that the consumer holds is settled, then it is the only one, and
   * nothing else comes before it is settled. One consumer of all takes suspects. So whoever is beside a message
   * that kills its worker does not suffer.
   */
  readonly take: (most: number) => Effect.Effect<ReadonlyArray<Delivery>>
  /**
   * Settles deliveries in any order, each once. Retries and dead letters are copied with confirmation before
   * the original is acknowledged; what can't be copied stays unacknowledged and is tried again. A delivery of a
   * lost connection is forgotten: it comes again.
   */
  readonly settle: (settled: ReadonlyArray<Settled>) => Effect.Effect<void>
  /**
   * Takes in no more; ends when all that has come is taken. To be settled before the scope closes: the broker counts
   * what goes back as delivered in vain, and who came back often is suspected of killing its worker.
   */
  readonly stop: Effect.Effect<void>
  /** Whether a delivery is still to be settled here; one of a lost connection is not. */
  readonly holds: (delivery: Delivery) => boolean
  /** Whether it holds as much as it may: nothing more comes before something is settled. */
  readonly full: () => boolean
}

export interface Depths {
  /** Messages waiting in the main queue, interactions held by its consumers, and how many consumers it has. */
  readonly main: { readonly ready: number; readonly unacked: number; readonly consumers: number }
  /** Suspects, waiting or held. */
  readonly quarantined: number
  /** Waiting by delay in ms. */
  readonly retry: Readonly<Record<string, number>>
  readonly failed: number
}

/** What moves through the main queue, per second, as the broker counts it. */
export interface Traffic {
  readonly publish: number
  readonly deliver: number
  readonly ack: number
  /** Held by consumers, in all processes. */
  readonly unacked: number
}

export class InteractionQueue extends Context.Tag("user-embeddings/InteractionQueue")<
  InteractionQueue,
  {
    /** `messaging.system` of its spans. */
    readonly system: string
    /** Interactions that one message of the main queue may hold, at most. */
    readonly eventsPerMessage: number
    /** A batch of so many tells a worker that others wait for its thread; infinite where they have threads of their own. */
    readonly pauseAbove: number
    /** Publishes messages in a window and answers in their order. Fails only when none can be published. */
    readonly publish: (
      messages: ReadonlyArray<Message>,
    ) => Effect.Effect<ReadonlyArray<Confirmation>, InteractionQueueError>
    /**
     * A consumer that holds at most `prefetch` unsettled deliveries, or one message that holds more; closing the scope
     * gives the rest back.
     */
    readonly consume: (prefetch: number) => Effect.Effect<Consumer, never, Scope.Scope>
    readonly depths: Effect.Effect<Depths, InteractionQueueError>
    /** `null` where nobody can tell: RabbitMQ's management API is not reachable. May take a second. */
    readonly traffic: Effect.Effect<Traffic | null, InteractionQueueError>
  }
>() {}
