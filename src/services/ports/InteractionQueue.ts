/**
 * The queue between the log and the workers. Publishing confirms each message when the broker has stored it. Delivery
 * is at least once: no message is acknowledged before the broker has confirmed its retry or dead letter.
 */
import { Context, type Effect, Schema, type Scope } from "effect"
import type { EventType, MessageId, UserId } from "../model/Interaction.ts"
import type { TraceContext } from "../Telemetry.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

export const exchange = "user_events"
export const queue = "user_embedding_updates"
/** Poison-message candidates wait here. They are handled in small companies, by a consumer that holds nothing else. */
export const quarantineQueue = `${queue}.isolated`
/** Searches wait here while the embedder is out, so that they do not stand in the way of product events. */
export const setAsideQueue = `${queue}.waiting`
export const failedQueue = "failed"
export const routingKey = (type: EventType): string => `user.embedding.${type}`
/** Messages wait in a retry queue for its delay, which is part of the name. */
export const retryQueue = (delayMillis: number): string => `${queue}.retry.${delayMillis}`

/** With several partitions, this exchange spreads the update messages by user over as many queues. */
export const partitionsExchange = "user_embedding_partitions"
export const partitionQueue = (index: number): string => `${queue}.${index}`
/** As {@link retryQueue}, but its messages return to the partition of their user. */
export const partitionedRetryQueue = (delayMillis: number): string => `${retryQueue(delayMillis)}.partitions`

/** An update message to publish. */
export interface Message {
  readonly messageId: MessageId
  /** Chooses the partition. */
  readonly userId?: UserId
  readonly eventType: EventType
  readonly body: Uint8Array
  readonly trace: TraceContext | null
  /** The id of the interaction's row in the log, if it has one. */
  readonly logId?: number
  /** When the interaction was recorded, Unix ms. */
  readonly recordedAt: number
}

/** `confirmed`: durable and routed to a queue. Any other message may be published again. */
export type Confirmation = "confirmed" | "returned" | "nacked"

/** A delivered message. Compare deliveries by identity. */
export interface Delivery {
  readonly body: Uint8Array
  readonly routingKey: string
  /** The property `message_id`, as it came. */
  readonly messageId: string | null
  readonly trace: TraceContext | null
  /** `x-retry-count`: failed attempts so far. */
  readonly retryCount: number
  /** `x-isolated-attempts`: how often the message came from quarantine, this delivery included. */
  readonly quarantineAttempts: number
  /** The message comes from quarantine: its consumer holds nothing else but its company. */
  readonly quarantined: boolean
  /** The message is a search that was set aside. */
  readonly wasSetAside: boolean
  /** `x-delivery-count`: how often the broker delivered the message before without a settlement. */
  readonly redeliveries: number
  /** `x-published-at`, Unix ms. */
  readonly publishedAt: number | null
  /** `x-log-id`: the id of the interaction's row in the log. */
  readonly logId: number | null
  /** `x-recorded-at`, Unix ms. */
  readonly recordedAt: number | null
}

/** Why a message failed: the kind of error, and a text for people. */
export interface Failure {
  readonly error: string
  readonly message: string
}

/** What the consumer does with a delivery. */
export type Settlement =
  | { readonly _tag: "Ack" }
  /** Waits in the retry queue of `delayMillis`, then comes back with `retryCount` + 1. */
  | { readonly _tag: "Retry"; readonly delayMillis: number; readonly failure: Failure }
  | { readonly _tag: "DeadLetter"; readonly failure: Failure }
  /** Goes to quarantine; if it came from there, `quarantineAttempts` grows by one. */
  | { readonly _tag: "Quarantine" }
  /** Goes back unchanged to the end of the queue that it came from. This is no evidence against the message. */
  | { readonly _tag: "Return" }
  /** Waits unchanged among the searches that are set aside. */
  | { readonly _tag: "SetAside" }

/** The settlements that publish the message again. */
export type NotAcked = Exclude<Settlement, { readonly _tag: "Ack" }>

export const Ack: Settlement = { _tag: "Ack" }
export const Quarantine: Settlement = { _tag: "Quarantine" }
export const Return: Settlement = { _tag: "Return" }
export const SetAside: Settlement = { _tag: "SetAside" }
export const Retry = (delayMillis: number, failure: Failure): Settlement => ({
  _tag: "Retry",
  delayMillis,
  failure,
})
export const DeadLetter = (failure: Failure): Settlement => ({ _tag: "DeadLetter", failure })

export type Settled = readonly [Delivery, Settlement]

