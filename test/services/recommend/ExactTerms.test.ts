/** Recommendations with all terms of the score equal a comparison of every product, and deleted products lose their pairs. */
import { expect } from "bun:test"
import { type ConfigError, Effect, Either, Layer, Runtime } from "effect"
import fc from "fast-check"
import type { Ports } from "../../../src/layers/Stack.ts"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import type * as Interaction from "../../../src/services/model/Interaction.ts"
import { mostNeighbours } from "../../../src/services/model/Together.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import type { DependencyDown } from "../../../src/services/ports/Dependencies.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import { ProductPairs } from "../../../src/services/ports/ProductPairs.ts"
import { ProductTally } from "../../../src/services/ports/ProductTally.ts"
import * as Catalogue from "../../../src/services/recommend/Catalogue.ts"
import { readTastes } from "../../../src/services/recommend/EmbeddingReads.ts"
import * as PairCounter from "../../../src/services/recommend/PairCounter.ts"
import { Popularity } from "../../../src/services/recommend/Popularity.ts"
import { removeProducts } from "../../../src/services/recommend/ProductWriter.ts"
import * as Recommender from "../../../src/services/recommend/Recommender.ts"
import * as EmbeddingUpdater from "../../../src/services/update/EmbeddingUpdater.ts"
import { EventVectors, layer as eventVectors } from "../../../src/services/update/EventVectors.ts"
import { delivery } from "../../support/delivery.ts"
import { layerSuite } from "../../support/effect.ts"
import { embeddingOf, product } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import * as stacks from "../../support/stacks.ts"

/** More than the recommender ranks at first. */
const productCount = 250
/** The first of the products that the generated events leave alone. */
const unused = 240
const idOf = (n: number) => `t-${n}`
const colourOf = (n: number) => ["red", "green", "blue"][n % 3]!
const categoryOf = (n: number) => (n % 2 === 0 ? "even" : "odd")
const isAvailable = (n: number) => n % 11 !== 7
const vectors = Array.from({ length: productCount }, (_, n) =>
  Float32Array.from({ length: 384 }, (_, i) => Math.sin((n + 1) * (i + 1) * 0.37)),
)
const vectorOf = (n: number) => vectors[n]!
const interactions = (id: string) => (Number(id.slice(2)) * 7) % 40
const mostInteractions = 40
const began = Date.UTC(2026, 0)
const day = 86_400_000

const world = fc.record({
  /** Few products are common, so that pairs recur. Purchases are frequent. */
  events: fc.array(
    fc.record({
      user: fc.nat(2),
      product: fc.oneof(fc.nat(15), fc.nat(unused - 1)),
      buys: fc.boolean(),
      day: fc.nat(60),
    }),
    { minLength: 20, maxLength: 60, size: "max" },
  ),
  questions: fc.array(
    fc.record({
      limit: fc.oneof(fc.integer({ min: 1, max: 15 }), fc.integer({ min: 90, max: 200 })),
      exclude: fc.constantFrom("none" as const, "purchased" as const, "seen" as const),
      excluded: fc.array(fc.nat(15), { maxLength: 5 }),
      category: fc.option(fc.constantFrom("even", "odd"), { nil: undefined }),
      colour: fc.option(fc.constantFrom("red", "green", "blue"), { nil: undefined }),
    }),
    { minLength: 4, maxLength: 4 },
  ),
})
type World = typeof world extends fc.Arbitrary<infer A> ? A : never
type Event = World["events"][number]
type Question = World["questions"][number]

const storeProducts = Effect.gen(function* () {
  const { space } = yield* EventVectors
  yield* (yield* ProductEmbeddings).upsert(
    Array.from({ length: productCount }, (_, n) => ({
      product_id: idOf(n),
      product_name: null,
      category: categoryOf(n),
      available: isAvailable(n),
      attributes: { colour: colourOf(n) },
      embedding: vectorOf(n),
      space,
      text: null,
    })),
  )
  yield* (yield* Catalogue.Catalogue).invalidate
})

