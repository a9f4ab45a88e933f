/** Products over HTTP on both stacks: creating, changing, selling out, deleting, and filters on their attributes. */
import { Database } from "bun:sqlite"
import { expect } from "bun:test"
import { join } from "node:path"
import { type ConfigError, Duration, Effect, Layer, Option, Redacted } from "effect"
import fc from "fast-check"
import { MongoClient } from "mongodb"
import type { Ports } from "../../src/layers/Stack.ts"
import { fileName } from "../../src/layers/sqlite/Sqlite.ts"
import * as Api from "../../src/programs/Api.ts"
import * as Worker from "../../src/programs/Worker.ts"
import { Rebuilder, layer as rebuilding } from "../../src/services/operate/Rebuilder.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import * as Settings from "../../src/services/Settings.ts"
import { layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import * as Requests from "../support/api.ts"
import { layerSuite } from "../support/effect.ts"
import { embeddingWith, eventually } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const dimensions = 384
const settings = {
  API_PORT: "0",
  WORKER_PORT: "0",
  EMBEDDING_DIMENSIONS: String(dimensions),
  RATE_LIMIT_PER_USER: "0",
}

interface Answer {
  readonly source: string
  readonly detail: string
  readonly created: number
  readonly changed: number
  readonly rejected: number
  readonly results: ReadonlyArray<{
    readonly status: number
    readonly product_id?: string
    readonly error?: { readonly detail: string }
  }>
  readonly errors: ReadonlyArray<{ readonly field: string; readonly detail: string }>
  readonly items: ReadonlyArray<{ readonly product_id: string; readonly score: number }>
}

const call = (...request: Parameters<typeof Requests.call>) =>
  Effect.map(Requests.call(...request), ({ json, status }) => ({ status, body: json as Answer }))
const put = (id: string, body: unknown) => call("PUT", `/api/product/${id}`, body)
const ids = ({ body }: { readonly body: Answer }) => body.items.map(({ product_id }) => product_id)
const fieldsOf = ({ body, status }: { readonly status: number; readonly body: Answer }) => [
  status,
  body.errors.map(({ field }) => field),
]

/** Removes the product as an operator would, without this program. */
const deleteInDatabase = (product_id: string) =>
  Effect.gen(function* () {
    const url = yield* Settings.MONGODB_URL
    const [name, folder] = [yield* Settings.MONGODB_DATABASE, yield* Settings.DATA_DIR]
    if (Option.isNone(url)) {
      const database = new Database(join(folder, fileName))
      database.run("DELETE FROM product_embeddings WHERE product_id = ?", [product_id])
      database.close()
      return
    }
    yield* Effect.promise(async () => {
      const client = await MongoClient.connect(Redacted.value(url.value))
      await client.db(name).collection("product_embeddings").deleteOne({ product_id })
      await client.close()
    })
  })

// ---------------------------------------------------------------------------------------------------------
// A catalogue with attributes, and its filters by plain reading.

const brands = ["Acme", "Apex", "Nord"]
const sizes = ["S", "M", "L"]
const makeCatalogue = (count: number) => {
  const random = fc.sample(fc.integer({ min: 0, max: 2 ** 31 - 1 }), { numRuns: count * 2, seed: 9 })
  return Array.from({ length: count }, (_, i) => {
    let state = random[i]! | 1
    const next = () => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
      return state / 2 ** 31
    }
    return {
      product_id: `f-${i}`,
      product_name: `Product ${i}`,
      category: ["tents", "boots", "stoves"][i % 3]!,
      available: i % 10 !== 7,
      attributes: {
        price: Math.round(next() * 200),
        ...(i % 4 === 0 ? {} : { brand: brands[Math.floor(next() * 3)]! }),
        sizes: sizes.filter(() => next() < 0.5),
        sale: next() < 0.3,
      },
      vector: Array.from({ length: dimensions }, () => Math.round((next() - 0.3) * 100) / 100),
    }
  })
}
type Made = ReturnType<typeof makeCatalogue>[number]

const unit = (v: ReadonlyArray<number>) => {
  const length = Math.hypot(...v)
  return v.map((x) => x / length)
}
const dot = (a: ReadonlyArray<number>, b: ReadonlyArray<number>) =>
  a.reduce((sum, x, i) => sum + x * b[i]!, 0)

