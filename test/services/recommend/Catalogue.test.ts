/** The catalogue in memory, over a store in memory, with a test clock. */
import { expect } from "bun:test"
import {
  Array as Arr,
  Duration,
  Effect,
  Either,
  Fiber,
  Layer,
  Logger,
  LogLevel,
  Stream,
  TestClock,
  TestContext,
} from "effect"
import fc from "fast-check"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import { PhraseEmbedder } from "../../../src/services/ports/PhraseEmbedder.ts"
import {
  NoVectorIndex,
  type ProductEmbedding,
  ProductEmbeddings,
  ProductEmbeddingsError,
  type StoredProduct,
  stampModulus,
} from "../../../src/services/ports/ProductEmbeddings.ts"
import { Catalogue, layerOf } from "../../../src/services/recommend/Catalogue.ts"
import { effectTest } from "../../support/effect.ts"

const dimensions = 8
const space = "test"

type Stored = StoredProduct

/** A store in memory that counts how often all products are read. */
const world = () => {
  const state = {
    stored: new Map<string, Stored>(),
    sweeps: 0,
    comparisons: 0,
    down: false,
    hasIndex: false,
    /** Of the stamps, and of each product when all are read. */
    delay: Duration.zero as Duration.DurationInput,
    readingDelay: Duration.zero as Duration.DurationInput,
  }
  const all = () => [...state.stored.values()].toSorted((a, b) => (a.product_id < b.product_id ? -1 : 1))
  const reading = <A>(items: () => ReadonlyArray<A>) =>
    Stream.suspend(() =>
      state.down
        ? Stream.fail(
            new ProductEmbeddingsError({
              reason: "unavailable",
              operation: "read",
              cause: new Error("down"),
            }),
          )
        : Stream.fromIterable(items()),
    )
  const store = Layer.succeed(ProductEmbeddings, {
    load: (ids) =>
      Effect.sync(
        () =>
          new Map(all().flatMap((p) => (ids.includes(p.product_id) ? [[p.product_id, p.embedding]] : []))),
      ),
    upsert: () => Effect.succeed([]),
    remove: () => Effect.succeed(new Set()),
    nearest: () => Effect.succeed([]),
    knownSince: () => Effect.succeed(new Map()),
    vectorsSince: () => Effect.succeed(new Map()),
    count: Effect.sync(() => state.stored.size),
    countInOtherSpaces: () => Effect.succeed(0),
    indexed: (_, { categories, limit }) =>
      Effect.suspend(() =>
        state.hasIndex
          ? Effect.succeed(
              all()
                .filter((p) => categories === undefined || categories.includes(p.category ?? ""))
                .slice(0, limit),
            )
          : Effect.fail(new NoVectorIndex({ detail: "there is no index" })),
      ),
    describe: (ids) =>
      Effect.sync(
        () => new Map(all().flatMap((p) => (ids.includes(p.product_id) ? [[p.product_id, p]] : []))),
      ),
    problems: () => Stream.empty,
    stampSum: (wanted) =>
      Effect.sync(() => {
        const stamps = all().flatMap((p) => (p.space === wanted ? [p.updated_at % stampModulus] : []))
        return { count: stamps.length, sum: stamps.reduce((sum, stamp) => sum + stamp, 0) }
      }),
    stamps: (wanted) => {
      state.comparisons += 1
      return Stream.fromEffect(Effect.sleep(state.delay)).pipe(
        Stream.flatMap(() => reading(() => all().filter((p) => p.space === wanted))),
      )
    },
    find: (ids) => Effect.sync(() => all().filter((p) => ids.includes(p.product_id))),
    changed: (after) => reading(() => all().filter(({ updated_at }) => updated_at > after)),
    stream: (wanted) => {
      state.sweeps += 1
      const products = reading(() => all().filter((p) => p.space === wanted))
      return Duration.toMillis(state.readingDelay) === 0
        ? products
        : Stream.tap(products, () => Effect.sleep(state.readingDelay))
    },
  })
  const put = (product: ProductEmbedding) =>
    TestClock.currentTimeMillis.pipe(
      Effect.map((now) =>
        state.stored.set(product.product_id, { ...product, updated_at: now, deleted: false }),
      ),
    )
  const layer = (mostProducts: number) =>
    layerOf({ mostProducts }).pipe(
      Layer.provide([
        store,
        Layer.succeed(PhraseEmbedder, { space, embed: () => Effect.succeed([]) }),
        EmbeddingConfig.layer({ dimensions }),
      ]),
      Layer.provideMerge(Layer.merge(TestContext.TestContext, Logger.minimumLogLevel(LogLevel.None))),
    )
  return { state, put, layer }
}