/** Records and applies events, and counts their pairs. */
const act = Effect.fnUntraced(function* (events: ReadonlyArray<Interaction.Interaction>) {
  const log = yield* InteractionLog
  const facts = { idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt: Date.now() }
  const appended = yield* log.append(events.map((interaction) => ({ interaction, ...facts })))
  yield* (yield* EmbeddingUpdater.EmbeddingUpdater).update(
    appended.flatMap((one) => {
      if (one._tag !== "Recorded") return []
      const { id, interaction } = one
      const { recordedAt } = facts
      return [
        {
          delivery: delivery(encodeMessage(interaction), { recordedAt, logId: id }),
          decoded: Either.right(interaction),
        },
      ]
    }),
  )
  yield* (yield* PairCounter.PairCounter).catchUp
})

const overGreatest = (values: ReadonlyMap<string, number>) => {
  const most = Math.max(0, ...values.values())
  return (id: string) => (most === 0 ? 0 : (values.get(id) ?? 0) / most)
}

/** `together`, straight from the formula of docs/concepts.md and the stored pairs. */
const nearOf = Effect.fnUntraced(function* (recent: ReadonlyArray<{ readonly product_id: string | null }>) {
  const { load } = yield* ProductPairs
  const stored = yield* load(
    recent.flatMap(({ product_id }) => product_id ?? []),
    mostNeighbours,
  )
  const near = new Map<string, number>()
  for (const [rank, { product_id }] of recent.entries())
    for (const [id, units] of stored.get(product_id ?? "")?.pairs ?? []) {
      const t = units / 5 ** 9
      const part = (0.8 ** rank * t ** 2) / ((t + 3) * Math.max(1, interactions(product_id!)))
      near.set(id, (near.get(id) ?? 0) + part)
    }
  return near
})

/** Every product that may be recommended, with its score, greatest first. */
const byComparison = Effect.fnUntraced(function* (
  user: string,
  events: ReadonlyArray<Event>,
  { category, colour, exclude, excluded }: Question,
) {
  const sources = {
    catalogue: yield* Catalogue.Catalogue,
    config: yield* EmbeddingConfig.EmbeddingConfig,
    vectors: yield* EventVectors,
  }
  const embedding = (yield* embeddingOf(user))!
  const [read] = yield* readTastes(sources, [embedding])
  const near = overGreatest(yield* nearOf(embedding.recent))
  const purchases = new Map<string, number>()
  for (const { buys, day, product } of events)
    if (buys) {
      const faded = Math.exp(sources.config.lambda * day)
      purchases.set(idOf(product), (purchases.get(idOf(product)) ?? 0) + faded)
    }
  const bought = overGreatest(purchases)
  const seen = new Set(events.map(({ product }) => product))
  const left = Array.from({ length: productCount }, (_, n) => n).filter(
    (n) =>
      isAvailable(n) &&
      (category === undefined || categoryOf(n) === category) &&
      (colour === undefined || colourOf(n) === colour) &&
      !excluded.includes(n) &&
      !(exclude === "seen" && seen.has(n)) &&
      !(exclude === "purchased" && purchases.has(idOf(n))),
  )
  const mean = yield* sources.catalogue.mean
  const { direction } = read!.taste!
  const scores = left.map((n) => {
    const vector = Vector.normalise(vectorOf(n)).map((value, i) => value - mean[i]!)
    const similarity = Vector.dot(direction, vector) / Vector.norm(vector)
    const popular = (0.2 * Math.log1p(interactions(idOf(n)))) / Math.log1p(mostInteractions)
    const again = exclude === "none" ? bought(idOf(n)) : 0
    return [idOf(n), similarity + popular + near(idOf(n)) + again] as const
  })
  return scores.toSorted(([, a], [, b]) => b - a)
})

