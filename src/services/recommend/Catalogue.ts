/**
 * The catalogue in memory: the unit-length vectors of all products of the configured space, for exact scans. A change in
 * the store is seen within a second of the next request; a product that was removed leaves within five. A
 * catalogue that is too large for memory is searched through the store's own vector index, if there is one. Then μ stays
 * that of the products read before the limit was exceeded.
 *
 * Rows are stored uncentred, so that a change of the mean μ rewrites none of them:
 *
 *     q · centre(v) = (q · v − q · μ) / ‖v − μ‖
 */
import { Array as Arr, Clock, Context, Duration, Effect, Exit, Layer, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { ProductId } from "../model/Interaction.ts"
import * as Taste from "../model/Taste.ts"
import * as Vector from "../model/Vector.ts"
import { PhraseEmbedder } from "../ports/PhraseEmbedder.ts"
import {
  type ProductEmbedding,
  ProductEmbeddings,
  ProductEmbeddingsError,
  type StampSum,
  type StoredProduct,
  stampModulus,
} from "../ports/ProductEmbeddings.ts"
import * as Telemetry from "../Telemetry.ts"
import * as StaleWhileRevalidate from "./StaleWhileRevalidate.ts"
import { insertTopK } from "./TopK.ts"

/** The most products held in memory: 6 KB each at 1536 dimensions. */
export const mostProducts = 100_000

/** Numbers in one block of rows, scanned in one go (about 2 ms) before other fibers run. */
const blockNumbers = 1 << 21
/** With more, the first searches of a pass would wait too long for the last. */
const searchesPerPass = 8
const freshFor = Duration.seconds(1)
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
/** μ is computed again when this share of the catalogue has changed, or this long after the first change. */
const meanMovesAt = 0.01
const meanMovesAfter = Duration.minutes(1)
/** Candidates requested from the store's index per product of the answer. */
const candidatesEach = 20
/** A vector closer than this to the mean has no direction from it. */
const noDirection = 1e-6

export class CatalogueTooLarge extends Schema.TaggedError<CatalogueTooLarge>()("CatalogueTooLarge", {
  most: Schema.Number,
  detail: Schema.String,
}) {
  override get message() {
    return `there are more than ${this.most} products, too many to compare in memory, and ${this.detail}`
  }
}
export type CatalogueError = ProductEmbeddingsError | CatalogueTooLarge

type Products = ProductEmbeddings["Type"]
export type Product = Pick<ProductEmbedding, "product_id" | "product_name" | "category">

/** A product with the parts of its score: `score = similarity + bonus`. */
export interface Scored extends Product {
  readonly score: number
  /** Cosine of the search direction and the product's centred vector. */
  readonly similarity: number
  readonly bonus: number
  /** The product's centred vector, unit length. */
  readonly centred: Float32Array
}

export interface Search {
  readonly limit: number
  readonly category?: string | undefined
  readonly without?: ReadonlySet<ProductId> | undefined
  /** Added to a product's similarity; never more than `most`. */
  readonly bonus?: { readonly most: number; readonly of: (product: ProductId) => number } | undefined
}

export class Catalogue extends Context.Tag("user-embeddings/Catalogue")<
  Catalogue,
  {
    readonly space: string
    /** μ: the mean of all unit-length vectors; a zero vector while there are no products. */
    readonly mean: Effect.Effect<Float32Array, CatalogueError>
    /** A product's centred vector (zero when it is the mean); `undefined` when it has none in this space. */
    readonly centred: (product: ProductId) => Effect.Effect<Float32Array | undefined, CatalogueError>
    /** Names and categories; unknown products are left out. */
    readonly describe: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyMap<ProductId, Product>, CatalogueError>
    /** All products; `undefined` while they are too many for memory. */
    readonly products: Effect.Effect<ReadonlyArray<Product> | undefined, CatalogueError>
    /** The products with the greatest scores, ties by product id. Exact while the catalogue is in memory. */
    readonly search: (
      direction: Float32Array,
      search: Search,
    ) => Effect.Effect<ReadonlyArray<Scored>, CatalogueError>
    /** Call after this process has changed the store: the next answer then shows the change at once. */
    readonly invalidate: Effect.Effect<void>
  }
>() {}

/** Lets requests, timers and other fibers run. */
const yieldToEventLoop = Effect.async<void>((resume) => {
  const turn = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(turn))
})

