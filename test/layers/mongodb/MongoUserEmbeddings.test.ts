import { expect } from "bun:test"
import { Effect, Layer, Stream } from "effect"
import { Binary, Double, Int32, Long } from "mongodb"
import { Mongo } from "../../../src/layers/mongodb/Mongo.ts"
import * as MongoUserEmbeddings from "../../../src/layers/mongodb/MongoUserEmbeddings.ts"
import { loadReadable, UserEmbeddings, type Write } from "../../../src/services/ports/UserEmbeddings.ts"
import * as UserEmbeddingsContract from "../../contracts/UserEmbeddingsContract.ts"
import { layerSuite } from "../../support/effect.ts"
import { preparedMongo } from "../../support/mongo.ts"
import { withServers } from "../../support/servers.ts"

const at = (second: number) => Date.UTC(2026, 1, 10, 12, 34, second)
const record = (user_id: string): Write["record"] => ({
  user_id,
  embedding: {
    user_id,
    embedding: Float32Array.of(0, 1, 0, 0),
    last_updated: at(2),
    event_count: 2,
    last_event_type: "product_view",
    last_event_id: "ab".repeat(32),
    mass: 1,
    total_weight: 2,
    space: "test:4",
    history: "cumulative",
    created_at: at(3),
    updated_at: at(4),
    recent: [
      {
        event_type: "product_view",
        search_phrase: null,
        product_id: "p-1",
        occurred_at: "2026-02-10T12:34:02.000Z",
        message_id: "ab".repeat(32),
      },
      {
        event_type: "search",
        search_phrase: "wireless headphones",
        product_id: null,
        occurred_at: "2026-02-10T12:34:01.000Z",
        message_id: "cd".repeat(32),
      },
    ],
    metadata: {
      search_count: 1,
      view_count: 1,
      click_count: 0,
      purchase_count: 0,
      decay_lambda: 0,
      last_recalculation: at(3),
    },
  },
  version: 1,
  applied: new Uint8Array(32).fill(7),
  archived: 0,
  erased_at: 0,
  erased_to: null,
  generation: 0,
})

