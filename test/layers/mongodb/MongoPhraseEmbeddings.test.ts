import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import { Mongo } from "../../../src/layers/mongodb/Mongo.ts"
import * as MongoPhraseEmbeddings from "../../../src/layers/mongodb/MongoPhraseEmbeddings.ts"
import { PhraseEmbeddings, phraseKey } from "../../../src/services/ports/PhraseEmbeddings.ts"
import * as PhraseEmbeddingsContract from "../../contracts/PhraseEmbeddingsContract.ts"
import { layerSuite } from "../../support/effect.ts"
import { preparedMongo } from "../../support/mongo.ts"
import { withServers } from "../../support/servers.ts"

withServers(["mongodb"], "MongoDB", () => {
  PhraseEmbeddingsContract.suite("MongoDB", MongoPhraseEmbeddings.layer.pipe(Layer.provide(preparedMongo())))

  layerSuite(
    "MongoDB: documents of phrases",
    MongoPhraseEmbeddings.layer.pipe(Layer.provideMerge(preparedMongo())),
    (it) => {
      it("a document that cannot be read does not keep other phrases from being found", () =>
        Effect.gen(function* () {
          const store = yield* PhraseEmbeddings
          const { database } = yield* Mongo
          yield* store.save(new Map([["good", Float32Array.of(1, 0)]]))
          yield* Effect.promise(() =>
            database
              .collection<{ _id: string; embedding: unknown; last_used: unknown }>("phrase_embeddings")
              .insertOne({ _id: "bad", embedding: null, last_used: "yesterday" }),
          )
          const found = yield* store.load(["good", "bad"])
          expect(found.get("good")).toEqual(Float32Array.of(1, 0))
          expect(found.get("bad")?.length).toBe(0)
          yield* store.save(new Map([["bad", Float32Array.of(0, 1)]]))
          expect((yield* store.load(["bad"])).get("bad")).toEqual(Float32Array.of(0, 1))
        }))

      it("loading a phrase updates last_used if it is more than a day ago", () =>
        Effect.gen(function* () {
          const store = yield* PhraseEmbeddings
          const { database } = yield* Mongo
          const phrases = database.collection<{ _id: string; last_used: Date }>("phrase_embeddings")
          const key = phraseKey("test:2", "wireless headphones")
          const readAfter = (hours: number) =>
            Effect.gen(function* () {
              const last_used = new Date(Date.now() - hours * 3_600_000)
              yield* Effect.promise(() => phrases.updateOne({ _id: key }, { $set: { last_used } }))
              expect((yield* store.load([key])).size).toBe(1)
              const after = yield* Effect.promise(() => phrases.findOne({ _id: key }))
              return (after?.last_used.getTime() ?? 0) - last_used.getTime()
            })
          yield* store.save(new Map([[key, Float32Array.of(1, 0)]]))
          expect(yield* readAfter(23)).toBe(0)
          expect(yield* readAfter(25)).toBeGreaterThanOrEqual(25 * 3_600_000)
        }))
    },
  )
})
