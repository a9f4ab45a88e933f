/** Estimates the scores of all products of a large memory, so that a search compares few of them exactly. */
import { Clock, Duration, Effect } from "effect"
import { yieldToEventLoop } from "../EventLoop.ts"
import * as Vector from "../model/Vector.ts"
import { type BinaryCodes, type Query, sliceRows } from "./BinaryCodes.ts"
import type { ProductRows } from "./CatalogueRows.ts"
import type { Bonus } from "./CatalogueSearch.ts"
import { ScoreBands } from "./ScoreBands.ts"

/** No estimate of a cosine is much greater than this. */
const greatestCosine = 1.1
/** Lowers a score below all that match. */
const unmatched = 1e9
/** How old the bonuses may be by which products are chosen. The scores have the current ones. */
const bonusesFor = Duration.seconds(30)

/** The least rows of the first band, and how many times more each later band has. */
const firstBand = 2_048
const bandGrowth = 8

export interface Estimates {
  /** By row: the similarity, which is estimated too low for one product in 160, with the bonus. */
  readonly scores: Float32Array
  readonly bonuses: Float32Array
  /** No score is greater by more than this than one before it in the order. */
  readonly tolerance: number
  /** More rows in the order of their scores, and none after the last. Those that do not match may be left out. */
  readonly next: Effect.Effect<Uint32Array>
}

/** What estimates are computed from. Arrays have a value for each row, `sums` for each row of the slice. */
interface Known {
  readonly sums: Uint16Array
  readonly query: Query
  readonly scales: ReadonlyArray<number>
  readonly factors: ReadonlyArray<number>
  readonly bonuses: Float32Array
  readonly matches: Uint8Array
  /** direction · (centre of the codes − μ) */
  readonly fromMean: number
}

const estimateSlice = (
  scores: Float32Array,
  { bonuses, factors, fromMean, matches, query, scales, sums }: Known,
  from: number,
  end: number,
): void => {
  const { offset, step } = query
  for (let row = from; row < end; row++) {
    const along = (sums[row - from]! * step + offset) * scales[row]! + fromMean
    // Without a branch, which a processor could not predict.
    scores[row] = along * factors[row]! + bonuses[row]! - unmatched * (1 - matches[row]!)
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
  let none = known
  return Effect.fnUntraced(function* (bonus: Bonus | undefined, count: number) {
    if (bonus === undefined) {
      if (none.values.length < count) none = { ...none, values: new Float32Array(Math.ceil(1.1 * count)) }
      return none
    }
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

/** Estimates the products that match. An estimate is valid until the next one, which takes over its arrays. */
export const makeEstimate = (rows: ProductRows) => {
  const bonusesOf = makeBonuses(rows)
  let bands = new ScoreBands(0)
  return Effect.fnUntraced(function* (
    codes: BinaryCodes,
    direction: Float32Array,
    bonus: Bonus | undefined,
    matches: Uint8Array,
  ): Effect.fn.Return<Estimates> {
    const { factors, mean } = rows
    const { scales } = codes
    const count = Math.min(scales.length, factors.length)
    if (bands.scores.length !== count) bands = new ScoreBands(count)
    const { greatest, values: bonuses } = yield* bonusesOf(bonus, count)
    const query = codes.prepare(direction)
    const fromMean = query.onCentre - Vector.dot(direction, mean)
    const greatestSimilarity = greatestCosine * (Vector.norm(direction) || 1)
    const tolerance = bands.begin(greatestSimilarity + greatest, -greatestSimilarity)
    const known = { query, scales, factors, bonuses, matches, fromMean }
    yield* inSlices(count, sliceRows, (from, end) => {
      estimateSlice(bands.scores, { ...known, sums: codes.sums(from) }, from, end)
      bands.count(from, end)
    })
    let size = firstBand / bandGrowth
    const next = Effect.suspend(() => {
      size *= bandGrowth
      const found = bands.beginBand(size)
      const sorting = inSlices(found === 0 ? 0 : count, 8 * sliceRows, (from, end) => bands.sort(from, end))
      return Effect.map(sorting, () => bands.sorted(found))
    })
    return { scores: bands.scores, bonuses, tolerance, next }
  })
}
