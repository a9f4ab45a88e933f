/**
 * The store of user embeddings. A write is a compare-and-swap on `version`, and changes the applied ids together with
 * the vector. An erased user's record becomes a tombstone with a new version, so that a concurrent write fails.
 */
import { Array as Arr, Context, Effect, Schema, type Stream } from "effect"
import type { Links } from "../model/Aliases.ts"
import type { AppliedIds, LedgerKind } from "../model/AppliedIds.ts"
import type { Erasure } from "../model/Erasure.ts"
import type { UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

/** All that is stored of a user. */
export interface UserRecord extends Erasure {
  readonly user_id: UserId
  /** `undefined` after an erasure, and while all events are taken back, until the user does something again. */
  readonly embedding: UserEmbedding | undefined
  /** Optimistic lock: each write adds 1. */
  readonly version: number
  readonly applied: AppliedIds
  /** How many applied ids have moved to the applied overflow. */
  readonly archived: number
  /**
   * The version of the user's last tombstone, 0 without one. Entries in the ledger name it: a worker that loses the
   * compare-and-swap to an erasure may leave entries behind, and entries of an earlier generation do not count.
   */
  readonly generation: number
  /** Left out for a user with one id. */
  readonly links?: Links
}

/** Replaces the record if its version is `expected`; creates it if `expected` is `undefined`. */
export interface Write {
  readonly record: UserRecord
  readonly expected: number | undefined
}

export type Generation = Pick<UserRecord, "user_id" | "generation">

/** Ids (the first 32 hex digits of message ids) of one generation of a user in the ledger. */
export interface LedgerEntry extends Generation {
  readonly ids: ReadonlyArray<string>
}

/** The applied interactions of a user, without the vector. */
export interface Bookkeeping extends Omit<UserRecord, "embedding"> {
  /** 0 without an embedding. */
  readonly event_count: number
}

export interface RecordVersion extends Pick<UserRecord, "user_id" | "version"> {
  readonly hasEmbedding: boolean
}

/** The last write of a user's record. */
export interface LastWrite extends Pick<UserRecord, "generation"> {
  /** The ids that the write added are at the end. */
  readonly applied: AppliedIds
  /** Unix ms, just before the write became durable. */
  readonly updated_at: number
}

export class UserEmbeddingsError extends Schema.TaggedError<UserEmbeddingsError>()(
  "UserEmbeddingsError",
  portFailure,
) {
  override get message() {
    return describeFailure("user embeddings", this)
  }
}

export class UserEmbeddings extends Context.Tag("user-embeddings/UserEmbeddings")<
  UserEmbeddings,
  {
    /**
     * The records that exist. Fails with `invalid_data` if another program stored one that cannot be read: a message
     * for its user must not replace it.
     */
    readonly load: (
      users: ReadonlyArray<UserId>,
    ) => Effect.Effect<ReadonlyMap<UserId, UserRecord>, UserEmbeddingsError>
    /**
     * Writes records of distinct users durably (majority, journaled); answers in their order whether each was written.
     * After `false` (another version is stored) and after a failure (the outcome is open), load the records again.
     */
    readonly save: (
      writes: ReadonlyArray<Write>,
    ) => Effect.Effect<ReadonlyArray<boolean>, UserEmbeddingsError>
    /** Adds ids to the ledger, durably. */
    readonly saveToLedger: (
      kind: LedgerKind,
      entries: ReadonlyArray<LedgerEntry>,
    ) => Effect.Effect<void, UserEmbeddingsError>
    /** Which of these ids are in the ledger, by user. */
    readonly findInLedger: (
      kind: LedgerKind,
      entries: ReadonlyArray<LedgerEntry>,
    ) => Effect.Effect<ReadonlyMap<UserId, ReadonlySet<string>>, UserEmbeddingsError>
    /** Waits until the records read last are durable on a majority. Changes no version. */
    readonly awaitDurable: Effect.Effect<void, UserEmbeddingsError>
    /**
     * Announces on the feed what is stored of these users. `save` does that by itself. But a program may have died, or lost
     * the broker, between the write and its announcement.
     */
    readonly announce: (users: ReadonlyArray<UserId>) => Effect.Effect<void, UserEmbeddingsError>
    /** Replaces the record by a tombstone, and removes the user's ledger; answers whether there was an embedding. */
    readonly erase: (
      user: UserId,
      erasure: { readonly erased_at: number; readonly erased_to: number },
    ) => Effect.Effect<boolean, UserEmbeddingsError>
    /** Removes what is left in the ledger from before the user's last erasure. */
    readonly removeStaleLedger: (user: UserId) => Effect.Effect<void, UserEmbeddingsError>
    /** The last writes of users who have an embedding, to watch progress. */
    readonly lastWrites: (
      users: ReadonlyArray<UserId>,
    ) => Effect.Effect<ReadonlyMap<UserId, LastWrite>, UserEmbeddingsError>
    /** How many users have an embedding. */
    readonly count: Effect.Effect<number, UserEmbeddingsError>
    /** How many users have an embedding in another space. */
    readonly countInOtherSpaces: (space: string) => Effect.Effect<number, UserEmbeddingsError>
    /** All records that can be read, tombstones included, in the order of user ids. */
    readonly stream: Stream.Stream<UserRecord, UserEmbeddingsError>
    /** The same without their embeddings, in the order of user ids. */
    readonly bookkeeping: Stream.Stream<Bookkeeping, UserEmbeddingsError>
    /** Users whose records cannot be read, and why. */
    readonly unreadable: Stream.Stream<
      { readonly user_id: string; readonly detail: string },
      UserEmbeddingsError
    >
    /** Versions of all records, in the order of user ids. */
    readonly versions: Stream.Stream<RecordVersion, UserEmbeddingsError>
    /** Users after this one who have an embedding, in the order of user ids. */
    readonly usersAfter: (
      user: UserId,
      limit: number,
    ) => Effect.Effect<ReadonlyArray<UserId>, UserEmbeddingsError>
    /** All ids of these users in the overflow, in pages. A user's ids may be spread over several entries. */
    readonly overflow: (
      users: ReadonlyArray<Generation>,
    ) => Stream.Stream<ReadonlyArray<Pick<LedgerEntry, "user_id" | "ids">>, UserEmbeddingsError>
  }
>() {}

/** Other workers kept changing the user's record. */
export class LockConflict extends Schema.TaggedError<LockConflict>()("LockConflict", {
  user_id: Schema.String,
  tries: Schema.Number,
}) {
  override get message() {
    return `the embedding of user ${this.user_id} changed during each of ${this.tries} attempts to write it`
  }
}

/** Loads the records of several users. One that cannot be read is left out: it is found by halving. */
export const loadReadable = (
  store: Pick<UserEmbeddings["Type"], "load">,
  users: ReadonlyArray<UserId>,
): Effect.Effect<ReadonlyMap<UserId, UserRecord>, UserEmbeddingsError> =>
  Effect.catchIf(
    store.load(users),
    ({ reason }) => reason === "invalid_data",
    () => {
      if (users.length <= 1) return Effect.succeed(new Map())
      const halves = Arr.splitAt(users, Math.ceil(users.length / 2))
      return Effect.map(
        Effect.forEach(halves, (half) => loadReadable(store, half)),
        (found) => new Map(found.flatMap((one) => [...one])),
      )
    },
  )
