/**
 * What the interaction log keeps of rows that are pruned. It changes in the transaction that deletes the rows, so every
 * event is either in the log or in a checkpoint, and never in both.
 */
import type { Effect, Stream } from "effect"
import type { Checkpoint, PrunedIds, PrunedPart, PrunedProduct, PrunedPurchase } from "../model/Checkpoint.ts"
import type { FoldSettings } from "../model/Fold.ts"
import type { MessageId, UserId } from "../model/Interaction.ts"
import type { InteractionLogError, LogRow } from "./InteractionLog.ts"

/** The next rows that may be pruned, in the order of their ids. */
export interface PruneSlice {
  readonly events: ReadonlyArray<LogRow>
  /** What takes these events back. */
  readonly retractions: ReadonlyArray<LogRow>
  /** All rows up to this id are looked at. */
  readonly upTo: number
}

/** Rows to prune. */
export interface Pruning {
  readonly parts: ReadonlyArray<PrunedPart>
  /** The ids of the parts' rows. */
  readonly ids: ReadonlyArray<number>
  /** The ids of rows that were pruned before and posted again. They are deleted without counting twice. */
  readonly again: ReadonlyArray<number>
  readonly settings: FoldSettings
}

export interface PrunedRows {
  /** At most 5,000 events that occurred before the canonical timestamp, after the row `after`. */
  readonly slice: (options: {
    readonly before: string
    readonly after: number
    readonly end: number
  }) => Effect.Effect<PruneSlice, InteractionLogError>
  /** Users whose erasure is not complete. Their rows must stay. */
  readonly erasing: Effect.Effect<ReadonlySet<UserId>, InteractionLogError>
  /**
   * Deletes rows and adds them to the checkpoints, in one transaction. Succeeds with `false`, and without effect, if rows
   * were deleted or events were taken back since the slice was read, or if an erasure of one of the users has begun.
   */
  readonly prune: (pruning: Pruning) => Effect.Effect<boolean, InteractionLogError>
  /** Those of rows that were posted under these ids; one for each id and combination of space, λ and weights. */
  readonly checkpoints: (
    users: ReadonlyArray<UserId>,
  ) => Effect.Effect<ReadonlyArray<Checkpoint>, InteractionLogError>
  /** The ids of all users, one entry for each id of a user, in the order of user ids. */
  readonly allIds: Stream.Stream<PrunedIds, InteractionLogError>
  /** The first 32 hex digits of message ids that were posted under these ids and are pruned, in pages. */
  readonly idsOf: (users: ReadonlyArray<UserId>) => Stream.Stream<ReadonlyArray<string>, InteractionLogError>
  /** The first 32 hex digits of those that are pruned. `user_id` is the id under which the interaction was posted. */
  readonly among: (
    some: ReadonlyArray<{ readonly user_id: UserId; readonly message_id: MessageId }>,
  ) => Effect.Effect<ReadonlySet<string>, InteractionLogError>
  readonly products: (
    users: ReadonlyArray<UserId>,
  ) => Effect.Effect<ReadonlyArray<PrunedProduct>, InteractionLogError>
  /** The purchases of these orders by the person with this id. */
  readonly purchases: (
    user: UserId,
    orders: ReadonlyArray<string>,
  ) => Effect.Effect<ReadonlyArray<PrunedPurchase>, InteractionLogError>
}

/** For {@link PrunedRows.among}: any of these message ids, posted under any of these ids. */
export const postedUnder = (users: ReadonlyArray<UserId>, ids: ReadonlyArray<MessageId>) =>
  ids.flatMap((message_id) => users.map((user_id) => ({ user_id, message_id })))