/**
 * All products by their scores for a user who has only viewed `seen`: the taste is then the centred vector of that
 * product, which alone is popular.
 */
const rank = (catalogue: ReadonlyArray<Made>, seen: string) => {
  const units = catalogue.map(({ vector }) => unit(vector))
  const mean = Array.from({ length: dimensions }, (_, d) =>
    units.reduce((sum, v) => sum + v[d]! / units.length, 0),
  )
  const centred = units.map((v) => unit(v.map((x, d) => x - mean[d]!)))
  const taste = centred[catalogue.findIndex(({ product_id }) => product_id === seen)]!
  return catalogue
    .map((product, i) => ({
      product,
      score: dot(taste, centred[i]!) + (product.product_id === seen ? 0.2 : 0),
    }))
    .sort((a, b) => b.score - a.score)
}

const price = fc.integer({ min: 0, max: 200 })
const wanted = fc.record(
  {
    category: fc.oneof(
      fc.constantFrom("tents", "boots", "none"),
      fc.subarray(["tents", "stoves"], { minLength: 1 }),
    ),
    exclude_ids: fc.array(
      fc.integer({ min: 0, max: 999 }).map((i) => `f-${i}`),
      { maxLength: 50 },
    ),
    filter: fc.record(
      {
        price: fc.oneof(
          fc.record({ gte: price, lt: price }),
          fc.record({ gt: price }),
          fc.record({ lte: price }),
        ),
        brand: fc.oneof(fc.constantFrom(...brands), fc.subarray(brands, { minLength: 1 })),
        sizes: fc.oneof(fc.constantFrom(...sizes), fc.subarray(sizes, { minLength: 1 })),
        sale: fc.boolean(),
      },
      { requiredKeys: [] },
    ),
    limit: fc.integer({ min: 1, max: 100 }),
  },
  { requiredKeys: ["limit", "filter"] },
)
interface Wanted {
  readonly category?: string | ReadonlyArray<string>
  readonly exclude_ids?: ReadonlyArray<string>
  readonly filter?: {
    readonly price?: Partial<Record<"gte" | "gt" | "lte" | "lt", number>>
    readonly brand?: string | ReadonlyArray<string>
    readonly sizes?: string | ReadonlyArray<string>
    readonly sale?: boolean
  }
}

const admits = ({ category, exclude_ids = [], filter = {} }: Wanted, { attributes, ...product }: Made) => {
  const range = { gte: 0, gt: -1, lte: 1_000, lt: 1_000, ...filter.price }
  const { price } = attributes
  return (
    product.available &&
    !exclude_ids.includes(product.product_id) &&
    (category === undefined || [category].flat().includes(product.category)) &&
    price >= range.gte &&
    price > range.gt &&
    price <= range.lte &&
    price < range.lt &&
    (filter.brand === undefined || [filter.brand].flat().includes(attributes.brand ?? "")) &&
    (filter.sizes === undefined || [filter.sizes].flat().some((size) => attributes.sizes.includes(size))) &&
    (filter.sale === undefined || filter.sale === attributes.sale)
  )
}

// ---------------------------------------------------------------------------------------------------------

