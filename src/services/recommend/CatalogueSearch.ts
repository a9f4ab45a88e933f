/** Searches the catalogue: in memory exactly, or through the vector index of the store. */
import { Array as Arr, Effect, Exit, Schema } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import * as Vector from "../model/Vector.ts"
import type { ProductEmbeddings } from "../ports/ProductEmbeddings.ts"
import type { ProductRows } from "./CatalogueRows.ts"
import { matcher, type ProductFilter } from "./ProductFilter.ts"
import { insertTopK } from "./TopK.ts"

/** With more, the first searches of a pass would wait too long for the last. */
const searchesPerPass = 8
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

/** A product with the parts of its score: `score = similarity + bonus`. */
export interface Scored extends Pick<Product, "product_id" | "product_name" | "category"> {
  readonly score: number
  /** Cosine of the search direction and the product's centred vector. */
  readonly similarity: number
  readonly bonus: number
  /** The product's centred vector, unit length. */
  readonly centred: Float32Array
}

/** Only available products are found. */
export interface Search {
  readonly limit: number
  readonly filter?: ProductFilter | undefined
  readonly without?: ReadonlySet<ProductId> | undefined
  /** Added to a product's similarity; never more than `most`. */
  readonly bonus?: { readonly most: number; readonly of: (product: ProductId) => number } | undefined
}

type Ranked = Pick<Scored, "score" | "product_id">
const ahead = (a: Ranked, b: Ranked): boolean =>
  a.score > b.score || (a.score === b.score && a.product_id < b.product_id)

const toScored = (
  { category, product_id, product_name }: Product,
  similarity: number,
  bonus: Search["bonus"],
) => {
  const added = bonus?.of(product_id) ?? 0
  return { product_id, product_name, category, score: similarity + added, similarity, bonus: added }
}

interface PendingSearch {
  readonly direction: Float32Array
  readonly search: Search
  readonly matches: (product: Product) => boolean
  readonly best: Array<Omit<Scored, "centred"> & { readonly row: number }>
  /** direction · μ */
  onMean: number
  result: Exit.Exit<ReadonlyArray<Scored>> | undefined
}

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

/** Compares a search with one block of rows; `lengths` are those of the mean with which the search began. */
const compare = (
  { blocks, dimensions, products, rowsPerBlock }: ProductRows,
  { best, direction, matches, onMean, search: { bonus, limit, without } }: PendingSearch,
  index: number,
  lengths: ReadonlyArray<number>,
): void => {
  const block = blocks[index]!
  const end = Math.min(products.length, (index + 1) * rowsPerBlock)
  for (let row = index * rowsPerBlock; row < end; row++) {
    const product = products[row]
    if (product === undefined || !matches(product)) continue
    const length = lengths[row]!
    const along = dotRow(direction, block, (row % rowsPerBlock) * dimensions) - onMean
    const similarity = length < noDirection ? 0 : along / length
    const worst = best[limit - 1]
    if (worst !== undefined && similarity + (bonus?.most ?? 0) < worst.score) continue
    if (without?.has(product.product_id)) continue
    insertTopK(best, limit, { ...toScored(product, similarity, bonus), row }, ahead)
  }
}

/** A defect ends only the search that caused it: the others of the pass continue. */
const compareSafely = (rows: ProductRows, pending: PendingSearch, block: number, lengths: Array<number>) => {
  try {
    compare(rows, pending, block, lengths)
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
export const makeScan = (rows: ProductRows, scans: Effect.Semaphore) => {
  let waiting: Array<PendingSearch> = []
  const pass = Effect.suspend(() => {
    const next = waiting.slice(0, searchesPerPass)
    waiting = waiting.slice(searchesPerPass)
    return scanTogether(rows, next)
  })
  return (direction: Float32Array, search: Search) =>
    Effect.suspend(() => {
      const matches = matcher(search.filter ?? {})
      const pending: PendingSearch = { direction, search, matches, best: [], onMean: 0, result: undefined }
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

/** Products scored at once: about 1 ms. */
const scoredAtOnce = 500

/** Scores these products one by one, in any order; those that a search would not find are left out. */
export const scoreEach = Effect.fnUntraced(function* (
  products: ProductEmbeddings["Type"],
  rows: ProductRows,
  direction: Float32Array,
  ids: ReadonlyArray<ProductId>,
  { bonus, filter = {}, without }: Omit<Search, "limit">,
) {
  const matches = matcher(filter)
  const scored: Array<Scored> = []
  const add = (product: Product, centred: Float32Array) => {
    if (!matches(product) || without?.has(product.product_id)) return
    scored.push({ ...toScored(product, Vector.dot(direction, centred), bonus), centred })
  }
  for (const [page, some] of Arr.chunksOf(ids, scoredAtOnce).entries()) {
    if (page > 0) yield* yieldToEventLoop
    if (!rows.tooLarge) {
      for (const id of some) {
        const product = rows.product(id)
        if (product !== undefined) add(product, rows.centred(id)!)
      }
      continue
    }
    for (const { embedding, space, ...product } of yield* products.find(some))
      if (space === rows.space && Vector.problem(embedding, rows.dimensions) === undefined)
        add(product, rows.centre(Vector.normalise(embedding)))
  }
  return scored
})

/** Searches the products that the store's index finds near the direction. */
export const searchIndex = Effect.fnUntraced(function* (
  products: ProductEmbeddings["Type"],
  rows: ProductRows,
  direction: Float32Array,
  { bonus, filter = {}, limit, without }: Search,
) {
  const wanted = { space: rows.space, limit: candidatesEach * limit, categories: filter.categories }
  const found = yield* Effect.catchTag(products.indexed(direction, wanted), "NoVectorIndex", ({ detail }) =>
    Effect.fail(new CatalogueTooLarge({ most: rows.limit, detail })),
  )
  const matches = matcher(filter)
  const best: Array<Scored> = []
  for (const { embedding, ...product } of found) {
    if (!matches(product) || without?.has(product.product_id)) continue
    if (Vector.problem(embedding, rows.dimensions) !== undefined) continue
    const centred = rows.centre(Vector.normalise(embedding))
    const scored = toScored(product, Vector.dot(direction, centred), bonus)
    insertTopK(best, limit, { ...scored, centred }, ahead)
  }
  return best
})