let runs = 0
const check = Effect.fnUntraced(function* ({ events, questions }: World) {
  const run = ++runs
  const name = (user: number) => `u-${run}-${user}`
  yield* act(
    events.map((event, n) =>
      product(
        name(event.user),
        event.buys ? "product_purchase" : "product_view",
        idOf(event.product),
        new Date(began + event.day * day + n).toISOString(),
      ),
    ),
  )
  const { recommend } = yield* Recommender.Recommender
  const user = events[0]!.user
  const own = events.filter((event) => event.user === user)
  for (const question of questions) {
    const { category, colour, exclude, excluded, limit } = question
    const { items } = yield* recommend(name(user), {
      limit,
      exclude,
      excludeIds: excluded.map(idOf),
      fallback: "none",
      filter: {
        categories: category === undefined ? undefined : [category],
        conditions: colour === undefined ? undefined : { colour },
      },
    })
    const expected = yield* byComparison(name(user), own, question)
    const scoreOf = new Map(expected)
    expect(new Set(items.map(({ product_id }) => product_id)).size).toBe(items.length)
    // Equal scores may be rounded apart, so that places are compared by score.
    const wanted = expected.slice(0, limit).map(([, score]) => expect.closeTo(score, 4))
    expect(items.map(({ score }) => score)).toEqual(wanted)
    expect(items.map(({ product_id }) => scoreOf.get(product_id))).toEqual(wanted)
  }
})

const fixedPopularity = Layer.mock(Popularity, {
  counts: Effect.succeed({ of: interactions, decayed: interactions, most: mostInteractions }),
})

/** Rows are settled at once on MySQL too. */
const settledAtOnce = Layer.effect(
  ProductTally,
  Effect.gen(function* () {
    return { ...(yield* ProductTally), settled: (yield* InteractionLog).maxId }
  }),
)

const suite = (
  name: string,
  numRuns: number,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
) =>
  layerSuite(
    name,
    Layer.mergeAll(
      Recommender.layer.pipe(Layer.provideMerge(Catalogue.layer), Layer.provide(fixedPopularity)),
      EmbeddingUpdater.layer,
      PairCounter.layer.pipe(Layer.provide(settledAtOnce)),
    ).pipe(Layer.provideMerge(eventVectors), Layer.provideMerge(stack)),
    (it) => {
      it(
        "the recommended products are the first of all products by their whole score",
        () =>
          Effect.gen(function* () {
            yield* storeProducts
            const runtime = yield* Effect.runtime<Effect.Effect.Context<ReturnType<typeof check>>>()
            const property = fc.asyncProperty(world, (one) => Runtime.runPromise(runtime)(check(one)))
            yield* Effect.promise(() => fc.assert(property, { numRuns, endOnFailure: true }))
          }),
        60_000,
      )

      it("the pairs of a deleted product go with it, and it is not recommended any more", () =>
        Effect.gen(function* () {
          const view = (n: number, user: string, second: number) =>
            product(user, "product_view", idOf(n), new Date(began + second * 1_000).toISOString())
          yield* act([view(unused, "v", 1), view(unused + 4, "v", 2), view(unused + 2, "v", 3)])
          const { load } = yield* ProductPairs
          expect([...(yield* load([idOf(unused), idOf(unused + 2)])).keys()].toSorted()).toEqual([
            idOf(unused),
            idOf(unused + 2),
          ])
          yield* removeProducts([idOf(unused + 2)])
          yield* (yield* Catalogue.Catalogue).invalidate
          expect([...(yield* load([idOf(unused), idOf(unused + 2)])).keys()]).toEqual([idOf(unused)])
          const { recommend } = yield* Recommender.Recommender
          const { items } = yield* recommend("v", { limit: 300, exclude: "none", fallback: "none" })
          expect(items.map(({ product_id }) => product_id)).not.toContain(idOf(unused + 2))
          // The greatest product that is left has the whole weight.
          expect(Math.max(...items.map(({ together }) => together))).toBeCloseTo(1, 6)
        }))
    },
  )

suite("recommendations on the embedded stack", 12, stacks.embedded({ EMBEDDING_DIMENSIONS: "384" }))
withServers(["mysql", "mongodb", "rabbitmq"], "on real servers", () =>
  suite("recommendations", 2, stacks.external({ EMBEDDING_DIMENSIONS: "384" })),
)