/** `x-isolated-attempts` of a message that goes to quarantine. A detour through a retry queue is no attempt. */
export const nextQuarantineAttempt = ({
  quarantined,
  quarantineAttempts,
}: Pick<Delivery, "quarantined" | "quarantineAttempts">): number =>
  quarantined ? quarantineAttempts + 1 : Math.max(1, quarantineAttempts)

/**
 * Sizes of the companies in which quarantined messages are handled. A message that was in hand when a worker died is
 * handled next in a smaller company, and at last alone: many innocent messages cost little, and the guilty one is found.
 */
export const companySizes = [64, 8, 1] as const
export type CompanySize = (typeof companySizes)[number]
export const companySize = (quarantineAttempts: number): CompanySize =>
  companySizes[Math.min(Math.max(quarantineAttempts, 1), companySizes.length) - 1] ?? 1

/** How many messages a consumer receives from a queue: as many as it may hold, one, or none. */
export type Amount = "all" | "one" | "none"

/** What a consumer receives. Quarantined messages are received like those of the main queue. */
export interface Intake {
  readonly main: Amount
  /** Searches that are set aside. */
  readonly setAside: Amount
}

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
   * Waits for deliveries and takes those that have arrived, in order, `most` at most. The consumer reconnects by
   * itself; messages that were delivered on a lost connection are delivered again.
   *
   * One consumer in the whole system takes messages from quarantine. Before it takes a company of them, it waits until
   * all other deliveries are settled; before the company is settled, it takes no other message. A message that kills
   * its worker then harms no message outside its company.
   */
  readonly take: (most: number) => Effect.Effect<ReadonlyArray<Delivery>>
  /**
   * Changes what is received from now on; at first it is everything. Messages that have arrived are still taken. After
   * `one` message nothing is received until the next call.
   */
  readonly receive: (intake: Intake) => void
  /**
   * Settles deliveries in any order, each once. A retry or dead letter is published and confirmed before the original
   * is acknowledged. If publishing fails, the original stays unacknowledged and publishing is tried again; a returned
   * message is rejected instead. Deliveries of a lost connection are ignored: they come again.
   */
  readonly settle: (settled: ReadonlyArray<Settled>) => Effect.Effect<void>
  /**
   * Stops deliveries, and ends when all that have arrived are taken. Settle them before the scope closes: the broker
   * counts a message that goes back as redelivered, and many redeliveries make it a poison-message candidate.
   */
  readonly stop: Effect.Effect<void>
  /** Whether a delivery can be settled: it is not settled yet, and its connection is not lost. */
  readonly holds: (delivery: Delivery) => boolean
  /** Whether the consumer holds as much as it may: more comes only after a settlement. */
  readonly full: () => boolean
  /** Whether quarantined messages wait until everything else is settled. */
  readonly draining: () => boolean
}

export interface Depths {
  /**
   * The main queue: waiting messages, those set aside among them, interactions that consumers hold, and the number of
   * consumers.
   */
  readonly main: { readonly ready: number; readonly unacked: number; readonly consumers: number }
  /** Messages in quarantine, waiting or held by the consumer. */
  readonly quarantined: number
  /** Messages in retry queues, by delay in ms. */
  readonly retry: Readonly<Record<string, number>>
  readonly failed: number
}

/** Rates of the main queue per second, as the broker counts them. `unacked` includes searches that were set aside. */
export interface Traffic {
  readonly publish: number
  readonly deliver: number
  readonly ack: number
  /** Messages that consumers hold, in all processes. */
  readonly unacked: number
}

export class InteractionQueue extends Context.Tag("user-embeddings/InteractionQueue")<
  InteractionQueue,
  {
    /** `messaging.system` of spans. */
    readonly system: string
    /** The greatest number of interactions in one message of the main queue. */
    readonly eventsPerMessage: number
    /** After a batch of at least this size a worker pauses: others wait for its thread. Infinite if none do. */
    readonly pauseAbove: number
    /** Publishes messages, with a limit on unconfirmed ones; answers in their order. Fails only if none can be sent. */
    readonly publish: (
      messages: ReadonlyArray<Message>,
    ) => Effect.Effect<ReadonlyArray<Confirmation>, InteractionQueueError>
    /**
     * A consumer that holds at most `prefetch` unsettled deliveries, or one message with more interactions, and as many
     * that were set aside. When the scope closes, unsettled deliveries go back to the queue.
     */
    readonly consume: (prefetch: number) => Effect.Effect<Consumer, never, Scope.Scope>
    readonly depths: Effect.Effect<Depths, InteractionQueueError>
    /** `null` if it is not known: RabbitMQ's management API is not reachable. May take a second. */
    readonly traffic: Effect.Effect<Traffic | null, InteractionQueueError>
  }
>() {}
