/**
 * Replays history in time order and asks before each chosen interaction: who would have put its product in the first ten?
 * Pure. Everything that answers knows only what came before. Tastes are those of the program itself: its fold, its reading.
 */

import { Either } from "effect"
import type { EventType, Interaction, ProductId, UserId } from "../model/Interaction.ts"
import { chronological } from "../model/Interaction.ts"
import * as Taste from "../model/Taste.ts"
import {
  decay,
  type Event,
  type FoldSettings,
  fold,
  type History,
  type Weights,
} from "../model/UserEmbedding.ts"
import * as Vector from "../model/Vector.ts"

/** The same types, all with weight 1 or -1. */
export const equalWeights = (weights: Weights): Weights =>
  Object.fromEntries(Object.entries(weights).map(([type, weight]) => [type, Math.sign(weight)]))

/** A setting of the grid. */
export interface Setting {
  readonly lambda: number
  readonly weights: Weights
  readonly history: History
  /** `long`: the stored vector alone; `mixed`: with short memory, as recommendations read it. */
  readonly mix: "long" | "mixed"
  readonly popularity: number
}

/** Ways that need no vector of a user, and the plainest that has one. */
export const baselines = ["popular", "buy again", "item kNN", "last item", "plain mean"] as const
export type Baseline = (typeof baselines)[number]

export interface Plan {
  /** Oldest first, each once. */
  readonly interactions: ReadonlyArray<Interaction>
  /** Message ids of what is to be foretold. */
  readonly targets: ReadonlySet<string>
}

/** Numbers from a seed (mulberry32): the same history gives the same report. */
export const randomOf = (seed: number) => () => {
  seed = (seed + 0x6d2b79f5) | 0
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
}

/**
 * Chooses what is foretold: product interactions of these types in the last fifth of the history, of users with something
 * before, at most `most`, spread at random. With `unseenOnly` not those with a product that the user has met before.
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

/** Rank of the product foretold, 0 = first, for every way: simple ones first, then the settings. */
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
  /** λ of buying again. */
  readonly lambda: number
  /** Products that the user has met are no candidates. */
  readonly unseenOnly: boolean
}

const neighbours = 5
const eventsRemembered = 10

/** Mean of the catalogue, and the catalogue without it. */
const centred = (products: World["products"]) => {
  const sum = new Float64Array(products[0]?.vector.length ?? 0)
  for (const { vector } of products) Vector.addScaled(sum, 1 / products.length, vector)
  const mean = Float32Array.from(sum)
  return {
    mean,
    vectors: products.map(({ vector }) => Taste.centre(vector, mean) ?? new Float32Array(mean.length)),
  }
}

/** Numbers in the order in which they came, four bytes each. */
class Numbers {
  private kept = new Uint32Array(4)
  private count = 0

  push(n: number): void {
    if (this.count === this.kept.length) {
      const more = new Uint32Array(2 * this.count)
      more.set(this.kept)
      this.kept = more
    }
    this.kept[this.count++] = n
  }

  /** How often each is here. */
  tally(): ReadonlyMap<number, number> {
    const times = new Map<number, number>()
    for (let at = 0; at < this.count; at++) {
      const n = this.kept[at]!
      times.set(n, (times.get(n) ?? 0) + 1)
    }
    return times
  }
}

