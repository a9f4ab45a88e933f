/** What every store of product embeddings promises. */
import { expect } from "bun:test"
import { Chunk, type Duration, Effect, type Layer, Stream } from "effect"
import fc from "fast-check"
import type { Product } from "../../src/services/model/Product.ts"
import { cosine, toBytes } from "../../src/services/model/Vector.ts"
import {
  type ProductChange,
  type ProductEmbedding,
  ProductEmbeddings,
  type StoredProduct,
  stampModulus,
} from "../../src/services/ports/ProductEmbeddings.ts"
import { later } from "../support/clocks.ts"
import { layerSuite } from "../support/effect.ts"

const vector = (dimensions: number) =>
  fc
    .array(fc.float({ min: -4, max: 4, noNaN: true }), { minLength: dimensions, maxLength: dimensions })
    .map((values) => Float32Array.from(values))

/** Products with distinct ids that start with `prefix`, the same in every run. */
const products = (prefix: string, count: number, space: string): Array<ProductEmbedding> =>
  fc
    .sample(
      fc.record({
        embedding: vector(8),
        product_name: fc.option(fc.string({ unit: "grapheme", maxLength: 40 })),
        category: fc.option(fc.constantFrom("shoes", "hats", "Zubehör")),
        text: fc.option(fc.string({ unit: "grapheme", maxLength: 40 })),
      }),
      { numRuns: count, seed: 42 },
    )
    .map((product, i) => ({
      ...product,
      space,
      available: true,
      attributes: {},
      product_id: `${prefix}-${String(i).padStart(4, "0")}`,
      embedding: product.embedding.some((x) => x !== 0) ? product.embedding : new Float32Array(8).fill(1),
    }))
const one = (product_id: string, space: string): ProductEmbedding => ({
  ...products(product_id, 1, space)[0]!,
  product_id,
})
const hex = (v: Float32Array | undefined) => v && Buffer.from(toBytes(v)).toString("hex")
const bits = (product: (ProductEmbedding & Partial<StoredProduct>) | undefined) => {
  if (product === undefined) return undefined
  const { deleted: _, updated_at: __, ...written } = product
  return { ...written, embedding: hex(product.embedding) }
}

const byId = (a: { product_id: string } | undefined, b: { product_id: string } | undefined) =>
  (a?.product_id ?? "") < (b?.product_id ?? "") ? -1 : 1

const ids = ["step-1", "step-2", "step-3"]
const given = <A>(value: fc.Arbitrary<A>) => fc.option(value, { nil: undefined })
const name = fc.string({ unit: "grapheme", minLength: 1, maxLength: 8 })
const step = fc.record({
  product_id: fc.constantFrom(...ids),
  embedding: given(vector(4).filter((v) => v.some((x) => x !== 0))),
  product_name: fc.option(name),
  category: given(name),
  available: given(fc.boolean()),
  attributes: given(
    fc.dictionary(
      fc.constantFrom("price", "Größe", "on sale"),
      fc.oneof(fc.integer(), fc.boolean(), name, fc.array(name, { maxLength: 3 })),
    ),
  ),
})
type Step = typeof step extends fc.Arbitrary<infer A> ? A : never
type Facts = Omit<Product, "product_id">
const removal = fc.record({ remove: fc.subarray(ids) })

