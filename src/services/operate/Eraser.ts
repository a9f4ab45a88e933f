/**
 * Step: removes a person everywhere, under all ids; each id then begins anew. The order of the log decides what an erasure
 * covers: all rows that were visible when it began, and none that became visible after it deleted the rows. The
 * tombstones are written first: from then on workers drop messages of the covered rows. Rows are deleted after the
 * phrases, because the phrases are found through the rows. An erasure that fails half-way is finished by repeating it.
 */
import { Chunk, Clock, Context, Effect, Layer, Stream } from "effect"
import { isErased } from "../model/Erasure.ts"
import type { UserId } from "../model/Interaction.ts"
import { content, type DeadLetter, DeadLetters, type DeadLettersError } from "../ports/DeadLetters.ts"
import { InteractionLog, type InteractionLogError } from "../ports/InteractionLog.ts"
import type { PhraseEmbeddingsError } from "../ports/PhraseEmbeddings.ts"
import { UserEmbeddings, type UserEmbeddingsError, type UserRecord } from "../ports/UserEmbeddings.ts"
import { EventVectors } from "../update/EventVectors.ts"
import { ownerOf } from "../update/People.ts"

export interface ErasureReport {
  readonly user_id: UserId
  /** Ids of the same person, erased with it. */
  readonly other_ids: ReadonlyArray<UserId>
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
    log.stream({ postedAs: user, type: "search" }).pipe(
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

  /** Also the ids that only the records know, from merges of other programs. */
  const idsOf = Effect.fnUntraced(function* (user: UserId) {
    const { record, user_id } = yield* ownerOf(users, user).pipe(
      // A record that can't be read is erased too.
      Effect.catchIf(
        ({ reason }) => reason === "invalid_data",
        () => Effect.succeed({ record: undefined, user_id: user }),
      ),
    )
    const aliases = record?.links?.aliases ?? []
    return [...new Set([user, user_id, ...aliases.map((alias) => alias.user_id)])]
  })

  /**
   * Writes the tombstones. A merge that is recorded meanwhile may have moved what a record had to an id that the erasure
   * does not cover. The tombstone of such an id covers no row that stays: all its rows are published again.
   */
  const writeTombstones = Effect.fnUntraced(function* (wanted: ReadonlyArray<UserId>, erased_at: number) {
    let begun = yield* log.beginErasure(wanted)
    const { upTo: erased_to, users: covered } = begun
    const written = new Set<UserId>()
    let embedding = false
    for (let left = covered; left.length > 0; left = begun.users.filter((id) => !written.has(id))) {
      for (const id of left) {
        const isCovered = covered.includes(id)
        const had = yield* users.erase(id, { erased_at, erased_to: isCovered ? erased_to : begun.upTo })
        embedding ||= had && isCovered
        written.add(id)
      }
      // A later row may have been applied before the tombstone, which removed it again. So it is published again, like
      // the rows with smaller ids that become visible when the others are deleted.
      begun = yield* log.beginErasure(wanted)
    }
    return { ...begun, covered, erased_to, embedding, written: [...written] }
  })

  const erase = Effect.fn("Eraser.erase")(function* (user_id: UserId) {
    const erased_at = yield* Clock.currentTimeMillis
    const { covered, embedding, erased_to, token, upTo, written } = yield* writeTombstones(
      yield* idsOf(user_id),
      erased_at,
    )
    let phrases = 0
    let interactions = 0
    for (const id of covered) phrases += yield* forgetPhrases(id)
    // Links are deleted with the rows of the ids that aliases lead to, which come last: a repetition finds the others.
    for (const id of covered) interactions += yield* log.erase(id, erased_to)
    const erasures = new Map(covered.map((id) => [id, { erased_at, erased_to }]))
    const dead_letters = yield* deadLetters.remove(isErasedDeadLetter(erasures))
    for (const id of written) yield* log.finishErasure(id, token, upTo)
    for (const id of written) yield* log.renewSurvivors(id)
    return {
      user_id,
      other_ids: covered.filter((id) => id !== user_id),
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
