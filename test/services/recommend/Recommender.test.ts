/** Popular products for users without taste, whatever ids clients invent. */
import { expect } from "bun:test"
import { Effect, Layer, TestClock, TestContext } from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import type { Product } from "../../../src/services/model/Product.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
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
const products = [product("c", "odd"), product("a", "odd"), product("b", "even"), product("unseen", "odd")]
const counts: Readonly<Record<string, number>> = { a: 2, b: 5, c: 2, invented: 1_000 }

/** The services around the recommender; those that it must not need are absent. */
const world = (inMemory: boolean) => {
  const state = { lookups: 0, described: 0 }
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
    Layer.mock(InteractionLog, { productEvents: () => Effect.succeed([]) }),
    Layer.mock(UserEmbeddings, { load: () => Effect.succeed(new Map()) }),
    Layer.mock(EventVectors, { space: "test", remembers: () => false }),
    EmbeddingConfig.layer({}),
  )
  return { state, layer: recommender.pipe(Layer.provide(ports), Layer.provideMerge(TestContext.TestContext)) }
}

const popular = (user: string, limit: number, category?: string) =>
  Effect.gen(function* () {
    const { recommend } = yield* Recommender
    const filter = { categories: category === undefined ? undefined : [category] }
    const options = { limit, filter, exclude: "none", fallback: "popular" } as const
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
    expect(state.lookups).toBe(products.length)
    yield* TestClock.adjust("3 seconds")
    yield* popular("u-4", 10)
    expect(state.lookups).toBe(2 * products.length)
  }).pipe(Effect.provide(layer))
})

effectTest("a catalogue that is too large for memory gives the same ranking", () =>
  Effect.gen(function* () {
    expect(yield* popular("u-1", 10)).toEqual(["b", "a", "c"])
    expect(yield* popular("u-2", 10, "odd")).toEqual(["a", "c"])
  }).pipe(Effect.provide(world(false).layer)),
)
