/**
 * Step: removes a user everywhere. The order of the log decides what an erasure covers: all rows that were visible when
 * it began, and none that became visible after it deleted the rows. The tombstone is written first: from then on workers
 * drop messages of the covered rows. Rows are deleted after the phrases, because the phrases are found through the rows.
 * An erasure that fails half-way is finished by repeating it.
 */
import { Chunk, Clock, Context, Effect, Layer, Stream } from "effect"
import { isErased } from "../model/Erasure.ts"
import type { UserId } from "../model/Interaction.ts"
import { content, type DeadLetter, DeadLetters, type DeadLettersError } from "../ports/DeadLetters.ts"
import { InteractionLog, type InteractionLogError } from "../ports/InteractionLog.ts"
import type { PhraseEmbeddingsError } from "../ports/PhraseEmbeddings.ts"
import { UserEmbeddings, type UserEmbeddingsError, type UserRecord } from "../ports/UserEmbeddings.ts"
import { EventVectors } from "../update/EventVectors.ts"

export interface ErasureReport {
  readonly user_id: UserId
  /** ISO. Messages of other programs that were recorded up to this instant have no effect. */
  readonly erased_at: string
  /** Rows of the log. */
  readonly interactions: number
  /** Whether the user had an embedding. The ledger of applied ids is removed with it. */
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

/** Whether a dead letter belongs to one of these users and is behind the user's erasure. */
export const isErasedDeadLetter =
  (records: ReadonlyMap<UserId, Pick<UserRecord, "erased_at" | "erased_to">>) =>
  (deadLetter: DeadLetter): boolean => {
    const record = records.get(content(deadLetter).user_id ?? "")
    const { logId, recordedAt } = deadLetter
    return record !== undefined && isErased(record, { logId, recordedAt: recordedAt ?? 0 })
  }

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const vectors = yield* EventVectors
  const deadLetters = yield* DeadLetters

  const forgetPhrases = (user: UserId) =>
    log.stream({ user, type: "search" }).pipe(
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

  const erase = Effect.fn("Eraser.erase")(function* (user_id: UserId) {
    const token = yield* log.beginErasure(user_id)
    const erased_at = yield* Clock.currentTimeMillis
    const erasure = { erased_at, erased_to: yield* log.maxId }
    const embedding = yield* users.erase(user_id, erasure)
    // A later row may have been applied before the tombstone, which removed it again. So it is published again, like
    // the rows with smaller ids that become visible when the others are deleted.
    const renewTo = yield* log.maxId
    const phrases = yield* forgetPhrases(user_id)
    const interactions = yield* log.erase(user_id, erasure.erased_to)
    const dead_letters = yield* deadLetters.remove(isErasedDeadLetter(new Map([[user_id, erasure]])))
    yield* log.finishErasure(user_id, token, renewTo)
    yield* log.renewSurvivors(user_id)
    return {
      user_id,
      erased_at: new Date(erased_at).toISOString(),
      interactions,
      embedding,
      phrases,
      dead_letters,
    }
  })

  return { erase }
})

export const layer = Layer.effect(Eraser, make)
