/** `products import` into the embedded stack, with a stand-in for the OpenAI API that can be made to fail. */
import { afterAll, beforeEach, expect } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { BunContext } from "@effect/platform-bun"
import { Effect, Fiber, Layer, Option, Schema, Stream, TestClock, TestContext } from "effect"
import fc from "fast-check"
import { exportProducts } from "../../../src/programs/tasks/ExportData.ts"
import { importProducts } from "../../../src/programs/tasks/ImportProducts.ts"
import { ProductEmbeddingBody } from "../../../src/services/api/EmbeddingApi.ts"
import { EmbeddingConfig } from "../../../src/services/EmbeddingConfig.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import * as EventVectors from "../../../src/services/update/EventVectors.ts"
import { layerSuite } from "../../support/effect.ts"
import { type Fault, openAiStandIn } from "../../support/openAiStandIn.ts"
import { embedded } from "../../support/stacks.ts"

const folder = mkdtempSync(join(tmpdir(), "products-"))
const server = openAiStandIn()
beforeEach(() => server.mend())
afterAll(async () => {
  await server.stop()
  rmSync(folder, { recursive: true, force: true })
})

const stack = embedded({
  OPENAI_API_KEY: "sk-stand-in",
  OPENAI_BASE_URL: server.url,
  EMBEDDING_DIMENSIONS: "24",
})
const layer = Layer.merge(Layer.provideMerge(EventVectors.layer, stack), BunContext.layer)

let files = 0
interface Line {
  readonly product_id: string
  readonly text?: string
  readonly vector?: ReadonlyArray<number>
}
const importLines = (lines: ReadonlyArray<Line>) =>
  Effect.suspend(() => {
    const path = join(folder, `${files++}.jsonl`)
    const all = lines.map((line) => JSON.stringify({ product_name: "Boot", category: "shoes", ...line }))
    writeFileSync(path, all.join("\n"))
    return importProducts(path, { strict: false, progress: () => Effect.void })
  })
const texts = (name: string, count = 3): ReadonlyArray<Line> =>
  Array.from({ length: count }, (_, i) => ({ product_id: `${name}-${i}`, text: `${name} ${i}` }))
const requested = () => server.received.flatMap(({ input }) => input)

/** Lets seconds pass under the test clock until `happened`, but none while the server works on a request. */
const untilThen = (happened: Effect.Effect<boolean>) =>
  Effect.gen(function* () {
    while (!(yield* happened)) {
      yield* Effect.promise(() => new Promise(setImmediate))
      if (server.concurrent === 0) yield* TestClock.adjust("1 second")
    }
  })
const ended = <A, E>(fiber: Fiber.RuntimeFiber<A, E>) =>
  untilThen(Effect.map(Fiber.poll(fiber), Option.isSome)).pipe(Effect.zipRight(Fiber.join(fiber)))

/** What a text is refused for, at any door. */
const names = fc.option(
  fc.oneof(
    fc.string({ maxLength: 5 }),
    fc.constantFrom("x".repeat(255), "x".repeat(256), "\ud800", " padded ", "boots"),
  ),
)
const texts8 = fc.oneof(
  fc.string({ maxLength: 5 }),
  fc.constantFrom(" boots ", "x".repeat(8_192), "x".repeat(8_193), "\udfff", "", "  "),
)
const vectors = fc.constantFrom(
  Array.from({ length: 24 }, (_, i) => i - 3),
  [1, 2],
  [],
  Array(24).fill(0),
  ["1"],
)
const bodies = fc
  .record({
    product_name: names,
    category: names,
    source: fc.oneof(fc.record({ text: texts8 }), fc.record({ vector: vectors })),
  })
  .map(({ source, ...body }) => ({ ...body, ...source }))

