/** The evaluation on made-up histories whose winner is known. */
import { describe, expect, test } from "bun:test"
import * as Evaluation from "../../../src/services/history/Evaluation.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import * as Vector from "../../../src/services/model/Vector.ts"

const dimensions = 16
const weights = { dislike: -0.4, search: 0.7, product_view: 0.3, product_click: 0.5, product_purchase: 1 }
const equal = { search: 1, product_view: 1, product_click: 1, product_purchase: 1 }
const setting = {
  lambda: 0.023,
  weights,
  history: "cumulative",
  mix: "mixed",
  popularity: 0.2,
  together: 0,
  again: 0,
} as const
const settings: ReadonlyArray<Evaluation.Setting> = [
  setting,
  { ...setting, popularity: 0 },
  { ...setting, lambda: 0.3, popularity: 0 },
  { ...setting, weights: equal },
  { ...setting, mix: "long" },
  { ...setting, history: "recency" },
]

interface Event {
  readonly user: number
  readonly product: number
  readonly type: "product_view" | "product_purchase" | "dislike"
  readonly hour: number
}

/** Products around `clusters` directions; product p belongs to cluster p % clusters. */
const catalogue = (count: number, clusters: number) => {
  const random = Evaluation.randomOf(7)
  const noise = () => random() + random() + random() - 1.5
  const centres = Array.from({ length: clusters }, () => Float32Array.from({ length: dimensions }, noise))
  return Array.from({ length: count }, (_, p) => ({
    product_id: `p-${p}`,
    vector: Vector.normalise(centres[p % clusters]!.map((x) => x + 0.25 * noise())),
  }))
}

const report = (
  events: ReadonlyArray<Event>,
  products: ReturnType<typeof catalogue>,
  more: { readonly unseenOnly?: boolean; readonly types?: ReadonlyArray<Interaction.EventType> } = {},
) => {
  const { types = ["product_purchase"], unseenOnly = false } = more
  const vectors = new Map(products.map(({ product_id, vector }) => [product_id, vector]))
  const interactions = events.map(({ hour, product, type, user }) =>
    Interaction.make({
      user_id: `u-${user}`,
      event_type: type,
      product_id: `p-${product}`,
      occurred_at: new Date(Date.UTC(2026, 0, 1) + hour * 3_600_000).toISOString(),
      metadata: {},
    }),
  )
  const plan = Evaluation.plan(interactions, { types, most: 400, unseenOnly, known: (id) => vectors.has(id) })
  const rankings = [
    ...Evaluation.predict(plan, {
      products,
      vectorOf: ({ product_id }) => vectors.get(product_id ?? ""),
      space: "test",
      settings,
      lambda: 0.023,
      unseenOnly,
    }),
  ]
  const ndcg = (way: number) =>
    Evaluation.estimate(rankings, (ranks) => Evaluation.metricOfRank.ndcg(ranks[way]!))
  return {
    rankings,
    targets: plan.targets.size,
    simple: Object.fromEntries(Evaluation.baselines.map((name, way) => [name, ndcg(way).mean])),
    settings: settings.map((_, index) => ndcg(Evaluation.baselines.length + index)),
    verdict: Evaluation.compareOnHoldout(rankings, settings.length),
  }
}

const users = 120
const each = (perUser: number, event: (user: number, n: number) => Omit<Event, "user" | "hour">) =>
  Array.from({ length: perUser }, (_, n) =>
    Array.from({ length: users }, (_, user) => ({ user, hour: n * 12 + user / users, ...event(user, n) })),
  ).flat()

test("an event with a negative weight makes no product popular", () => {
  const history = (type: Event["type"]) =>
    report(
      each(5, (user, n) =>
        n < 4 ? { product: 0, type } : { product: 1 + (user % 2), type: "product_purchase" },
      ),
      catalogue(30, 5),
    ).simple.popular!
  expect(history("dislike")).toBeGreaterThan(history("product_view"))
})

