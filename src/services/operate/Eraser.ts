/**
 * Step: removes a user everywhere. The tombstone is written first: from then on workers drop every message of the user
 * recorded before it. Log rows are deleted after the phrases, because the phrases are found through the log. An erasure
 * that fails half-way is finished by repeating it.
 */
import { Chunk, Clock, Context, Effect, Layer, Stream } from "effect"
import type { UserId } from "../model/Interaction.ts"
import { content, DeadLetters, type DeadLettersError } from "../ports/DeadLetters.ts"
import { InteractionLog, type InteractionLogError } from "../ports/InteractionLog.ts"
import type { PhraseEmbeddingsError } from "../ports/PhraseEmbeddings.ts"
import { UserEmbeddings, type UserEmbeddingsError } from "../ports/UserEmbeddings.ts"
import { EventVectors } from "../update/EventVectors.ts"

export interface ErasureReport {
  readonly user_id: UserId
  /** ISO; interactions recorded up to this instant are gone and do not come back. */
  readonly erased_at: string
  /** Rows of the log. */
  readonly interactions: number
  /** Whether the user had an embedding. The overflow of applied ids is removed with it. */
  readonly embedding: boolean
  /** Vectors of the user's search phrases. If another user searched for the same phrase, it will be embedded again. */
  readonly phrases: number
  readonly dead_letters: number
}

export type ErasureError =
  | InteractionLogError
  | UserEmbeddingsError
  | PhraseEmbeddingsError
  | DeadLettersError

export class Eraser extends Context.Tag("user-embeddings/Eraser")<
  Eraser,
  { readonly erase: (user: UserId) => Effect.Effect<ErasureReport, ErasureError> }
>() {}

const page = 500
/** Milliseconds. Rows recorded before the erasure may be committed during it. */
const commitGrace = 100
/** Milliseconds: the longest wait for this clock to pass the tombstone's timestamp. */
const clockGrace = 1_000

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const vectors = yield* EventVectors
  const deadLetters = yield* DeadLetters

  const erase = Effect.fn("Eraser.erase")(function* (user_id: UserId) {
    // The clock of the API that recorded the newest row may be ahead of this one.
    const newest = yield* log.newestRecordedAt(user_id)
    const at = Math.max(yield* Clock.currentTimeMillis, newest ?? 0)
    const embedding = yield* users.erase(user_id, at)

    const phrases = yield* log.stream({ user: user_id, type: "search" }).pipe(
      Stream.grouped(page),
      Stream.mapEffect((rows) =>
        vectors.forget([
          ...new Set(
            Chunk.toReadonlyArray(rows).flatMap(({ interaction }) => interaction.search_phrase ?? []),
          ),
        ]),
      ),
      Stream.runSum,
    )
    let interactions = yield* log.erase(user_id, at)
    const dead_letters = yield* deadLetters.remove(
      (deadLetter) => (deadLetter.recordedAt ?? 0) <= at && content(deadLetter).user_id === user_id,
    )

    // Wait until the clock has passed the tombstone's timestamp: an interaction recorded in the same millisecond would
    // count as erased.
    const behind = at + 1 - (yield* Clock.currentTimeMillis)
    yield* Effect.sleep(Math.min(Math.max(behind, commitGrace), clockGrace))
    interactions += yield* log.erase(user_id, at)
    const erased_at = new Date(at).toISOString()
    return { user_id, erased_at, interactions, embedding, phrases, dead_letters }
  })

  return { erase }
})

export const layer = Layer.effect(Eraser, make)
