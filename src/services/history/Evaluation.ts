/**
 * Replays a history in time order. Before each chosen interaction, every method ranks all products, from the interactions
 * before it alone; a method is good when the product of the interaction is among its first ten. Pure. Tastes are computed
 * by the program's own fold and reading.
 */

import { Either } from "effect"
import { decay, type Event, type FoldSettings, fold, type Weights, weightOf } from "../model/Fold.ts"
import type { EventType, Interaction, ProductId, UserId } from "../model/Interaction.ts"
import { chronological } from "../model/Interaction.ts"
import * as Taste from "../model/Taste.ts"
import * as Together from "../model/Together.ts"
import type { History } from "../model/UserEmbedding.ts"
import * as Vector from "../model/Vector.ts"

/** The same types, all with weight 1 or -1. */
export const equalWeights = (weights: Weights): Weights =>
  Object.fromEntries(Object.entries(weights).map(([type, weight]) => [type, Math.sign(weight)]))

export interface Setting {
  readonly lambda: number
  readonly weights: Weights
  readonly history: History
  /** `long`: the stored vector alone; `mixed`: with short memory, as recommendations read it. */
  readonly mix: "long" | "mixed"
  readonly popularity: number
  /** Weights of the terms `together` and `again`. */
  readonly together: number
  readonly again: number
}

/** Methods without a taste: popularity, own purchases, neighbours of the last products, and the mean of the vectors. */
export const baselines = ["popular", "buy again", "item kNN", "last item", "plain mean"] as const
export type Baseline = (typeof baselines)[number]

export interface Plan {
  /** Oldest first, without duplicates. */
  readonly interactions: ReadonlyArray<Interaction>
  /** Message ids of the interactions to predict. */
  readonly targets: ReadonlySet<string>
}

/** Random numbers from a seed (mulberry32), so that the same history gives the same report. */
export const randomOf = (seed: number) => () => {
  seed = (seed + 0x6d2b79f5) | 0
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
}

/**
 * Draws at most `most` interactions to predict, at random: product interactions of these types in the last fifth of the
 * history, by users with earlier interactions. With `unseenOnly`, the product must be new to the user.
 */
export const plan = (
  given: ReadonlyArray<Interaction>,
  options: {
    readonly types: ReadonlyArray<EventType>
    readonly most: number
    readonly unseenOnly: boolean
    readonly known: (product: ProductId) => boolean
  },
): Plan => {
  const interactions = given
    .toSorted(chronological)
    .filter(({ message_id }, index, all) => message_id !== all[index - 1]?.message_id)
  const from = Math.floor(interactions.length * 0.8)
  const random = randomOf(1)
  const met = new Map<UserId, Set<string>>()
  const candidates: Array<readonly [number, string]> = []
  for (const [index, { event_type, message_id, product_id, user_id }] of interactions.entries()) {
    const before = met.get(user_id)
    const counts =
      index >= from &&
      before !== undefined &&
      product_id !== null &&
      options.types.includes(event_type) &&
      options.known(product_id) &&
      !(options.unseenOnly && before.has(product_id))
    if (counts) candidates.push([random(), message_id])
    met.set(user_id, (before ?? new Set()).add(product_id ?? ""))
  }
  const chosen = candidates.sort(([a], [b]) => a - b).slice(0, options.most)
  return { interactions, targets: new Set(chosen.map(([, id]) => id)) }
}

/** Rank of the target's product, 0 = first, by every method: the baselines, then the settings. */
export interface Ranking {
  readonly user: UserId
  readonly ranks: ReadonlyArray<number>
}

export interface World {
  readonly products: ReadonlyArray<{ readonly product_id: ProductId; readonly vector: Float32Array }>
  /** Unit-length vector of an interaction; `undefined` when there is none. */
  readonly vectorOf: (interaction: Interaction) => Float32Array | undefined
  readonly space: string
  readonly settings: ReadonlyArray<Setting>
  /** λ of the baseline "buy again". */
  readonly lambda: number
  /** Leaves out products that the user has interacted with. */
  readonly unseenOnly: boolean
}

const neighbours = 5
const eventsRemembered = 10

