/**
 * Step: removes a user everywhere. The tombstone comes first: from then on nothing recorded before it changes anything,
 * wherever it still lies. The log comes after what is found by it (the phrases), so that an erasure which is cut off
 * anywhere is finished by repeating it.
 */
import { Chunk, Clock, Context, Effect, Layer, Stream } from "effect"
import type { UserId } from "../model/Interaction.ts"
import { content, DeadLetters, type DeadLettersError } from "../ports/DeadLetters.ts"
import { InteractionLog, type InteractionLogError } from "../ports/InteractionLog.ts"
import type { PhraseEmbeddingsError } from "../ports/PhraseEmbeddings.ts"
import { UserEmbeddings, type UserEmbeddingsError } from "../ports/UserEmbeddings.ts"
import { EventVectors } from "../update/EventVectors.ts"

/** What an erasure removed. */
export interface ErasureReport {
  readonly user_id: UserId
  /** ISO; what was recorded until then is gone and does not come back. */
  readonly erased_at: string
  /** Rows of the log. */
  readonly interactions: number
  /** Whether there was one; its ledger went with it. */
  readonly embedding: boolean
  /** Vectors of phrases that the user searched for; others who did pay for them again. */
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
  {
    /** Erases the user. What fails half-way is finished by doing it again. */
    readonly erase: (user: UserId) => Effect.Effect<ErasureReport, ErasureError>
  }
>() {}

const page = 500
/** Rows that were recorded before the erasure may be committed during it. */
const commitGrace = 100
/** Longest wait for this clock to pass the tombstone. */
const clockGrace = 1_000

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const vectors = yield* EventVectors
  const letters = yield* DeadLetters

  const erase = Effect.fn("Eraser.erase")(function* (user_id: UserId) {
    // What stands in the log was recorded before, also where the clock of whoever recorded it is ahead.
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
    const dead_letters = yield* letters.remove(
      (letter) => (letter.recordedAt ?? 0) <= at && content(letter).user_id === user_id,
    )

    // Whoever gets the answer may act at once, and is not to fall into the tombstone's own millisecond.
    const behind = at + 1 - (yield* Clock.currentTimeMillis)
    yield* Effect.sleep(Math.min(Math.max(behind, commitGrace), clockGrace))
    interactions += yield* log.erase(user_id, at)
    const report: ErasureReport = {
      user_id,
      erased_at: new Date(at).toISOString(),
      interactions,
      embedding,
      phrases,
      dead_letters,
    }
    return report
  })

  return { erase }
})

export const layer = Layer.effect(Eraser, make)
