/**
 * Measures the catalogue in memory at its maximum size: time to load, memory, and the time of an exact search, alone and
 * with others, with the delay of other requests meanwhile.
 *
 *     bun scripts/bench-recommendations.ts [products=100000] [dimensions=1536]
 */
import { Effect, Layer, Stream } from "effect"
import * as EmbeddingConfig from "../src/services/EmbeddingConfig.ts"
import * as Vector from "../src/services/model/Vector.ts"
import { PhraseEmbedder } from "../src/services/ports/PhraseEmbedder.ts"
import { type ProductEmbedding, ProductEmbeddings } from "../src/services/ports/ProductEmbeddings.ts"
import * as Catalogue from "../src/services/recommend/Catalogue.ts"

const count = Number(process.argv[2] ?? 100_000)
const dimensions = Number(process.argv[3] ?? 1536)
const space = "bench"

/** The same numbers in every run (mulberry32). */
let state = 42
const random = () => {
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1
}
const vector = () => Vector.normalise(Float32Array.from({ length: dimensions }, () => random() + 0.3))
const product = (i: number): ProductEmbedding => ({
  product_id: `p-${i}`,
  product_name: `Product ${i}`,
  category: `category ${i % 20}`,
  available: true,
  attributes: {},
  embedding: vector(),
  space,
  text: null,
})

const ports = Layer.mergeAll(
  Layer.succeed(ProductEmbeddings, {
    load: () => Effect.succeed(new Map()),
    upsert: () => Effect.succeed([]),
    remove: () => Effect.succeed(new Set()),
    nearest: () => Effect.succeed([]),
    knownSince: () => Effect.succeed(new Map()),
    vectorsSince: () => Effect.succeed(new Map()),
    count: Effect.succeed(count),
    countInOtherSpaces: () => Effect.succeed(0),
    changed: () => Stream.empty,
    stampSum: () => Effect.succeed({ count: 0, sum: 0 }),
    stamps: () =>
      Stream.map(Stream.range(0, count - 1), (i) => ({ product_id: product(i).product_id, updated_at: 0 })),
    find: () => Effect.succeed([]),
    problems: () => Stream.empty,
    indexed: () => Effect.succeed([]),
    describe: () => Effect.succeed(new Map()),
    stream: () =>
      Stream.map(Stream.range(0, count - 1), (i) => ({ ...product(i), updated_at: 0, deleted: false })),
  }),
  Layer.succeed(PhraseEmbedder, { space, embed: () => Effect.succeed([]) }),
  EmbeddingConfig.layer({ dimensions }),
)

const quantile = (sorted: ReadonlyArray<number>, q: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]!.toFixed(1)
const report = (what: string, millis: Array<number>) => {
  const sorted = millis.toSorted((a, b) => a - b)
  console.log(
    `${what.padEnd(34)} p50 ${quantile(sorted, 0.5)} ms   p99 ${quantile(sorted, 0.99)} ms   n ${sorted.length}`,
  )
}

const program = Effect.gen(function* () {
  const before = process.memoryUsage().rss
  const started = performance.now()
  const catalogue = yield* Catalogue.Catalogue
  yield* catalogue.mean.pipe(Effect.retry({ times: 60 }))
  console.log(`${count} products of ${dimensions} dimensions`)
  console.log(
    `loaded in ${((performance.now() - started) / 1000).toFixed(1)} s (includes generating the vectors)`,
  )
  Bun.gc(true)
  const held = (process.memoryUsage().rss - before) / 2 ** 20
  console.log(
    `memory ${held.toFixed(0)} MiB, including vectors ${((count * dimensions * 4) / 2 ** 20).toFixed(0)} MiB`,
  )

  const bonus = { most: 0.2, of: () => 0.1 }
  const queries = Array.from({ length: 60 }, vector)
  const search = (direction: Float32Array) =>
    Effect.gen(function* () {
      const from = performance.now()
      yield* catalogue.search(direction, { limit: 10, bonus })
      return performance.now() - from
    })
  report("search", yield* Effect.forEach(queries, search))
  const delays: Array<number> = []
  let last = performance.now()
  const timer = setInterval(() => {
    const now = performance.now()
    delays.push(Math.max(0, now - last - 1))
    last = now
  }, 1)
  const cpu = process.cpuUsage()
  report("search, 8 at a time", yield* Effect.forEach(queries, search, { concurrency: 8 }))
  const { system, user } = process.cpuUsage(cpu)
  clearInterval(timer)
  report("delay of a timer during these", delays)
  console.log(`CPU per search ${((system + user) / 1000 / queries.length).toFixed(1)} ms`)
})

await Effect.runPromise(
  program.pipe(Effect.provide(Catalogue.layer.pipe(Layer.provide(ports))), Effect.scoped),
)
