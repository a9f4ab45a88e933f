/** Recommendations over HTTP on both stacks, compared with a full computation that uses none of the code under test. */
import { expect } from "bun:test"
import { type ConfigError, Duration, Effect, Layer } from "effect"
import fc from "fast-check"
import type { Ports } from "../../src/layers/Stack.ts"
import * as Api from "../../src/programs/Api.ts"
import * as Worker from "../../src/programs/Worker.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { type ProductEmbedding, ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { EventVectors, layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import * as Requests from "../support/api.ts"
import { layerSuite } from "../support/effect.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const dimensions = 384
const space = `local:minilm-words:${dimensions}`
const settings = {
  API_PORT: "0",
  WORKER_PORT: "0",
  EMBEDDING_DIMENSIONS: String(dimensions),
  RATE_LIMIT_PER_USER: "0",
  // ExactTerms.test.ts has the other terms of the score.
  TOGETHER_WEIGHT: "0",
  AGAIN_WEIGHT: "0",
}

// ---------------------------------------------------------------------------------------------------------
// The catalogue: three clusters of vectors around a common direction, like embeddings of texts.

const categories = ["tents", "boots", "stoves"] as const
const catalogue: ReadonlyArray<ProductEmbedding> = (() => {
  const random = fc
    .sample(
      fc.array(fc.double({ min: -1, max: 1, noNaN: true }), { minLength: dimensions, maxLength: dimensions }),
      {
        numRuns: 304,
        seed: 7,
      },
    )
    .map((values) => Float64Array.from(values))
  const [common, ...centres] = random.splice(0, 4)
  return random.map((own, i) => ({
    product_id: `p-${String(i).padStart(3, "0")}`,
    product_name: `Product ${i}`,
    category: categories[i % 3]!,
    embedding: Float32Array.from(own, (x, d) => 3 * (x * 0.5 + common![d]! + centres[i % 3]![d]! * 0.6)),
    available: true,
    attributes: {},
    space,
    text: null,
  }))
})()

// ---------------------------------------------------------------------------------------------------------
// The documented formulas, on plain arrays.

type V = ReadonlyArray<number>
const unit = (v: V): V => {
  const length = Math.hypot(...v)
  return v.map((x) => x / length)
}
const add = (a: V, factor: number, b: V): V => a.map((x, i) => x + factor * b[i]!)
const dot = (a: V, b: V): number => a.reduce((sum, x, i) => sum + x * b[i]!, 0)
const zero: V = Array.from({ length: dimensions }, () => 0)
const weights = { search: 0.7, product_view: 0.3, product_click: 0.5, product_purchase: 1 } as const
type Kind = keyof typeof weights

interface Happened {
  readonly event_type: Kind
  readonly reference: string
  readonly at: number
}

/** `searched`: the vector of the search phrase, if there is one. */
const reference = (history: ReadonlyArray<Happened>, searched: V = zero) => {
  const units = new Map(catalogue.map(({ embedding, product_id }) => [product_id, unit([...embedding])]))
  const mean = [...units.values()].reduce((sum, v) => add(sum, 1 / units.size, v), zero)
  const vectorOf = ({ event_type, reference: id }: Happened) =>
    event_type === "search" ? searched : units.get(id)!
  const centre = (v: V) => unit(add(v, -1, mean))
  const newest = history.toSorted((a, b) => b.at - a.at)
  const last = newest[0]!.at
  const kept = ({ at, event_type }: Happened) =>
    weights[event_type] * Math.exp((-0.023 * (last - at)) / 86_400_000)
  const long = unit(newest.reduce((sum, e) => add(add(sum, kept(e), vectorOf(e)), -kept(e), mean), zero))
  const short = unit(
    newest
      .slice(0, 10)
      .reduce((sum, e, r) => add(sum, weights[e.event_type] * 0.5 ** r, centre(vectorOf(e))), zero),
  )
  const b = 0.3 + 0.4 * 2 ** (-(Date.now() - last) / 3_600_000 / 24)
  const taste = unit(
    add(
      long.map((x) => (1 - b) * x),
      b,
      short,
    ),
  )
  return {
    taste,
    centre,
    similarity: (id: string) => dot(taste, centre(units.get(id)!)),
    unitOf: (id: string) => units.get(id)!,
  }
}

// ---------------------------------------------------------------------------------------------------------

const call = (...request: Parameters<typeof Requests.call>) =>
  Effect.map(Requests.call(...request), ({ json, status }) => ({ status, body: json as Answer }))