/** Dot product with a row of a block. Four sums, because each addition to one sum waits for the one before. */
const dotRow = (a: Float32Array, block: Float32Array, start: number): number => {
  const { length } = a
  let s0 = 0
  let s1 = 0
  let s2 = 0
  let s3 = 0
  let i = 0
  for (; i + 3 < length; i += 4) {
    const at = start + i
    s0 += a[i]! * block[at]!
    s1 += a[i + 1]! * block[at + 1]!
    s2 += a[i + 2]! * block[at + 2]!
    s3 += a[i + 3]! * block[at + 3]!
  }
  for (; i < length; i++) s0 += a[i]! * block[start + i]!
  return s0 + s1 + (s2 + s3)
}

const isKnown = (entry: readonly [ProductId, Product | undefined]): entry is readonly [ProductId, Product] =>
  entry[1] !== undefined

type Ranked = Pick<Scored, "score" | "product_id">
const ahead = (a: Ranked, b: Ranked): boolean =>
  a.score > b.score || (a.score === b.score && a.product_id < b.product_id)

const toScored = (product: Product, similarity: number, bonus: Search["bonus"]) => {
  const added = bonus?.of(product.product_id) ?? 0
  return { ...product, score: similarity + added, similarity, bonus: added }
}

interface PendingSearch {
  readonly direction: Float32Array
  readonly search: Search
  readonly best: Array<Omit<Scored, "centred"> & { readonly row: number }>
  /** direction · μ */
  onMean: number
  result: Exit.Exit<ReadonlyArray<Scored>> | undefined
}

/** The vectors in memory, in blocks of rows, and their mean. */
class ProductRows {
  tooLarge = false
  readonly blocks: Array<Float32Array> = []
  mean: Float32Array
  /** By row: ‖v − μ‖. */
  lengths: Array<number> = []
  /** Changes since μ was computed, and when the first of them happened. */
  private changes = 0
  private changedAt = 0
  private meanSquared = 0
  /** By row; `undefined` where a product was removed. */
  private readonly products: Array<Product | undefined> = []
  readonly rowOf = new Map<ProductId, number>()
  /** Products of the space that are left out, and what is wrong with their vectors. */
  readonly unusable = new Map<ProductId, string>()
  /** When each product was written last, by the clock of its writer. */
  readonly stamps = new Map<ProductId, number>()
  private readonly free: Array<number> = []
  private readonly sum: Float64Array
  private readonly rowsPerBlock: number

  constructor(
    readonly space: string,
    readonly dimensions: number,
    readonly limit: number,
  ) {
    this.rowsPerBlock = Math.max(1, Math.floor(blockNumbers / dimensions))
    this.sum = new Float64Array(dimensions)
    this.mean = new Float32Array(dimensions)
  }

  product(id: ProductId): Product | undefined {
    const row = this.rowOf.get(id)
    return row === undefined ? undefined : this.products[row]
  }

  all(): ReadonlyArray<Product> {
    return this.products.filter((product) => product !== undefined)
  }

  centred(id: ProductId): Float32Array | undefined {
    const row = this.rowOf.get(id)
    return row === undefined ? undefined : this.centredAt(row)
  }

  centredAt(row: number): Float32Array {
    return this.centre(this.vectorAt(row))
  }

  /** Zero for a unit-length vector that is the mean. */
  centre(unit: Float32Array): Float32Array {
    return Taste.centre(unit, this.mean) ?? new Float32Array(this.dimensions)
  }

  /** Inserts or replaces a product. Removes it when its vector is of another space or can't be used. */
  put(product: StoredProduct, now: number): void {
    const { category, embedding, product_id, product_name } = product
    if (product.space === this.space) this.stamps.set(product_id, product.updated_at)
    else this.stamps.delete(product_id)
    const isOurs = product.space === this.space
    const problem = isOurs ? Vector.problem(embedding, this.dimensions) : undefined
    if (problem === undefined) this.unusable.delete(product_id)
    else this.unusable.set(product_id, problem)
    if (!isOurs || problem !== undefined) {
      this.remove(product_id, now)
      return
    }
    const unit = Vector.normalise(embedding)
    const existing = this.rowOf.get(product_id)
    if (existing === undefined && this.rowOf.size >= this.limit) {
      this.tooLarge = true
      return
    }
    const row = existing ?? this.free.pop() ?? this.products.length
    if (existing === undefined || !this.isSame(row, unit)) {
      if (row === this.blocks.length * this.rowsPerBlock)
        this.blocks.push(new Float32Array(this.rowsPerBlock * this.dimensions))
      if (existing !== undefined) Vector.addScaled(this.sum, -1, this.vectorAt(row))
      this.vectorAt(row).set(unit)
      Vector.addScaled(this.sum, 1, unit)
      this.lengths[row] = this.lengthOf(row, this.mean, this.meanSquared)
      this.countChange(now)
    }
    this.products[row] = { product_id, product_name, category }
    this.rowOf.set(product_id, row)
  }