layerSuite("products import", layer, (it) => {
  it("accepts the products that PUT accepts, and stores them alike", () =>
    Effect.gen(function* () {
      const { dimensions } = yield* EmbeddingConfig
      const accept = Schema.decodeUnknownOption(ProductEmbeddingBody)
      const sample = fc.sample(bodies, { numRuns: 300, seed: 1 })
      const path = join(folder, "doors.jsonl")
      writeFileSync(path, sample.map((body, n) => `${JSON.stringify({ product_id: n, ...body })}\n`).join(""))
      const put = sample.map((body) =>
        Option.filter(
          accept(body),
          ({ vector }) => vector === undefined || Vector.problem(vector, dimensions) === undefined,
        ),
      )
      const { bad } = yield* importProducts(path, { strict: false, progress: () => Effect.void })
      expect(bad.map(({ line }) => line)).toEqual(
        put.flatMap((body, n) => (Option.isNone(body) ? [n + 1] : [])),
      )
      expect(bad.length).toBeGreaterThan(50)
      const products = yield* ProductEmbeddings
      const stored = yield* products.describe(sample.map((_, n) => String(n)))
      for (const [n, body] of put.entries())
        if (Option.isSome(body)) {
          const { category = null, product_name = null } = body.value
          expect(stored.get(String(n))).toMatchObject({ product_id: String(n), product_name, category })
        }
      const taken = new Set(requested())
      expect(taken).toEqual(
        new Set(put.flatMap((body) => Option.toArray(body).flatMap(({ text }) => text ?? []))),
      )
    }))

  it("needs no text where there is a name; lines that are not UTF-8 are rejected, or read in their encoding", () =>
    Effect.gen(function* () {
      const path = join(folder, "umlaut.jsonl")
      writeFileSync(
        path,
        Buffer.from(
          '{"product_id":"u-1","product_name":"Stiefel","category":null}\n{"product_id":"u-2","text":"M\xfctze"}\n{"product_id":"u-3","category":" "}\n',
          "latin1",
        ),
      )
      const options = { strict: false, progress: () => Effect.void }
      const { bad } = yield* importProducts(path, options)
      expect(bad).toEqual([
        { line: 2, reason: "is not UTF-8 (--encoding names another one)" },
        { line: 3, reason: expect.stringContaining("give a vector, a text or a product_name") },
      ])
      expect(
        yield* importProducts(path, {
          ...options,
          form: { format: "jsonl", delimiter: ",", encoding: "latin1" },
        }),
      ).toMatchObject({ imported: 2 })
      expect(requested()).toEqual(["Stiefel", "Mütze"])
    }))

  it("lists the first 1,000 bad lines, and counts the others", () =>
    Effect.gen(function* () {
      const path = join(folder, "bad.jsonl")
      writeFileSync(path, '{"product_id":""}\n'.repeat(1_200))
      const { bad, bad_not_listed } = yield* importProducts(path, {
        strict: false,
        progress: () => Effect.void,
      })
      expect([bad.length, bad_not_listed]).toEqual([1_000, 200])
    }))

  const passing: ReadonlyArray<readonly [string, Fault]> = [
    ["429", { status: 429 }],
    ["429 with a long Retry-After", { status: 429, headers: { "retry-after": "120" } }],
    ["502", { status: 502 }],
    ["a broken connection", "drop"],
  ]
  for (const [what, fault] of passing)
    it(`waits during ${what}, and then imports every line`, () =>
      Effect.gen(function* () {
        const lines = texts(what.replaceAll(" ", "-"))
        server.fault = fault
        const running = yield* Effect.fork(importLines(lines))
        yield* untilThen(Effect.sync(() => server.received.length >= 4))
        expect((yield* Fiber.poll(running))._tag).toBe("None")
        server.fault = undefined
        expect(yield* ended(running)).toEqual({ imported: 3, created: 3, bad: [] })
      }).pipe(Effect.provide(TestContext.TestContext)))

  it("rejects only the line whose text keeps failing while the service works", () =>
    Effect.gen(function* () {
      const [refused, failing, good] = texts("one")
      server.faults.set("one 0", { status: 400 })
      server.faults.set("one 1", { status: 500 })
      const running = yield* Effect.fork(importLines([refused!, failing!, good!]))
      const { bad, imported } = yield* ended(running)
      expect(imported).toBe(1)
      expect(bad.map(({ line, reason }) => [line, reason.split(":")[1]?.trim()])).toEqual([
        [1, "invalid_input"],
        [2, "server_error"],
      ])
    }).pipe(Effect.provide(TestContext.TestContext)))

  it("stops if the service refuses every text", () =>
    Effect.gen(function* () {
      for (const fault of [{ status: 401 }, { status: 400 }, { status: 429, code: "insufficient_quota" }]) {
        server.fault = fault
        expect(yield* Effect.flip(importLines(texts("refused")))).toMatchObject({
          _tag: "PhraseEmbedderError",
        })
      }
    }))

  it("does not embed texts again that are stored unchanged, nor a text twice", () =>
    Effect.gen(function* () {
      const products = yield* ProductEmbeddings
      const { space } = yield* EventVectors.EventVectors
      const lines = [...texts("same"), { product_id: "named" }, { product_id: "twin", text: "same 1" }]
      yield* importLines(lines)
      expect(requested()).toEqual(["same 0", "same 1", "same 2", "Boot, shoes"])
      const before = yield* products.load(["same-0", "named", "twin"], space)
      server.mend()
      expect(yield* importLines(lines)).toEqual({ imported: 5, created: 0, bad: [] })
      expect(requested()).toEqual([])
      expect(yield* products.load(["same-0", "named", "twin"], space)).toEqual(before)
      yield* importLines([{ product_id: "same-0", text: "changed" }, ...lines.slice(1)])
      expect(requested()).toEqual(["changed"])
    }))

  it("embeds the text of a product that had a vector of its own", () =>
    Effect.gen(function* () {
      const vector = Array.from({ length: 24 }, (_, i) => i + 1)
      yield* importLines([{ product_id: "own", text: "own", vector }])
      expect(requested()).toEqual([])
      yield* importLines([{ product_id: "own", text: "own" }])
      expect(requested()).toEqual(["own"])
    }))

  it("reads CSV with typed attributes", () =>
    Effect.gen(function* () {
      const path = join(folder, "catalogue.csv")
      writeFileSync(
        path,
        [
          "product_id;product_name;category;available;attributes.price;attributes.sizes;attributes.sku;attributes.brand",
          'c-1;Boot;shoes;true;19.9;"[""S"",""M""]";00123;Acme',
          "c-2;Hat;;0;;;;",
          "c-3;Coat;;maybe;1;;;",
          "c-4;too;few",
        ].join("\n"),
      )
      const form = { format: "csv", delimiter: ";" } as const
      const { bad, imported } = yield* importProducts(path, {
        strict: false,
        form,
        progress: () => Effect.void,
      })
      expect(bad).toEqual([
        { line: 4, reason: expect.stringContaining("available") },
        { line: 5, reason: "has 3 cells, the header 8" },
      ])
      expect(imported).toBe(2)
      const found = yield* (yield* ProductEmbeddings).describe(["c-1", "c-2"])
      expect([...found.values()]).toEqual([
        {
          product_id: "c-1",
          product_name: "Boot",
          category: "shoes",
          available: true,
          attributes: { price: 19.9, sizes: ["S", "M"], sku: "00123", brand: "Acme" },
        },
        { product_id: "c-2", product_name: "Hat", category: null, available: false, attributes: {} },
      ])
      const wrong = Effect.flip(importProducts(path, { strict: false, progress: () => Effect.void }))
      expect((yield* wrong).message).toContain('seems to have ";" between its cells: --delimiter ";"')
    }))

  it("what an export writes, an import reads back unchanged", () =>
    Effect.gen(function* () {
      const store = yield* ProductEmbeddings
      const { space } = yield* EventVectors.EventVectors
      const text = fc.string({ unit: "grapheme", minLength: 1, maxLength: 6 }).filter((t) => t.trim() === t)
      const sample = fc.sample(
        fc.record({
          product_name: fc.option(text),
          available: fc.boolean(),
          attributes: fc.dictionary(
            fc.constantFrom("price", "on sale", "Größe"),
            fc.oneof(
              fc.integer(),
              fc.boolean(),
              text,
              fc.constantFrom("12", "true", "[]", '"x"', "null", "a,b", 'say "x"'),
              fc.array(text, { maxLength: 3 }),
            ),
          ),
        }),
        { numRuns: 60, seed: 4 },
      )
      const everything = Effect.map(
        Stream.runCollect(store.stream(space)),
        (found) =>
          new Map(Array.from(found, ({ updated_at: _, ...product }) => [product.product_id, product])),
      )
      yield* store.upsert(
        sample.map((product, n) => ({
          ...product,
          product_id: `round-${n}`,
          embedding: Float32Array.from({ length: 24 }, (_, i) => Math.sin(n + i)),
          space,
          text: n % 2 === 0 ? `text ${n}` : null,
        })),
      )
      const before = yield* everything
      for (const format of ["jsonl", "csv"] as const) {
        const path = join(folder, `round.${format}`)
        const report = yield* exportProducts({ format, out: Option.some(path), progress: () => Effect.void })
        expect(report.exported).toBe([...before.values()].filter(({ deleted }) => !deleted).length)
        yield* store.upsert(
          sample.map((_, n) => ({ product_id: `round-${n}`, available: true, attributes: { other: 1 } })),
        )
        const { bad } = yield* importProducts(path, { strict: false, progress: () => Effect.void })
        expect(bad).toEqual([])
        expect(yield* everything).toEqual(before)
      }
    }))

  it("--replace makes unavailable what the file lacks, and brings back what it has again", () =>
    Effect.gen(function* () {
      const store = yield* ProductEmbeddings
      const availableOf = (...ids: ReadonlyArray<string>) =>
        Effect.map(store.describe(ids), (found) => ids.map((id) => found.get(id)?.available))
      const write = (...lines: ReadonlyArray<object | string>) => {
        const path = join(folder, `${files++}.jsonl`)
        writeFileSync(
          path,
          lines.map((line) => (typeof line === "string" ? line : JSON.stringify(line))).join("\n"),
        )
        return path
      }
      const run = (path: string, dryRun = false, meanwhile: Effect.Effect<unknown> = Effect.void) =>
        importProducts(path, {
          strict: false,
          replace: true,
          dryRun,
          progress: () => Effect.asVoid(meanwhile),
        })
      const [one, two, three] = ["r-1", "r-2", "r-3"].map((product_id) => ({
        product_id,
        product_name: "Boot",
      }))
      yield* run(write(one!, two!, { ...three!, available: false }))
      expect(yield* availableOf("r-1", "r-2", "r-3")).toEqual([true, true, false])
      yield* store.remove(["r-1"])

      server.mend()
      const next = write(one!, { product_id: "r-4", product_name: "New" })
      expect(yield* run(next, true)).toEqual({ imported: 2, created: 2, made_unavailable: 1, bad: [] })
      expect(yield* availableOf("r-1", "r-2", "r-4")).toEqual([false, true, undefined])
      expect(requested()).toEqual([])
      expect(yield* run(next)).toEqual({ imported: 2, created: 2, made_unavailable: 1, bad: [] })
      expect(yield* availableOf("r-1", "r-2", "r-4")).toEqual([true, false, true])
      expect((yield* run(write(one!, two!, three!))).made_unavailable).toBe(1)
      expect(yield* availableOf("r-2", "r-3", "r-4")).toEqual([true, true, false])
      // Others change one product and delete one while the import runs, a millisecond after its beginning.
      const meanwhile = Effect.sleep("2 millis").pipe(
        Effect.zipRight(store.upsert([{ product_id: "r-2", available: true }])),
        Effect.zipRight(store.remove(["r-3"])),
        Effect.orDie,
      )
      expect((yield* run(write(one!), false, meanwhile)).made_unavailable).toBe(0)
      expect(yield* availableOf("r-1", "r-2", "r-3")).toEqual([true, true, false])
      expect((yield* store.find(["r-3"])).map(({ deleted }) => deleted)).toEqual([true])
      yield* run(write(one!, two!, three!))
      // A rejected line may be about any product, and an empty file about none.
      expect((yield* run(write(one!, "{"))).made_unavailable).toBe(0)
      expect((yield* run(write(""))).made_unavailable).toBe(0)
      expect(yield* availableOf("r-2", "r-3")).toEqual([true, true])
    }))
})