/** The catalogue's mean, and its vectors centred by it. */
const centre = (products: World["products"]) => {
  const sum = new Float64Array(products[0]?.vector.length ?? 0)
  for (const { vector } of products) Vector.addScaled(sum, 1 / products.length, vector)
  const mean = Float32Array.from(sum)
  return {
    mean,
    vectors: products.map(({ vector }) => Taste.centre(vector, mean) ?? new Float32Array(mean.length)),
  }
}

/** A growing list of numbers, four bytes each. */
class Numbers {
  private items = new Uint32Array(4)
  private count = 0

  push(n: number): void {
    if (this.count === this.items.length) {
      const more = new Uint32Array(2 * this.count)
      more.set(this.items)
      this.items = more
    }
    this.items[this.count++] = n
  }

  tally(): ReadonlyMap<number, number> {
    const times = new Map<number, number>()
    for (let at = 0; at < this.count; at++) {
      const n = this.items[at]!
      times.set(n, (times.get(n) ?? 0) + 1)
    }
    return times
  }
}

/** Counts over all users, from the interactions so far. */
class ProductCounts {
  readonly interactions: Float64Array
  /** By product: the products that the same user had within five events, once for each time. */
  private readonly together: ReadonlyArray<Numbers>
  private readonly recent = new Map<UserId, Array<number>>()

  constructor(products: number) {
    this.interactions = new Float64Array(products)
    this.together = Array.from({ length: products }, () => new Numbers())
  }

  /** Called for every interaction of the history, so it allocates nothing that is soon garbage. */
  add(user: UserId, product: number): void {
    this.interactions[product]! += 1
    const before = this.recent.get(user)
    if (before === undefined) {
      this.recent.set(user, [product])
      return
    }
    for (let at = 0; at < before.length; at++) {
      const other = before[at]!
      if (other === product || before.indexOf(other) < at) continue
      this.together[product]!.push(other)
      this.together[other]!.push(product)
    }
    if (before.push(product) > neighbours) before.shift()
  }

  popularity(): Float64Array {
    const most = this.interactions.reduce((a, b) => Math.max(a, b), 0)
    return Float64Array.from(this.interactions, (count) => Taste.popularityPart(1, count, most))
  }

  /** Item kNN: products that occur together with the last products seen; the newest counts most. */
  neighbourScores(seen: ReadonlyArray<number>): ReadonlyMap<number, number> {
    const scores = new Map<number, number>()
    const count = (product: number) => Math.max(1, this.interactions[product]!)
    for (const [place, product] of seen.slice(-neighbours).toReversed().entries())
      for (const [other, times] of this.together[product]!.tally()) {
        const cosine = times / Math.sqrt(count(product) * count(other))
        scores.set(other, (scores.get(other) ?? 0) + 0.5 ** place * cosine)
      }
    return scores
  }
}

const rankOf = (
  target: number,
  products: number,
  score: (product: number) => number,
  without: ReadonlySet<number> | undefined,
): number => {
  const own = score(target)
  let ahead = 0
  let equals = 0
  for (let product = 0; product < products; product++) {
    if (product === target || without?.has(product)) continue
    const other = score(product)
    if (other > own) ahead += 1
    else if (other === own) equals += 1
  }
  // Among equal scores, chance would put the target in the middle.
  return ahead + Math.floor(equals / 2)
}

/** Products bought before; frequent and recent purchases score higher. */
const purchaseScores = (
  past: ReadonlyArray<Interaction>,
  indexOf: ReadonlyMap<string, number>,
  lambda: number,
  now: number,
): ReadonlyMap<number, number> => {
  const scores = new Map<number, number>()
  for (const { event_type, occurred_at, product_id } of past) {
    const index = indexOf.get(product_id ?? "")
    if (index === undefined || event_type !== "product_purchase") continue
    scores.set(index, (scores.get(index) ?? 0) + decay(lambda, now, Date.parse(occurred_at)))
  }
  return scores
}

const scoresBy = (direction: Float32Array | undefined, vectors: ReadonlyArray<Float32Array>) => {
  if (direction === undefined) return undefined
  const scores = new Float64Array(vectors.length)
  for (let product = 0; product < scores.length; product++)
    scores[product] = Vector.dot(direction, vectors[product]!)
  return scores
}