  remove(id: ProductId, now: number): void {
    const row = this.rowOf.get(id)
    if (row === undefined) return
    Vector.addScaled(this.sum, -1, this.vectorAt(row))
    this.rowOf.delete(id)
    this.products[row] = undefined
    this.free.push(row)
    this.countChange(now)
  }

  /** As the store computes it. */
  stampSum(): StampSum {
    let sum = 0
    for (const stamp of this.stamps.values()) sum += stamp % stampModulus
    return { count: this.stamps.size, sum }
  }

  /** Removes the products that the store no longer has. */
  keepOnly(existing: ReadonlySet<ProductId>, now: number): void {
    for (const id of this.stamps.keys()) {
      if (existing.has(id)) continue
      this.stamps.delete(id)
      this.unusable.delete(id)
      this.remove(id, now)
    }
  }

  /** Removes all products and keeps μ. */
  clear(): void {
    for (const list of [this.blocks, this.products, this.free]) list.length = 0
    for (const map of [this.rowOf, this.stamps, this.unusable]) map.clear()
    this.sum.fill(0)
  }

  isMeanOutdated(now: number): boolean {
    const due = now - this.changedAt >= Duration.toMillis(meanMovesAfter)
    return this.changes > 0 && (due || this.changes >= meanMovesAt * this.rowOf.size)
  }

  /** Computes μ and all lengths; yields after each block, for a caller to let other fibers run. */
  *recomputeMean(): Generator<void> {
    const { size } = this.rowOf
    const mean = size === 0 ? new Float32Array(this.dimensions) : Vector.divide(this.sum, size)
    const meanSquared = Vector.dot(mean, mean)
    const lengths: Array<number> = []
    for (let row = 0; row < this.products.length; row++) {
      lengths.push(this.products[row] === undefined ? 0 : this.lengthOf(row, mean, meanSquared))
      if (row % this.rowsPerBlock === this.rowsPerBlock - 1) yield
    }
    // Set together, so that no search sees a mean without its lengths.
    this.mean = mean
    this.meanSquared = meanSquared
    this.lengths = lengths
    this.changes = 0
  }

  /** Compares a search with one block of rows; `lengths` are those of the mean with which the search began. */
  compare(
    { best, direction, onMean, search: { bonus, category, limit, without } }: PendingSearch,
    index: number,
    lengths: ReadonlyArray<number>,
  ): void {
    const { dimensions, products, rowsPerBlock } = this
    const block = this.blocks[index]!
    const end = Math.min(products.length, (index + 1) * rowsPerBlock)
    for (let row = index * rowsPerBlock; row < end; row++) {
      const product = products[row]
      if (product === undefined || (category !== undefined && product.category !== category)) continue
      const length = lengths[row]!
      const along = dotRow(direction, block, (row % rowsPerBlock) * dimensions) - onMean
      const similarity = length < noDirection ? 0 : along / length
      const worst = best[limit - 1]
      if (worst !== undefined && similarity + (bonus?.most ?? 0) < worst.score) continue
      if (without?.has(product.product_id)) continue
      insertTopK(best, limit, { ...toScored(product, similarity, bonus), row }, ahead)
    }
  }

  private vectorAt(row: number): Float32Array {
    const start = (row % this.rowsPerBlock) * this.dimensions
    return this.blocks[Math.floor(row / this.rowsPerBlock)]!.subarray(start, start + this.dimensions)
  }

  private lengthOf(row: number, mean: Float32Array, meanSquared: number): number {
    const v = this.vectorAt(row)
    return Math.sqrt(Math.max(0, Vector.dot(v, v) - 2 * Vector.dot(v, mean) + meanSquared))
  }

  private isSame(row: number, unit: Float32Array): boolean {
    return this.vectorAt(row).every((value, i) => value === unit[i])
  }