export const suite = <E>(name: string, layer: Layer.Layer<ProductEmbeddings, E>) =>
  layerSuite(`${name}: product embeddings`, layer, (it) => {
    const all = (space: string) =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        return Chunk.toReadonlyArray(yield* Stream.runCollect(store.stream(space)))
      })

    it("streams saved products exactly, in the order of their ids, and counts them", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const before = yield* store.count
        const written = products("exact", 250, "exact-space")
        expect(yield* store.upsert(written.toReversed())).toEqual(written.map(() => "created" as const))
        expect((yield* all("exact-space")).map(bits)).toStrictEqual(written.map(bits))
        expect(yield* store.count).toBe(before + 250)
        const found = yield* store.load(
          written.map(({ product_id }) => product_id),
          "exact-space",
        )
        expect(found.size).toBe(250)
        for (const product of written) expect(hex(found.get(product.product_id))).toBe(hex(product.embedding))
      }))

    it("loads nothing for unknown products and products of another space", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        yield* store.upsert([one("here", "mine"), one("elsewhere", "other")])
        const found = yield* store.load(["here", "elsewhere", "nowhere", "here"], "mine")
        expect([...found.keys()]).toEqual(["here"])
        expect((yield* store.load([], "mine")).size).toBe(0)
        expect(yield* store.upsert([])).toEqual([])
      }))

    it("replaces a product, but keeps its name and category if the new ones are null", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const first = { ...one("named", "names"), product_name: "Boot", category: "shoes", text: "a boot" }
        const second = { ...first, embedding: new Float32Array(8).fill(0.5), text: null }
        expect(yield* store.upsert([first])).toEqual(["created"])
        expect(yield* store.upsert([{ ...second, product_name: null, category: null }])).toEqual(["changed"])
        expect((yield* all("names")).map(bits)).toStrictEqual([bits(second)])
        yield* store.upsert([{ ...second, product_name: "Shoe", category: null }])
        expect((yield* all("names")).map(bits)).toStrictEqual([bits({ ...second, product_name: "Shoe" })])
      }))

    it("if a batch contains a product twice, the last one wins and only the first is new", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const early = { ...one("twice", "twice"), product_name: "Early", category: "hats" }
        const late = {
          ...early,
          embedding: new Float32Array(8).fill(2),
          product_name: null,
          category: "shoes",
        }
        expect(yield* store.upsert([early, one("between", "twice"), late])).toEqual([
          "created",
          "created",
          "changed",
        ])
        const stored = (yield* all("twice")).find(({ product_id }) => product_id === "twice")
        expect(bits(stored)).toStrictEqual(bits({ ...late, product_name: "Early" }))
      }))

    it("a product is in one space at a time", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        yield* store.upsert([one("moving", "old-space")])
        expect(yield* store.upsert([one("moving", "new-space")])).toEqual(["changed"])
        expect((yield* store.load(["moving"], "old-space")).size).toBe(0)
        expect((yield* store.load(["moving"], "new-space")).size).toBe(1)
      }))

    it("counts the products of other spaces", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const before = yield* store.countInOtherSpaces("this-space")
        yield* store.upsert([one("e-1", "this-space"), one("e-2", "that-space"), one("e-3", "that-space")])
        expect(yield* store.countInOtherSpaces("this-space")).toBe(before + 2)
        yield* store.upsert([one("e-2", "this-space")])
        expect(yield* store.countInOtherSpaces("this-space")).toBe(before + 1)
      }))

    it("streams the products of all spaces that were changed after an instant", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const since = (after: number) =>
          Effect.map(Stream.runCollect(store.changed(after)), (found) => Chunk.toReadonlyArray(found))
        const many = products("changed", 1_100, "changed-space")
        yield* store.upsert([...many, one("changed-elsewhere", "changed-other")])
        const found = (yield* since(0)).filter(({ product_id }) => product_id.startsWith("changed-"))
        expect(found.map(bits).toSorted(byId)).toStrictEqual(
          [...many, one("changed-elsewhere", "changed-other")].map(bits).toSorted(byId),
        )
        const newest = Math.max(...found.map(({ updated_at }) => updated_at))
        expect(yield* since(newest)).toEqual([])
        // Timestamps are whole milliseconds.
        yield* later("2 millis")(store.upsert([one("changed-0007", "changed-other")]))
        const [again, ...others] = yield* since(newest)
        expect([again?.product_id, again?.space, others.length]).toEqual(["changed-0007", "changed-other", 0])
      }))

    it("the stamps of a space are those of its products, and a write changes the stamp", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const stamps = Effect.map(
          Stream.runCollect(store.stamps("stamps")),
          (found) => new Map(Array.from(found, ({ product_id, updated_at }) => [product_id, updated_at])),
        )
        yield* store.upsert([...products("stamp", 700, "stamps"), one("stamp-elsewhere", "other-stamps")])
        const sumOf = (found: ReadonlyMap<string, number>) => ({
          count: found.size,
          sum: [...found.values()].reduce((sum, stamp) => sum + (stamp % stampModulus), 0),
        })
        const before = yield* stamps
        expect(yield* store.stampSum("stamps")).toEqual(sumOf(before))
        expect(yield* store.stampSum("no-such-space")).toEqual({ count: 0, sum: 0 })
        expect(before.size).toBe(700)
        expect(before).toEqual(
          new Map((yield* all("stamps")).map(({ product_id, updated_at }) => [product_id, updated_at])),
        )
        yield* later("2 millis")(
          store.upsert([one("stamp-0007", "stamps"), one("stamp-0008", "other-stamps")]),
        )
        const after = yield* stamps
        expect(after.size).toBe(699)
        expect(yield* store.stampSum("stamps")).toEqual(sumOf(after))
        expect([...after].filter(([id, stamp]) => before.get(id) !== stamp).map(([id]) => id)).toEqual([
          "stamp-0007",
        ])
        const found = yield* store.find(["stamp-0007", "stamp-0008", "nowhere"])
        expect(found.map(({ product_id, space }) => [product_id, space]).toSorted()).toEqual([
          ["stamp-0007", "stamps"],
          ["stamp-0008", "other-stamps"],
        ])
        expect(bits(found.find(({ product_id }) => product_id === "stamp-0007"))).toEqual(
          bits((yield* all("stamps")).find(({ product_id }) => product_id === "stamp-0007")),
        )
      }))

    it("names the products whose vectors cannot be used, and why", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const broken = (product_id: string, ...values: ReadonlyArray<number>) => ({
          ...one(product_id, "problems"),
          embedding: Float32Array.from(values),
        })
        yield* store.upsert([
          broken("problem-good", 1, 2, 3),
          broken("problem-short", 1, 2),
          broken("problem-zero", 0, 0, 0),
          broken("problem-nan", 1, Number.NaN, 3),
        ])
        const found = yield* Stream.runCollect(store.problems("problems", 3))
        expect(new Map(Array.from(found, ({ detail, product_id }) => [product_id, detail]))).toEqual(
          new Map([
            ["problem-short", "has a vector that has 2 dimensions instead of 3"],
            ["problem-zero", "has a vector that is a zero vector"],
            ["problem-nan", "has a vector that has the value NaN at index 1, which is not a finite float32"],
          ]),
        )
      }))

    it("describes products of all spaces by name and category", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const boot = { ...one("described", "described-space"), product_name: "Boot", category: null }
        yield* store.upsert([boot])
        expect([...(yield* store.describe(["nowhere", "described"]))]).toEqual([
          [
            "described",
            {
              product_id: "described",
              product_name: "Boot",
              category: null,
              available: true,
              attributes: {},
            },
          ],
        ])
      }))

    it("a server without a vector index fails with NoVectorIndex", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const asked = store.indexed(new Float32Array(8).fill(1), { space: "changed-space", limit: 5 })
        expect((yield* Effect.flip(asked))._tag).toBe("NoVectorIndex")
      }))

    it("concurrent writes of the same products succeed, and each product is new once", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const same = products("rivals", 40, "rivals")
        const outcomes = yield* Effect.forEach([1, 2, 3, 4], () => store.upsert(same), {
          concurrency: "unbounded",
        })
        for (const i of same.keys())
          expect(outcomes.filter((outcome) => outcome[i] === "created")).toHaveLength(1)
        expect(yield* all("rivals")).toHaveLength(40)
      }))

    it("the nearest products are the same as in a full comparison", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const catalogue = products("near", 600, "near-space")
        yield* store.upsert(catalogue)
        yield* store.upsert([one("foreign", "foreign-space")])
        for (const asked of fc.sample(vector(8), { numRuns: 8, seed: 3 })) {
          const expected = catalogue
            .map((product) => ({ product, similarity: cosine(asked, product.embedding) }))
            .sort((a, b) => b.similarity - a.similarity)
          const found = yield* store.nearest(asked, { space: "near-space", limit: 20 })
          expect(found).toHaveLength(20)
          for (const [i, neighbour] of found.entries()) {
            expect(neighbour.similarity).toBeCloseTo(expected[i]!.similarity, 5)
            const product = catalogue.find(({ product_id }) => product_id === neighbour.product_id)!
            expect(neighbour.similarity).toBeCloseTo(cosine(asked, product.embedding), 5)
            expect([neighbour.product_name, neighbour.category]).toEqual([
              product.product_name,
              product.category,
            ])
          }
          expect(new Set(found.map(({ product_id }) => product_id)).size).toBe(20)
        }
        const asked = new Float32Array(8).fill(1)
        expect(yield* store.nearest(asked, { space: "near-space", limit: 1000 })).toHaveLength(600)
        expect(yield* store.nearest(asked, { space: "empty-space", limit: 5 })).toEqual([])
      }))

    it("writes and removals act as if one by one, whatever their batches", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const live = new Map<string, Facts>()
        const kept = new Map<string, Float32Array>()
        const expectedOf = ({ product_id, ...given }: Step) => {
          const before = live.get(product_id)
          if (before === undefined && given.embedding === undefined) return "missing" as const
          if (given.embedding !== undefined) kept.set(product_id, given.embedding)
          live.set(product_id, {
            product_name: given.product_name ?? before?.product_name ?? null,
            category: given.category ?? before?.category ?? null,
            available: given.available ?? before?.available ?? true,
            attributes: given.attributes ?? before?.attributes ?? {},
          })
          return before === undefined ? ("created" as const) : ("changed" as const)
        }
        for (const batch of fc.sample(fc.oneof(fc.array(step, { maxLength: 6 }), removal), {
          numRuns: 60,
          seed: 5,
        })) {
          if (Array.isArray(batch)) {
            const expected = batch.map(expectedOf)
            const sent = batch.map((change) =>
              change.embedding === undefined ? change : { ...change, space: "steps", text: null },
            )
            expect(yield* store.upsert(sent as ReadonlyArray<ProductChange>)).toEqual(expected)
          } else {
            const existing = new Set(batch.remove.filter((id) => live.delete(id)))
            expect(yield* store.remove(batch.remove)).toEqual(existing)
          }
          const found = new Map((yield* all("steps")).map((product) => [product.product_id, product]))
          expect(new Set(found.keys())).toEqual(new Set(kept.keys()))
          for (const [id, { deleted, embedding, space: _, text: __, updated_at: ___, ...facts }] of found) {
            const gone = { product_name: null, category: null, available: false, attributes: {} }
            expect({ deleted, ...facts }).toEqual({
              deleted: !live.has(id),
              product_id: id,
              ...(live.get(id) ?? gone),
            })
            expect(hex(embedding)).toBe(live.has(id) ? hex(kept.get(id)) : "")
          }
          const loaded = yield* store.load(ids, "steps")
          expect(new Map([...loaded].map(([id, v]) => [id, hex(v)]))).toEqual(
            new Map([...kept].map(([id, v]) => [id, hex(v)])),
          )
        }
      }))

    it("a deleted product counts nowhere, but its vector and its stamp stay", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const space = "deleted-space"
        yield* store.upsert([one("kept-1", space), one("gone-1", space), one("sold-out", space)])
        yield* store.upsert([{ product_id: "sold-out", available: false }])
        const [count, elsewhere] = [yield* store.count, yield* store.countInOtherSpaces("nowhere")]
        const since = yield* store.knownSince(["gone-1"], space)
        expect(yield* later("2 millis")(store.remove(["gone-1", "no-such-product"]))).toEqual(
          new Set(["gone-1"]),
        )
        expect([yield* store.count, yield* store.countInOtherSpaces("nowhere")]).toEqual([
          count - 1,
          elsewhere - 1,
        ])
        expect(yield* store.knownSince(["gone-1"], space)).toEqual(since)
        expect((yield* store.stampSum(space)).count).toBe(3)
        const near = yield* store.nearest(new Float32Array(8).fill(1), { space, limit: 9 })
        expect(near.map(({ product_id }) => product_id)).toEqual(["kept-1"])
        const [found] = yield* store.find(["gone-1"])
        expect([found?.deleted, found?.available, found?.embedding.length]).toEqual([true, false, 0])
        const changed = yield* Stream.runCollect(store.changed(found!.updated_at - 1))
        expect(Array.from(changed, ({ deleted, product_id }) => [product_id, deleted])).toEqual([
          ["gone-1", true],
        ])
      }))

    it("knownSince returns when a product of this space was created", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const before = Date.now()
        yield* store.upsert([one("since-1", "since-space"), one("since-2", "other-space")])
        const after = Date.now()
        const first = yield* store.knownSince(["since-1", "since-2", "since-3"], "since-space")
        expect([...first.keys()]).toEqual(["since-1"])
        expect(first.get("since-1")).toBeGreaterThanOrEqual(before)
        expect(first.get("since-1")).toBeLessThanOrEqual(after)
        yield* store.upsert([one("since-1", "since-space")])
        expect(yield* store.knownSince(["since-1"], "since-space")).toEqual(first)
        expect((yield* store.knownSince([], "since-space")).size).toBe(0)
      }))

    it("knows since when a product has had its vector", () =>
      Effect.gen(function* () {
        const store = yield* ProductEmbeddings
        const since = Effect.map(store.vectorsSince(["aged", "nowhere"]), (found) => [...found])
        const product = one("aged", "ages")
        yield* store.upsert([product])
        const [first] = yield* since
        expect(Math.abs(first![1] - Date.now())).toBeLessThan(60_000)
        const change = (after: Duration.DurationInput, change: ProductChange) =>
          later(after)(store.upsert([change]))
        yield* change("1 second", { product_id: "aged", available: false, attributes: { price: "$5" } })
        expect((yield* store.find(["aged"]))[0]).toMatchObject({
          attributes: { price: "$5" },
          available: false,
        })
        yield* change("2 seconds", { ...product, category: "$hats" })
        expect(yield* since).toEqual([first!])
        expect((yield* store.find(["aged"]))[0]).toMatchObject({
          attributes: {},
          category: "$hats",
        })
        yield* later("3 seconds")(store.remove(["aged"]))
        expect(yield* since).toEqual([first!])
        yield* change("4 seconds", { ...product, embedding: product.embedding.map((x) => -x) })
        const [second] = yield* since
        expect(second![1]).toBeGreaterThan(first![1])
        yield* change("5 seconds", { ...product, space: "younger" })
        expect((yield* since)[0]![1]).toBeGreaterThan(second![1])
      }))
  })