const get = (path: string) => call("GET", path)

interface Item {
  readonly product_id: string
  readonly user_id: string
  readonly product_name: string
  readonly category: string
  readonly score: number
  readonly similarity: number
  readonly popularity: number
  readonly taste: number | null
  readonly purchases: number
  readonly because: ReadonlyArray<{
    readonly event_type: string
    readonly share: number
    readonly product_id?: string
  }>
  readonly rest: number
}
interface Answer {
  readonly source: string
  readonly personalised: boolean
  readonly compared: number
  readonly detail: string
  readonly items: ReadonlyArray<Item>
  readonly errors: ReadonlyArray<{ readonly field: string }>
}
const ids = ({ items }: Answer) => items.map(({ product_id }) => product_id)

const hour = 3_600_000
const start = Date.now() - 40 * 24 * hour

/** Posts a history and waits until all of it is in the embedding. */
const live = (user: string, history: ReadonlyArray<Happened>, skipped = 0) =>
  Effect.gen(function* () {
    const users = yield* UserEmbeddings
    const { status } = yield* call(
      "POST",
      "/api/interactions",
      history.map(({ at, event_type, reference }) => ({
        user_id: user,
        event_type,
        occurred_at: new Date(at).toISOString(),
        ...(event_type === "search" ? { search_phrase: reference } : { product_id: reference }),
      })),
    )
    expect(status).toBe(200)
    yield* Effect.gen(function* () {
      while (((yield* users.load([user])).get(user)?.embedding?.event_count ?? 0) < history.length - skipped)
        yield* Effect.sleep("10 millis")
    }).pipe(Effect.timeout(Duration.seconds(15)))
  })

const happened = (event_type: Kind, reference: string, hours: number): Happened => ({
  event_type,
  reference,
  at: start + hours * hour,
})
/** Thirty events, mostly about boots; some of the newest ten are about stoves. */
const history: ReadonlyArray<Happened> = [
  ...Array.from({ length: 19 }, (_, i) =>
    happened(
      i % 5 === 0 ? "product_purchase" : "product_view",
      `p-${String(1 + 3 * i).padStart(3, "0")}`,
      i * 20,
    ),
  ),
  happened("search", "warm leather boots", 400),
  ...Array.from({ length: 10 }, (_, i) =>
    happened(
      "product_click",
      `p-${String(i % 2 === 0 ? 2 + 3 * i : 100 + 3 * i).padStart(3, "0")}`,
      500 + i * 30,
    ),
  ),
]
const productOf = (event: Happened) => (event.event_type === "search" ? [] : [event.reference])
const popularityOf = (histories: ReadonlyArray<ReadonlyArray<Happened>>) => {
  const counts = new Map<string, number>()
  for (const id of histories.flat().flatMap(productOf)) counts.set(id, (counts.get(id) ?? 0) + 1)
  const most = Math.max(...counts.values())
  return (id: string) => (0.2 * Math.log(1 + (counts.get(id) ?? 0))) / Math.log(1 + most)
}

