import { expect, test } from "bun:test"
import {
  Cause,
  ConfigError,
  ConfigProvider,
  Duration,
  Effect,
  Exit,
  Layer,
  Option,
  Redacted,
  Scope,
} from "effect"
import { BSON, MongoCompatibilityError, MongoInvalidArgumentError, MongoServerError } from "mongodb"
import * as Mongo from "../../../src/layers/mongodb/Mongo.ts"
import * as MongoUserEmbeddings from "../../../src/layers/mongodb/MongoUserEmbeddings.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import { effectTest, layerSuite } from "../../support/effect.ts"
import { emptyMongo } from "../../support/mongo.ts"
import { eventually } from "../../support/pipeline.ts"
import { urlOf, withServers } from "../../support/servers.ts"
import { tcpProxy } from "../../support/tcpProxy.ts"

const usersAt = (url: string) =>
  Layer.build(
    MongoUserEmbeddings.layer({ storage: "vector" }).pipe(
      Layer.provideMerge(Mongo.layer({ url: Redacted.make(url), database: "outage" })),
    ),
  )

/** A proxy to the server, or to the primary of a replica set. */
const mongoProxy = Effect.suspend(() => tcpProxy(urlOf("mongodb")))

/** The failure of a call, and its duration. */
const failureOf = <A, E, R>(call: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(Effect.flip(call)), ([took, failure]) => ({
    failure,
    seconds: Duration.toSeconds(took),
  }))

test("only errors about the data itself are invalid data, and an answer without a known meaning is a refusal", () => {
  const codes = {
    unavailable: [91, 189, 10107, 11600, 11602, 13435, 13436],
    timeout: [50, 64, 202, 262],
    invalid_data: [22, 121, 10334, 17419, 17420],
    conflict: [112, 11000],
    rejected: [6, 13, 18, 100, 166, 8000, 14031, undefined],
  }
  for (const [reason, each] of Object.entries(codes))
    for (const code of each) {
      const found: string = Mongo.reasonOf(new MongoServerError({ message: "no", code }))
      expect(`${code} ${found}`).toBe(`${code} ${reason}`)
    }
  expect(Mongo.reasonOf(new MongoInvalidArgumentError("Document is larger than the maximum size"))).toBe(
    "invalid_data",
  )
  expect(Mongo.reasonOf(new TypeError("embedding is null"))).toBe("invalid_data")
  expect(Mongo.reasonOf(new BSON.BSONError("a cycle"))).toBe("invalid_data")
  expect(Mongo.reasonOf(new Error("no answer"))).toBe("unavailable")
  expect(Mongo.reasonOf(new MongoCompatibilityError("the server is too old"))).toBe("rejected")
})

effectTest("a malformed URL fails the start without showing the password", () =>
  Effect.gen(function* () {
    const exit = yield* Effect.exit(usersAt("mongodb://me:s3cret@/nowhere"))
    expect(Exit.isFailure(exit)).toBe(true)
    const text = Exit.isFailure(exit) ? Cause.pretty(exit.cause) : ""
    expect(text).toContain("MONGODB_URL")
    expect(text).not.toContain("s3cret")
  }),
)

effectTest("a missing MONGODB_URL is named in the error", () =>
  Effect.gen(function* () {
    const error = yield* Layer.build(Mongo.layerConfig).pipe(
      Effect.withConfigProvider(ConfigProvider.fromMap(new Map())),
      Effect.flip,
    )
    expect(ConfigError.isMissingData(error) && error.path).toEqual(["MONGODB_URL"])
  }),
)

effectTest(
  "without a server the layer starts, and each call fails as unavailable within 6 s",
  () =>
    Effect.gen(function* () {
      const context = yield* usersAt("mongodb://me:s3cret@127.0.0.1:1")
      const { load, save } = yield* Effect.provide(UserEmbeddings, context)
      const { ping } = yield* Effect.provide(Mongo.dependency, context)
      yield* failureOf(load(["u"]))
      const [{ failure, seconds }, { failure: down }] = yield* Effect.all(
        [failureOf(load(["u"])), failureOf(ping)],
        { concurrency: "unbounded" },
      )
      expect(failure).toMatchObject({ reason: "unavailable", operation: "find user_embeddings" })
      expect(String(failure)).not.toContain("s3cret")
      expect(seconds).toBeLessThan(6)
      expect(yield* save([])).toEqual([])
      expect(down).toMatchObject({ _tag: "DependencyDown", dependency: "mongodb" })
      expect(JSON.stringify(down)).not.toContain("s3cret")
    }),
  30_000,
)

