/**
 * Vectors of phrases in MongoDB, in `phrase_embeddings` under the hash of the phrase. The server removes what was not
 * used for PHRASE_TTL_DAYS.
 */
import { Clock, Duration, Effect, Layer } from "effect"
import { Binary } from "mongodb"
import { PhraseEmbeddings, PhraseEmbeddingsError } from "../../services/ports/PhraseEmbeddings.ts"
import { Mongo } from "./Mongo.ts"
import { names } from "./MongoCollections.ts"

interface PhraseDocument {
  readonly _id: string
  readonly embedding: Binary
  readonly last_used: Date
}

/** Use is written down once a day only, so that reading stays cheap. */
const usedAgain = Duration.toMillis("1 day")

export const make = Effect.map(Mongo, ({ database, failingWith }): PhraseEmbeddings["Type"] => {
  const name = names.phraseEmbeddings
  const phrases = database.collection<PhraseDocument>(name)
  const { call } = failingWith((failure) => new PhraseEmbeddingsError(failure))

  return {
    load: (keys) =>
      keys.length === 0
        ? Effect.succeed(new Map())
        : Effect.gen(function* () {
            const found = yield* call("find", name, () =>
              phrases.find({ _id: { $in: [...keys] } }, { batchSize: keys.length }).toArray(),
            )
            const now = yield* Clock.currentTimeMillis
            const stale = found.filter(({ last_used }) => now - last_used.getTime() > usedAgain)
            if (stale.length > 0)
              yield* call("update", name, () =>
                phrases.updateMany(
                  { _id: { $in: stale.map(({ _id }) => _id) } },
                  { $max: { last_used: new Date(now) } },
                  { writeConcern: { w: 1, journal: false } },
                ),
              ).pipe(Effect.ignoreLogged)
            return new Map(found.map(({ _id, embedding }) => [_id, embedding.toFloat32Array()]))
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
