/**
 * The catalogue in memory: the unit-length vectors of all products of the configured space, for exact scans. What the
 * store has is here within a second of being asked for; products that other programs removed leave within minutes. A
 * catalogue too large for that is asked through the store's own index of vectors, where it has one: then the products
 * near the direction are compared, and μ is that of the products that were looked at.
 *
 * Rows are kept as they are, not centred, so that a changed mean μ costs no rewrite:
 *
 *     q · centre(v) = (q · v − q · μ) / ‖v − μ‖
 */
import { Clock, Context, Duration, Effect, Exit, Layer, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { ProductId } from "../model/Interaction.ts"
import * as Taste from "../model/Taste.ts"
import * as Vector from "../model/Vector.ts"
import { PhraseEmbedder } from "../ports/PhraseEmbedder.ts"
import {
  type ProductEmbedding,
  ProductEmbeddings,
  ProductEmbeddingsError,
} from "../ports/ProductEmbeddings.ts"
import * as StaleWhileRevalidate from "./StaleWhileRevalidate.ts"
import { insertTopK } from "./TopK.ts"

/** Products that are held: 6 KB each at 1536 dimensions. */
export const mostProducts = 100_000

/** Numbers of one block of rows, scanned in one go (about 2 ms) before other fibers have their turn. */
const blockNumbers = 1 << 21
/** More would keep the first ones waiting. */
const searchesPerPass = 8
/** How old the copy may be. */
const freshFor = Duration.seconds(1)
/** All products are read again this often, to see removals. */
const sweepEvery = Duration.minutes(10)
/** A write becomes visible up to this long after the time it was stamped with. */
const stampTolerance = 5_000
/** The clocks of those who write products differ by less than this. */
const clockTolerance = 60_000
/** μ moves when this part of the catalogue has changed, or this much time has passed since a change. */
const meanMovesAt = 0.01
const meanMovesAfter = Duration.minutes(1)
/** Products that the store's index is asked for, for each that is wanted. */
const candidatesEach = 20
/** Vectors closer than this to the mean have no direction from it. */
const noDirection = 1e-6

/** The catalogue has outgrown the memory meant for it. */
export class CatalogueTooLarge extends Schema.TaggedError<CatalogueTooLarge>()("CatalogueTooLarge", {
  most: Schema.Number,
  detail: Schema.String,
}) {
  override get message() {
    return `there are more than ${this.most} products, too many to be compared in memory, and ${this.detail}`
  }
}
export type CatalogueError = ProductEmbeddingsError | CatalogueTooLarge

export type Product = Pick<ProductEmbedding, "product_id" | "product_name" | "category">

/** A product with the parts of its score: `score = similarity + bonus`. */
export interface Scored extends Product {
  readonly score: number
  /** Cosine of the direction asked for and the product's centred vector. */
  readonly similarity: number
  readonly bonus: number
  /** The product's centred vector, unit length. */
  readonly centred: Float32Array
}

export interface Search {
  readonly limit: number
  /** Only products of this category. */
  readonly category?: string | undefined
  readonly without?: ReadonlySet<ProductId> | undefined
  /** What is added to a product's similarity, at most `most`. */
  readonly bonus?: { readonly most: number; readonly of: (product: ProductId) => number } | undefined
}

export class Catalogue extends Context.Tag("user-embeddings/Catalogue")<
  Catalogue,
  {
    /** Name of the vector space. */
    readonly space: string
    /** μ: the mean of all unit-length vectors; a zero vector while there are no products. */
    readonly mean: Effect.Effect<Float32Array, CatalogueError>
    /** A product's centred vector (zero when it is the mean); `undefined` when it has none in this space. */
    readonly centred: (product: ProductId) => Effect.Effect<Float32Array | undefined, CatalogueError>
    /** Names and categories of those products that are known. */
    readonly describe: (
      products: ReadonlyArray<ProductId>,
    ) => Effect.Effect<ReadonlyMap<ProductId, Product>, CatalogueError>
    /** All products compared with a direction, the greatest scores first, ties by product id; exact, where held. */
    readonly search: (
      direction: Float32Array,
      search: Search,
    ) => Effect.Effect<ReadonlyArray<Scored>, CatalogueError>
    /** The store has just been changed by this process: the next answer shows it, not only that of a second later. */
    readonly invalidate: Effect.Effect<void>
  }
>() {}

/** Lets requests, timers and other fibers have their turn. */
const yieldToEventLoop = Effect.async<void>((resume) => {
  const turn = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(turn))
})

