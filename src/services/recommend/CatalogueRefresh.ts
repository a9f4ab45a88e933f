/** Keeps the catalogue in memory up to date with the store. */
import { Array as Arr, Clock, Duration, Effect, type Scope, Stream } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { ProductEmbeddings, StampSum, StoredProduct } from "../ports/ProductEmbeddings.ts"
import * as Telemetry from "../Telemetry.ts"
import type { ProductRows } from "./CatalogueRows.ts"

type Products = ProductEmbeddings["Type"]

/** All stamps are compared this long after the last comparison, which finds removals within 5 s. */
const compareEvery = Duration.seconds(2)
/** Products put into the memory before other fibers run: about 1 ms. */
const productsAtOnce = 32
/** Products read at once after a comparison: 0.6 MB at 1536 dimensions. */
const productsPerFind = 100
/** All products are read again this often, because another program may change a product and not its stamp. */
const readEvery = Duration.minutes(10)
const never = Number.NEGATIVE_INFINITY
/** Milliseconds between the `updated_at` of a write and the moment it becomes visible, at most. */
const stampTolerance = 5_000
/** Milliseconds by which the clocks of programs that write products differ, at most. */
const clockTolerance = 60_000

const recomputeMean = Effect.fnUntraced(function* (rows: ProductRows) {
  for (const _ of rows.recomputeMean()) yield* yieldToEventLoop
})

const inTurns = <A, E>(products: Stream.Stream<A, E>): Stream.Stream<A, E> =>
  products.pipe(
    Stream.rechunk(productsAtOnce),
    Stream.chunks,
    Stream.tap(() => yieldToEventLoop),
    Stream.flattenChunks,
  )

/** Whether the store has a vector index that answers. */
const hasIndex = (products: Products, { dimensions, space }: ProductRows) => {
  const direction = new Float32Array(dimensions).fill(1)
  return Effect.as(products.indexed(direction, { space, limit: 1 }), true).pipe(
    Effect.catchTag("NoVectorIndex", () => Effect.succeed(false)),
  )
}

/** Inserts or replaces a product. Without a vector index in the store, the memory holds all products. */
const put = (products: Products, rows: ProductRows, product: StoredProduct, now: number) =>
  Effect.suspend(() => {
    const wasTooLarge = rows.tooLarge
    rows.put(product, now)
    if (!rows.tooLarge || wasTooLarge) return Effect.void
    return Effect.map(hasIndex(products, rows), (isIndexed) => {
      if (isIndexed) return
      rows.holdAll()
      rows.put(product, now)
    })
  })

/** Reads all products. Those that the store no longer has are left to the next comparison. */
const readAll = (products: Products, rows: ProductRows, now: number) =>
  Stream.runForEachWhile(inTurns(products.stream(rows.space)), (product) =>
    Effect.map(put(products, rows, product, now), () => !rows.tooLarge),
  )

/** Reads all products into an empty memory, if they may fit. */
const load = Effect.fnUntraced(function* (products: Products, rows: ProductRows, now: number) {
  if (rows.tooLarge && (yield* products.count) > rows.mostProducts) return
  rows.tooLarge = false
  yield* readAll(products, rows, now)
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
    for (const product of yield* products.find(ids)) yield* put(products, rows, product, now)
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
  yield* Effect.logWarning("catalogue.too_large").pipe(Effect.annotateLogs({ most: rows.mostProducts }))
})

/** Brings the rows up to date by the products written since, and now and then in the background by all of them. */
export const makeRefresh = (
  products: Products,
  rows: ProductRows,
  scans: Effect.Semaphore,
  scope: Scope.Scope,
) => {
  let readAt = never
  let loaded = false
  /** Of the writes seen. */
  let newestWrite = 0
  const report = makeReport(rows)

  const catchUp = (now: number) => {
    const since = now - newestWrite < 2 * stampTolerance ? newestWrite - stampTolerance : newestWrite
    return Stream.runForEach(inTurns(products.changed(since)), (product) =>
      Effect.map(put(products, rows, product, now), () => {
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
    nextComparison = (yield* Clock.currentTimeMillis) + Duration.toMillis(compareEvery)
  })

  return Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const isDue = now - readAt >= Duration.toMillis(readEvery)
    if (isDue) readAt = now
    if (!loaded) {
      if (isDue)
        yield* Effect.onError(load(products, rows, now), () =>
          Effect.sync(() => {
            readAt = never
          }),
        )
      loaded = !rows.tooLarge
      newestWrite = now - clockTolerance
    } else {
      // Changes are followed meanwhile. A store that fails fails here as well.
      if (isDue) yield* Effect.forkIn(Effect.ignore(readAll(products, rows, now)), scope)
      yield* Effect.zipRight(catchUp(now), compareWhenDue(now))
    }
    if (rows.tooLarge) {
      if (rows.rowOf.size > 0) yield* evictAll(rows, scans)
      loaded = false
    } else if (rows.isMeanOutdated(now)) yield* recomputeMean(rows)
    yield* report
  })
}