/** Foretells each target; yields in time order, so that a caller can show progress and breathe. */
export function* predict({ interactions, targets }: Plan, world: World): Generator<Ranking> {
  const { lambda, products, settings, space, unseenOnly, vectorOf } = world
  const { mean, vectors } = centred(products)
  const indexOf = new Map(products.map(({ product_id }, index) => [product_id, index]))
  const counts = new Float64Array(products.length)
  /** Of each product, those that the same user had within five events, as often as that happened. */
  const together = products.map(() => new Numbers())
  const equal = equalWeights(settings[0]?.weights ?? {})

  const scoresOf = (direction: Float32Array | undefined) => {
    if (direction === undefined) return undefined
    const scores = new Float64Array(vectors.length)
    for (let product = 0; product < scores.length; product++)
      scores[product] = Vector.dot(direction, vectors[product]!)
    return scores
  }
  const unit = (sum: Float64Array | undefined) => sum && Vector.divide(sum, Vector.norm(sum))

  const rankOf = (
    target: number,
    score: (product: number) => number,
    without: ReadonlySet<number> | undefined,
  ): number => {
    const own = score(target)
    let ahead = 0
    let equals = 0
    for (let product = 0; product < products.length; product++) {
      if (product === target || without?.has(product)) continue
      const other = score(product)
      if (other > own) ahead += 1
      else if (other === own) equals += 1
    }
    // Among equals the middle place is what chance gives.
    return ahead + Math.floor(equals / 2)
  }

  const ranks = (target: number, past: ReadonlyArray<Interaction>, now: number): ReadonlyArray<number> => {
    const seen = past.flatMap(({ product_id }) => indexOf.get(product_id ?? "") ?? [])
    const without = unseenOnly ? new Set(seen) : undefined
    const most = counts.reduce((a, b) => Math.max(a, b), 0)
    const popular = Float64Array.from(counts, (count) => Taste.popularityPart(1, count, most))
    const popularity = (product: number) => popular[product]!
    const rank = (score: (product: number) => number) => rankOf(target, score, without)
    /** Where scores say nothing, popularity does. */
    const orPopular = (scores: ReadonlyMap<number, number>) =>
      rank((product) => (scores.get(product) ?? 0) + 1e-9 * popularity(product))

    const again = new Map<number, number>()
    for (const { event_type, occurred_at, product_id } of past) {
      const index = indexOf.get(product_id ?? "")
      if (index === undefined || event_type !== "product_purchase") continue
      again.set(index, (again.get(index) ?? 0) + decay(lambda, now, Date.parse(occurred_at)))
    }
    const near = new Map<number, number>()
    for (const [place, index] of seen.slice(-neighbours).toReversed().entries())
      for (const [other, times] of together[index]!.tally()) {
        const cosine = times / Math.sqrt(Math.max(1, counts[index]!) * Math.max(1, counts[other]!))
        near.set(other, (near.get(other) ?? 0) + 0.5 ** place * cosine)
      }

    const events = past.flatMap((interaction): ReadonlyArray<Event> => {
      const vector = vectorOf(interaction)
      return vector === undefined ? [] : [{ interaction, vector }]
    })
    const remembered = events
      .slice(-eventsRemembered)
      .toReversed()
      .map(({ interaction, vector }) => ({ event: interaction, vector }))
    const last = events.at(-1)
    const folded = new Map<string, ReturnType<typeof fold>>()
    const embeddingOf = (setting: Omit<FoldSettings, "space">) => {
      const key = JSON.stringify([setting.lambda, setting.weights, setting.history])
      const known = folded.get(key) ?? fold(undefined, events, { ...setting, space }, now)
      folded.set(key, known)
      return Either.getOrThrow(known)
    }
    const read = new Map<string, Float64Array | undefined>()
    const tasteOf = ({ history, lambda, mix, weights }: Setting) => {
      const key = JSON.stringify([lambda, weights, history, mix])
      if (!read.has(key)) {
        const embedding = embeddingOf({ lambda, weights, history })
        const direction =
          mix === "long"
            ? unit(Taste.longMemory(embedding, mean))
            : Taste.read(embedding, remembered, mean, weights, now)?.direction
        read.set(key, scoresOf(direction))
      }
      return read.get(key)
    }
    const byVector = (scores: Float64Array | undefined, weight: number) =>
      rank((product) => (scores?.[product] ?? 0) + (scores === undefined ? 1 : weight) * popularity(product))

    const plain: Setting = { lambda: 0, weights: equal, history: "cumulative", mix: "long", popularity: 0 }
    const simpleRanks: Readonly<Record<Baseline, number>> = {
      popular: rank(popularity),
      "buy again": orPopular(again),
      "item kNN": orPopular(near),
      "last item": byVector(last && scoresOf(Taste.centre(last.vector, mean)), 0),
      "plain mean": byVector(events.length === 0 ? undefined : tasteOf(plain), 0),
    }
    return [
      ...baselines.map((name) => simpleRanks[name]),
      ...settings.map((setting) =>
        byVector(events.length === 0 ? undefined : tasteOf(setting), setting.popularity),
      ),
    ]
  }

  const pasts = new Map<UserId, Array<Interaction>>()
  for (const { message_id, user_id } of interactions) if (targets.has(message_id)) pasts.set(user_id, [])
  const lately = new Map<UserId, Array<number>>()
  // A million times: nothing is made here that is thrown away at once.
  for (const interaction of interactions) {
    const { message_id, occurred_at, product_id, user_id } = interaction
    const index = product_id === null ? undefined : indexOf.get(product_id)
    const past = pasts.get(user_id)
    if (index !== undefined && past !== undefined && targets.has(message_id))
      yield { user: user_id, ranks: ranks(index, past, Date.parse(occurred_at)) }
    past?.push(interaction)
    if (index === undefined) continue
    counts[index]! += 1
    const before = lately.get(user_id)
    if (before === undefined) {
      lately.set(user_id, [index])
      continue
    }
    for (let at = 0; at < before.length; at++) {
      const other = before[at]!
      if (other === index || before.indexOf(other) < at) continue
      together[index]!.push(other)
      together[other]!.push(index)
    }
    if (before.push(index) > neighbours) before.shift()
  }
}

