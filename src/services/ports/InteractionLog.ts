/**
 * The interaction log: an append-only source of truth with a transactional outbox. An interaction is durable once
 * `append` has answered `Recorded`. A row leaves the outbox when it is marked published.
 */
import { Context, type Effect, Schema, type Stream } from "effect"
import type {
  EventType,
  Interaction,
  MessageId,
  ProductId,
  Retraction,
  UserId,
} from "../model/Interaction.ts"
import type { TraceContext } from "../Telemetry.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"
import type { PrunedRows } from "./PrunedRows.ts"

/** An interaction to append. */
export interface NewInteraction {
  readonly interaction: Interaction
  /** Unique per user. `null` if the client sent none. */
  readonly idempotencyKey: string | null
  /** Whether the client sent `occurred_at`. If not, a replay with the same key may have another `occurred_at`. */
  readonly occurredAtGiven: boolean
  readonly trace: TraceContext | null
  /** Unix ms. Stored as `created_at` and sent as the message's `x-recorded-at`. */
  readonly recordedAt: number
}

/** An interaction in the log. */
export interface LoggedInteraction {
  /** The row's id, which no other row ever has. */
  readonly id: number
  readonly interaction: Interaction
  readonly trace: TraceContext | null
  readonly recordedAt: number
}

/** A row of the log, with its state in the outbox. */
export interface LogRow extends LoggedInteraction {
  /** Whether the broker has confirmed its message. Until then the row is in the outbox. */
  readonly published: boolean
}

/** The outcome of one appended interaction. `interaction` is the one in the log. */
export type Appended =
  | { readonly _tag: "Recorded"; readonly interaction: Interaction; readonly id: number }
  | { readonly _tag: "Duplicate"; readonly interaction: Interaction }
  /** The user sent the same key before with another interaction. */
  | { readonly _tag: "KeyReused"; readonly interaction: Interaction }
  /** The merge contradicts earlier ones. */
  | { readonly _tag: "Refused"; readonly interaction: Interaction; readonly detail: string }

/** Ids that merges of the log have made one person. */
export interface Person {
  /** The id that is no alias. */
  readonly user_id: UserId
  /** All ids. An alias stands before the id that it was merged into. */
  readonly ids: ReadonlyArray<UserId>
}

export interface LogFilter {
  /** Rows of the person with this id. */
  readonly user?: UserId
  /** Rows posted under this id. */
  readonly postedAs?: UserId
  readonly type?: EventType
  /** Lower bound of `occurred_at` (canonical timestamp, inclusive). */
  readonly since?: string
  /** Upper bound of `occurred_at` (canonical timestamp, exclusive). */
  readonly until?: string
  /** Lower bound of the time of recording (canonical timestamp, inclusive). */
  readonly recordedSince?: string
}

/** A refund of an order, which may arrive before the order. */
export interface OrderRefund {
  readonly user_id: UserId
  /** At most 128 characters. */
  readonly order_id: string
  /** Empty: all products of the order. */
  readonly products: ReadonlyArray<ProductId>
}

export interface BegunErasure {
  readonly token: string
  /** All ids of these people, an alias before the id that it was merged into. */
  readonly users: ReadonlyArray<UserId>
  /** The greatest row id when the erasure began: no merge with a row up to it is recorded later. */
  readonly upTo: number
}

/** An erasure that has deleted the user's rows. */
export interface FinishedErasure {
  readonly user_id: UserId
  /** Names this erasure among those of the user. */
  readonly token: string
  /** How long ago it finished, by the clock of the database: the clocks of processes may be wrong. */
  readonly ageMillis: number
  /** Whether rows have become visible that the erasure was too early to delete. */
  readonly hasSurvivors: boolean
}

/** The rows that are not published. */
export interface Outbox {
  readonly unpublished: number
  /** Age of the oldest unpublished row in seconds, `null` if there is none. */
  readonly oldestUnpublishedSeconds: number | null
}

/** A user's events of one type with one product. */
export interface ProductEvents {
  readonly product_id: ProductId
  readonly event_type: EventType
  readonly events: number
}

/** The number of interactions with a product that occurred on one UTC day. */
export interface ProductCount {
  readonly product_id: ProductId
  /** Such as `2026-02-10`. */
  readonly day: string
  readonly interactions: number
}

