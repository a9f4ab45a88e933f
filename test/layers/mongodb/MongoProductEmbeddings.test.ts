import { expect } from "bun:test"
import { Effect, Layer, Stream } from "effect"
import { Binary, Double, Long } from "mongodb"
import { Mongo } from "../../../src/layers/mongodb/Mongo.ts"
import * as MongoProductEmbeddings from "../../../src/layers/mongodb/MongoProductEmbeddings.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import * as ProductEmbeddingsContract from "../../contracts/ProductEmbeddingsContract.ts"
import { later } from "../../support/clocks.ts"
import { layerSuite } from "../../support/effect.ts"
import { preparedMongo } from "../../support/mongo.ts"
import { withServers } from "../../support/servers.ts"

const boot = {
  product_id: "boot",
  embedding: Float32Array.of(3, 4),
  product_name: null,
  category: "shoes",
  space: "test:2",
  text: null,
}

withServers(["mongodb"], "MongoDB", () => {
  ProductEmbeddingsContract.suite(
    "MongoDB",
    MongoProductEmbeddings.layer({ storage: "vector" }).pipe(Layer.provide(preparedMongo())),
  )

  layerSuite(
    "MongoDB: documents of products",
    MongoProductEmbeddings.layer({ storage: "vector" }).pipe(Layer.provideMerge(preparedMongo())),
    (it) => {
      const raw = (product_id: string) =>
        Effect.flatMap(Mongo, ({ database }) =>
          Effect.promise(() =>
            database
              .collection("product_embeddings")
              .findOne<Record<string, unknown> & { created_at: Date; updated_at: Date }>(
                { product_id },
                { projection: { _id: 0 } },
              ),
          ),
        )

      it("stores the documented fields, with the times of creation and the last change", () =>
        Effect.gen(function* () {
          const store = yield* ProductEmbeddings
          yield* store.upsert([boot])
          const first = yield* raw("boot")
          expect(first).toEqual({
            product_id: "boot",
            embedding: Binary.fromFloat32Array(Float32Array.of(3, 4)),
            dimension_count: 2,
            product_name: null,
            category: "shoes",
            space: "test:2",
            text: null,
            created_at: expect.any(Date),
            updated_at: expect.any(Date),
            vector_since: { at: first?.updated_at, updated_at: first?.updated_at },
          })
          yield* later("5 millis")(store.upsert([{ ...boot, product_name: "Boot" }]))
          const second = yield* raw("boot")
          expect(second?.created_at).toEqual(first?.created_at)
          expect(second?.updated_at.getTime() ?? 0).toBeGreaterThan(first?.updated_at.getTime() ?? 0)
        }))

      it("stores arrays if configured, and reads documents of other programs", () =>
        Effect.gen(function* () {
          const store = yield* ProductEmbeddings
          const { database } = yield* Mongo
          const inArrays = yield* MongoProductEmbeddings.make({ storage: "array" })
          yield* inArrays.upsert([{ ...boot, product_id: "ours" }])
          expect((yield* raw("ours"))?.embedding).toEqual([3, 4])
          yield* Effect.promise(() =>
            database
              .collection("product_embeddings")
              .insertOne({ product_id: "theirs", embedding: [1, new Double(0.5)], space: "test:2" }),
          )
          const found = yield* store.load(["ours", "theirs"], "test:2")
          expect(found.get("ours")).toEqual(Float32Array.of(3, 4))
          expect(found.get("theirs")).toEqual(Float32Array.of(1, 0.5))
        }))

      it("the validator refuses wrong facts, and leaves other fields to the programs that write products", () =>
        Effect.gen(function* () {
          const { database } = yield* Mongo
          const insert = (facts: object) => {
            const document: object = { ...facts, product_id: `v-${JSON.stringify(facts)}` }
            return Effect.promise(() =>
              database
                .collection<object>("product_embeddings")
                .insertOne(document)
                .then(
                  () => "stored",
                  ({ code }) => code,
                ),
            )
          }
          const attributes = { price: 9.5, stock: 3, sale: true, brand: "Acme", sizes: ["S"] }
          for (const good of [{}, { attributes, available: false }, { stock: {}, embedding: "?" }])
            expect([good, yield* insert(good)]).toEqual([good, "stored"])
          const many = Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`a${i}`, i]))
          for (const bad of [
            { available: "no" },
            { attributes: [] },
            { attributes: { size: { w: 1 } } },
            { attributes: { sizes: [1] } },
            { attributes: many },
            { deleted_at: "now" },
          ])
            expect([bad, yield* insert(bad)]).toEqual([bad, 121])
        }))

      it("a stamp that JavaScript cannot express reads as 0", () =>
        Effect.gen(function* () {
          const store = yield* ProductEmbeddings
          const { database } = yield* Mongo
          yield* store.upsert([{ ...boot, space: "far", product_id: "far" }])
          yield* Effect.promise(() =>
            database
              .collection("product_embeddings")
              .updateOne({ product_id: "far" }, [
                { $set: { updated_at: { $toDate: Long.fromString("9000000000000000") } } },
              ]),
          )
          const stamps = yield* Stream.runCollect(store.stamps("far"))
          expect(Array.from(stamps)).toEqual([{ product_id: "far", updated_at: 0 }])
          const changed = yield* Stream.runCollect(store.changed(Date.now()))
          expect(Array.from(changed, ({ product_id }) => product_id)).toEqual(["far"])
          yield* Effect.promise(() => database.collection("product_embeddings").deleteMany({ space: "far" }))
        }))

      it("a document that another program wrote wrongly concerns its own product alone", () =>
        Effect.gen(function* () {
          const store = yield* ProductEmbeddings
          const { database } = yield* Mongo
          const space = "foreign"
          yield* store.upsert([{ ...boot, space, product_id: "f-good" }])
          const vectors: Record<string, unknown> = {
            "f-null": null,
            "f-text": "3, 4",
            "f-object": { x: 3 },
            "f-long": [3, 4, 5],
            "f-zero": [0, 0],
            "f-nan": [Number.NaN, 1],
            "f-hole": [null, 1],
            "f-words": ["3", "4"],
            "f-bytes": new Binary(new Uint8Array([1, 2, 3])),
            "f-packed": new Binary(new Uint8Array([0x10, 0, 1]), Binary.SUBTYPE_VECTOR),
          }
          const documents = [
            ...Object.entries(vectors).map(([product_id, embedding]) => ({ product_id, embedding })),
            { product_id: "f-missing" },
            { product_id: 42, embedding: [3, 4] },
            { product_id: "f bad id", embedding: [3, 4] },
            {
              product_id: "f-odd",
              embedding: [3, 4],
              product_name: 5,
              category: {},
              text: 1,
              created_at: "x",
            },
          ]
          yield* Effect.promise(() =>
            database
              .collection<object>("product_embeddings")
              .insertMany(documents.map((document) => ({ ...document, space, updated_at: new Date(1) }))),
          )
          const unusable = [...Object.keys(vectors), "f-missing"]
          const ids = ["f-good", "f-odd", ...unusable]
          const loaded = yield* store.load(ids, space)
          for (const id of ids)
            expect(`${id} ${Vector.problem(loaded.get(id) ?? [], 2) === undefined}`).toBe(
              `${id} ${!unusable.includes(id)}`,
            )
          const streamed = yield* Stream.runCollect(store.stream(space))
          expect(Array.from(streamed, ({ product_id }) => product_id)).toEqual(ids.toSorted())
          expect(Array.from(streamed).find(({ product_id }) => product_id === "f-odd")).toMatchObject({
            product_name: null,
            category: null,
            text: null,
          })
          expect(yield* Stream.runCount(store.changed(0))).toBeGreaterThanOrEqual(ids.length)
          expect((yield* store.find(ids)).length).toBe(ids.length)
          expect((yield* store.describe(ids)).size).toBe(ids.length)
          expect((yield* store.knownSince(["f-odd"], space)).get("f-odd")).toBe(0)
          const nearest = yield* store.nearest(Float32Array.of(3, 4), { space, limit: 50 })
          expect(nearest.map(({ product_id }) => product_id).toSorted()).toEqual(["f-good", "f-odd"])
          const problems = Array.from(yield* Stream.runCollect(store.problems(space, 2)))
          expect(problems.map(({ product_id }) => product_id).toSorted()).toEqual(
            [...unusable, "42", '"f bad id"'].toSorted(),
          )
        }))

      it("a search ignores vectors of another length", () =>
        Effect.gen(function* () {
          const store = yield* ProductEmbeddings
          yield* store.upsert(
            [Float32Array.of(1, 0), Float32Array.of(1, 0, 0)].map((embedding, i) => ({
              ...boot,
              product_id: `mixed-${i}`,
              space: "mixed",
              embedding,
            })),
          )
          const found = yield* store.nearest(Float32Array.of(2, 0), { space: "mixed", limit: 5 })
          expect(found).toEqual([
            { product_id: "mixed-0", product_name: null, category: "shoes", similarity: 1 },
          ])
        }))

      it("does not know the age of a vector that another program may have written", () =>
        Effect.gen(function* () {
          const store = yield* ProductEmbeddings
          const { database } = yield* Mongo
          const since = Effect.map(store.vectorsSince(["shared"]), (found) => found.get("shared"))
          yield* store.upsert([{ ...boot, product_id: "shared" }])
          const written = new Date(Date.now() + 10_000)
          const change = { embedding: [5, 6], updated_at: written }
          yield* Effect.promise(() =>
            database.collection("product_embeddings").updateOne({ product_id: "shared" }, { $set: change }),
          )
          expect(yield* since).toBe(written.getTime())
          yield* later("20 seconds")(store.upsert([{ product_id: "shared", available: false }]))
          expect(yield* since).toBe(written.getTime())
        }))
    },
  )
})
