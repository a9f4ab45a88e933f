/** Popular products for users without taste, whatever ids clients invent. */
import { expect } from "bun:test"
import { Effect, Layer, TestClock, TestContext } from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import type { ProductId } from "../../../src/services/model/Interaction.ts"
import type { Product } from "../../../src/services/model/Product.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { ProductPairs } from "../../../src/services/ports/ProductPairs.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import { Catalogue } from "../../../src/services/recommend/Catalogue.ts"
import { Popularity } from "../../../src/services/recommend/Popularity.ts"
import { Recommender, layer as recommender } from "../../../src/services/recommend/Recommender.ts"
import { EventVectors } from "../../../src/services/update/EventVectors.ts"
import { effectTest } from "../../support/effect.ts"

const product = (product_id: string, category: string): Product => ({
  product_id,
  product_name: product_id,
  category,
  available: true,
  attributes: {},
})
const few = [product("c", "odd"), product("a", "odd"), product("b", "even"), product("unseen", "odd")]
/** In the order of their popularity. */
const many = Array.from({ length: 2_000 }, (_, n) => product(`m-${String(n).padStart(4, "0")}`, "many"))
const counts: Readonly<Record<string, number>> = {
  ...{ a: 2, b: 5, c: 2, invented: 1_000 },
  ...Object.fromEntries(many.map(({ product_id }, place) => [product_id, 5_000 - place])),
}

/** The services around the recommender; those that it must not need are absent. */
const world = (
  inMemory: boolean,
  products: ReadonlyArray<Product> = few,
  seen: (product: ProductId) => boolean = () => false,
) => {
  const state = { lookups: 0, described: 0, asked: 0 }
  const decayed = (id: string) => {
    state.lookups += 1
    return counts[id] ?? 0
  }
  const ranking = Object.entries(counts)
    .map(([product_id, decayed]) => ({ product_id, decayed }))
    .sort((x, y) => y.decayed - x.decayed || (x.product_id < y.product_id ? -1 : 1))
  const ports = Layer.mergeAll(
    Layer.mock(Catalogue, {
      space: "test",
      products: Effect.succeed(inMemory ? products : undefined),
      describe: (ids) =>
        Effect.sync(() => {
          state.described += ids.length
          return new Map(products.filter((p) => ids.includes(p.product_id)).map((p) => [p.product_id, p]))
        }),
    }),
    Layer.mock(Popularity, {
      counts: Effect.succeed({ of: () => 0, decayed, most: 5 }),
      ranking: inMemory ? Effect.dieMessage("sorts all ids") : Effect.succeed(ranking),
    }),
    Layer.mock(InteractionLog, {
      pruned: {} as InteractionLog["Type"]["pruned"],
      productEvents: (_, { among }) =>
        Effect.sync(() => {
          state.asked += among.length
          const found = among.filter(seen)
          return found.map((product_id) => ({ product_id, event_type: "product_view", events: 1 }))
        }),
    }),
    Layer.mock(UserEmbeddings, { load: () => Effect.succeed(new Map()) }),
    Layer.mock(EventVectors, { space: "test", remembers: () => false }),
    Layer.mock(ProductPairs, {}),
    EmbeddingConfig.layer({}),
  )
  return { state, layer: recommender.pipe(Layer.provide(ports), Layer.provideMerge(TestContext.TestContext)) }
}

const popular = (user: string, limit: number, category?: string, exclude: "none" | "seen" = "none") =>
  Effect.gen(function* () {
    const { recommend } = yield* Recommender
    const filter = { categories: category === undefined ? undefined : [category] }
    const options = { limit, filter, exclude, fallback: "popular" } as const
    const { items } = yield* recommend(user, options)
    return items.map(({ product_id }) => product_id)
  })

effectTest("known products are ranked by their counts, ties by id, and users share the ranking", () => {
  const { layer, state } = world(true)
  return Effect.gen(function* () {
    expect(yield* popular("u-1", 10)).toEqual(["b", "a", "c"])
    expect(yield* popular("u-2", 1)).toEqual(["b"])
    expect(yield* popular("u-3", 10, "odd")).toEqual(["a", "c"])
    // As many as the catalogue has, not as many as clients have named.
    expect(state.lookups).toBe(few.length)
    yield* TestClock.adjust("3 seconds")
    yield* popular("u-4", 10)
    expect(state.lookups).toBe(2 * few.length)
  }).pipe(Effect.provide(layer))
})

effectTest("a catalogue that is too large for memory gives the same ranking", () =>
  Effect.gen(function* () {
    expect(yield* popular("u-1", 10)).toEqual(["b", "a", "c"])
    expect(yield* popular("u-2", 10, "odd")).toEqual(["a", "c"])
  }).pipe(Effect.provide(world(false).layer)),
)

effectTest(
  "the log is asked about the first places alone, and about more until enough products are left",
  () => {
    const ids = many.map(({ product_id }) => product_id)
    const unseen = ids.filter((_, place) => place % 150 === 0)
    const light = world(true, many, (id) => id === ids[0])
    const heavy = world(true, many, (id) => !unseen.includes(id))
    return Effect.gen(function* () {
      const first = (limit: number) => popular("u-1", limit, undefined, "seen")
      expect(yield* Effect.provide(first(2), light.layer)).toEqual(ids.slice(1, 3))
      expect(light.state.asked).toBeLessThan(100)
      expect(yield* Effect.provide(first(10), heavy.layer)).toEqual(unseen.slice(0, 10))
      expect(yield* Effect.provide(first(20), heavy.layer)).toEqual(unseen)
    })
  },
)

effectTest("a similarity is a cosine: what rounding adds above 1 is left out, also of the score", () => {
  const centred = () => new Float32Array(1)
  const found = { ...product("a", "odd"), similarity: 1.0000000065, score: 1.0000000065, bonus: 0, centred }
  const catalogue = Layer.mock(Catalogue, {
    space: "test",
    centred: () => Effect.succeed(new Float32Array(1)),
    search: () => Effect.succeed([found]),
  })
  const ports = Layer.mergeAll(
    catalogue,
    Layer.mock(Popularity, {}),
    Layer.mock(InteractionLog, { pruned: {} as InteractionLog["Type"]["pruned"] }),
    Layer.mock(UserEmbeddings, {}),
    Layer.mock(EventVectors, { space: "test", remembers: () => false }),
    Layer.mock(ProductPairs, { load: () => Effect.succeed(new Map()) }),
    EmbeddingConfig.layer({}),
  )
  return Effect.gen(function* () {
    const { similarProducts } = yield* Recommender
    expect(yield* similarProducts("b", { limit: 1 })).toMatchObject([{ similarity: 1, score: 1 }])
  }).pipe(Effect.provide(Layer.provide(recommender, ports)))
})