// ---------------------------------------------------------------------------------------------------------
// Figures

const first = 10
export const metrics = ["hit_rate", "ndcg", "mrr"] as const
export type Metric = (typeof metrics)[number]

/** What a rank is worth, at 10. */
export const metricOfRank: Readonly<Record<Metric, (rank: number) => number>> = {
  hit_rate: (rank) => (rank < first ? 1 : 0),
  ndcg: (rank) => (rank < first ? 1 / Math.log2(rank + 2) : 0),
  mrr: (rank) => (rank < first ? 1 / (rank + 1) : 0),
}

/** A mean with its 95 % interval. */
export interface Estimate {
  readonly mean: number
  readonly low: number
  readonly high: number
}

const resamples = 1_000

/**
 * Mean over all, and its 95 % percentile interval: bootstrap by user, for what one user does belongs together (Efron and
 * Tibshirani, "An Introduction to the Bootstrap", 1993).
 */
export const estimate = (
  foretold: ReadonlyArray<Ranking>,
  value: (ranks: ReadonlyArray<number>) => number,
): Estimate => {
  const sums = new Map<UserId, readonly [number, number]>()
  for (const { ranks, user } of foretold) {
    const [sum, count] = sums.get(user) ?? [0, 0]
    sums.set(user, [sum + value(ranks), count + 1])
  }
  const users = [...sums.values()]
  const mean = (pick: (index: number) => number) => {
    let sum = 0
    let count = 0
    for (let index = 0; index < users.length; index++) {
      const [a, b] = users[pick(index)]!
      sum += a
      count += b
    }
    return count === 0 ? 0 : sum / count
  }
  const random = randomOf(2)
  const means = Array.from({ length: resamples }, () => mean(() => Math.floor(random() * users.length))).sort(
    (a, b) => a - b,
  )
  const at = (share: number) => means[Math.floor(share * (resamples - 1))] ?? 0
  return { mean: mean((index) => index), low: at(0.025), high: at(0.975) }
}

export interface Verdict {
  /** Chosen on one half of the users: a name of {@link baselines}, an index of the settings. */
  readonly baselines: Baseline
  readonly setting: number
  /** NDCG of the setting less that of the simple way, on the other half. */
  readonly difference: Estimate
  readonly says: "taste" | "simple" | "undecided"
}

/**
 * The best setting against the best simple way. Both are chosen on one half of the users and compared on the other: the
 * best of many on the same users would look better than it is.
 */
export const compareOnHoldout = (foretold: ReadonlyArray<Ranking>, settings: number): Verdict => {
  const halves: [Array<Ranking>, Array<Ranking>] = [[], []]
  const sides = new Map<UserId, 0 | 1>()
  for (const one of foretold) {
    const side = sides.get(one.user) ?? (sides.size % 2 === 0 ? 0 : 1)
    sides.set(one.user, side)
    halves[side].push(one)
  }
  const ndcg = (way: number) => halves[0].reduce((sum, { ranks }) => sum + metricOfRank.ndcg(ranks[way]!), 0)
  const best = (from: number, count: number) =>
    Array.from({ length: count }, (_, index) => from + index).reduce((a, b) => (ndcg(b) > ndcg(a) ? b : a))
  const plainest = best(0, baselines.length)
  const richest = best(baselines.length, settings)
  const difference = estimate(
    halves[1],
    (ranks) => metricOfRank.ndcg(ranks[richest]!) - metricOfRank.ndcg(ranks[plainest]!),
  )
  return {
    baselines: baselines[plainest]!,
    setting: richest - baselines.length,
    difference,
    says: difference.low > 0 ? "taste" : difference.high < 0 ? "simple" : "undecided",
  }
}
