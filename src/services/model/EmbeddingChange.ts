/**
 * What the feed announces: a user embedding as one write left it. The versions of a user never fall, also not across an
 * erasure, so the greatest version is the newest state. Anything that is not greater than what is known is old.
 */
import { Either, Schema } from "effect"
import type { UserRecord } from "../ports/UserEmbeddings.ts"
import { UserId } from "./Interaction.ts"
import * as Vector from "./Vector.ts"

export interface UpdatedEmbedding {
  readonly type: "updated"
  readonly user_id: UserId
  readonly version: number
  readonly space: string
  /** ISO. */
  readonly updated_at: string
  readonly event_count: number
  readonly dimension_count: number
  /** Left out by a feed of ids. */
  readonly embedding?: Float32Array
}
/** The user has no embedding any more: erased, or all events are taken back. */
interface ErasedEmbedding {
  readonly type: "erased"
  readonly user_id: UserId
  readonly version: number
}
/** The id has become an alias; `into` has, or will have, an embedding of its own version. */
interface MergedUser {
  readonly type: "merged"
  readonly user_id: UserId
  readonly version: number
  readonly into: UserId
}
export type EmbeddingChange = UpdatedEmbedding | ErasedEmbedding | MergedUser

/** `off`: nothing is announced. `ids`: without the vectors. */
export const FeedMode = Schema.Literal("off", "ids", "vectors")
export type FeedMode = typeof FeedMode.Type

/** What a record says to those who follow the feed. */
export const ofRecord = ({ embedding, links, user_id, version }: UserRecord): EmbeddingChange => {
  if (links?.alias_of !== undefined) return { type: "merged", user_id, version, into: links.alias_of }
  if (embedding === undefined) return { type: "erased", user_id, version }
  const { embedding: vector, event_count, space, updated_at } = embedding
  return {
    type: "updated",
    user_id,
    version,
    space,
    updated_at: new Date(updated_at).toISOString(),
    event_count,
    dimension_count: vector.length,
    embedding: vector,
  }
}

/** The newest change of each user. */
export const newest = (changes: Iterable<EmbeddingChange>): ReadonlyArray<EmbeddingChange> => {
  const byUser = new Map<UserId, EmbeddingChange>()
  for (const change of changes)
    if (change.version > (byUser.get(change.user_id)?.version ?? -1)) byUser.set(change.user_id, change)
  return [...byUser.values()]
}

export const routingKey = ({ type }: EmbeddingChange): string => `user.embedding.${type}`

/** The JSON body of a message: little-endian float32 in Base64. */
export const encode = (change: EmbeddingChange, mode: FeedMode): string => {
  const { type: _, ...fields } = change
  if (!("embedding" in fields) || fields.embedding === undefined) return JSON.stringify(fields)
  const { embedding, ...ids } = fields
  return JSON.stringify(
    mode === "ids" ? ids : { ...ids, embedding: Buffer.from(Vector.toBytes(embedding)).toString("base64") },
  )
}

const version = Schema.Int.pipe(Schema.nonNegative())
const identity = { user_id: Schema.typeSchema(UserId), version }
const Updated = Schema.Struct({
  ...identity,
  space: Schema.String,
  updated_at: Schema.String,
  event_count: version,
  dimension_count: version,
  embedding: Schema.optionalWith(Schema.Uint8ArrayFromBase64, { exact: true }),
})
const Merged = Schema.Struct({ ...identity, into: Schema.typeSchema(UserId) })
const decoders = {
  updated: Schema.decodeUnknownEither(Schema.parseJson(Updated)),
  erased: Schema.decodeUnknownEither(Schema.parseJson(Schema.Struct(identity))),
  merged: Schema.decodeUnknownEither(Schema.parseJson(Merged)),
}

const ofUpdated = ({ embedding, ...ids }: typeof Updated.Type): EmbeddingChange | undefined => {
  if (embedding === undefined) return { type: "updated", ...ids }
  return embedding.length === 4 * ids.dimension_count
    ? { type: "updated", ...ids, embedding: Vector.fromBytes(embedding) }
    : undefined
}

/** `undefined`: the message is none of this program. */
export const decode = (key: string, body: string): EmbeddingChange | undefined => {
  const found: Either.Either<EmbeddingChange | undefined, unknown> =
    key === "user.embedding.updated"
      ? Either.map(decoders.updated(body), ofUpdated)
      : key === "user.embedding.erased"
        ? Either.map(decoders.erased(body), (ids) => ({ type: "erased", ...ids }))
        : key === "user.embedding.merged"
          ? Either.map(decoders.merged(body), (ids) => ({ type: "merged", ...ids }))
          : Either.right(undefined)
  return Either.getOrUndefined(found)
}