const unit = (sum: Float64Array | undefined) => sum && Vector.divide(sum, Vector.norm(sum))

/** Scores of all products by one user's taste at one instant. Settings that share a fold or a taste compute it once. */
class TasteScores {
  private readonly remembered: ReadonlyArray<Taste.RememberedEvent>
  private readonly folded = new Map<string, ReturnType<typeof fold>>()
  private readonly scores = new Map<string, Float64Array | undefined>()

  constructor(
    private readonly events: ReadonlyArray<Event>,
    private readonly catalogue: ReturnType<typeof centre>,
    private readonly space: string,
    private readonly now: number,
  ) {
    this.remembered = events
      .slice(-eventsRemembered)
      .toReversed()
      .map(({ interaction, vector }) => ({ event: interaction, vector }))
  }

  /** `undefined` when the taste has no direction. */
  of({ history, lambda, mix, weights }: Setting): Float64Array | undefined {
    if (this.events.length === 0) return undefined
    const key = JSON.stringify([lambda, weights, history, mix])
    if (!this.scores.has(key)) {
      const { mean, vectors } = this.catalogue
      const embedding = this.embedding({ lambda, weights, history })
      const direction =
        mix === "long"
          ? unit(Taste.longMemory(embedding, mean))
          : Taste.read(embedding, this.remembered, mean, weights, this.now)?.direction
      this.scores.set(key, scoresBy(direction, vectors))
    }
    return this.scores.get(key)
  }

  private embedding(setting: Omit<FoldSettings, "space">) {
    const { space } = this
    const key = JSON.stringify([setting.lambda, setting.weights, setting.history])
    const embedding = this.folded.get(key) ?? fold(undefined, this.events, { ...setting, space }, this.now)
    this.folded.set(key, embedding)
    return Either.getOrThrow(embedding)
  }
}

/** The plain mean of all events: the baseline that has a vector too. */
const plainMean = ({ weights }: Pick<Setting, "weights">): Setting => ({
  lambda: 0,
  weights: equalWeights(weights),
  history: "cumulative",
  mix: "long",
  popularity: 0,
  together: 0,
  again: 0,
})

/** Values over the greatest one, for all products. */
const overGreatest = (scores: ReadonlyMap<number, number>, products: number) => {
  const most = scores.values().reduce((a, b) => Math.max(a, b), 0)
  const shares = new Float64Array(products)
  for (const [product, score] of scores) if (most > 0) shares[product] = score / most
  return shares
}

/** As a recommendation computes it, from the pairs so far. */
const togetherScores = (
  past: ReadonlyArray<Interaction>,
  pairs: Together.PairCounts,
  indexOf: ReadonlyMap<string, number>,
  { interactions }: ProductCounts,
) => {
  const scores = new Map<number, number>()
  for (const [rank, { product_id }] of past.slice(-eventsRemembered).toReversed().entries()) {
    const found = product_id === null ? undefined : pairs.get(product_id)
    if (found === undefined) continue
    const read = Together.greatest(found).slice(0, Together.mostNeighbours)
    const count = interactions[indexOf.get(product_id!) ?? -1] ?? 0
    for (const [other, value] of Together.nearby(new Map(read), rank, count)) {
      const index = indexOf.get(other)
      if (index !== undefined) scores.set(index, (scores.get(index) ?? 0) + value)
    }
  }
  return scores
}