const suite = (
  name: string,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
  count: number,
) =>
  layerSuite(
    name,
    Layer.mergeAll(Api.layer, Worker.layer, rebuilding).pipe(
      Layer.provideMerge(eventVectors),
      Layer.provideMerge(stack),
    ),
    (test) => {
      const it = (title: string, program: Parameters<typeof test>[1]) => test(title, program, 30_000)

      it(`filtered recommendations of ${count} products equal a full computation`, () =>
        Effect.gen(function* () {
          const catalogue = makeCatalogue(count)
          for (let from = 0; from < count; from += 1_000) {
            const { body, status } = yield* call("POST", "/api/products", catalogue.slice(from, from + 1_000))
            expect([status, body.created, body.rejected]).toEqual([200, 1_000, 0])
          }
          expect((yield* call("POST", "/api/user/filters/product/f-1/view")).status).toBe(201)
          yield* embeddingWith("filters", 1)
          const ranked = rank(catalogue, "f-1")
          const best = { limit: 1, exclude: "none" }
          yield* eventually(
            Effect.map(call("POST", "/api/user/filters/recommendations", best), ({ body }) =>
              Math.abs(body.items[0]!.score - 1.2) < 1e-5 ? true : undefined,
            ),
          )
          const byId = new Map(catalogue.map((product) => [product.product_id, product]))
          for (const body of fc.sample(wanted, { numRuns: 60, seed: 3 })) {
            const expected = ranked.filter(({ product }) => admits(body, product)).slice(0, body.limit)
            const answer = yield* call("POST", "/api/user/filters/recommendations", {
              ...body,
              exclude: "none",
            })
            expect([answer.status, answer.body.source]).toEqual([200, "taste"])
            for (const id of ids(answer)) expect(admits(body, byId.get(id)!)).toBe(true)
            expect(new Set(ids(answer)).size).toBe(expected.length)
            for (const [i, { score }] of answer.body.items.entries())
              expect(score).toBeCloseTo(expected[i]!.score, 4)
          }
          // The same filter for a user without taste, for similar products by phrase, and in the GET form.
          const cheap = { filter: { price: { lt: 50 } }, category: "boots", limit: 100 }
          const found = yield* call("POST", "/api/search", { query: "warm boots", ...cheap })
          expect(ids(found)).toHaveLength(
            Math.min(100, catalogue.filter((product) => admits(cheap, product)).length),
          )
          for (const id of ids(found)) expect(admits(cheap, byId.get(id)!)).toBe(true)
          const popular = { filter: { price: catalogue[1]!.attributes.price }, category: ["boots"] }
          expect(ids(yield* call("POST", "/api/user/nobody/recommendations", popular))).toEqual(["f-1"])
          const other = { filter: { price: catalogue[1]!.attributes.price }, category: ["tents"] }
          expect(ids(yield* call("POST", "/api/user/nobody/recommendations", other))).toEqual([])
          expect(ids(yield* call("POST", "/api/user/nobody/recommendations"))).toEqual(["f-1"])
          expect(ids(yield* call("GET", "/api/user/nobody/recommendations?category=boots"))).toEqual(["f-1"])
        }))

      it("creates and changes what is named, replaces attributes as a whole, and shows the product", () =>
        Effect.gen(function* () {
          const names = { product_name: "Red boot", category: "shoes" }
          const created = yield* put("boot", { ...names, attributes: { price: 80, colours: ["red"] } })
          const space = `local:minilm-words:${dimensions}`
          const facts = { product_id: "boot", ...names, space, text: "Red boot, shoes" }
          const shown = { ...facts, available: true, attributes: { price: 80, colours: ["red"] } }
          expect([created.status, created.body]).toEqual([
            201,
            { ...shown, created: true, updated_at: expect.any(String) } as never,
          ])
          const changed = yield* put("boot", { available: false, attributes: { price: 70 } })
          expect([changed.status, changed.body]).toMatchObject([
            200,
            { ...facts, created: false, available: false, attributes: { price: 70 } },
          ])
          // A change of the name leaves the vector as it is.
          yield* put("boot", { product_name: "Blue boot" })
          expect((yield* call("GET", "/api/product/boot")).body).toMatchObject({
            ...facts,
            product_name: "Blue boot",
            available: false,
            attributes: { price: 70 },
          } as never)
          yield* put("boot", { text: "a blue boot", available: true })
          expect((yield* call("GET", "/api/product/boot")).body).toMatchObject({
            text: "a blue boot",
            available: true,
          } as never)
        }))

      it("one request changes many products, as if one by one, and tells what became of each", () =>
        Effect.gen(function* () {
          const vector = Array.from({ length: dimensions }, (_, i) => i + 1)
          const { body, status } = yield* call("POST", "/api/products", [
            { product_id: "m-1", product_name: "Lamp", attributes: { watt: 5 } },
            { product_id: "m-1", available: false },
            { product_id: "m-2", attributes: { watt: 5 } },
            { product_id: 3, vector },
            { product_id: "m-4", vector: [1, 2] },
            { product_id: "m-5", text: "x", vector },
            { product_id: "m 6", product_name: "Lamp" },
            {
              product_id: "m-7",
              product_name: "Lamp",
              attributes: { "a.b": 1, watt: { w: 5 } },
              colour: "red",
            },
            "m-8",
            { product_id: "m-9", available: "no", attributes: [], category: 3 },
          ])
          expect(status).toBe(207)
          expect([body.created, body.changed, body.rejected]).toEqual([2, 1, 7])
          expect(
            body.results.map(({ error, product_id, status }) => [status, product_id, error?.detail]),
          ).toEqual([
            [201, "m-1", undefined],
            [200, "m-1", undefined],
            [
              422,
              "m-2",
              "there is no such product yet: give a product_name, a text or a vector to create it",
            ],
            [201, "3", undefined],
            [422, "m-4", "vector: has 2 dimensions instead of 384"],
            [422, undefined, "give either vector or text"],
            [422, undefined, expect.stringContaining("product_id: must be 1 to 64 characters")],
            [422, undefined, expect.stringContaining("attributes.watt: must be a string, a number")],
            [422, undefined, "must be a JSON object"],
            [
              422,
              undefined,
              "category: must be a string; available: must be true or false; attributes: must be a JSON object",
            ],
          ] as never)
          const alone = yield* call("PUT", "/api/product/m-4", { vector: [1, 2] })
          expect(body.results[4]?.error).toMatchObject({ type: "/problems#invalid-input" })
          expect(alone.body).toMatchObject({ ...body.results[4]?.error, status: 422 } as never)
          expect((yield* call("GET", "/api/product/m-1")).body).toMatchObject({
            product_name: "Lamp",
            available: false,
            attributes: { watt: 5 },
          } as never)
          for (const bad of [[], {}, Array(1_001).fill({ product_id: "m-9", product_name: "x" })])
            expect((yield* call("POST", "/api/products", bad)).status).toBe(422)
        }))

      const umbrella = { text: "purple umbrella", product_name: "Umbrella", category: "rain" }
      const gone = ["sold-out", "sold-out-elsewhere", "deleted-elsewhere", "deleted-in-database", "deleted"]
      const offerings = [
        ["GET", "/api/user/viewer/recommendations?exclude=none&limit=100"],
        ["GET", "/api/user/nobody/recommendations?limit=100"],
        ["GET", "/api/user/buyer/buy-again"],
        ["GET", "/api/product/twin/similar?limit=10"],
        ["POST", "/api/search", { query: "purple umbrella", limit: 10 }],
      ] as const
      /** Waits until every route offers these of the products, and no others. */
      const offered = (wanted: ReadonlyArray<string>) =>
        eventually(
          Effect.map(
            Effect.forEach(offerings, ([method, path, body]) => call(method, path, body)),
            (answers) =>
              answers.every((answer) =>
                Bun.deepEquals(
                  gone.filter((id) => ids(answer).includes(id)),
                  wanted,
                ),
              )
                ? true
                : undefined,
          ),
          Duration.seconds(5),
        )

      it("a product that is sold out or deleted is offered nowhere within 5 s, whoever did it, and again when it is back", () =>
        Effect.gen(function* () {
          const store = yield* ProductEmbeddings
          yield* put("twin", umbrella)
          for (const id of gone) {
            yield* put(id, umbrella)
            yield* call("POST", `/api/user/viewer/product/${id}/view`)
            yield* call("POST", `/api/user/buyer/product/${id}/purchase`)
          }
          yield* embeddingWith("viewer", gone.length)
          yield* embeddingWith("buyer", gone.length)
          yield* offered(gone)

          yield* put("sold-out", { available: false })
          yield* call("DELETE", "/api/product/deleted")
          // This process follows its own changes at once.
          const found = ids(yield* call("GET", "/api/product/twin/similar?limit=10"))
          expect(found.filter((id) => gone.includes(id)).toSorted()).toEqual(gone.slice(1, 4).toSorted())
          yield* store.upsert([{ product_id: "sold-out-elsewhere", available: false }])
          yield* store.remove(["deleted-elsewhere"])
          yield* deleteInDatabase("deleted-in-database")
          yield* offered([])
          yield* put("sold-out", { available: true })
          yield* put("deleted-elsewhere", umbrella)
          yield* offered(["sold-out", "deleted-elsewhere"])
        }))

      it("late events of a deleted product still count, and a rebuild agrees", () =>
        Effect.gen(function* () {
          // It was deleted longer ago than the worker remembers a vector.
          yield* call("POST", "/api/user/late/product/deleted/view")
          const { embedding } = yield* embeddingWith("late", 1)
          const { rebuild } = yield* Rebuilder
          expect(yield* rebuild({ user: "late", allowMissing: false })).toMatchObject({
            rebuilt: 1,
            failed: 0,
          })
          const again = yield* embeddingWith("late", 1)
          expect(dot([...embedding], [...again.embedding])).toBeCloseTo(1, 6)
        }))

      it("DELETE answers 204 every time; a product that is created again takes over nothing", () =>
        Effect.gen(function* () {
          yield* put("gone", { ...umbrella, attributes: { price: 5 } })
          for (const id of ["gone", "gone", "never-there"])
            expect((yield* call("DELETE", `/api/product/${id}`)).status).toBe(204)
          expect((yield* call("GET", "/api/product/gone")).status).toBe(404)
          expect((yield* call("GET", "/api/product/gone/similar")).status).toBe(404)
          expect((yield* put("gone", { available: true })).status).toBe(422)
          expect((yield* put("gone", { product_name: "Something else" })).status).toBe(201)
          expect((yield* call("GET", "/api/product/gone")).body).toMatchObject({
            product_name: "Something else",
            category: null,
            attributes: {},
            text: "Something else",
          } as never)
        }))

      it("search leaves out what the user bought or saw, if asked", () =>
        Effect.gen(function* () {
          const asked = { query: "purple umbrella", limit: 10, user: "buyer" }
          yield* put("twin", umbrella)
          yield* put("sold-out", umbrella)
          const found = (exclude: string) => call("POST", "/api/search", { ...asked, exclude })
          yield* call("POST", "/api/user/buyer/product/twin/view")
          const offers = (answer: { readonly body: Answer }) =>
            ["sold-out", "twin"].filter((id) => ids(answer).includes(id))
          expect(offers(yield* found("none"))).toEqual(["sold-out", "twin"])
          expect(offers(yield* found("purchased"))).toEqual(["twin"])
          expect(offers(yield* found("seen"))).toEqual([])
          expect(offers(yield* call("POST", "/api/search", { ...asked, exclude_ids: ["twin"] }))).toEqual([
            "sold-out",
          ])
        }))

      const recommendations = "/api/user/u/recommendations"
      for (const [method, path, body, fields] of [
        [
          "POST",
          recommendations,
          { filter: { colour: "red", weight: 1 } },
          ["filter.colour", "filter.weight"],
        ],
        ["POST", "/api/search", { query: "a", filter: { colour: "red" } }, ["filter.colour"]],
        ["POST", recommendations, { filter: { price: { above: 1 } } }, ["filter.price"]],
        [
          "POST",
          recommendations,
          { limit: 101, exclude: "x", category: [] },
          ["category", "limit", "exclude"],
        ],
        ["POST", recommendations, { exclude_ids: Array(1_001).fill("p") }, ["exclude_ids"]],
        ["POST", recommendations, { exclude_ids: ["a b"], size: "M" }, ["size", "exclude_ids.0"]],
        ["POST", "/api/search", { query: "a", exclude: "seen" }, ["exclude"]],
        [
          "PUT",
          "/api/product/p",
          { available: "yes", attributes: { price: [1] } },
          ["available", "attributes.price"],
        ],
        ["PUT", "/api/product/p", { attributes: { $x: 1 } }, ["attributes.$x"]],
        ["PUT", "/api/product/p", { text: "a", vector: [1] }, [""]],
        ["PUT", "/api/product/new-one", { available: true }, [""]],
        ["PUT", "/api/product/a%20b", { text: "a" }, ["productId"]],
      ] as const)
        it(`${method} ${path} ${JSON.stringify(body).slice(0, 60)} → 422 ${fields.join(", ")}`, () =>
          Effect.gen(function* () {
            const [status, found] = fieldsOf(yield* call(method, path, body))
            expect([status, [...(found as Array<string>)].sort()]).toEqual([422, [...fields].sort()])
          }))
    },
  )

suite("products on the embedded stack", embedded(settings), process.env.FAILURES === "brief" ? 1_000 : 5_000)
withServers(["rabbitmq", "mysql", "mongodb"], "external stack", () =>
  suite("products on the external stack", external(settings), 1_000),
)
