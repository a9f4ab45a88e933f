/** Keeps the catalogue in memory up to date with the store. */
import { Array as Arr, Clock, Duration, Effect, Stream } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { ProductEmbeddings, StampSum } from "../ports/ProductEmbeddings.ts"
import * as Telemetry from "../Telemetry.ts"
import type { ProductRows } from "./CatalogueRows.ts"

type Products = ProductEmbeddings["Type"]

/** All stamps are compared this often, which finds removals. */
const compareEvery = Duration.seconds(3)
/** After a comparison the next one waits this many times its duration, so that it takes a tenth of the time at most. */
const restFactor = 9
/** Products read at once after a comparison: 3 MB at 1536 dimensions. */
const productsPerFind = 500
/** All products are read again this often, because another program may change a product and not its stamp. */
const reloadEvery = Duration.minutes(10)
/** Milliseconds between the `updated_at` of a write and the moment it becomes visible, at most. */
const stampTolerance = 5_000
/** Milliseconds by which the clocks of programs that write products differ, at most. */
const clockTolerance = 60_000

const recomputeMean = Effect.fnUntraced(function* (rows: ProductRows) {
  for (const _ of rows.recomputeMean()) yield* yieldToEventLoop
})

/** Reads all products, and removes those that the store no longer has. */
const reloadAll = Effect.fnUntraced(function* (products: Products, rows: ProductRows, now: number) {
  if (rows.tooLarge && (yield* products.count) > rows.limit) return
  rows.tooLarge = false
  const found = new Set<ProductId>()
  yield* Stream.runForEachWhile(products.stream(rows.space), (product) =>
    Effect.sync(() => {
      rows.put(product, now)
      found.add(product.product_id)
      return !rows.tooLarge
    }),
  )
  rows.keepOnly(found, now)
})

/**
 * Compares the stamps of all products with those in memory. This finds what `changed` cannot: removed products, and
 * changes that the clock of another program stamped too early. A stamp only has to differ.
 */
const compareStamps = Effect.fnUntraced(function* (products: Products, rows: ProductRows, now: number) {
  const existing = new Set<ProductId>()
  const differing: Array<ProductId> = []
  yield* Stream.runForEachChunk(products.stamps(rows.space), (stamps) =>
    Effect.sync(() => {
      for (const { product_id, updated_at } of stamps) {
        existing.add(product_id)
        if (rows.stamps.get(product_id) !== updated_at) differing.push(product_id)
      }
    }),
  )
  for (const ids of Arr.chunksOf(differing, productsPerFind))
    for (const product of yield* products.find(ids)) rows.put(product, now)
  rows.keepOnly(existing, now)
})

/** Reports how many products are left out, and one of them when the number changes. */
const makeReport = (rows: ProductRows) => {
  let reported = 0
  return Effect.suspend(() => {
    const { size } = rows.unusable
    Telemetry.set(Telemetry.unusableProducts, size)
    if (size === reported) return Effect.void
    reported = size
    const [example] = rows.unusable
    return Effect.annotateLogs(Effect.logWarning("catalogue.unusable"), {
      count: size,
      ...(example && { product_id: example[0], detail: `its vector ${example[1]}` }),
    })
  })
}

/** Empties the memory, except μ, when no search is running. */
const evictAll = Effect.fnUntraced(function* (rows: ProductRows, scans: Effect.Semaphore) {
  yield* recomputeMean(rows)
  yield* scans.withPermits(1)(Effect.sync(() => rows.clear()))
  yield* Effect.logWarning("catalogue.too_large").pipe(Effect.annotateLogs({ most: rows.limit }))
})

/** Brings the rows up to date: by all products now and then, in between by those written since. */
export const makeRefresh = (products: Products, rows: ProductRows, scans: Effect.Semaphore) => {
  let reloadedAt = Number.NEGATIVE_INFINITY
  /** Of the writes seen; 0 when the memory is empty. */
  let newestWrite = 0
  const report = makeReport(rows)

  const catchUp = (now: number) => {
    const since = now - newestWrite < 2 * stampTolerance ? newestWrite - stampTolerance : newestWrite
    return Stream.runForEach(products.changed(since), (product) =>
      Effect.sync(() => {
        rows.put(product, now)
        newestWrite = Math.max(newestWrite, product.updated_at)
      }),
    )
  }

  let nextComparison = 0
  /** What the store counts beyond the memory after a comparison: products whose ids no event can name. */
  let surplus: StampSum = { count: 0, sum: 0 }
  const minus = (a: StampSum, b: StampSum) => ({ count: a.count - b.count, sum: a.sum - b.sum })
  const compareWhenDue = Effect.fnUntraced(function* (now: number) {
    if (now < nextComparison) return
    const stored = yield* products.stampSum(rows.space)
    const { count, sum } = minus(stored, rows.stampSum())
    if (count !== surplus.count || sum !== surplus.sum) {
      yield* compareStamps(products, rows, now)
      surplus = minus(stored, rows.stampSum())
    }
    const ended = yield* Clock.currentTimeMillis
    nextComparison = Math.max(now + Duration.toMillis(compareEvery), ended + restFactor * (ended - now))
  })

  return Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    if (now - reloadedAt >= Duration.toMillis(reloadEvery)) {
      yield* reloadAll(products, rows, now)
      if (!rows.tooLarge && newestWrite === 0) newestWrite = now - clockTolerance
      reloadedAt = now
      nextComparison = now + Duration.toMillis(compareEvery)
    } else if (!rows.tooLarge) yield* Effect.zipRight(catchUp(now), compareWhenDue(now))
    if (rows.tooLarge) {
      if (rows.rowOf.size > 0) yield* evictAll(rows, scans)
      newestWrite = 0
    } else if (rows.isMeanOutdated(now)) yield* recomputeMean(rows)
    yield* report
  })
}