const rankTarget = (
  { lambda, settings, space, unseenOnly, vectorOf }: World,
  catalogue: ReturnType<typeof centre>,
  indexOf: ReadonlyMap<string, number>,
  counts: ProductCounts,
  pairs: Together.PairCounts,
  { now, past, target }: { target: number; past: ReadonlyArray<Interaction>; now: number },
): ReadonlyArray<number> => {
  const { mean, vectors } = catalogue
  const seen = past.flatMap(({ product_id }) => indexOf.get(product_id ?? "") ?? [])
  const without = unseenOnly ? new Set(seen) : undefined
  const popularities = counts.popularity()
  const popularity = (product: number) => popularities[product]!
  const rank = (score: (product: number) => number) => rankOf(target, vectors.length, score, without)
  /** Products without a score are ranked by popularity. */
  const orPopular = (scores: ReadonlyMap<number, number>) =>
    rank((product) => (scores.get(product) ?? 0) + 1e-9 * popularity(product))
  const byVector = (scores: Float64Array | undefined, weight: number, added?: (product: number) => number) =>
    scores === undefined
      ? rank(popularity)
      : rank((product) => scores[product]! + weight * popularity(product) + (added?.(product) ?? 0))
  const bought = purchaseScores(past, indexOf, lambda, now)
  const together = overGreatest(togetherScores(past, pairs, indexOf, counts), vectors.length)
  const again = overGreatest(bought, vectors.length)

  const events = past.flatMap((interaction): ReadonlyArray<Event> => {
    const vector = vectorOf(interaction)
    return vector === undefined ? [] : [{ interaction, vector }]
  })
  const last = events.at(-1)
  const taste = new TasteScores(events, catalogue, space, now)
  const byBaseline: Readonly<Record<Baseline, number>> = {
    popular: rank(popularity),
    "buy again": orPopular(bought),
    "item kNN": orPopular(counts.neighbourScores(seen)),
    "last item": byVector(last && scoresBy(Taste.centre(last.vector, mean), vectors), 0),
    "plain mean": byVector(taste.of(plainMean(settings[0]!)), 0),
  }
  return [
    ...baselines.map((name) => byBaseline[name]),
    ...settings.map((setting) =>
      byVector(
        taste.of(setting),
        setting.popularity,
        (product) => setting.together * together[product]! + setting.again * again[product]!,
      ),
    ),
  ]
}

/** The products whose pairs are read: the newest ones before each target. The pairs of all products take much memory. */
const productsRead = ({ interactions, targets }: Plan): ReadonlySet<ProductId> => {
  const newestOf = new Map<UserId, Array<ProductId>>()
  for (const { message_id, user_id } of interactions) if (targets.has(message_id)) newestOf.set(user_id, [])
  const read = new Set<ProductId>()
  for (const { message_id, product_id, user_id } of interactions) {
    const newest = newestOf.get(user_id)
    if (newest === undefined) continue
    if (targets.has(message_id)) for (const product of newest) read.add(product)
    if (product_id !== null && newest.push(product_id) > eventsRemembered) newest.shift()
  }
  return read
}

/** Ranks each target; yields in time order, so that a caller can show progress and let other fibers run. */
export function* predict({ interactions, targets }: Plan, world: World): Generator<Ranking> {
  const { products } = world
  const catalogue = centre(products)
  const indexOf = new Map(products.map(({ product_id }, index) => [product_id, index]))
  const counts = new ProductCounts(products.length)
  const pairs: Together.PairCounts = new Map()
  const read = productsRead({ interactions, targets })
  const isCounted = (product: ProductId) => read.has(product)
  /** The newest products of each user, as far as pairs reach. */
  const newestOf = new Map<UserId, Array<ProductId | undefined>>()
  const { weights } = world.settings[0]!
  const pasts = new Map<UserId, Array<Interaction>>()
  for (const { message_id, user_id } of interactions) if (targets.has(message_id)) pasts.set(user_id, [])
  for (const interaction of interactions) {
    const { event_type, message_id, occurred_at, product_id, user_id } = interaction
    const target = product_id === null ? undefined : indexOf.get(product_id)
    const past = pasts.get(user_id)
    if (target !== undefined && past !== undefined && targets.has(message_id)) {
      const now = Date.parse(occurred_at)
      const ranks = rankTarget(world, catalogue, indexOf, counts, pairs, { target, past, now })
      yield { user: user_id, ranks }
    }
    past?.push(interaction)
    // A negative event is no sign of popularity.
    const isPositive = weightOf(weights, event_type) > 0
    if (target !== undefined && isPositive) counts.add(user_id, target)
    const newest = newestOf.get(user_id) ?? []
    newestOf.set(user_id, newest)
    if (newest.push(isPositive ? (product_id ?? undefined) : undefined) > Together.reach + 1) newest.shift()
    Together.countPairs(pairs, newest, { from: newest.length - 1, isCounted })
  }
}

