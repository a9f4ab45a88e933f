/** Event vectors over ports in memory that count calls. The test makes the ports fail and wait. */
import { describe, expect } from "bun:test"
import {
  ConfigProvider,
  Deferred,
  Duration,
  Effect,
  Either,
  Exit,
  Fiber,
  Layer,
  Logger,
  Scope,
  Stream,
  TestClock,
  TestContext,
} from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { PhraseEmbedder, PhraseEmbedderError } from "../../../src/services/ports/PhraseEmbedder.ts"
import {
  PhraseEmbeddings,
  PhraseEmbeddingsError,
  phraseKey,
} from "../../../src/services/ports/PhraseEmbeddings.ts"
import { ProductEmbeddings, ProductEmbeddingsError } from "../../../src/services/ports/ProductEmbeddings.ts"
import { EventVectors, layer as eventVectors } from "../../../src/services/update/EventVectors.ts"
import { effectTest } from "../../support/effect.ts"

const space = "test:2"
const occurred = { user_id: "u-1", occurred_at: "2026-02-10T12:34:56.789Z", metadata: {} }
const search = (search_phrase: string) =>
  Interaction.make({ ...occurred, event_type: "search", search_phrase })
const view = (product_id: string) => Interaction.make({ ...occurred, event_type: "product_view", product_id })

/** A unit vector that differs from phrase to phrase. */
const vectorOf = (phrase: string) => {
  const angle = Number(BigInt.asUintN(16, BigInt(Bun.hash(phrase)))) / 10_000
  return Float32Array.of(Math.cos(angle), Math.sin(angle))
}
const down = { reason: "unavailable", operation: "find", cause: new Error("down") } as const

const setUp = () => {
  const state = {
    products: new Map<string, Float32Array>(),
    productLoads: [] as Array<ReadonlyArray<string>>,
    productsDown: false,
    stored: new Map<string, Float32Array>(),
    loads: 0,
    storeDown: false,
    embedded: [] as Array<ReadonlyArray<string>>,
    /** Phrases that fail in the embedder. */
    refused: new Set<string>(),
    /** Runs in the embedder before it answers. */
    before: Effect.void as Effect.Effect<void>,
    warnings: [] as Array<unknown>,
  }
  const store = <A>(run: () => A) =>
    Effect.suspend(() => (state.storeDown ? Effect.fail(new PhraseEmbeddingsError(down)) : Effect.sync(run)))
  const ports = Layer.mergeAll(
    Layer.succeed(ProductEmbeddings, {
      load: (ids, wanted) =>
        Effect.suspend(() => {
          expect(wanted).toBe(space)
          state.productLoads.push(ids)
          return state.productsDown
            ? Effect.fail(new ProductEmbeddingsError(down))
            : Effect.succeed(state.products)
        }),
      upsert: () => Effect.succeed([]),
      remove: () => Effect.succeed(new Set()),
      nearest: () => Effect.succeed([]),
      count: Effect.succeed(0),
      countInOtherSpaces: () => Effect.succeed(0),
      knownSince: () => Effect.succeed(new Map()),
      vectorsSince: () => Effect.succeed(new Map()),
      changed: () => Stream.empty,
      stampSum: () => Effect.succeed({ count: 0, sum: 0 }),
      stamps: () => Stream.empty,
      find: () => Effect.succeed([]),
      problems: () => Stream.empty,
      indexed: () => Effect.succeed([]),
      describe: () => Effect.succeed(new Map()),
      stream: () => Stream.empty,
    }),
    Layer.succeed(PhraseEmbeddings, {
      load: (keys) =>
        store(() => {
          state.loads += 1
          return new Map(
            keys.flatMap((key) => (state.stored.has(key) ? [[key, state.stored.get(key)!]] : [])),
          )
        }),
      save: (vectors) =>
        store(() => {
          for (const [key, vector] of vectors) state.stored.set(key, vector)
        }),
      remove: () => Effect.succeed(0),
    }),
    Layer.succeed(PhraseEmbedder, {
      space,
      embed: (phrases) =>
        Effect.suspend(() => {
          state.embedded.push(phrases)
          return state.before
        }).pipe(
          Effect.as(
            phrases.map((phrase) =>
              state.refused.has(phrase)
                ? Either.left(new PhraseEmbedderError({ reason: "rate_limited", detail: phrase }))
                : Either.right(vectorOf(phrase)),
            ),
          ),
        ),
    }),
    EmbeddingConfig.layer({ dimensions: 2, cacheTtl: Duration.hours(1) }),
    Layer.setConfigProvider(ConfigProvider.fromMap(new Map())),
    Logger.replace(
      Logger.defaultLogger,
      Logger.make(({ message }) => void state.warnings.push(message)),
    ),
  )
  return { state, layer: eventVectors.pipe(Layer.provideMerge(ports)) }
}
type State = ReturnType<typeof setUp>["state"]

