/**
 * User embeddings whose writes are announced on the feed: whatever program writes, and for whatever reason. A write is
 * durable before it is announced, and it fails if it could not be announced. Then the caller tries again, finds its work
 * done, and calls `announce`.
 */
import { Effect, Layer } from "effect"
import { ofRecord } from "../model/EmbeddingChange.ts"
import { EmbeddingFeed } from "../ports/EmbeddingFeed.ts"
import { portError } from "../ports/PortFailure.ts"
import {
  loadReadable,
  UserEmbeddings,
  UserEmbeddingsError,
  type UserRecord,
} from "../ports/UserEmbeddings.ts"

const make = Effect.gen(function* () {
  const users = yield* UserEmbeddings
  const feed = yield* EmbeddingFeed
  if (feed.mode === "off") return users
  const publish = (records: ReadonlyArray<UserRecord>) =>
    records.length === 0
      ? Effect.void
      : Effect.mapError(feed.publish(records.map(ofRecord)), portError(UserEmbeddingsError))
  return UserEmbeddings.of({
    ...users,
    save: (writes) =>
      Effect.tap(users.save(writes), (saved) =>
        publish(writes.flatMap(({ record }, index) => (saved[index] === true ? [record] : []))),
      ),
    announce: (wanted) =>
      wanted.length === 0
        ? Effect.void
        : Effect.flatMap(loadReadable(users, wanted), (records) => publish([...records.values()])),
  })
})

/** Adds announcements to a store. */
export const announcing = <E, R>(store: Layer.Layer<UserEmbeddings, E, R>) =>
  Layer.effect(UserEmbeddings, make).pipe(Layer.provide(store))
