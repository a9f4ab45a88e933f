/**
 * Vectors of phrases in `phrase_embeddings`, by the hash of the phrase. The server deletes vectors that were not used for
 * PHRASE_TTL_DAYS.
 */
import { Clock, Duration, Effect, Layer } from "effect"
import { Binary } from "mongodb"
import { PhraseEmbeddings, PhraseEmbeddingsError } from "../../services/ports/PhraseEmbeddings.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import { fromStored, Mongo } from "./Mongo.ts"
import { names } from "./MongoCollections.ts"

interface PhraseDocument {
  readonly _id: string
  readonly embedding: unknown
  readonly last_used: unknown
}

/** `last_used` is updated at most once a day, so that reading stays cheap. */
const touchAfter = Duration.toMillis("1 day")

export const make = Effect.map(Mongo, ({ database, failingWith }): PhraseEmbeddings["Type"] => {
  const name = names.phraseEmbeddings
  const phrases = database.collection<PhraseDocument>(name)
  const { call } = failingWith(portError(PhraseEmbeddingsError))

  return {
    load: (keys) =>
      keys.length === 0
        ? Effect.succeed(new Map())
        : Effect.gen(function* () {
            const found = yield* call("find", name, () =>
              phrases.find({ _id: { $in: [...keys] } }, { batchSize: keys.length }).toArray(),
            )
            const now = yield* Clock.currentTimeMillis
            const stale = found.filter(
              ({ last_used }) => !(last_used instanceof Date) || now - last_used.getTime() > touchAfter,
            )
            if (stale.length > 0)
              yield* call("update", name, () =>
                phrases.updateMany(
                  { _id: { $in: stale.map(({ _id }) => _id) } },
                  { $max: { last_used: new Date(now) } },
                  { writeConcern: { w: 1, journal: false } },
                ),
              ).pipe(Effect.ignoreLogged)
            return new Map(found.map(({ _id, embedding }) => [_id, fromStored(embedding)]))
          }),

    save: (vectors) =>
      vectors.size === 0
        ? Effect.void
        : Effect.gen(function* () {
            const last_used = new Date(yield* Clock.currentTimeMillis)
            yield* call("bulkWrite", name, () =>
              phrases.bulkWrite(
                Array.from(vectors, ([_id, vector]) => ({
                  updateOne: {
                    filter: { _id },
                    update: { $set: { embedding: Binary.fromFloat32Array(vector), last_used } },
                    upsert: true,
                  },
                })),
                { ordered: false },
              ),
            )
          }),

    remove: (keys) =>
      keys.length === 0
        ? Effect.succeed(0)
        : call("delete", name, async () => {
            const { deletedCount } = await phrases.deleteMany({ _id: { $in: [...keys] } })
            return deletedCount
          }),
  }
})

export const layer = Layer.effect(PhraseEmbeddings, make)