const withVectors = (
  name: string,
  program: (vectors: EventVectors["Type"], state: State) => Effect.Effect<unknown, unknown, Scope.Scope>,
) =>
  effectTest(name, () => {
    const { layer, state } = setUp()
    return Effect.flatMap(EventVectors, (vectors) => program(vectors, state)).pipe(
      Effect.provide(Layer.provideMerge(layer, TestContext.TestContext)),
    )
  })

const tags = (results: ReadonlyArray<Either.Either<Float32Array, { readonly _tag: string }>>) =>
  results.map(Either.match({ onLeft: ({ _tag }) => _tag, onRight: () => "ok" }))

describe("products", () => {
  withVectors("are loaded in one call, each once, and normalised", (vectors, state) =>
    Effect.gen(function* () {
      state.products.set("1", Float32Array.of(3, 4))
      state.products.set("2", Float32Array.of(0, 2))
      const found = yield* vectors.resolve([view("2"), search("a"), view("1"), view("2")])
      expect(found.map(Either.getOrThrow)).toEqual([
        Float32Array.of(0, 1),
        vectorOf("a"),
        Float32Array.of(0.6, 0.8),
        Float32Array.of(0, 1),
      ])
      expect(state.productLoads).toEqual([["2", "1"]])
    }),
  )

  withVectors("without a usable vector fail with the reason, and do not affect others", (vectors, state) =>
    Effect.gen(function* () {
      state.products.set("1", Float32Array.of(1, 0))
      state.products.set("short", Float32Array.of(1))
      state.products.set("zero", Float32Array.of(0, 0))
      const found = yield* vectors.resolve([view("1"), view("gone"), view("short"), view("zero")])
      expect(tags(found)).toEqual(["ok", "ProductMissing", "UnusableVector", "UnusableVector"])
      expect(found.map(Either.match({ onLeft: ({ message }) => message, onRight: () => "" }))).toEqual([
        "",
        "product gone has no embedding in space test:2",
        "the vector of product short has 1 dimensions instead of 2",
        "the vector of product zero is a zero vector",
      ])
    }),
  )

  withVectors("fail with the error of their store, and phrases do not", (vectors, state) =>
    Effect.gen(function* () {
      state.productsDown = true
      const found = yield* vectors.resolve([view("1"), search("a"), view("2")])
      expect(tags(found)).toEqual(["ProductEmbeddingsError", "ok", "ProductEmbeddingsError"])
    }),
  )
})

describe("phrases", () => {
  withVectors("are embedded in one call, each once, and stored under their hash", (vectors, state) =>
    Effect.gen(function* () {
      yield* vectors.resolve([search("a"), search("b"), search("a")])
      expect(state.embedded).toEqual([["a", "b"]])
      expect([...state.stored.keys()]).toEqual([phraseKey(space, "a"), phraseKey(space, "b")])
      expect(tags(yield* vectors.resolve([search("b"), search("a")]))).toEqual(["ok", "ok"])
      expect([state.embedded.length, state.loads]).toEqual([1, 1])
    }),
  )

  withVectors("of a read alone are not stored: their user may be erased meanwhile", (vectors, state) =>
    Effect.gen(function* () {
      yield* vectors.resolve([search("a")], { store: false })
      expect(state.embedded).toEqual([["a"]])
      expect(state.stored.size).toBe(0)
      expect(vectors.remembers("a")).toBe(true)
    }),
  )

  withVectors("in the store are not embedded", (vectors, state) =>
    Effect.gen(function* () {
      state.stored.set(phraseKey(space, "a"), Float32Array.of(1, 0))
      const [a] = yield* vectors.resolve([search("a"), search("b")])
      expect(a).toEqual(Either.right(Float32Array.of(1, 0)))
      expect(state.embedded).toEqual([["b"]])
    }),
  )

  withVectors("stored with an unusable vector are embedded again", (vectors, state) =>
    Effect.gen(function* () {
      state.stored.set(phraseKey(space, "a"), Float32Array.of(1, 0, 0))
      state.stored.set(phraseKey(space, "b"), Float32Array.of(0, 0))
      const found = yield* vectors.resolve([search("a"), search("b")])
      expect(found.map(Either.getOrThrow)).toEqual([vectorOf("a"), vectorOf("b")])
      expect(state.stored.get(phraseKey(space, "a"))).toEqual(vectorOf("a"))
    }),
  )

  withVectors("are embedded while their store is down, with a warning", (vectors, state) =>
    Effect.gen(function* () {
      state.storeDown = true
      expect(tags(yield* vectors.resolve([search("a")]))).toEqual(["ok"])
      expect(state.warnings).toEqual([["phrases.store_failed"], ["phrases.store_failed"]])
      expect(tags(yield* vectors.resolve([search("a")]))).toEqual(["ok"])
      expect(state.embedded).toEqual([["a"]])
    }),
  )

  withVectors("that fail do not affect others, and are embedded again next time", (vectors, state) =>
    Effect.gen(function* () {
      state.refused.add("b")
      const interactions = [search("a"), search("b"), search("c")]
      expect(tags(yield* vectors.resolve(interactions))).toEqual(["ok", "PhraseEmbedderError", "ok"])
      expect(state.stored.size).toBe(2)
      state.refused.clear()
      expect(tags(yield* vectors.resolve(interactions))).toEqual(["ok", "ok", "ok"])
      expect(state.embedded).toEqual([["a", "b", "c"], ["b"]])
    }),
  )

  withVectors("leave memory after EMBEDDING_CACHE_TTL, also if they are used", (vectors, state) =>
    Effect.gen(function* () {
      yield* vectors.resolve([search("a")])
      for (let used = 0; used < 2; used++) {
        yield* TestClock.adjust("29 minutes")
        yield* vectors.resolve([search("a")])
      }
      expect(state.loads).toBe(1)
      yield* TestClock.adjust("2 minutes")
      yield* vectors.resolve([search("a")])
      expect([state.loads, state.embedded.length]).toEqual([2, 1])
    }),
  )

  withVectors("stay in memory, 4,000 of them; the least recently used leaves first", (vectors, state) =>
    Effect.gen(function* () {
      const phrases = Array.from({ length: 4000 }, (_, i) => search(`phrase ${i}`))
      yield* vectors.resolve(phrases)
      yield* vectors.resolve([search("phrase 0")])
      yield* vectors.resolve([search("one more")])
      expect(state.loads).toBe(2)
      yield* vectors.resolve([search("phrase 0"), search("phrase 2"), search("one more")])
      expect(state.loads).toBe(2)
      yield* vectors.resolve([search("phrase 1")])
      expect(state.loads).toBe(3)
    }),
  )
})