describe("the winner of a history made for it", () => {
  test("tastes that change, among random views: the mixed taste wins", () => {
    const random = Evaluation.randomOf(3)
    const pick = (n: number) => Math.floor(random() * n)
    // Each user buys from one cluster, which changes every twenty events; two of three events are random views.
    const events = each(60, (user, n) => {
      const cluster = (user + Math.floor(n / 20) * 5) % 12
      return n % 3 === 2
        ? { type: "product_purchase", product: cluster + 12 * pick(50) }
        : { type: "product_view", product: pick(600) }
    })
    const { simple, verdict, targets } = report(events, catalogue(600, 12))
    expect(targets).toBe(400)
    expect(verdict.says).toBe("taste")
    expect(verdict.difference.low).toBeGreaterThan(0)
    expect(simple["plain mean"]).toBeGreaterThan(simple.popular!)
  }, 60_000)

  test("everybody buys popular products: popularity wins", () => {
    const random = Evaluation.randomOf(4)
    const zipf = () => Math.min(199, Math.floor(random() ** 3 * 200))
    const events = each(30, () => ({ type: "product_purchase", product: zipf() }))
    const { simple, verdict } = report(events, catalogue(200, 12))
    expect([verdict.says, verdict.simple]).toEqual(["simple", "popular"])
    expect(verdict.difference.high).toBeLessThan(0)
    expect(simple.popular).toBeGreaterThan(0.2)
  }, 60_000)

  test("every user buys the same few products again: own purchases win", () => {
    const random = Evaluation.randomOf(5)
    const events = each(30, (user) => ({
      type: "product_purchase",
      product: (user * 31 + [0, 7, 113, 200][Math.floor(random() * 4)]!) % 300,
    }))
    const { verdict } = report(events, catalogue(300, 12))
    expect([verdict.says, verdict.simple]).toEqual(["simple", "buy again"])
  }, 60_000)

  test("pairs of products follow each other, with unrelated vectors: item kNN wins", () => {
    const random = Evaluation.randomOf(6)
    const start = Array.from({ length: users }, () => 0)
    // Pairs (2k, 2k + 1) lie in different clusters.
    const events = each(30, (user, n) => {
      if (n % 2 === 0) start[user] = 2 * Math.floor(random() * 100)
      return { type: "product_view", product: start[user]! + (n % 2) }
    })
    const { verdict } = report(events, catalogue(200, 12), { types: ["product_view"] })
    expect([verdict.says, verdict.simple]).toEqual(["simple", "item kNN"])
  }, 60_000)

  test("random purchases: no winner", () => {
    const random = Evaluation.randomOf(8)
    const events = each(20, () => ({ type: "product_purchase", product: Math.floor(random() * 200) }))
    const { verdict, simple } = report(events, catalogue(200, 12))
    expect(verdict.says).toBe("undecided")
    expect(simple.popular).toBeLessThan(0.06)
  }, 60_000)
})

describe("no look ahead", () => {
  test("interactions after a target do not change its rank", () => {
    const random = Evaluation.randomOf(9)
    const products = catalogue(50, 5)
    const early = each(10, () => ({ type: "product_purchase", product: Math.floor(random() * 50) }))
    const ranks = ({ rankings }: ReturnType<typeof report>) => rankings.map(({ ranks }) => ranks)
    const vectors = new Map(products.map(({ product_id, vector }) => [product_id, vector]))
    const world = {
      products,
      vectorOf: ({ product_id }: Interaction.Interaction) => vectors.get(product_id ?? ""),
      space: "test",
      settings,
      lambda: 0.023,
      unseenOnly: false,
    }
    const full = report(early, products)
    const { interactions, targets } = Evaluation.plan(
      early.map(({ hour, product, type, user }) =>
        Interaction.make({
          user_id: `u-${user}`,
          event_type: type,
          product_id: `p-${product}`,
          occurred_at: new Date(Date.UTC(2026, 0, 1) + hour * 3_600_000).toISOString(),
          metadata: {},
        }),
      ),
      { types: ["product_purchase"], most: 400, unseenOnly: false, known: () => true },
    )
    const cut = interactions.findLastIndex(({ message_id }) => targets.has(message_id))
    const shortened = [
      ...Evaluation.predict({ interactions: interactions.slice(0, cut + 1), targets }, world),
    ]
    expect(shortened.map(({ ranks }) => ranks)).toEqual(ranks(full))
  }, 60_000)

  test("with unseen products only, neither targets nor candidates are products the user has met", () => {
    const random = Evaluation.randomOf(10)
    const events = each(20, () => ({ type: "product_purchase", product: Math.floor(random() * 40) }))
    const { rankings, targets } = report(events, catalogue(40, 4), { unseenOnly: true })
    expect(rankings.length).toBe(targets)
    // 16 to 19 of 40 products are known by then: no rank can be as low as 35.
    expect(Math.max(...rankings.flatMap(({ ranks }) => ranks))).toBeLessThan(35)
  }, 60_000)
})

describe("figures", () => {
  test("value of a rank at 10", () => {
    const { hit_rate, mrr, ndcg } = Evaluation.metricOfRank
    expect([0, 1, 9, 10].map(hit_rate)).toEqual([1, 1, 1, 0])
    expect([0, 1, 9, 10].map(mrr)).toEqual([1, 0.5, 0.1, 0])
    expect([0, 2, 10].map(ndcg)).toEqual([1, 0.5, 0])
  })

  test("the interval of a mean over users with one target each is as wide as theory says", () => {
    const random = Evaluation.randomOf(11)
    const rankings = Array.from({ length: 400 }, (_, user) => ({
      user: `u-${user}`,
      ranks: [random() < 0.3 ? 0 : 99],
    }))
    const { high, low, mean } = Evaluation.estimate(rankings, ([rank]) =>
      Evaluation.metricOfRank.hit_rate(rank!),
    )
    const half = 1.96 * Math.sqrt((mean * (1 - mean)) / 400)
    expect(mean - low).toBeCloseTo(half, 1)
    expect(high - mean).toBeCloseTo(half, 1)
    expect(Math.abs(high - low - 2 * half)).toBeLessThan(0.01)
  })
})