// ---------------------------------------------------------------------------------------------------------
// Figures

const first = 10
export const metrics = ["hit_rate", "ndcg", "mrr"] as const
export type Metric = (typeof metrics)[number]

/** Value of a rank, at 10. */
export const metricOfRank: Readonly<Record<Metric, (rank: number) => number>> = {
  hit_rate: (rank) => (rank < first ? 1 : 0),
  ndcg: (rank) => (rank < first ? 1 / Math.log2(rank + 2) : 0),
  mrr: (rank) => (rank < first ? 1 / (rank + 1) : 0),
}

export interface Estimate {
  readonly mean: number
  readonly low: number
  readonly high: number
}

const resamples = 1_000

/**
 * The mean, with its 95 % percentile interval by bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap",
 * 1993). Users are drawn, not single targets, because the targets of one user are not independent.
 */
export const estimate = (
  rankings: ReadonlyArray<Ranking>,
  value: (ranks: ReadonlyArray<number>) => number,
): Estimate => {
  const totals = new Map<UserId, { sum: number; count: number }>()
  for (const { ranks, user } of rankings) {
    const total = totals.get(user) ?? { sum: 0, count: 0 }
    totals.set(user, total)
    total.sum += value(ranks)
    total.count += 1
  }
  const users = totals.size
  const sums = Float64Array.from(totals.values(), ({ sum }) => sum)
  const counts = Float64Array.from(totals.values(), ({ count }) => count)
  const meanOf = (drawn: Uint32Array) => {
    let sum = 0
    let count = 0
    for (let place = 0; place < users; place++) {
      sum += sums[drawn[place]!]!
      count += counts[drawn[place]!]!
    }
    return count === 0 ? 0 : sum / count
  }
  const random = randomOf(2)
  const drawn = Uint32Array.from({ length: users }, (_, index) => index)
  const mean = meanOf(drawn)
  const means = new Float64Array(resamples)
  for (let sample = 0; sample < resamples; sample++) {
    for (let place = 0; place < users; place++) drawn[place] = random() * users
    means[sample] = meanOf(drawn)
  }
  means.sort()
  const at = (share: number) => means[Math.floor(share * (resamples - 1))] ?? 0
  return { mean, low: at(0.025), high: at(0.975) }
}

export interface Comparison {
  /** The best of {@link baselines} on one half of the users. */
  readonly simple: Baseline
  readonly setting: number
  /** NDCG of the setting minus NDCG of the baseline, on the other half. */
  readonly difference: Estimate
  readonly says: "taste" | "simple" | "undecided"
}

/**
 * Compares the best setting with the best baseline. Both are chosen on one half of the users and compared on the other,
 * because the best of many looks better than it is on the users on which it was chosen.
 */
export const compareOnHoldout = (rankings: ReadonlyArray<Ranking>, settings: number): Comparison => {
  const halves: [Array<Ranking>, Array<Ranking>] = [[], []]
  const sides = new Map<UserId, 0 | 1>()
  for (const one of rankings) {
    const side = sides.get(one.user) ?? (sides.size % 2 === 0 ? 0 : 1)
    sides.set(one.user, side)
    halves[side].push(one)
  }
  const ndcg = (method: number) =>
    halves[0].reduce((sum, { ranks }) => sum + metricOfRank.ndcg(ranks[method]!), 0)
  const best = (from: number, count: number) =>
    Array.from({ length: count }, (_, index) => from + index).reduce((a, b) => (ndcg(b) > ndcg(a) ? b : a))
  const baseline = best(0, baselines.length)
  const setting = best(baselines.length, settings)
  const difference = estimate(
    halves[1],
    (ranks) => metricOfRank.ndcg(ranks[setting]!) - metricOfRank.ndcg(ranks[baseline]!),
  )
  return {
    simple: baselines[baseline]!,
    setting: setting - baselines.length,
    difference,
    says: difference.low > 0 ? "taste" : difference.high < 0 ? "simple" : "undecided",
  }
}