describe("phrases that several callers need at once", () => {
  /** Makes the embedder wait until it is released. */
  const heldEmbedder = (state: State) =>
    Effect.gen(function* () {
      const reached = yield* Deferred.make<void>()
      const release = yield* Deferred.make<void>()
      state.before = Effect.zipRight(Deferred.succeed(reached, undefined), Deferred.await(release))
      return { reached: Deferred.await(reached), release: Deferred.succeed(release, undefined) }
    })

  withVectors("are embedded once", (vectors, state) =>
    Effect.gen(function* () {
      const { reached, release } = yield* heldEmbedder(state)
      const first = yield* Effect.fork(vectors.resolve([search("a"), search("b")]))
      yield* reached
      const others = yield* Effect.fork(
        Effect.all(
          [vectors.resolve([search("b"), search("c")]), vectors.resolve([search("c"), search("a")])],
          {
            concurrency: 2,
          },
        ),
      )
      yield* Effect.yieldNow().pipe(Effect.repeat({ until: () => state.embedded.length === 2 }))
      yield* release
      expect(tags(yield* first)).toEqual(["ok", "ok"])
      expect((yield* others).flat().map(Either.getOrThrow)).toEqual(["b", "c", "c", "a"].map(vectorOf))
      expect(state.embedded).toEqual([["a", "b"], ["c"]])
    }),
  )

  withVectors("are found for the others when the first caller is interrupted", (vectors, state) =>
    Effect.gen(function* () {
      const { reached, release } = yield* heldEmbedder(state)
      const first = yield* Effect.fork(vectors.resolve([search("a")]))
      yield* reached
      const second = yield* Effect.fork(vectors.resolve([search("a")]))
      yield* Effect.yieldNow()
      expect(Exit.isInterrupted(yield* Fiber.interrupt(first))).toBe(true)
      yield* release
      expect(tags(yield* second)).toEqual(["ok"])
      expect(state.embedded).toEqual([["a"]])
    }),
  )

  withVectors("fail for all callers when the embedder dies, and can be found later", (vectors, state) =>
    Effect.gen(function* () {
      state.before = Effect.die("broken")
      const both = Effect.forEach([1, 2], () => Effect.exit(vectors.resolve([search("a")])), {
        concurrency: 2,
      })
      expect((yield* both).map(Exit.isFailure)).toEqual([true, true])
      state.before = Effect.void
      expect(tags(yield* vectors.resolve([search("a")]))).toEqual(["ok"])
    }),
  )

  effectTest("are interrupted when the service closes", () =>
    Effect.gen(function* () {
      const { layer, state } = setUp()
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(layer, scope)
      let aborted = false
      const { reached } = yield* heldEmbedder(state)
      state.before = Effect.onInterrupt(state.before, () =>
        Effect.sync(() => {
          aborted = true
        }),
      )
      const waiting = yield* Effect.fork(
        Effect.flatMap(EventVectors, ({ resolve }) => resolve([search("a")])).pipe(Effect.provide(context)),
      )
      yield* reached
      yield* Scope.close(scope, Exit.void)
      expect(Exit.isInterrupted(yield* Fiber.await(waiting))).toBe(true)
      expect(aborted).toBe(true)
    }),
  )
})

withVectors("texts are embedded in order and not stored", (vectors, state) =>
  Effect.gen(function* () {
    state.refused.add("b")
    expect(tags(yield* vectors.ofTexts(["a", "b"]))).toEqual(["ok", "PhraseEmbedderError"])
    expect([state.stored.size, state.loads]).toEqual([0, 0])
  }),
)
