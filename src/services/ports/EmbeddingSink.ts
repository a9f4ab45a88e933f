/**
 * A store of another program that is kept in step with the user embeddings. It has one row for each user with an
 * embedding. Changes may come twice, late and in any order: only a greater version of a user replaces what is there.
 */
import { Context, type Effect, Schema, type Scope, type Stream } from "effect"
import type { UserId } from "../model/Interaction.ts"
import { describeFailure, portFailure } from "./PortFailure.ts"

export interface SinkRow {
  readonly user_id: UserId
  readonly version: number
  readonly space: string
  /** ISO. */
  readonly updated_at: string
  readonly event_count: number
  readonly embedding: Float32Array
}

/** The user has no row from this version on, until a greater one comes. */
export interface SinkRemoval {
  readonly user_id: UserId
  readonly version: number
}

/** Each user is in one of the two lists, once. */
export interface SinkChanges {
  readonly rows: ReadonlyArray<SinkRow>
  readonly removals: ReadonlyArray<SinkRemoval>
}

export class EmbeddingSinkError extends Schema.TaggedError<EmbeddingSinkError>()(
  "EmbeddingSinkError",
  portFailure,
) {
  override get message() {
    return describeFailure("embedding sink", this)
  }
}

/** A connection to the store. Its calls fail for good when it is lost. */
export interface SinkConnection {
  /** Creates what is missing, but no index of vectors. Fails if a table of other dimensions exists. */
  readonly prepare: Effect.Effect<void, EmbeddingSinkError>
  /** Creates the index of vectors, after the table was filled. Answers why there is none. */
  readonly index: Effect.Effect<string | undefined, EmbeddingSinkError>
  /** All or nothing. Durable when it succeeds. */
  readonly apply: (changes: SinkChanges) => Effect.Effect<void, EmbeddingSinkError>
  /** Removes rows of users of whom nothing is stored any more, not even a version. */
  readonly forget: (users: ReadonlyArray<UserId>) => Effect.Effect<void, EmbeddingSinkError>
  /** The rows in the order of user ids, byte by byte. */
  readonly versions: Stream.Stream<Pick<SinkRow, "user_id" | "version">, EmbeddingSinkError>
  readonly load: (
    users: ReadonlyArray<UserId>,
  ) => Effect.Effect<ReadonlyMap<UserId, Pick<SinkRow, "version" | "embedding">>, EmbeddingSinkError>
}

export class EmbeddingSink extends Context.Tag("user-embeddings/EmbeddingSink")<
  EmbeddingSink,
  {
    /** Names store and table, without secrets. */
    readonly name: string
    readonly connect: Effect.Effect<SinkConnection, EmbeddingSinkError, Scope.Scope>
  }
>() {}