/** Dot product with a row of a block; four sums at a time, for each addition waits for the one before. */
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

/** A search on its way. */
interface Asked {
  readonly direction: Float32Array
  readonly search: Search
  readonly best: Array<Omit<Scored, "centred"> & { readonly row: number }>
  /** direction · μ */
  onMean: number
  found: Exit.Exit<ReadonlyArray<Scored>> | undefined
}

const isKnown = (entry: readonly [ProductId, Product | undefined]): entry is readonly [ProductId, Product] =>
  entry[1] !== undefined

const ahead = (a: Pick<Scored, "score" | "product_id">, b: Pick<Scored, "score" | "product_id">): boolean =>
  a.score > b.score || (a.score === b.score && a.product_id < b.product_id)

const make = Effect.fnUntraced(function* (most: number) {
  const products = yield* ProductEmbeddings
  const { dimensions } = yield* EmbeddingConfig
  const { space } = yield* PhraseEmbedder

  const rowsPerBlock = Math.max(1, Math.floor(blockNumbers / dimensions))
  const blocks: Array<Float32Array> = []
  /** By row; `undefined` where a product has left. */
  const rows: Array<Product | undefined> = []
  /** By row: ‖v − μ‖. */
  let lengths: Array<number> = []
  const rowOf = new Map<ProductId, number>()
  const free: Array<number> = []
  const sum = new Float64Array(dimensions)
  let mean: Float32Array = new Float32Array(dimensions)
  let meanSquared = 0
  /** Changes that μ does not know yet, and the first one's time. */
  let changes = 0
  let changedAt = 0
  let sweptAt = Number.NEGATIVE_INFINITY
  let newest = 0
  /** Too large to be held. */
  let tooLarge = false
  const scans = yield* Effect.makeSemaphore(1)

  const vectorAt = (row: number): Float32Array => {
    const start = (row % rowsPerBlock) * dimensions
    return blocks[Math.floor(row / rowsPerBlock)]!.subarray(start, start + dimensions)
  }
  const lengthOf = (row: number, mean: Float32Array, meanSquared: number): number => {
    const v = vectorAt(row)
    return Math.sqrt(Math.max(0, Vector.dot(v, v) - 2 * Vector.dot(v, mean) + meanSquared))
  }
  const centredAt = (row: number): Float32Array =>
    Taste.centre(vectorAt(row), mean) ?? new Float32Array(dimensions)

  const touched = (now: number) => {
    changedAt = changes === 0 ? now : changedAt
    changes += 1
  }
  const remove = (id: ProductId, now: number) => {
    const row = rowOf.get(id)
    if (row === undefined) return
    Vector.addScaled(sum, -1, vectorAt(row))
    rowOf.delete(id)
    rows[row] = undefined
    free.push(row)
    touched(now)
  }
  const same = (row: number, unit: Float32Array): boolean =>
    vectorAt(row).every((value, i) => value === unit[i])

  /** Takes a product in, or out when its vector is of another space or can't be used. */
  const take = (product: ProductEmbedding, now: number): void => {
    const { category, embedding, product_id, product_name } = product
    if (product.space !== space || Vector.problem(embedding, dimensions) !== undefined) {
      remove(product_id, now)
      return
    }
    const unit = Vector.normalise(embedding)
    const known = rowOf.get(product_id)
    if (known === undefined && rowOf.size >= most) {
      tooLarge = true
      return
    }
    const row = known ?? free.pop() ?? rows.length
    if (known === undefined || !same(row, unit)) {
      if (row === blocks.length * rowsPerBlock) blocks.push(new Float32Array(rowsPerBlock * dimensions))
      if (known !== undefined) Vector.addScaled(sum, -1, vectorAt(row))
      vectorAt(row).set(unit)
      Vector.addScaled(sum, 1, unit)
      lengths[row] = lengthOf(row, mean, meanSquared)
      touched(now)
    }
    rows[row] = { product_id, product_name, category }
    rowOf.set(product_id, row)
  }

  /** Reads all products, and lets those go that are no longer there. */
  const sweep = Effect.fnUntraced(function* (now: number) {
    if (tooLarge && (yield* products.count) > most) return
    tooLarge = false
    const found = new Set<ProductId>()
    yield* Stream.runForEachWhile(products.stream(space), (product) =>
      Effect.sync(() => {
        take(product, now)
        found.add(product.product_id)
        return !tooLarge
      }),
    )
    for (const id of rowOf.keys()) if (!found.has(id)) remove(id, now)
    if (newest === 0) newest = now - clockTolerance
  })

  /** Reads what has changed since. */
  const catchUp = Effect.fnUntraced(function* (now: number) {
    const since = now - newest < 2 * stampTolerance ? newest - stampTolerance : newest
    yield* Stream.runForEach(products.changed(since), (product) =>
      Effect.sync(() => {
        take(product, now)
        newest = Math.max(newest, product.updated_at)
      }),
    )
  })

  const moveMean = Effect.fnUntraced(function* () {
    const moved = rowOf.size === 0 ? new Float32Array(dimensions) : Vector.divide(sum, rowOf.size)
    const squared = Vector.dot(moved, moved)
    const measured: Array<number> = []
    for (let row = 0; row < rows.length; row++) {
      measured.push(rows[row] === undefined ? 0 : lengthOf(row, moved, squared))
      if (row % rowsPerBlock === rowsPerBlock - 1) yield* yieldToEventLoop
    }
    // At once, so that no search sees a part of it.
    mean = moved
    meanSquared = squared
    lengths = measured
    changes = 0
  })

  /** Keeps μ and nothing else. */
  const evictAll = Effect.fnUntraced(function* () {
    if (rowOf.size === 0) return
    yield* moveMean()
    const clear = Effect.sync(() => {
      for (const held of [blocks, rows, free]) held.length = 0
      rowOf.clear()
      sum.fill(0)
      newest = 0
    })
    yield* scans.withPermits(1)(clear)
    yield* Effect.logWarning("catalogue.outgrown").pipe(Effect.annotateLogs({ most }))
  })

  const refresh = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    if (now - sweptAt >= Duration.toMillis(sweepEvery)) {
      yield* sweep(now)
      sweptAt = now
    } else if (!tooLarge) yield* catchUp(now)
    if (tooLarge) return yield* evictAll()
    const due = changes >= meanMovesAt * rowOf.size || now - changedAt >= Duration.toMillis(meanMovesAfter)
    if (changes > 0 && due) yield* moveMean()
  })

  const { current, invalidate } = yield* StaleWhileRevalidate.make<CatalogueError, never>({
    name: "catalogue",
    freshFor,
    refresh,
    stillLoading: () =>
      new ProductEmbeddingsError({
        reason: "unavailable",
        operation: "load the catalogue",
        cause: new Error("the catalogue is still being loaded"),
      }),
  })

  const score = (product: Product, similarity: number, bonus: Search["bonus"]) => {
    const added = bonus?.of(product.product_id) ?? 0
    return { ...product, score: similarity + added, similarity, bonus: added }
  }

  /** Compares a search with one block of rows. */
  const compare = (
    { best, direction, onMean, search: { bonus, category, limit, without } }: Asked,
    index: number,
    lengths: ReadonlyArray<number>,
  ) => {
    const block = blocks[index]!
    const end = Math.min(rows.length, (index + 1) * rowsPerBlock)
    for (let row = index * rowsPerBlock; row < end; row++) {
      const product = rows[row]
      if (product === undefined || (category !== undefined && product.category !== category)) continue
      const length = lengths[row]!
      const along = dotRow(direction, block, (row % rowsPerBlock) * dimensions) - onMean
      const similarity = length < noDirection ? 0 : along / length
      const worst = best[limit - 1]
      if (worst !== undefined && similarity + (bonus?.most ?? 0) < worst.score) continue
      if (without?.has(product.product_id)) continue
      insertTopK(best, limit, { ...score(product, similarity, bonus), row }, ahead)
    }
  }

  /** What a search throws is its own: the others of a pass go on. */
  const attempt = (asked: Asked, index: number, lengths: ReadonlyArray<number>) => {
    try {
      compare(asked, index, lengths)
    } catch (defect) {
      asked.found = Exit.die(defect)
    }
  }

  let waiting: Array<Asked> = []
  /** Searches that wait, oldest first, go over the rows together: each block is read from memory once for all of them. */
  const pass = Effect.gen(function* () {
    const together = waiting.slice(0, searchesPerPass)
    waiting = waiting.slice(searchesPerPass)
    const from = lengths
    for (const asked of together) asked.onMean = Vector.dot(asked.direction, mean)
    for (const index of blocks.keys())
      for (const [place, asked] of together.entries()) {
        if (index + place > 0) yield* yieldToEventLoop
        if (asked.found === undefined) attempt(asked, index, from)
      }
    for (const asked of together)
      asked.found ??= Exit.succeed(
        asked.best.map(({ row, ...scored }): Scored => ({ ...scored, centred: centredAt(row) })),
      )
  })

  const scan = (direction: Float32Array, search: Search) =>
    Effect.suspend(() => {
      const asked: Asked = { direction, search, best: [], onMean: 0, found: undefined }
      waiting.push(asked)
      return Effect.gen(function* () {
        while (asked.found === undefined) yield* Effect.uninterruptible(pass)
        return yield* asked.found
      }).pipe(
        scans.withPermits(1),
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            waiting = waiting.filter((other) => other !== asked)
          }),
        ),
      )
    })

  /** The same among the products that the store's index finds near the direction. */
  const ask = Effect.fnUntraced(function* (
    direction: Float32Array,
    { bonus, category, limit, without }: Search,
  ) {
    const wanted = { space, limit: candidatesEach * limit, category }
    const found = yield* Effect.catchTag(products.indexed(direction, wanted), "NoVectorIndex", ({ detail }) =>
      Effect.fail(new CatalogueTooLarge({ most, detail })),
    )
    const best: Array<Scored> = []
    for (const { category, embedding, product_id, product_name } of found) {
      if (without?.has(product_id) || Vector.problem(embedding, dimensions) !== undefined) continue
      const centred = Taste.centre(Vector.normalise(embedding), mean) ?? new Float32Array(dimensions)
      const product = { product_id, product_name, category }
      const scored = score(product, Vector.dot(direction, centred), bonus)
      insertTopK(best, limit, { ...scored, centred }, ahead)
    }
    return best
  })

  const held = (id: ProductId) => {
    const row = rowOf.get(id)
    return row === undefined ? undefined : { row, product: rows[row]! }
  }

  const centredOf = Effect.fnUntraced(function* (id: ProductId) {
    if (!tooLarge) {
      const known = held(id)
      return known && centredAt(known.row)
    }
    const vector = (yield* products.load([id], space)).get(id)
    if (vector === undefined || Vector.problem(vector, dimensions) !== undefined) return undefined
    return Taste.centre(Vector.normalise(vector), mean) ?? new Float32Array(dimensions)
  })

  const describe = (ids: ReadonlyArray<ProductId>) =>
    tooLarge
      ? products.describe(ids)
      : Effect.succeed(new Map(ids.flatMap((id) => [[id, held(id)?.product] as const]).filter(isKnown)))

  return Catalogue.of({
    space,
    mean: Effect.map(current, () => mean),
    centred: (id) => Effect.zipRight(current, centredOf(id)),
    describe: (ids) =>
      Effect.zipRight(
        current,
        Effect.suspend(() => describe(ids)),
      ),
    search: (direction, search) =>
      Effect.zipRight(
        current,
        Effect.suspend(() => (tooLarge ? ask : scan)(direction, search)),
      ),
    invalidate,
  })
})

/** Holds up to `most` products. */
export const layerOf = (most: number) => Layer.scoped(Catalogue, make(most))

export const layer = layerOf(mostProducts)
