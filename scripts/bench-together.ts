/**
 * Measures what products that people interact with together cost: the CPU of counting an event, and of a recommendation
 * with and without them. Everything is in one process, on the embedded stack in a temporary folder.
 *
 *     bun scripts/bench-together.ts [products=10000] [users=1000]
 */
import { Array as Arr, Effect, Either, Layer } from "effect"
import * as EmbeddingConfig from "../src/services/EmbeddingConfig.ts"
import * as Interaction from "../src/services/model/Interaction.ts"
import { encodeMessage } from "../src/services/model/UpdateMessage.ts"
import { InteractionLog } from "../src/services/ports/InteractionLog.ts"
import { ProductEmbeddings } from "../src/services/ports/ProductEmbeddings.ts"
import * as Catalogue from "../src/services/recommend/Catalogue.ts"
import * as PairCounter from "../src/services/recommend/PairCounter.ts"
import * as Popularity from "../src/services/recommend/Popularity.ts"
import * as Recommender from "../src/services/recommend/Recommender.ts"
import * as EmbeddingUpdater from "../src/services/update/EmbeddingUpdater.ts"
import { EventVectors, layer as eventVectors } from "../src/services/update/EventVectors.ts"
import { delivery } from "../test/support/delivery.ts"
import { embedded } from "../test/support/stacks.ts"

const products = Number(process.argv[2] ?? 10_000)
const users = Number(process.argv[3] ?? 1_000)
const eventsEach = 30
const rounds = 5
const asked = 200
const began = Date.now() - 30 * 86_400_000

/** The same numbers in every run (mulberry32). */
let state = 42
const random = () => {
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
}

const storeProducts = Effect.gen(function* () {
  const { space } = yield* EventVectors
  const { upsert } = yield* ProductEmbeddings
  for (const page of Arr.chunksOf(Arr.range(0, products - 1), 500))
    yield* upsert(
      page.map((n) => ({
        product_id: `p-${n}`,
        embedding: Float32Array.from({ length: 1536 }, () => random() - 0.4),
        product_name: `Product ${n}`,
        category: null,
        space,
        text: null,
      })),
    )
})

/** Records and applies events. A third of the products is popular. */
const act = Effect.gen(function* () {
  const log = yield* InteractionLog
  const { update } = yield* EmbeddingUpdater.EmbeddingUpdater
  const recordedAt = Date.now()
  const facts = { idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt }
  for (let n = 0; n < eventsEach; n++)
    for (const page of Arr.chunksOf(Arr.range(0, users - 1), 200)) {
      const interactions = page.map((user) =>
        Interaction.make({
          user_id: `u-${user}`,
          event_type: "product_view",
          product_id: `p-${Math.floor(random() ** 2 * products)}`,
          occurred_at: new Date(began + n * 60_000 + user).toISOString(),
          metadata: {},
        }),
      )
      const appended = yield* log.append(interactions.map((interaction) => ({ interaction, ...facts })))
      yield* update(
        appended.flatMap((one) =>
          one._tag === "Recorded"
            ? [
                {
                  delivery: delivery(encodeMessage(one.interaction), { recordedAt, logId: one.id }),
                  decoded: Either.right(one.interaction),
                },
              ]
            : [],
        ),
      )
    }
})

const cpuOf = Effect.fnUntraced(function* <A, E, R>(effect: Effect.Effect<A, E, R>) {
  const before = process.cpuUsage()
  yield* effect
  const { system, user } = process.cpuUsage(before)
  return (system + user) / 1_000
})
const median = (values: ReadonlyArray<number>) => values.toSorted((a, b) => a - b)[values.length >> 1]!

const recommending = (togetherWeight: number) =>
  Effect.provide(
    Recommender.Recommender,
    Layer.fresh(Recommender.layer).pipe(Layer.provide(EmbeddingConfig.layer({ togetherWeight }))),
  )

const program = Effect.gen(function* () {
  yield* storeProducts
  yield* act
  const { catchUp } = yield* PairCounter.PairCounter
  const counting = yield* cpuOf(catchUp)
  console.log(`${products} products, ${users * eventsEach} events`)
  console.log(`counting pairs: ${((1_000 * counting) / (users * eventsEach)).toFixed(0)} µs of CPU an event`)
  const variants = [
    { name: "TOGETHER_WEIGHT=1", weight: 1, times: [] as number[] },
    { name: "TOGETHER_WEIGHT=0", weight: 0, times: [] as number[] },
  ]
  for (let round = 0; round <= rounds; round++)
    for (const { times, weight } of variants) {
      const { recommend } = yield* recommending(weight)
      const all = Effect.forEach(
        Arr.range(0, asked - 1),
        (user) => recommend(`u-${user}`, { limit: 10, exclude: "purchased", fallback: "none" }),
        { discard: true },
      )
      const millis = yield* cpuOf(all)
      // The first round loads the catalogue and the counts.
      if (round > 0) times.push(millis / asked)
    }
  for (const { name, times } of variants)
    console.log(`${name}: ${median(times).toFixed(2)} ms of CPU a recommendation`)
})

await Effect.runPromise(
  program.pipe(
    Effect.provide(
      Layer.mergeAll(
        Recommender.layer.pipe(Layer.provideMerge(Layer.merge(Catalogue.layer, Popularity.layer))),
        EmbeddingUpdater.layer,
        PairCounter.layer,
      ).pipe(Layer.provideMerge(eventVectors), Layer.provideMerge(embedded())),
    ),
    Effect.scoped,
  ),
)
