/** Estimates the scores of all products of a large memory, so that a search compares few of them exactly. */
import { Clock, Duration, Effect } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import { noDirection } from "../model/Taste.ts"
import * as Vector from "../model/Vector.ts"
import { type BinaryCodes, type Query, sliceRows } from "./BinaryCodes.ts"
import type { ProductRows } from "./CatalogueRows.ts"
import type { Bonus } from "./CatalogueSearch.ts"

/** Scores are sorted into so many buckets. */
const buckets = 2_048
/** No estimate of a cosine is much greater than this. */
const greatestCosine = 1.1
/** How old the bonuses may be by which products are chosen. The scores have the current ones. */
const bonusesFor = Duration.seconds(30)

/** Of a number of rows. */
class Arrays {
  /** By row: the similarity is not greater, but for one product in 160. */
  readonly similarities: Float32Array
  /** By row: with the bonus. */
  readonly scores: Float32Array
  /** The rows, greatest score first, as finely as the width of the buckets. */
  readonly order: Uint32Array
  readonly bucketOf: Uint16Array
  /** Where a bucket begins in the order; at first the number of its members, one place further on. */
  readonly starts = new Uint32Array(buckets + 1)

  constructor(count: number) {
    this.similarities = new Float32Array(count)
    this.scores = new Float32Array(count)
    this.order = new Uint32Array(count)
    this.bucketOf = new Uint16Array(count)
  }
}

export interface Estimates extends Pick<Arrays, "similarities" | "scores" | "order"> {
  /** No score is greater by more than this than one before it in the order. */
  readonly tolerance: number
}

/** What estimates are computed from. Arrays have a value for each row, `sums` for each row of the slice. */
interface Known {
  readonly sums: Uint16Array
  readonly query: Query
  readonly scales: ReadonlyArray<number>
  readonly lengths: ReadonlyArray<number>
  readonly bonuses: Float32Array
  /** direction · (centre of the codes − μ) */
  readonly fromMean: number
  /** A score, and the width of the buckets below it. */
  readonly greatest: number
  readonly width: number
}

/** Estimates the rows of a slice, and counts them in buckets. */
const estimateSlice = (
  { bucketOf, scores, similarities, starts }: Arrays,
  { bonuses, fromMean, greatest, lengths, query, scales, sums, width }: Known,
  from: number,
  end: number,
): void => {
  const { offset, step } = query
  const perUnit = 1 / width
  for (let row = from; row < end; row++) {
    const length = lengths[row]!
    const along = (sums[row - from]! * step + offset) * scales[row]! + fromMean
    const similarity = length < noDirection ? 0 : along / length
    const score = similarity + bonuses[row]!
    const bucket = Math.max(0, Math.min(buckets - 1, Math.floor((greatest - score) * perUnit)))
    similarities[row] = similarity
    scores[row] = score
    bucketOf[row] = bucket
    starts[bucket + 1] = starts[bucket + 1]! + 1
  }
}

const sortSlice = ({ bucketOf, order, starts }: Arrays, from: number, end: number): void => {
  for (let row = from; row < end; row++) {
    const bucket = bucketOf[row]!
    const place = starts[bucket]!
    order[place] = row
    starts[bucket] = place + 1
  }
}

/** Calls `work` with slices of the rows, and lets other fibers run after each. */
const inSlices = Effect.fnUntraced(function* (
  count: number,
  size: number,
  work: (from: number, end: number) => void,
) {
  for (let from = 0; from < count; from += size) {
    work(from, Math.min(count, from + size))
    yield* yieldToEventLoop
  }
})

/** Remembers bonuses by row: computing them costs more than estimating the similarities. */
const makeBonuses = ({ products }: ProductRows) => {
  let known = { values: new Float32Array(0), greatest: 0, until: 0 }
  return Effect.fnUntraced(function* (bonus: Bonus | undefined, count: number) {
    if (bonus === undefined) return { values: new Float32Array(count), greatest: 0 }
    const now = yield* Clock.currentTimeMillis
    if (now < known.until && known.values.length >= count) return known
    // New products have a place, and no bonus for a while.
    const values = new Float32Array(Math.ceil(1.1 * count))
    let greatest = 0
    yield* inSlices(count, sliceRows / 4, (from, end) => {
      for (let row = from; row < end; row++) {
        const product = products[row]
        if (product !== undefined) values[row] = bonus.of(product.product_id)
        greatest = Math.max(greatest, values[row]!)
      }
    })
    known = { values, greatest, until: now + Duration.toMillis(bonusesFor) }
    return known
  })
}

/** An estimate is valid until the next one, which takes over its arrays. */
export const makeEstimate = (rows: ProductRows) => {
  const bonusesOf = makeBonuses(rows)
  let arrays = new Arrays(0)
  return Effect.fnUntraced(function* (
    codes: BinaryCodes,
    direction: Float32Array,
    bonus: Bonus | undefined,
  ): Effect.fn.Return<Estimates> {
    const { lengths, mean } = rows
    const { scales } = codes
    const count = Math.min(scales.length, lengths.length)
    if (arrays.order.length !== count) arrays = new Arrays(count)
    const { starts } = arrays
    starts.fill(0)
    const { greatest: greatestBonus, values: bonuses } = yield* bonusesOf(bonus, count)
    const query = codes.prepare(direction)
    const fromMean = query.onCentre - Vector.dot(direction, mean)
    const greatestSimilarity = greatestCosine * (Vector.norm(direction) || 1)
    const greatest = greatestSimilarity + greatestBonus
    const width = (greatest + greatestSimilarity) / buckets
    const known = { query, scales, lengths, bonuses, fromMean, greatest, width }
    yield* inSlices(count, sliceRows, (from, end) =>
      estimateSlice(arrays, { ...known, sums: codes.sums(from) }, from, end),
    )
    for (let bucket = 1; bucket < buckets; bucket++) starts[bucket] = starts[bucket]! + starts[bucket - 1]!
    yield* inSlices(count, 4 * sliceRows, (from, end) => sortSlice(arrays, from, end))
    return { ...arrays, tolerance: width }
  })
}