/** As the store answers: without the vector. */
const putDeleted = (state: ReturnType<typeof world>["state"], product: ProductEmbedding) =>
  TestClock.currentTimeMillis.pipe(
    Effect.map((now) =>
      state.stored.set(product.product_id, {
        ...product,
        product_name: null,
        category: null,
        available: false,
        attributes: {},
        embedding: new Float32Array(0),
        deleted: true,
        updated_at: now,
      }),
    ),
  )

const product = (id: number, values: ReadonlyArray<number>): ProductEmbedding => ({
  product_id: `p-${String(id).padStart(3, "0")}`,
  product_name: `Product ${id}`,
  category: id % 2 === 0 ? "even" : "odd",
  available: true,
  attributes: {},
  embedding: Float32Array.from(values),
  space,
  text: null,
})
const values = fc
  .array(fc.double({ min: -1, max: 1, noNaN: true }), { minLength: dimensions, maxLength: dimensions })
  .filter((v) => Math.hypot(...v) > 0.1)
const some = (count: number, seed = 1) =>
  fc.sample(values, { numRuns: count, seed }).map((v, id) => product(id, v))

const unit = (v: ReadonlyArray<number>) => v.map((x) => x / Math.hypot(...v))
/** The expected result by plain arithmetic. */
const expected = (catalogue: ReadonlyArray<ProductEmbedding>, direction: Float32Array) => {
  const units = catalogue.map(({ embedding }) => unit([...embedding]))
  const mean = units.reduce(
    (sum, v) => sum.map((x, i) => x + v[i]! / units.length),
    Array<number>(dimensions).fill(0),
  )
  return catalogue
    .map(({ product_id }, row) => {
      const centred = unit(units[row]!.map((x, i) => x - mean[i]!))
      return { product_id, similarity: centred.reduce((sum, x, i) => sum + x * direction[i]!, 0) }
    })
    .sort((a, b) => b.similarity - a.similarity)
}
const direction = Float32Array.from(unit([1, -2, 3, -4, 5, -6, 7, -8]))

const compared = Effect.gen(function* () {
  const catalogue = yield* Catalogue
  return (yield* catalogue.search(direction, { limit: 1_000 })).map(({ product_id, similarity }) => ({
    product_id,
    similarity,
  }))
})
const agrees = (
  found: ReadonlyArray<{ product_id: string; similarity: number }>,
  catalogue: ReadonlyArray<ProductEmbedding>,
) => {
  const wanted = expected(catalogue, direction)
  expect(found.map(({ product_id }) => product_id)).toEqual(wanted.map(({ product_id }) => product_id))
  for (const [i, { similarity }] of found.entries()) expect(similarity).toBeCloseTo(wanted[i]!.similarity, 5)
}