  private countChange(now: number): void {
    if (this.changes === 0) this.changedAt = now
    this.changes += 1
  }
}

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
const makeRefresh = (products: Products, rows: ProductRows, scans: Effect.Semaphore) => {
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

/** A defect ends only the search that caused it: the others of the pass continue. */
const compareSafely = (rows: ProductRows, pending: PendingSearch, block: number, lengths: Array<number>) => {
  try {
    rows.compare(pending, block, lengths)
  } catch (defect) {
    pending.result = Exit.die(defect)
  }
}

/** Runs searches together: each block is read from memory once for all of them. */
const scanTogether = Effect.fnUntraced(function* (rows: ProductRows, searches: ReadonlyArray<PendingSearch>) {
  const { lengths, mean } = rows
  for (const pending of searches) pending.onMean = Vector.dot(pending.direction, mean)
  for (const index of rows.blocks.keys())
    for (const [place, pending] of searches.entries()) {
      if (index + place > 0) yield* yieldToEventLoop
      if (pending.result === undefined) compareSafely(rows, pending, index, lengths)
    }
  for (const pending of searches)
    pending.result ??= Exit.succeed(
      pending.best.map(({ row, ...scored }): Scored => ({ ...scored, centred: rows.centredAt(row) })),
    )
})

/** Searches the memory. A search waits for its turn, then runs with those that wait behind it, oldest first. */
const makeScan = (rows: ProductRows, scans: Effect.Semaphore) => {
  let waiting: Array<PendingSearch> = []
  const pass = Effect.suspend(() => {
    const next = waiting.slice(0, searchesPerPass)
    waiting = waiting.slice(searchesPerPass)
    return scanTogether(rows, next)
  })
  return (direction: Float32Array, search: Search) =>
    Effect.suspend(() => {
      const pending: PendingSearch = { direction, search, best: [], onMean: 0, result: undefined }
      waiting.push(pending)
      return Effect.gen(function* () {
        while (pending.result === undefined) yield* Effect.uninterruptible(pass)
        return yield* pending.result
      }).pipe(
        scans.withPermits(1),
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            waiting = waiting.filter((other) => other !== pending)
          }),
        ),
      )
    })
}

/** Searches the products that the store's index finds near the direction. */
const searchIndex = Effect.fnUntraced(function* (
  products: Products,
  rows: ProductRows,
  direction: Float32Array,
  { bonus, category, limit, without }: Search,
) {
  const wanted = { space: rows.space, limit: candidatesEach * limit, category }
  const found = yield* Effect.catchTag(products.indexed(direction, wanted), "NoVectorIndex", ({ detail }) =>
    Effect.fail(new CatalogueTooLarge({ most: rows.limit, detail })),
  )
  const best: Array<Scored> = []
  for (const { category, embedding, product_id, product_name } of found) {
    if (without?.has(product_id) || Vector.problem(embedding, rows.dimensions) !== undefined) continue
    const centred = rows.centre(Vector.normalise(embedding))
    const product = { product_id, product_name, category }
    const scored = toScored(product, Vector.dot(direction, centred), bonus)
    insertTopK(best, limit, { ...scored, centred }, ahead)
  }
  return best
})

const loadCentred = Effect.fnUntraced(function* (products: Products, rows: ProductRows, id: ProductId) {
  const vector = (yield* products.load([id], rows.space)).get(id)
  if (vector === undefined || Vector.problem(vector, rows.dimensions) !== undefined) return undefined
  return rows.centre(Vector.normalise(vector))
})

const make = Effect.fnUntraced(function* (limit: number) {
  const products = yield* ProductEmbeddings
  const { dimensions } = yield* EmbeddingConfig
  const { space } = yield* PhraseEmbedder
  const rows = new ProductRows(space, dimensions, limit)
  const scans = yield* Effect.makeSemaphore(1)
  const scan = makeScan(rows, scans)

  const { current, invalidate } = yield* StaleWhileRevalidate.make<CatalogueError, never>({
    name: "catalogue",
    freshFor,
    refresh: makeRefresh(products, rows, scans),
    stillLoading: () =>
      new ProductEmbeddingsError({
        reason: "unavailable",
        operation: "load the catalogue",
        cause: new Error("the catalogue is still loading"),
      }),
  })
  /** Runs after the catalogue is loaded and fresh enough. */
  const whenFresh = <A, E>(answer: () => Effect.Effect<A, E>) =>
    Effect.zipRight(current, Effect.suspend(answer))

  return Catalogue.of({
    space,
    mean: Effect.map(current, () => rows.mean),
    centred: (id) =>
      whenFresh(() => (rows.tooLarge ? loadCentred(products, rows, id) : Effect.succeed(rows.centred(id)))),
    describe: (ids) =>
      whenFresh(() =>
        rows.tooLarge
          ? products.describe(ids)
          : Effect.succeed(new Map(ids.map((id) => [id, rows.product(id)] as const).filter(isKnown))),
      ),
    products: Effect.map(current, () => (rows.tooLarge ? undefined : rows.all())),
    search: (direction, search) =>
      whenFresh(() =>
        rows.tooLarge ? searchIndex(products, rows, direction, search) : scan(direction, search),
      ),
    invalidate,
  })
})

/** Holds up to `limit` products in memory. */
export const layerOf = (limit: number) => Layer.scoped(Catalogue, make(limit))

export const layer = layerOf(mostProducts)
