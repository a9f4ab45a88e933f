/**
 * The store of user embeddings. Writing is compare-and-swap on `version`; the applied ids change in the same
 * write as the vector. Erased users leave a tombstone of the same identity, so that a write that raced with the
 * erasure finds another version.
 */
import { Context, type Effect, Schema, type Stream } from "effect"
import type { AppliedIds } from "../model/AppliedIds.ts"
import type { UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

/** All that is stored of a user. */
export interface UserRecord {
  readonly user_id: UserId
  /** `undefined` after an erasure, until the user does something again. */
  readonly embedding: UserEmbedding | undefined
  /** Optimistic lock; +1 per write. */
  readonly version: number
  readonly applied: AppliedIds
  /** How many ids have moved to the ledger. */
  readonly archived: number
  /** Interactions recorded before this instant (Unix ms) do not count any more; 0 = never erased. */
  readonly erased_at: number
}

/** A record to be written where `version` is still `expected`; `undefined` = where there is none. */
export interface Write {
  readonly record: UserRecord & { readonly embedding: UserEmbedding }
  readonly expected: number | undefined
}

/** Ids (first 32 hex digits of message ids) of one user in the ledger. */
export interface OverflowEntry {
  readonly user_id: UserId
  readonly ids: ReadonlyArray<string>
}

/** What is known of a user's applied interactions, without the vector. */
export interface Bookkeeping extends Pick<UserRecord, "user_id" | "applied" | "archived" | "erased_at"> {
  readonly version: number
  /** 0 for a tombstone. */
  readonly event_count: number
}

/** What the last write of a user left behind. */
export interface LastWrite {
  /** The last of them are those that it added. */
  readonly applied: AppliedIds
  /** Unix ms, just before it became durable. */
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
    /** Records of those users who have one. */
    readonly load: (
      users: ReadonlyArray<UserId>,
    ) => Effect.Effect<ReadonlyMap<UserId, UserRecord>, UserEmbeddingsError>
    /**
     * Writes records, each for another user, durably (majority, journaled); answers in their order whether each was written.
     * `false` = the version had moved on: load again. A failure leaves the outcome open: load again.
     */
    readonly save: (
      writes: ReadonlyArray<Write>,
    ) => Effect.Effect<ReadonlyArray<boolean>, UserEmbeddingsError>
    /** Puts ids into the ledger, durably; those already there stay. */
    readonly saveOverflow: (entries: ReadonlyArray<OverflowEntry>) => Effect.Effect<void, UserEmbeddingsError>
    /** Which of these ids are in the ledger, per user. */
    readonly findInOverflow: (
      entries: ReadonlyArray<OverflowEntry>,
    ) => Effect.Effect<ReadonlyMap<UserId, ReadonlySet<string>>, UserEmbeddingsError>
    /** Waits until what was read last is durable on a majority; bumps no version. */
    readonly awaitDurable: Effect.Effect<void, UserEmbeddingsError>
    /** Replaces the record by a tombstone at `at` (Unix ms) and removes the ledger; answers whether there was an embedding. */
    readonly erase: (user: UserId, at: number) => Effect.Effect<boolean, UserEmbeddingsError>
    /** The last writes of those users who have an embedding: without vectors, for those who watch progress. */
    readonly lastWrites: (
      users: ReadonlyArray<UserId>,
    ) => Effect.Effect<ReadonlyMap<UserId, LastWrite>, UserEmbeddingsError>
    /** How many users have an embedding. */
    readonly count: Effect.Effect<number, UserEmbeddingsError>
    /** How many have their embedding in another space than this one. */
    readonly countInOtherSpaces: (space: string) => Effect.Effect<number, UserEmbeddingsError>
    /** All records, tombstones included, in the order of user ids. */
    readonly stream: Stream.Stream<UserRecord, UserEmbeddingsError>
    /** The same without what is large. */
    readonly bookkeeping: Stream.Stream<Bookkeeping, UserEmbeddingsError>
    /** All ids of these users in the ledger, in pages; those of one user may be spread over several. */
    readonly overflow: (
      users: ReadonlyArray<UserId>,
    ) => Stream.Stream<ReadonlyArray<OverflowEntry>, UserEmbeddingsError>
  }
>() {}

/** Other workers kept changing the user's record; the message is tried again later. */
export class LockConflict extends Schema.TaggedError<LockConflict>()("LockConflict", {
  user_id: Schema.String,
  tries: Schema.Number,
}) {
  override get message() {
    return `the embedding of user ${this.user_id} changed under ${this.tries} tries to write it`
  }
}