effectTest("other requests get turns while all products are read", () => {
  const { layer, put } = world()
  return Effect.gen(function* () {
    yield* Effect.forEach(some(640), put, { discard: true })
    let turns = 0
    const count = () => {
      turns += 1
      timer = setImmediate(count)
    }
    let timer = setImmediate(count)
    yield* (yield* Catalogue).products
    clearImmediate(timer)
    expect(turns).toBeGreaterThanOrEqual(5)
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest(
  "a search sees every product, after products were stored, moved to another space or removed",
  () => {
    const { layer, put, state } = world()
    return Effect.gen(function* () {
      const first = some(300)
      yield* Effect.forEach(first, put)
      agrees(yield* compared, first)

      yield* TestClock.adjust("2 seconds")
      const replaced = some(10, 2)
      yield* Effect.forEach(replaced, put)
      yield* put({ ...first[20]!, space: "another" })
      yield* put(product(500, [1, 0, 0, 0, 0, 0, 0, 1]))
      yield* TestClock.adjust("2 seconds")
      const now = [...state.stored.values()].filter((p) => p.space === space)
      expect(now).toHaveLength(300)
      agrees(yield* compared, now)

      for (const id of ["p-000", "p-001", "p-299"]) state.stored.delete(id)
      yield* TestClock.adjust("11 minutes")
      agrees(
        yield* compared,
        [...state.stored.values()].filter((p) => p.space === space),
      )
      expect(state.sweeps).toBe(2)
      // A new product reuses the row of a removed one. A single change moves the mean only a minute later.
      yield* put(product(501, [0, 1, 0, 0, 0, 0, 1, 1]))
      yield* TestClock.adjust("2 seconds")
      expect((yield* compared).map(({ product_id }) => product_id)).toContain("p-501")
      yield* TestClock.adjust("2 minutes")
      agrees(
        yield* compared,
        [...state.stored.values()].filter((p) => p.space === space),
      )
    }).pipe(Effect.provide(layer(1_000)))
  },
)

effectTest("no clock of another program hides a change, and a removed product leaves within 5 s", () => {
  const { layer, put, state } = world()
  return Effect.gen(function* () {
    const ids = Effect.map(compared, (found) => found.map(({ product_id }) => product_id))
    yield* Effect.forEach(some(20), put)
    expect(yield* ids).toHaveLength(20)
    yield* TestClock.adjust("3 minutes")
    expect(yield* ids).toHaveLength(20)

    // Its stamp is an hour ahead. Seen once, it is newer than every change of the next hour.
    yield* put(product(600, [1, 0, 0, 0, 0, 0, 0, 1]))
    const ahead = state.stored.get("p-600")!
    state.stored.set("p-600", { ...ahead, updated_at: ahead.updated_at + 3_600_000 })
    yield* TestClock.adjust("2 seconds")
    expect(yield* ids).toContain("p-600")
    yield* put(product(601, [0, 1, 0, 0, 0, 0, 1, 1]))
    state.stored.delete("p-003")
    const stored = state.stored.get("p-004")!
    state.stored.set("p-004", { ...stored, product_name: "behind", updated_at: 1 })
    yield* TestClock.adjust("2 seconds")
    yield* ids
    yield* TestClock.adjust("3 seconds")
    const found = yield* ids
    expect(found).toContain("p-601")
    expect(found).not.toContain("p-003")
    const described = yield* Effect.flatMap(Catalogue, ({ describe }) => describe(["p-004"]))
    expect(described.get("p-004")?.product_name).toBe("behind")
    expect(state.sweeps).toBe(1)
    // Without a difference nothing is compared one by one.
    const { comparisons } = state
    yield* TestClock.adjust("1 minute")
    yield* ids
    expect(state.comparisons).toBe(comparisons)
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest("slow comparisons and a long read of all products delay no removal beyond 5 s", () => {
  const { layer, put, state } = world()
  return Effect.gen(function* () {
    /** A request waits for a slow refresh for 250 ms. */
    const request = Effect.gen(function* () {
      const fiber = yield* Effect.fork(compared)
      yield* TestClock.adjust("250 millis")
      return (yield* Fiber.join(fiber)).map(({ product_id }) => product_id)
    })
    const isGoneInTime = (id: string) =>
      Effect.gen(function* () {
        expect(yield* request).toContain(id)
        state.stored.delete(id)
        for (let requests = 1; requests < 20; requests++) yield* request
        expect(yield* request).not.toContain(id)
      })
    yield* Effect.forEach(some(20), put)
    yield* compared
    state.delay = "900 millis"
    for (let n = 0; n < 3; n++) yield* isGoneInTime(`p-00${n}`)
    state.delay = Duration.zero
    state.readingDelay = "10 seconds"
    yield* TestClock.adjust("11 minutes")
    yield* request
    yield* isGoneInTime("p-010")
    expect(state.sweeps).toBe(2)
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest("an unavailable product is not found but counts in the mean; a deleted one does neither", () => {
  const { layer, put, state } = world()
  return Effect.gen(function* () {
    const catalogue = yield* Catalogue
    const all = some(200)
    yield* Effect.forEach(all, put)
    yield* compared
    yield* TestClock.adjust("2 seconds")
    const soldOut = all.slice(0, 20).map((p) => ({ ...p, available: false }))
    yield* Effect.forEach(soldOut, put)
    for (const p of all.slice(20, 40)) yield* putDeleted(state, p)
    yield* TestClock.adjust("2 seconds")
    const found = yield* compared
    // A tenth of the catalogue has changed, so the mean has moved.
    const wanted = expected([...soldOut, ...all.slice(40)], direction).filter(
      ({ product_id }) => !soldOut.some((p) => p.product_id === product_id),
    )
    expect(found.map(({ product_id }) => product_id)).toEqual(wanted.map(({ product_id }) => product_id))
    for (const [i, { similarity }] of found.entries())
      expect(similarity).toBeCloseTo(wanted[i]!.similarity, 5)
    expect((yield* catalogue.describe(["p-000"])).get("p-000")?.available).toBe(false)
    expect((yield* catalogue.centred("p-000"))?.length).toBe(dimensions)
    expect(yield* catalogue.centred("p-020")).toBeUndefined()
    // The stamps of deleted products stay equal: nothing is compared one by one.
    const { comparisons } = state
    yield* TestClock.adjust("1 minute")
    yield* compared
    expect(state.comparisons).toBe(comparisons)
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest("an attribute is known as long as a product has it", () => {
  const { layer, put, state } = world()
  return Effect.gen(function* () {
    const catalogue = yield* Catalogue
    const [first, second] = some(2)
    const unknown = Effect.zipRight(
      TestClock.adjust("2 seconds"),
      catalogue.unknownAttributes(["price", "size"]),
    )
    yield* put({ ...first!, attributes: { price: 1, size: "M" } })
    yield* put({ ...second!, attributes: { price: 2 } })
    expect(yield* unknown).toEqual([])
    yield* put({ ...first!, attributes: { price: 3 } })
    expect(yield* unknown).toEqual(["size"])
    yield* put({ ...second!, space: "another" })
    expect(yield* unknown).toEqual(["size"])
    yield* putDeleted(state, first!)
    expect(yield* unknown).toEqual(["price", "size"])
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest("among equal scores the smaller id comes first, also at the limit", () => {
  const { layer, put } = world()
  return Effect.gen(function* () {
    const twins = [3, 1, 2].map((id) => product(id, [1, 0, 0, 0, 0, 0, 0, 0]))
    yield* Effect.forEach([...twins, product(9, [0, 1, 0, 0, 0, 0, 0, 0])], put)
    const catalogue = yield* Catalogue
    const asked = Float32Array.from([1, 0, 0, 0, 0, 0, 0, 0])
    const found = yield* catalogue.search(asked, { limit: 2 })
    expect(found.map(({ product_id }) => product_id)).toEqual(["p-001", "p-002"])
    const bonus = { of: (id: string) => (id === "p-009" ? 2 : 0) }
    const [best] = yield* catalogue.search(asked, { limit: 1, bonus })
    expect(best).toMatchObject({ product_id: "p-009", bonus: 2 })
    expect(best!.score).toBe(best!.similarity + 2)
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest("answers from memory while the store is down, but fails before the first load", () => {
  const { layer, put, state } = world()
  return Effect.gen(function* () {
    yield* Effect.forEach(some(5), put)
    state.down = true
    expect(Either.isLeft(yield* Effect.either(compared))).toBe(true)
    state.down = false
    expect(yield* compared).toHaveLength(5)
    state.down = true
    yield* TestClock.adjust("1 hour")
    expect(yield* compared).toHaveLength(5)
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest("without a vector index in the store all products are held in memory", () => {
  const { layer, put } = world()
  return Effect.gen(function* () {
    const many = some(90)
    yield* Effect.forEach(many.slice(0, 40), put)
    agrees(yield* compared, many.slice(0, 40))
    yield* Effect.forEach(many.slice(40, 70), put)
    yield* TestClock.adjust("2 seconds")
    agrees(yield* compared, many.slice(0, 70))
    yield* Effect.forEach(many.slice(70), put)
    yield* TestClock.adjust("2 seconds")
    agrees(yield* compared, many)
  }).pipe(Effect.provide(layer(50)))
})

effectTest("with many products the vector index of the store is searched, if there is one", () => {
  const { layer, put, state } = world()
  return Effect.gen(function* () {
    const catalogue = yield* Catalogue
    const many = some(60)
    yield* Effect.forEach(many.slice(0, 40), put)
    agrees(yield* compared, many.slice(0, 40))
    state.hasIndex = true
    yield* Effect.forEach(many.slice(40), put)
    yield* TestClock.adjust("2 seconds")
    yield* compared
    expect(yield* catalogue.products).toBeUndefined()
    const without = new Set(["p-000", "p-002"])
    const found = yield* catalogue.search(direction, { limit: 5, filter: { categories: ["even"] }, without })
    expect(found).toHaveLength(5)
    expect(found.map(({ score }) => score)).toEqual(found.map(({ score }) => score).toSorted((a, b) => b - a))
    for (const { category, centred, product_id, similarity } of found) {
      expect([category, without.has(product_id)]).toEqual(["even", false])
      expect(similarity).toBeCloseTo(
        centred().reduce((sum, x, i) => sum + x * direction[i]!, 0),
        6,
      )
    }
    expect((yield* catalogue.describe(["p-003", "nowhere"])).get("p-003")?.product_name).toBe("Product 3")
    expect(Math.hypot(...(yield* catalogue.centred("p-003"))!)).toBeCloseTo(1, 6)
    expect(yield* catalogue.centred("nowhere")).toBeUndefined()
    // A product with an extra is found, wherever it is.
    const [extra] = yield* catalogue.search(direction, { limit: 1, extra: new Map([["p-059", 3]]) })
    expect(extra).toMatchObject({ product_id: "p-059", score: extra!.similarity + 3 })
    // An outage of the index is one of the catalogue.
    state.hasIndex = false
    expect(yield* Effect.flip(compared)).toMatchObject({ reason: "unavailable" })

    // Below the limit again, the catalogue returns to memory.
    for (const { product_id } of many.slice(40)) state.stored.delete(product_id)
    yield* TestClock.adjust("11 minutes")
    agrees(yield* compared, many.slice(0, 40))
  }).pipe(Effect.provide(layer(50)))
})

effectTest("vectors that can't be used are left out", () => {
  const { layer, put } = world()
  return Effect.gen(function* () {
    const good = some(20)
    yield* Effect.forEach(good, put)
    yield* put(product(900, [1, 2, 3]))
    yield* put(product(901, Array<number>(dimensions).fill(0)))
    yield* put(product(902, [Number.NaN, 1, 1, 1, 1, 1, 1, 1]))
    agrees(yield* compared, good)
    yield* TestClock.adjust(Duration.minutes(2))
    yield* put(product(3, [1, 2]))
    yield* TestClock.adjust(Duration.minutes(2))
    agrees(
      yield* compared,
      good.filter(({ product_id }) => product_id !== "p-003"),
    )
  }).pipe(Effect.provide(layer(1_000)))
})

effectTest("concurrent searches get the same results as alone, in the order of their requests", () => {
  const { layer, put } = world()
  return Effect.gen(function* () {
    const catalogue = yield* Catalogue
    yield* Effect.forEach(some(300), put)
    const directions = fc.sample(values, { numRuns: 30, seed: 7 }).map((v) => Float32Array.from(unit([...v])))
    const search = (direction: Float32Array, index: number) =>
      Effect.map(
        catalogue.search(direction, {
          limit: 5 + index,
          filter: index % 2 === 0 ? { categories: ["even"] } : {},
        }),
        Arr.map(({ product_id, score }) => ({ product_id, score })),
      )
    const alone = yield* Effect.forEach(directions, search)
    const order: Array<number> = []
    const givenUp = yield* Effect.fork(search(directions[0]!, 0))
    const broken = yield* Effect.fork(
      catalogue.search(directions[0]!, {
        limit: 5,
        bonus: {
          of: () => {
            throw new Error("a bug")
          },
        },
      }),
    )
    const asked = yield* Effect.fork(
      Effect.forEach(
        directions,
        (direction, index) => Effect.tap(search(direction, index), () => order.push(index)),
        { concurrency: "unbounded" },
      ),
    )
    yield* Effect.yieldNow()
    yield* Fiber.interrupt(givenUp)
    expect(yield* Fiber.join(asked)).toEqual(alone)
    expect((yield* Fiber.await(broken))._tag).toBe("Failure")
    expect(order).toHaveLength(30)
    // Eight searches run together, so a search can overtake no more than the others of its pass and the next.
    expect(order.every((index, place) => Math.abs(index - place) < 16)).toBe(true)
  }).pipe(Effect.provide(layer(1_000)))
})
