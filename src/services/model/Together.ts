/**
 * Which products people interact with together. Pure.
 *
 *     T[j][i] = Σ 0.8^(k−1)   over the events of i that have j as the k-th event before them, by the same user, k ≤ 10
 *     near(i) = Σ_r 0.8^r · T[x_r][i]² / ((T[x_r][i] + 3) · n[x_r])      x_r = the newest ten events, r = 0 the newest
 *
 * T is counted both ways, and j = i too, because people come back to a product. The factor T / (T + 3) quiets pairs that one
 * person made.
 */
import type { ProductId } from "./Interaction.ts"

/** How many events before an event count. */
export const reach = 10
/** Pairs that are stored for a product, and those that are read: the greatest ones. */
export const mostPairs = 200
export const mostNeighbours = 100
const fading = 0.8
const quieting = 3

/** T is kept in whole numbers of 5^−9, so that sums are exact: 0.8^(k−1) = 4^(k−1) · 5^(10−k) of them. */
const scale = 5 ** (reach - 1)
const unitsAt = Array.from({ length: reach }, (_, k) => 4 ** k * 5 ** (reach - 1 - k))

/** T[j], in units: the other products of the pairs, and how often. */
export type Pairs = Map<ProductId, number>
export type PairCounts = Map<ProductId, Pairs>

const addOne = (counts: PairCounts, of: ProductId, other: ProductId, units: number) => {
  const pairs = counts.get(of)
  if (pairs === undefined) counts.set(of, new Map([[other, units]]))
  else pairs.set(other, (pairs.get(other) ?? 0) + units)
}

/** Which events of a history to count with those before them. */
export interface Counting {
  /** -1 takes the pairs away. */
  readonly sign?: 1 | -1
  /** The products whose pairs are wanted; default: all. */
  readonly isCounted?: ((product: ProductId) => boolean) | undefined
  /** The first of these events, and the end. */
  readonly from?: number
  readonly to?: number
}

/** Adds the pairs of one person's events, oldest first. `undefined` is an event that makes no pairs and keeps its place. */
export const countPairs = (
  counts: PairCounts,
  events: ReadonlyArray<ProductId | undefined>,
  { from = 0, isCounted = () => true, sign = 1, to = events.length }: Counting = {},
): void => {
  for (let at = from; at < to && at < events.length; at++) {
    const product = events[at]
    if (product === undefined) continue
    const wanted = isCounted(product)
    for (let k = 0; k < reach && k < at; k++) {
      const other = events[at - 1 - k]
      if (other === undefined) continue
      const units = sign * unitsAt[k]!
      if (wanted) addOne(counts, product, other, units)
      if (isCounted(other)) addOne(counts, other, product, units)
    }
  }
}

/** The greatest pairs first, ties by product id; those that add up to nothing are left out. */
export const greatest = (pairs: Iterable<readonly [ProductId, number]>) =>
  [...pairs]
    .filter(([, units]) => units > 0)
    .sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1))
    .slice(0, mostPairs)

/** Ids have no spaces: `id units id units …`, greatest first. */
export const encodePairs = (pairs: Iterable<readonly [ProductId, number]>): string =>
  greatest(pairs).flat().join(" ")
export const decodePairs = (text: string, most = mostPairs): Pairs => {
  const words = text === "" ? [] : text.split(" ", 2 * most)
  const pairs: Pairs = new Map()
  for (let at = 0; at < words.length; at += 2) pairs.set(words[at]!, Number(words[at + 1]))
  return pairs
}

/** What one of the newest events adds to `near`, by product. */
export const nearby = (
  pairs: ReadonlyMap<ProductId, number>,
  rank: number,
  interactions: number,
): ReadonlyMap<ProductId, number> => {
  const factor = fading ** rank / Math.max(1, interactions)
  const near = new Map<ProductId, number>()
  for (const [product, units] of pairs) {
    const t = units / scale
    near.set(product, (factor * t * t) / (t + quieting))
  }
  return near
}
