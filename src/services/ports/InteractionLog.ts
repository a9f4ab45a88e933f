/**
 * The interaction log: append-only source of truth and transactional outbox. What `append` has answered as
 * recorded is durable. Rows leave the outbox when they are marked published.
 */
import { Context, type Effect, Schema, type Stream } from "effect"
import type { EventType, Interaction, MessageId, ProductId, UserId } from "../model/Interaction.ts"
import type { TraceContext } from "../Telemetry.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

/** An interaction to be recorded. */
export interface NewInteraction {
  readonly interaction: Interaction
  /** Unique per user; `null` when the client sent none. */
  readonly idempotencyKey: string | null
  /** Whether the client named `occurred_at`: if not, a replayed key is compared without it. */
  readonly occurredAtGiven: boolean
  readonly trace: TraceContext | null
  /** Unix ms; becomes `created_at` and the message's `x-recorded-at`. */
  readonly recordedAt: number
}

/** An interaction as it stands in the log. */
export interface LoggedInteraction {
  readonly interaction: Interaction
  readonly trace: TraceContext | null
  readonly recordedAt: number
}

/** A row of the log, with its part in the outbox. */
export interface LogRow extends LoggedInteraction {
  /** Whether a broker has confirmed it; until then it waits in the outbox. */
  readonly published: boolean
}

/** What became of one appended interaction. `interaction` is the one in the log: the first of its kind. */
export type Appended =
  | { readonly _tag: "Recorded"; readonly interaction: Interaction }
  | { readonly _tag: "Duplicate"; readonly interaction: Interaction }
  /** The same key came before with another body or route. */
  | { readonly _tag: "KeyReused"; readonly interaction: Interaction }

export interface LogFilter {
  readonly user?: UserId
  readonly type?: EventType
  /** `occurred_at` from here on (canonical timestamp, inclusive). */
  readonly since?: string
  /** `occurred_at` before this (canonical timestamp, exclusive). */
  readonly until?: string
  /** Recorded from here on, whenever it occurred (canonical timestamp, inclusive). */
  readonly recordedSince?: string
}

/** What waits to be published. */
export interface Outbox {
  readonly unpublished: number
  /** Age of the oldest unpublished row in seconds, `null` when there is none. */
  readonly oldestUnpublishedSeconds: number | null
}

/** A user's events of one type with one product. */
export interface ProductEvents {
  readonly product_id: ProductId
  readonly event_type: EventType
  readonly events: number
}

/** How many interactions with a product one UTC day saw. */
export interface ProductCount {
  readonly product_id: ProductId
  /** As `2026-02-10`. */
  readonly day: string
  readonly interactions: number
}

export interface Backlog extends Outbox {
  readonly total: number
}

export class InteractionLogError extends Schema.TaggedError<InteractionLogError>()(
  "InteractionLogError",
  portFailure,
) {
  override get message() {
    return describeFailure("interaction log", this)
  }
}

export class InteractionLog extends Context.Tag("user-embeddings/InteractionLog")<
  InteractionLog,
  {
    /**
     * Records interactions in one commit and answers in their order. A message id or a key that is known, also
     * from earlier in the same batch, is not recorded again.
     */
    readonly append: (
      entries: ReadonlyArray<NewInteraction>,
    ) => Effect.Effect<ReadonlyArray<Appended>, InteractionLogError>
    /** The oldest rows of the outbox that were recorded at or before `recordedBy` (Unix ms). */
    readonly unpublished: (options: {
      readonly limit: number
      readonly recordedBy: number
    }) => Effect.Effect<ReadonlyArray<LoggedInteraction>, InteractionLogError>
    /** Takes rows out of the outbox; `at` (Unix ms) becomes `published_at`. */
    readonly markPublished: (
      ids: ReadonlyArray<MessageId>,
      at: number,
    ) => Effect.Effect<void, InteractionLogError>
    /**
     * Rows in pages: those of one user oldest first by `occurred_at`, those of all in the order in which they were
     * recorded. What is recorded meanwhile may be left out.
     */
    readonly stream: (filter: LogFilter) => Stream.Stream<LogRow, InteractionLogError>
    /** Whose interactions the log holds: all message ids, in pages and in the order of user ids. */
    readonly messageIds: Stream.Stream<
      ReadonlyArray<Pick<Interaction, "user_id" | "message_id">>,
      InteractionLogError
    >
    /** Which of these prefixes of message ids (32 hex digits) are in the log. */
    readonly existingIds: (
      prefixes: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlySet<string>, InteractionLogError>
    /** The user's newest interactions by `occurred_at`, newest first. */
    readonly newest: (
      user: UserId,
      limit: number,
    ) => Effect.Effect<ReadonlyArray<LoggedInteraction>, InteractionLogError>
    /** The rows recorded last, newest first. */
    readonly lastRecorded: (
      limit: number,
    ) => Effect.Effect<ReadonlyArray<LoggedInteraction>, InteractionLogError>
    /** How many events of each type the user has with each product; only events of `types`, if they are given. */
    readonly productEvents: (
      user: UserId,
      types?: ReadonlyArray<EventType>,
    ) => Effect.Effect<ReadonlyArray<ProductEvents>, InteractionLogError>
    /** The last row's place in the log, 0 for none. Rows before it may still be on their way. */
    readonly maxId: Effect.Effect<number, InteractionLogError>
    /** Interactions of these types with products, in the rows after one id and up to another. */
    readonly productCounts: (
      types: ReadonlyArray<EventType>,
      after: number,
      upTo: number,
    ) => Effect.Effect<ReadonlyArray<ProductCount>, InteractionLogError>
    readonly outbox: Effect.Effect<Outbox, InteractionLogError>
    /** Counts all rows: not to be asked again and again. */
    readonly backlog: Effect.Effect<Backlog, InteractionLogError>
    /** When (Unix ms) the user's newest row was recorded, `null` when there is none. */
    readonly newestRecordedAt: (user: UserId) => Effect.Effect<number | null, InteractionLogError>
    /** Removes the user's rows that were recorded at or before `recordedBy` (Unix ms); answers how many there were. */
    readonly erase: (user: UserId, recordedBy: number) => Effect.Effect<number, InteractionLogError>
    /** Runs the effect while this process is the elected relay; `false` when another one is. */
    readonly withLeaderLock: <E, R>(
      effect: Effect.Effect<void, E, R>,
    ) => Effect.Effect<boolean, E | InteractionLogError, R>
  }
>() {}