withServers(["mongodb"], "MongoDB", () => {
  effectTest(
    "calls recover when a server was down at the start, and when it goes down later",
    () =>
      Effect.gen(function* () {
        const proxy = yield* mongoProxy
        proxy.cut()
        const users = yield* Effect.provide(UserEmbeddings, yield* usersAt(proxy.url))
        for (const _ of ["at the start", "later"]) {
          proxy.cut()
          const { failure, seconds } = yield* failureOf(users.load(["u"]))
          expect(failure.reason).toBe("unavailable")
          expect(seconds).toBeLessThan(6)
          proxy.restore()
          const [took] = yield* Effect.timed(users.load(["u"]))
          expect(Duration.toSeconds(took)).toBeLessThan(5)
        }
        // A call that waits when the server comes back succeeds.
        proxy.cut()
        const waiting = yield* Effect.fork(users.load(["u"]))
        yield* Effect.sleep("1 second")
        proxy.restore()
        expect((yield* waiting).size).toBe(0)
      }),
    60_000,
  )

  effectTest(
    "a server that stops answering causes timeouts, also of writes, and calls recover",
    () =>
      Effect.gen(function* () {
        const proxy = yield* mongoProxy
        const context = yield* usersAt(proxy.url)
        const users = yield* Effect.provide(UserEmbeddings, context)
        const { ping } = yield* Effect.provide(Mongo.dependency, context)
        yield* users.awaitDurable
        proxy.freeze()
        const [write, look] = yield* Effect.all(
          [
            failureOf(
              users.saveToLedger("applied", [{ user_id: "u", generation: 0, ids: ["00".repeat(16)] }]),
            ),
            failureOf(ping),
          ],
          { concurrency: "unbounded" },
        )
        expect(write.failure.reason).toBe("timeout")
        expect(write.seconds).toBeLessThan(16)
        expect(look.seconds).toBeLessThan(7)
        // The outage is known now: a read does not wait for it.
        const read = yield* failureOf(users.load(["u"]))
        expect(read.failure).toMatchObject({ reason: expect.stringMatching(/unavailable|timeout/) })
        expect(read.failure.message).toStartWith(`MongoDB at 127.0.0.1:${proxy.port}: find user_embeddings: `)
        expect(read.seconds).toBeLessThan(0.1)
        proxy.restore()
        const [recovery] = yield* Effect.timed(
          eventually(Effect.option(users.load(["u"])).pipe(Effect.map(Option.getOrUndefined))),
        )
        expect(Duration.toSeconds(recovery)).toBeLessThan(2)
        yield* users.load(["u"])
      }),
    60_000,
  )

  effectTest("closing does not wait for a silent server", () =>
    Effect.gen(function* () {
      const proxy = yield* mongoProxy
      const scope = yield* Scope.make()
      const users = yield* Effect.provide(UserEmbeddings, yield* Scope.extend(usersAt(proxy.url), scope))
      yield* users.awaitDurable
      proxy.freeze()
      const [took] = yield* Effect.timed(Scope.close(scope, Exit.void))
      expect(Duration.toSeconds(took)).toBeLessThan(4)
    }),
  )

  layerSuite("MongoDB: setup", emptyMongo(), (it) => {
    it("the check creates nothing, and setup creates everything that is missing", () =>
      Effect.gen(function* () {
        const { database } = yield* Mongo.Mongo
        const { missing, setup, ping } = yield* Mongo.dependency
        const all = yield* missing
        expect(all).toEqual([
          "user_embeddings: collection with validator",
          "user_embeddings: index on user_id",
          "user_embeddings: index on last_updated",
          "user_embeddings: index on space",
          "user_embedding_ledger: collection with validator",
          "product_embeddings: collection with validator",
          "product_embeddings: unique index on product_id",
          "product_embeddings: index on space, product_id, updated_at",
          "product_embeddings: index on updated_at",
          "product_pairs: collection",
          "product_pairs_state: collection",
          "phrase_embeddings: collection",
          "phrase_embeddings: index on last_used, expiring after 30 days",
        ])
        expect(yield* Effect.promise(() => database.listCollections().toArray())).toEqual([])
        const done = yield* Effect.all([setup, setup, setup], { concurrency: "unbounded" })
        expect(new Set(done.flat())).toEqual(new Set(all))
        expect(yield* missing).toEqual([])
        expect(yield* setup).toEqual([])
        expect(yield* ping).toMatch(/^\d+\.\d+\.\d+/)
        const indexes = yield* Effect.promise(() => database.collection("phrase_embeddings").indexes())
        expect(indexes.find(({ name }) => name === "last_used_1")?.expireAfterSeconds).toBe(30 * 86_400)
      }))

    it("corrects a different validator and a different expiry, and keeps the documents", () =>
      Effect.gen(function* () {
        const { database } = yield* Mongo.Mongo
        const { setup } = yield* Mongo.dependency
        yield* setup
        yield* Effect.promise(async () => {
          await database.command({ collMod: "user_embeddings", validator: {}, validationLevel: "off" })
          await database.collection("user_embeddings").insertOne({ user_id: "kept" })
          await database.collection("user_embeddings").dropIndex("last_updated_1")
        })
        const later = yield* Mongo.dependency.pipe(
          Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["PHRASE_TTL_DAYS", "7"]]))),
        )
        const wanted = [
          "user_embeddings: validator",
          "user_embeddings: index on last_updated",
          "phrase_embeddings: index on last_used, expiring after 7 days",
        ]
        expect(yield* later.missing).toEqual(wanted)
        expect(yield* later.setup).toEqual(wanted)
        expect(yield* later.missing).toEqual([])
        const kept = yield* Effect.promise(() => database.collection("user_embeddings").countDocuments())
        expect(kept).toBe(1)
      }))
  })
})