const suite = (name: string, stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>) =>
  layerSuite(
    name,
    Layer.mergeAll(Api.layer, Worker.layer).pipe(Layer.provideMerge(eventVectors), Layer.provideMerge(stack)),
    (test) => {
      const it = (name: string, program: Parameters<typeof test>[1]) => test(name, program, 30_000)
      it("a user without taste gets popular products, or 404 with fallback=none", () =>
        Effect.gen(function* () {
          const products = yield* ProductEmbeddings
          yield* products.upsert(catalogue)
          yield* call("POST", "/api/user/crowd/product/p-005/view")
          yield* call("POST", "/api/user/crowd/product/unknown/view")
          yield* call("POST", "/api/user/crowd/product/p-005/click")
          yield* call("POST", "/api/user/crowd/product/p-007/view")
          const answer = yield* Effect.repeat(get("/api/user/nobody/recommendations"), {
            until: ({ body }) => body.items.length === 2,
          }).pipe(Effect.timeout("10 seconds"))
          expect(answer.body.source).toBe("popular")
          expect(ids(answer.body)).toEqual(["p-005", "p-007"])
          expect(answer.body.items[0]).toEqual({
            product_id: "p-005",
            product_name: "Product 5",
            category: "stoves",
            score: 1,
            similarity: 0,
            popularity: 1,
            together: 0,
            again: 0,
            because: [],
            rest: 0,
          } as never)
          expect(answer.body.items[1]?.score).toBeCloseTo(Math.log(2) / Math.log(3), 9)
          expect(ids((yield* get("/api/user/nobody/recommendations?category=boots")).body)).toEqual(["p-007"])
          const refused = yield* get("/api/user/nobody/recommendations?fallback=none")
          expect([refused.status, refused.body.detail]).toEqual([404, "user nobody has no embedding"])
          yield* call("POST", "/api/user/buyer/product/p-005/purchase")
          yield* Effect.repeat(get("/api/user/nobody/recommendations"), {
            until: ({ body }) => (body.items[1]?.score ?? 1) < Math.log(2) / Math.log(3) - 1e-6,
          }).pipe(Effect.timeout("10 seconds"))
        }))

      it("recommendations equal a full computation by the formulas", () =>
        Effect.gen(function* () {
          const vectors = yield* EventVectors
          yield* live("hiker", history)
          const [phrase] = yield* vectors.ofTexts(["warm leather boots"])
          const searched = [...(yield* phrase!)]
          const expected = reference(history, searched)
          // The first test's interactions count too.
          const earlier = [
            happened("product_view", "p-005", 0),
            happened("product_click", "p-005", 0),
            happened("product_view", "p-007", 0),
            happened("product_purchase", "p-005", 0),
          ]
          const popularity = popularityOf([history, earlier])
          const ranked = catalogue
            .map(({ product_id }) => {
              const similarity = expected.similarity(product_id)
              return {
                product_id,
                similarity,
                popularity: popularity(product_id),
                score: similarity + popularity(product_id),
              }
            })
            .sort((a, b) => b.score - a.score)
          const path = "/api/user/hiker/recommendations?exclude=none&limit=100"
          const matches = (answer: Answer) =>
            Math.abs((answer.items[0]?.score ?? 0) - ranked[0]!.score) < 1e-5
          const { body, status } = yield* Effect.repeat(get(path), {
            until: ({ body }) => matches(body),
          }).pipe(Effect.timeout("10 seconds"))
          expect([status, body.source, body.items.length]).toEqual([200, "taste", 100])
          for (const [i, item] of body.items.entries()) {
            expect(item.score).toBeCloseTo(ranked[i]!.score, 4)
            const own = ranked.find(({ product_id }) => product_id === item.product_id)!
            expect(item.similarity).toBeCloseTo(own.similarity, 4)
            expect(item.popularity).toBeCloseTo(own.popularity, 9)
            expect(item.score).toBe(item.similarity + item.popularity)
          }
          expect(new Set(ids(body)).size).toBe(100)

          const boots = yield* get("/api/user/hiker/recommendations?exclude=none&category=boots&limit=100")
          const inCategory = (id: string) =>
            catalogue.find(({ product_id }) => product_id === id)?.category === "boots"
          expect(ids(boots.body)).toEqual(
            ranked
              .map(({ product_id }) => product_id)
              .filter(inCategory)
              .slice(0, 100),
          )
          expect((yield* get("/api/user/hiker/recommendations?category=hats")).body.items).toEqual([])
          expect((yield* get("/api/user/hiker/recommendations")).body.items).toHaveLength(10)
        }))

      it("each product has the events that explain it, with signed shares that add up to 1", () =>
        Effect.gen(function* () {
          const { body } = yield* get("/api/user/hiker/recommendations?exclude=none&limit=100")
          for (const { because, rest, similarity } of body.items) {
            const total = because.reduce((sum, { share }) => sum + Math.abs(share), Math.abs(rest))
            expect(similarity).toBeGreaterThan(0)
            expect(total).toBeCloseTo(1, 9)
            expect(because.length).toBeLessThanOrEqual(10)
            expect(because.map(({ share }) => share)).toEqual(
              because.map(({ share }) => share).sort((a, b) => Math.abs(b) - Math.abs(a)),
            )
            expect(because.reduce((sum, { share }) => sum + share, rest)).toBeGreaterThan(0)
          }
          // A product that the user has just clicked is explained by that click first.
          const clicked = history.at(-1)!.reference
          const { body: all } = yield* get("/api/user/hiker/recommendations?exclude=none&limit=100")
          const own = all.items.find(({ product_id }) => product_id === clicked)
          expect(own?.because[0]).toMatchObject({ event_type: "product_click", product_id: clicked })
          // With ten events or fewer, the events explain everything.
          yield* live("newcomer", history.slice(0, 9))
          const { body: young } = yield* get("/api/user/newcomer/recommendations?limit=5")
          for (const { because, rest } of young.items) {
            expect(rest).toBe(0)
            expect(because.reduce((sum, { share }) => sum + Math.abs(share), 0)).toBeCloseTo(1, 9)
          }
        }))

      it("leaves out every product the user bought, and on request every product the user saw", () =>
        Effect.gen(function* () {
          const bought = new Set(
            history.filter(({ event_type }) => event_type === "product_purchase").flatMap(productOf),
          )
          const seen = new Set(history.flatMap(productOf))
          const everything = ids((yield* get("/api/user/hiker/recommendations?exclude=none&limit=100")).body)
          expect(everything.filter((id) => bought.has(id)).length).toBeGreaterThan(0)
          const byDefault = ids((yield* get("/api/user/hiker/recommendations?limit=100")).body)
          expect(byDefault.filter((id) => bought.has(id))).toEqual([])
          expect(byDefault.filter((id) => seen.has(id)).length).toBeGreaterThan(0)
          const unseen = ids((yield* get("/api/user/hiker/recommendations?exclude=seen&limit=100")).body)
          expect(unseen.filter((id) => seen.has(id))).toEqual([])
          expect(unseen).toHaveLength(100)
        }))

      it("buy-again lists own purchases by their decayed frequency", () =>
        Effect.gen(function* () {
          yield* live(
            "regular",
            [
              happened("product_purchase", "p-001", 0),
              happened("product_purchase", "p-002", 10),
              happened("product_purchase", "p-002", 200),
              happened("product_view", "p-003", 200),
              happened("product_purchase", "gone", 100),
            ],
            1,
          )
          const { body } = yield* get("/api/user/regular/buy-again")
          const share = (hours: number) =>
            Math.exp((-0.023 * (Date.now() - start - hours * hour)) / (24 * hour))
          expect(body.items).toEqual([
            expect.objectContaining({
              product_id: "p-002",
              purchases: 2,
              product_name: "Product 2",
              category: "stoves",
            }),
            expect.objectContaining({
              product_id: "p-001",
              purchases: 1,
              last_purchased_at: new Date(start).toISOString(),
            }),
          ])
          // A product that the catalogue does not have cannot be bought.
          expect(body.items[0]?.score).toBeCloseTo(share(10) + share(200), 4)
          expect(ids((yield* get("/api/user/regular/buy-again?limit=1")).body)).toEqual(["p-002"])
          expect((yield* get("/api/user/nobody/buy-again")).body.items).toEqual([])
        }))

      it("similar products are the nearest by centred vectors", () =>
        Effect.gen(function* () {
          const { centre, unitOf } = reference([happened("product_view", "p-000", 0)])
          const asked = centre(unitOf("p-010"))
          const expected = catalogue
            .filter(({ product_id }) => product_id !== "p-010")
            .map(({ product_id }) => ({ product_id, similarity: dot(asked, centre(unitOf(product_id))) }))
            .sort((a, b) => b.similarity - a.similarity)
          const { body } = yield* get("/api/product/p-010/similar?limit=50")
          expect(ids(body)).toEqual(expected.slice(0, 50).map(({ product_id }) => product_id))
          expect(body.items[0]?.similarity).toBeCloseTo(expected[0]!.similarity, 5)
          expect((yield* get("/api/product/nowhere/similar")).status).toBe(404)
        }))

      it("a search finds products by a phrase, and ranks higher those near the user's taste", () =>
        Effect.gen(function* () {
          const put = (id: string, text: string, category: string) =>
            call("PUT", `/api/product/${id}/embedding`, { text, product_name: text, category })
          yield* put("t-1", "running shoes for women", "shoes")
          yield* put("t-2", "running shoes for men", "shoes")
          yield* put("t-3", "espresso machine", "kitchen")
          const search = (body: object) => call("POST", "/api/search", body)
          const plain = yield* Effect.repeat(search({ query: "espresso machine" }), {
            until: ({ body }) => body.items[0]?.product_id === "t-3",
          }).pipe(Effect.timeout("10 seconds"))
          expect(plain.body).toMatchObject({
            query: "espresso machine",
            user_id: null,
            personalised: false,
          } as never)
          expect(plain.body.items[0]?.similarity).toBeCloseTo(1, 5)
          yield* live("runner", [happened("product_purchase", "t-2", 1)])
          const shoes = { query: "running shoes", category: "shoes", limit: 2 }
          const ours = yield* search({ ...shoes, user: "runner" })
          expect(ours.body.personalised).toBe(true)
          expect(ids(ours.body)[0]).toBe("t-2")
          for (const { score, similarity, taste } of ours.body.items)
            expect(score).toBeCloseTo(similarity + 0.3 * taste!, 9)
          expect((yield* search({ ...shoes, user: "nobody" })).body.personalised).toBe(false)
          expect((yield* search({ query: "running shoes", category: "none" })).body.items).toEqual([])
        }))

      it("similar users are those with similar events", () =>
        Effect.gen(function* () {
          const events = (from: number) =>
            [0, 3, 6, 9].map((i, n) => happened("product_view", `p-${String(from + i).padStart(3, "0")}`, n))
          yield* live("alike-1", events(150))
          yield* live("alike-2", events(162))
          yield* live("other", events(151))
          const { body } = yield* get("/api/user/alike-1/similar?limit=100")
          const found = body.items.map(({ user_id }) => user_id)
          expect(found).not.toContain("alike-1")
          expect(found.indexOf("alike-2")).toBeLessThan(found.indexOf("other"))
          expect(body.compared).toBe(found.length)
          expect((yield* get("/api/user/nobody/similar")).status).toBe(404)
        }))

      it("a product stored over HTTP counts in the next response", () =>
        Effect.gen(function* () {
          const [first, second] = [catalogue[20]!, catalogue[40]!]
          const nearest = (id: string) =>
            Effect.map(get(`/api/product/${id}/similar?limit=1`), ({ body }) => ids(body)[0])
          for (const { embedding, product_id } of [first, second, first]) {
            // After this request the catalogue counts as fresh for a second.
            expect(yield* nearest(product_id)).not.toBe("put")
            const body = { vector: [...embedding], category: "copies" }
            expect((yield* call("PUT", "/api/product/put/embedding", body)).status).toBeOneOf([200, 201])
            expect(yield* nearest(product_id)).toBe("put")
          }
        }))

      it("a product changed by another process counts within seconds", () =>
        Effect.gen(function* () {
          const products = yield* ProductEmbeddings
          const twin = catalogue[10]!
          yield* products.upsert([{ ...twin, product_id: "twin", category: "copies" }])
          const appears = Effect.repeat(get("/api/product/p-010/similar?limit=1"), {
            until: ({ body }) => ids(body)[0] === "twin",
          })
          yield* Effect.timeout(appears, "10 seconds")
          yield* products.upsert([{ ...twin, product_id: "twin", space: "elsewhere" }])
          const leaves = Effect.repeat(get("/api/product/p-010/similar?limit=1"), {
            until: ({ body }) => ids(body)[0] !== "twin",
          })
          yield* Effect.timeout(leaves, "10 seconds")
        }))

      for (const [path, field] of [
        ["/api/user/u/recommendations?limit=0", "limit"],
        ["/api/user/u/recommendations?limit=101", "limit"],
        ["/api/user/u/recommendations?limit=ten", "limit"],
        ["/api/user/u/recommendations?limit=", "limit"],
        ["/api/user/u/recommendations?limit=1.5", "limit"],
        ["/api/user/u/recommendations?exclude=viewed", "exclude"],
        ["/api/user/u/recommendations?fallback=maybe", "fallback"],
        ["/api/user/u/recommendations?category=", "category"],
        ["/api/user/two%20words/recommendations", "userId"],
        ["/api/user/u/buy-again?limit=0", "limit"],
        ["/api/user/u/similar?limit=1000", "limit"],
        ["/api/product/a%20b/similar", "productId"],
      ] as const)
        it(`bad request ${path} → 422 ${field}`, () =>
          Effect.gen(function* () {
            const { body, status } = yield* get(path)
            expect([status, body.errors.map((error) => error.field)]).toEqual([422, [field]])
          }))

      for (const [body, field] of [
        [{}, "query"],
        [{ query: " " }, "query"],
        [{ query: "a", limit: 0 }, "limit"],
        [{ query: "a", limit: "5" }, "limit"],
        [{ query: "a", user: "two words" }, "user"],
        [{ query: "a", colour: "red" }, "colour"],
        [[], ""],
      ] as const)
        it(`bad search ${JSON.stringify(body)} → 422 ${field}`, () =>
          Effect.gen(function* () {
            const answer = yield* call("POST", "/api/search", body)
            expect([answer.status, answer.body.errors.map((error) => error.field)]).toEqual([422, [field]])
          }))
    },
  )

suite("recommendations on the embedded stack", embedded(settings))
withServers(["rabbitmq", "mysql", "mongodb"], "external stack", () =>
  suite("recommendations on the external stack", external(settings)),
)
