/** Estimates the scores of all products of a large memory, so that a search compares few of them exactly. */
import { Clock, Duration, Effect } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import { noDirection } from "../model/Taste.ts"
import * as Vector from "../model/Vector.ts"
import { type BinaryCodes, sliceRows } from "./BinaryCodes.ts"
import type { ProductRows } from "./CatalogueRows.ts"
import type { Bonus } from "./CatalogueSearch.ts"

/** Scores are sorted into so many buckets. */
const buckets = 2_048
/** No estimate of a cosine is much greater than this. */
const greatestCosine = 1.1
/** How old the bonuses may be by which products are chosen. The scores have the current ones. */
const bonusesFor = Duration.seconds(30)

export interface Estimates {
  /** By row: the similarity is not greater, but for one product in 160. */
  readonly similarities: Float32Array
  /** By row: with the bonus. */
  readonly scores: Float32Array
  /** The rows, greatest score first. No score is greater by more than `tolerance` than one before it. */
  readonly order: Uint32Array
  readonly tolerance: number
}

/** Calls `work` with slices of the rows, and lets other fibers run after each. */
const inSlices = Effect.fnUntraced(function* (count: number, work: (from: number, end: number) => void) {
  for (let from = 0; from < count; from += sliceRows) {
    work(from, Math.min(count, from + sliceRows))
    yield* yieldToEventLoop
  }
})

/** Remembers bonuses by row: computing them costs more than estimating the similarities. */
const makeBonuses = ({ products }: ProductRows) => {
  let values = new Float32Array(0)
  let until = 0
  return Effect.fnUntraced(function* (bonus: Bonus | undefined, count: number) {
    if (bonus === undefined) return new Float32Array(count)
    const now = yield* Clock.currentTimeMillis
    if (now < until && values.length >= count) return values
    // New products have a place, and no bonus for a while.
    const computed = new Float32Array(Math.ceil(1.1 * count))
    yield* inSlices(count, (from, end) => {
      for (let row = from; row < end; row++) {
        const product = products[row]
        if (product !== undefined) computed[row] = bonus.of(product.product_id)
      }
    })
    values = computed
    until = now + Duration.toMillis(bonusesFor)
    return values
  })
}

/** An estimate is valid until the next one, which takes over its arrays. */
export const makeEstimate = (rows: ProductRows) => {
  const bonusesOf = makeBonuses(rows)
  let similarities = new Float32Array(0)
  let scores = new Float32Array(0)
  let order = new Uint32Array(0)
  return Effect.fnUntraced(function* (
    codes: BinaryCodes,
    direction: Float32Array,
    bonus: Bonus | undefined,
  ): Effect.fn.Return<Estimates> {
    const { lengths, mean } = rows
    const { scales } = codes
    const count = Math.min(scales.length, lengths.length)
    const bonuses = yield* bonusesOf(bonus, count)
    const query = codes.prepare(direction)
    const fromMean = query.onCentre - Vector.dot(direction, mean)
    if (order.length !== count) {
      similarities = new Float32Array(count)
      scores = new Float32Array(count)
      order = new Uint32Array(count)
    }
    let greatest = 0
    yield* inSlices(count, (from, end) => {
      const sums = codes.sums(from)
      for (let row = from; row < end; row++) {
        const length = lengths[row]!
        const along = (sums[row - from]! * query.step + query.offset) * scales[row]! + fromMean
        const similarity = length < noDirection ? 0 : along / length
        similarities[row] = similarity
        scores[row] = similarity + bonuses[row]!
        greatest = Math.max(greatest, scores[row]!)
      }
    })
    const least = -greatestCosine * Vector.norm(direction)
    const tolerance = (greatest - least) / buckets
    yield* sort(scores, greatest, tolerance, order)
    return { similarities, scores, order, tolerance }
  })
}

/** Writes the indexes of the numbers into `order`, greatest number first, as finely as the width of the buckets. */
const sort = Effect.fnUntraced(function* (
  numbers: Float32Array,
  greatest: number,
  width: number,
  order: Uint32Array,
) {
  const bucketOf = (number: number) => Math.min(buckets - 1, Math.floor((greatest - number) / width))
  /** Where a bucket begins; first the number of its members, one place further on. */
  const starts = new Uint32Array(buckets + 1)
  yield* inSlices(numbers.length, (from, end) => {
    for (let i = from; i < end; i++) {
      const next = bucketOf(numbers[i]!) + 1
      starts[next] = starts[next]! + 1
    }
  })
  for (let bucket = 1; bucket < buckets; bucket++) starts[bucket] = starts[bucket]! + starts[bucket - 1]!
  yield* inSlices(numbers.length, (from, end) => {
    for (let i = from; i < end; i++) {
      const bucket = bucketOf(numbers[i]!)
      const place = starts[bucket]!
      order[place] = i
      starts[bucket] = place + 1
    }
  })
})