withServers(["mongodb"], "MongoDB", () => {
  for (const storage of ["vector", "array"] as const)
    UserEmbeddingsContract.suite(
      `MongoDB (${storage})`,
      MongoUserEmbeddings.layer({ storage }).pipe(Layer.provide(preparedMongo())),
    )

  layerSuite(
    "MongoDB: documents of users",
    MongoUserEmbeddings.layer({ storage: "vector" }).pipe(Layer.provideMerge(preparedMongo())),
    (it) => {
      const collection = Effect.map(Mongo, ({ database }) =>
        database.collection<{ readonly _id: string; readonly [field: string]: unknown }>("user_embeddings"),
      )
      /** The document with its BSON types. */
      const raw = (user_id: string) =>
        Effect.flatMap(collection, (users) =>
          Effect.promise(() => users.findOne({ user_id }, { promoteValues: false })),
        )
      const int = (value: number) => new Int32(value)
      const double = (value: number) => new Double(value)

      it("a document that another program wrote wrongly concerns its own user alone", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const documents = yield* collection
          yield* users.save([{ record: record("w-good"), expected: undefined }])
          const good = yield* Effect.promise(() => documents.findOne({ _id: "w-good" }))
          const wrong: Record<string, object> = {
            "w-null": { embedding: null },
            "w-nan": { embedding: [0, Number.NaN, 0, 0] },
            "w-short": { embedding: [1] },
            "w-nested": { embedding: [[0], [1], [0], [0]] },
            "w-applied": { applied: null },
            "w-half": { applied: new Binary(new Uint8Array(7)) },
            "w-version": { version: "1" },
            "w-count": { event_count: null },
            "w-generation": { generation: "x" },
            "w-erased": { erased_at: "x" },
            "w-erased-to": { erased_to: "x" },
            "w-recent": { recent: ["x"] },
            "w-event": { recent: [{ event_type: 1 }] },
            "w-metadata": { metadata: null },
            "w-counter": { metadata: { ...Object(good?.metadata), view_count: "1" } },
            "w-date": { updated_at: null },
            "w-space": { space: 7 },
            "w-history": { history: "x" },
            "w-mass": { mass: Number.NaN },
          }
          const ids = Object.keys(wrong)
          const bare = { bypassDocumentValidation: true }
          const insert = (document: object) =>
            Effect.promise(() => documents.insertOne(Object(document), bare))
          for (const id of ids) yield* insert({ ...good, _id: id, user_id: id, ...wrong[id] })
          yield* insert({ ...good, _id: 7, user_id: "w-good" })
          yield* insert({ ...good, _id: "no id of a user" })

          for (const id of ids) {
            const error = yield* Effect.flip(users.load(["w-good", id]))
            expect(`${error.reason} ${error.message}`).toStartWith("invalid_data MongoDB at ")
            expect(error.message).toContain(`the document of user ${id} cannot be read: `)
          }
          expect([...(yield* loadReadable(users, ["w-good", ...ids])).keys()]).toEqual(["w-good"])
          for (const all of [
            Stream.map(users.stream, ({ user_id }) => user_id),
            Stream.map(users.bookkeeping, ({ user_id }) => user_id),
          ]) {
            const readable = Array.from(yield* Stream.runCollect(all))
            expect(readable.filter((id) => id === "w-good")).toEqual(["w-good"])
            expect(readable).not.toContain("no id of a user")
          }
          expect((yield* users.lastWrites(["w-good", ...ids])).has("w-good")).toBe(true)
          const named = yield* Stream.runCollect(users.unreadable)
          expect(Array.from(named, ({ user_id }) => user_id).toSorted()).toEqual(
            ["7", "no id of a user", ...ids].toSorted(),
          )
          const [first] = Array.from(named).filter(({ user_id }) => user_id === "w-applied")
          expect(first?.detail).toBe("applied is not binary data of whole ids")

          for (const id of ids) yield* users.erase(id, { erased_at: at(9), erased_to: 3 })
          const erased = yield* users.load(ids)
          expect(ids.filter((id) => erased.get(id)?.erased_to !== 3)).toEqual([])
          yield* Effect.promise(() => documents.deleteMany({}))
        }))

      it("stores the documented fields with their BSON types", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          yield* users.save([{ record: record("typed"), expected: undefined }])
          expect(yield* raw("typed")).toStrictEqual({
            _id: "typed",
            user_id: "typed",
            embedding: Binary.fromFloat32Array(Float32Array.of(0, 1, 0, 0)),
            dimension_count: int(4),
            last_updated: new Date(at(2)),
            event_count: int(2),
            last_event_type: "product_view",
            last_event_id: "ab".repeat(32),
            mass: double(1),
            total_weight: double(2),
            space: "test:4",
            history: "cumulative",
            created_at: new Date(at(3)),
            updated_at: new Date(at(4)),
            version: int(1),
            recent: [
              {
                event_type: "product_view",
                product_id: "p-1",
                occurred_at: new Date(at(2)),
                message_id: "ab".repeat(32),
              },
              {
                event_type: "search",
                search_phrase: "wireless headphones",
                occurred_at: new Date(at(1)),
                message_id: "cd".repeat(32),
              },
            ],
            metadata: {
              search_count: int(1),
              view_count: int(1),
              click_count: int(0),
              purchase_count: int(0),
              decay_lambda: double(0),
              last_recalculation: new Date(at(3)),
            },
            applied: new Binary(new Uint8Array(32).fill(7)),
            archived: int(0),
            erased_at: null,
          })
        }))

      it("reads documents of release 0.1.0, which have neither a generation nor the row id of an erasure", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const stored = yield* collection
          const erased_at = new Date(at(9))
          const cases = [
            ["old-never", { archived: int(65) }, 0],
            ["old-back", { erased_at, version: int(4) }, 4],
            // Its ids are in the ledger without a generation, and must still be found.
            ["old-much", { erased_at, version: int(4), archived: int(65) }, 0],
          ] as const
          for (const [user, fields] of cases) {
            yield* users.save([{ record: record(user), expected: undefined }])
            yield* Effect.promise(() => stored.updateOne({ _id: user }, { $set: fields }))
          }
          const tombstone = { _id: "old-gone", user_id: "old-gone", erased_at, version: int(3) }
          yield* Effect.promise(() => stored.insertOne(tombstone))
          const found = yield* users.load([...cases.map(([user]) => user), "old-gone"])
          for (const [user, , generation] of [...cases, ["old-gone", {}, 3] as const])
            expect([user, found.get(user)]).toMatchObject([user, { generation, erased_to: null }])
        }))

      it("an erasure leaves a tombstone of four fields, and no applied overflow", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const { database } = yield* Mongo
          yield* users.save([{ record: record("erased"), expected: undefined }])
          yield* users.saveToLedger("applied", [
            { user_id: "erased", generation: 0, ids: ["01".repeat(16), "fe".repeat(16)] },
          ])
          yield* users.erase("erased", { erased_at: at(9), erased_to: 7 })
          expect(yield* raw("erased")).toStrictEqual({
            _id: "erased",
            user_id: "erased",
            erased_at: new Date(at(9)),
            erased_to: Long.fromNumber(7),
            version: int(2),
          })
          const left = yield* Effect.promise(() =>
            database.collection("user_embedding_ledger").countDocuments(),
          )
          expect(left).toBe(0)
        }))

      it("an erasure that another one has overtaken removes no ids of the later generation", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const user_id = "overtaken"
          // A prefix of digits alone is not a generation.
          const ids = ["1".repeat(32), "a".repeat(32)]
          const generations = [0, 1, 2, 12]
          for (const kind of ["applied", "skipped"] as const) {
            yield* users.erase(user_id, { erased_at: 1_000, erased_to: 5 })
            const { generation } = (yield* users.load([user_id])).get(user_id)!
            const entries = generations.map((of) => ({ user_id, generation: of, ids }))
            yield* users.saveToLedger(kind, entries)
            yield* users.removeStaleLedger(user_id)
            const left = yield* Effect.forEach(entries, (entry) =>
              Effect.map(users.findInLedger(kind, [entry]), (found) => found.get(user_id)?.size ?? 0),
            )
            expect(left).toEqual(generations.map((of) => (of < generation ? 0 : 2)))
          }
        }))

      it("reads vectors and arrays, no matter which it writes", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const inArrays = yield* MongoUserEmbeddings.make({ storage: "array" })
          yield* inArrays.save([{ record: record("array"), expected: undefined }])
          yield* users.save([{ record: record("vector"), expected: undefined }])
          const stored = yield* raw("array")
          expect(stored?.embedding).toStrictEqual([0, 1, 0, 0].map(double))
          for (const reader of [users, inArrays]) {
            const found = yield* reader.load(["array", "vector"])
            for (const user of ["array", "vector"])
              expect(found.get(user)?.embedding?.embedding).toEqual(Float32Array.of(0, 1, 0, 0))
          }
          // The next write converts the document.
          yield* users.save([{ record: { ...record("array"), version: 2 }, expected: 1 }])
          expect((yield* raw("array"))?.embedding).toEqual(
            Binary.fromFloat32Array(Float32Array.of(0, 1, 0, 0)),
          )
        }))

      it("the validator refuses invalid documents", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const documents = yield* collection
          yield* users.save([{ record: record("strict"), expected: undefined }])
          const change = (update: object) =>
            Effect.promise(() =>
              documents.updateOne({ user_id: "strict" }, update).then(
                () => "accepted",
                (error) => error.code,
              ),
            )
          const documentValidationFailure = 121
          for (const update of [
            { $set: { mass: int(1) } },
            { $set: { mass: double(-1) } },
            { $set: { event_count: double(1.5) } },
            { $set: { last_updated: "2026-02-10T12:34:56.789Z" } },
            { $set: { last_event_type: "Wished" } },
            { $set: { "metadata.wish_count": int(-1) } },
            { $set: { "recent.0.event_type": "search", "recent.0.product_id": "p" } },
            { $set: { embedding: "none" } },
            { $set: { embedding: [int(1)] } },
            { $set: { "recent.0.search_phrase": "both" } },
            { $set: { "metadata.note": "unknown" } },
            { $set: { unknown: true } },
            { $set: { version: int(0) } },
            { $unset: { space: "" } },
            { $unset: { embedding: "" } },
          ])
            expect([update, yield* change(update)]).toEqual([update, documentValidationFailure])
          for (const update of [
            { $set: { mass: double(1) } },
            { $set: { total_weight: double(-1) } },
            { $set: { last_event_type: "wished", "metadata.wished_count": int(1) } },
          ])
            expect([update, yield* change(update)]).toEqual([update, "accepted"])
        }))

      it("a write that the validator refuses fails, and no write of its batch counts as a version conflict", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const good = record("beside")
          const bad = { ...record("bad"), archived: -1 }
          const failure = yield* Effect.flip(
            users.save([good, bad].map((record) => ({ record, expected: undefined }))),
          )
          expect(failure).toMatchObject({ reason: "invalid_data", operation: "bulkWrite user_embeddings" })
          expect([...(yield* users.load(["beside", "bad"])).keys()]).toEqual(["beside"])
          // The first error of this batch is the expected one of a lost compare-and-swap.
          const lostAndBad = users.save([
            { record: good, expected: 7 },
            { record: bad, expected: undefined },
          ])
          expect(yield* Effect.flip(lostAndBad)).toMatchObject({ reason: "invalid_data" })
        }))

      it("a record that is too large fails as invalid data", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const large = { ...record("large"), applied: new Uint8Array(17_000_000) }
          const failure = yield* Effect.flip(users.save([{ record: large, expected: undefined }]))
          expect(failure.reason).toBe("invalid_data")
        }))

      it("a collection that takes no writes fails them as rejected, beside data that is invalid as well", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const { database } = yield* Mongo
          const name = "user_embeddings"
          yield* Effect.promise(async () => {
            await database.renameCollection(name, "writable")
            await database.createCollection(name, { viewOn: "writable" })
          })
          const failure = yield* Effect.flip(
            users.save(
              [record("any"), { ...record("bad"), archived: -1 }].map((record) => ({
                record,
                expected: undefined,
              })),
            ),
          )
          expect(yield* users.load(["any"])).toEqual(new Map())
          yield* Effect.promise(async () => {
            await database.dropCollection(name)
            await database.renameCollection("writable", name)
          })
          expect(failure).toMatchObject({ reason: "rejected", operation: "bulkWrite user_embeddings" })
        }))

      it("awaitDurable flushes the journal", () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const { database } = yield* Mongo
          const documents = yield* collection
          yield* users.save([{ record: record("settled"), expected: undefined }])
          const flushes = Effect.promise(async () => {
            const status = await database.admin().command({ serverStatus: 1 })
            return Number(status.wiredTiger.log["log sync operations"])
          })
          const before = yield* flushes
          for (let i = 1; i <= 20; i++) {
            yield* Effect.promise(() =>
              documents.updateOne(
                { user_id: "settled" },
                { $set: { archived: int(i) } },
                { writeConcern: { w: 1, journal: false } },
              ),
            )
            yield* users.awaitDurable
          }
          expect((yield* flushes) - before).toBeGreaterThanOrEqual(20)
        }))
    },
  )
})