/** An id with new rows, and between which instants, as the log stores them, its history may have changed. */
export interface TouchedUser {
  readonly user_id: UserId
  readonly since: string
  readonly until: string
}

/** An event as far as its place among others matters: `product_id` is `null` for a search. */
export type HistoryEvent = Pick<Interaction, "event_type" | "product_id">

/**
 * The part of a person's history that has changed, with ten events before and after it, in the order of `occurred_at` and
 * id, without events that are taken back.
 */
export interface HistoryChange {
  /** All ids of the person. */
  readonly ids: ReadonlyArray<UserId>
  /** One for each of the people who are one person now. */
  readonly before: ReadonlyArray<ReadonlyArray<HistoryEvent>>
  readonly after: ReadonlyArray<HistoryEvent>
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
     * Records interactions and answers in their order. An interaction is not recorded again when its message id or key
     * is already in the log or earlier in the batch.
     */
    readonly append: (
      entries: ReadonlyArray<NewInteraction>,
    ) => Effect.Effect<ReadonlyArray<Appended>, InteractionLogError>
    /** The oldest unpublished rows among those recorded at or before `recordedBy` (Unix ms). */
    readonly unpublished: (options: {
      readonly limit: number
      readonly recordedBy: number
    }) => Effect.Effect<ReadonlyArray<LoggedInteraction>, InteractionLogError>
    /**
     * Removes rows from the outbox, by id: after an erasure the same interaction may have a new row. `at` (Unix ms) is
     * stored as `published_at`.
     */
    readonly markPublished: (
      rows: ReadonlyArray<Pick<LoggedInteraction, "id" | "interaction">>,
      at: number,
    ) => Effect.Effect<void, InteractionLogError>
    /** The person with this id: only itself, if it takes part in no merge. */
    readonly person: (user: UserId) => Effect.Effect<Person, InteractionLogError>
    /** All aliases, with the user that each leads to. */
    readonly aliases: Effect.Effect<ReadonlyMap<UserId, UserId>, InteractionLogError>
    /**
     * Rows of one person by `occurred_at`, or rows of all users in the order of recording. Rows that are recorded during
     * the stream may be missing.
     */
    readonly stream: (filter: LogFilter) => Stream.Stream<LogRow, InteractionLogError>
    /** All message ids with their users and types, in pages, ordered by user id. */
    readonly messageIds: Stream.Stream<
      ReadonlyArray<Pick<Interaction, "user_id" | "message_id" | "event_type">>,
      InteractionLogError
    >
    /** Those of the given message id prefixes (32 hex digits) that exist in the log. */
    readonly existingIds: (
      prefixes: ReadonlyArray<string>,
    ) => Effect.Effect<ReadonlySet<string>, InteractionLogError>
    /** Those of these interactions that the log has, by message id. */
    readonly find: (
      ids: ReadonlyArray<MessageId>,
    ) => Effect.Effect<ReadonlyMap<MessageId, LoggedInteraction>, InteractionLogError>
    /**
     * The user's newest events by `occurred_at`, newest first, without those that are taken back. Retractions and merges
     * are no events.
     */
    readonly newest: (
      user: UserId,
      limit: number,
    ) => Effect.Effect<ReadonlyArray<LoggedInteraction>, InteractionLogError>
    /** The rows recorded last, newest first. */
    readonly lastRecorded: (
      limit: number,
    ) => Effect.Effect<ReadonlyArray<LoggedInteraction>, InteractionLogError>
    /**
     * Seconds since the recording of the `rank`-th newest row, or of a newer one where ids are missing. `null` if the log is
     * empty. Fast for any rank.
     */
    readonly ageOfNewest: (rank: number) => Effect.Effect<number | null, InteractionLogError>
    /**
     * How many events of each type the user has with each of the products `among`, without those that are taken back; only
     * events of `types`, if they are given. Pruned events count, once if they are posted again.
     */
    readonly productEvents: (
      user: UserId,
      events: {
        readonly among: ReadonlyArray<ProductId>
        readonly types?: ReadonlyArray<EventType> | undefined
      },
    ) => Effect.Effect<ReadonlyArray<ProductEvents>, InteractionLogError>
    /** The greatest row id, 0 if the log is empty. Rows with smaller ids may still become visible. */
    readonly maxId: Effect.Effect<number, InteractionLogError>
    /**
     * Counts interactions of these types with products, in the rows whose id is greater than `after` and at most `upTo`. A
     * retraction counts −1 on the day of its interaction, so a count may be negative.
     */
    readonly productCounts: (
      types: ReadonlyArray<EventType>,
      after: number,
      upTo: number,
    ) => Effect.Effect<ReadonlyArray<ProductCount>, InteractionLogError>
    /**
     * Appends retractions of interactions that are in the log. Leaves out those whose interactions are gone, and those of
     * people who are being erased. Succeeds with the new rows.
     */
    readonly takeBack: (
      retractions: ReadonlyArray<NewInteraction & { readonly interaction: Retraction }>,
    ) => Effect.Effect<ReadonlyArray<LoggedInteraction>, InteractionLogError>
    /** Notes refunds until their users are erased. */
    readonly noteRefunds: (refunds: ReadonlyArray<OrderRefund>) => Effect.Effect<void, InteractionLogError>
    /** The refunds noted for the people with these ids, one for each order. `user_id` is the id that is no alias. */
    readonly refundsOf: (
      users: ReadonlyArray<UserId>,
    ) => Effect.Effect<ReadonlyArray<OrderRefund>, InteractionLogError>
    readonly outbox: Effect.Effect<Outbox, InteractionLogError>
    /** Slow, because it counts all rows. */
    readonly backlog: Effect.Effect<Backlog, InteractionLogError>
    /** Notes that an erasure of the people with these ids begins, which ends the notes of earlier ones. */
    readonly beginErasure: (users: ReadonlyArray<UserId>) => Effect.Effect<BegunErasure, InteractionLogError>
    /**
     * Deletes the rows posted under the id, up to the row `upTo`, the links of merges, and what is kept of pruned rows.
     * Succeeds with the number of rows.
     */
    readonly erase: (user: UserId, upTo: number) => Effect.Effect<number, InteractionLogError>
    /**
     * Notes that the rows are deleted. The user's rows with ids up to `renewTo` that are left, and those that become
     * visible later, count: see `renewSurvivors`. Does nothing if another erasure of the user has begun since.
     */
    readonly finishErasure: (
      user: UserId,
      token: string,
      renewTo: number,
    ) => Effect.Effect<void, InteractionLogError>
    /**
     * Gives the rows that survived the user's finished erasure new ids in the outbox. Messages with the old ids have no
     * effect. Succeeds with the number of rows.
     */
    readonly renewSurvivors: (user: UserId) => Effect.Effect<number, InteractionLogError>
    readonly finishedErasures: Effect.Effect<ReadonlyArray<FinishedErasure>, InteractionLogError>
    /** Removes the note of an erasure. */
    readonly forgetErasure: (erasure: FinishedErasure) => Effect.Effect<void, InteractionLogError>
    /** The ids under which the rows with ids in (`after`, `upTo`] were posted, each with the instants of its rows. */
    readonly touched: (
      after: number,
      upTo: number,
    ) => Effect.Effect<ReadonlyArray<TouchedUser>, InteractionLogError>
    /** How the rows with ids in (`after`, `upTo`] change the histories of the people with these ids. */
    readonly historyChanges: (
      touched: ReadonlyArray<TouchedUser>,
      after: number,
      upTo: number,
    ) => Effect.Effect<ReadonlyArray<HistoryChange>, InteractionLogError>
    /** Ids under which rows were posted, after this one, in order, each with its whole history. */
    readonly usersAfter: (
      user: UserId,
      limit: number,
    ) => Effect.Effect<ReadonlyArray<TouchedUser>, InteractionLogError>
    /** Runs the effect while this process holds the lock of the job. Succeeds with `false` if another process holds it. */
    readonly withLeaderLock: <E, R>(
      effect: Effect.Effect<void, E, R>,
      job?: "relay" | "pairs" | "pairs_in_background",
    ) => Effect.Effect<boolean, E | InteractionLogError, R>
    readonly pruned: PrunedRows
  }
>() {}
