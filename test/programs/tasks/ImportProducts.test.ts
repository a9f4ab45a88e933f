/** `products import` into the embedded stack, with a stand-in for the OpenAI API that can be made to fail. */
import { afterAll, beforeEach, expect } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { BunContext } from "@effect/platform-bun"
import { Effect, Fiber, Layer, Option, TestClock, TestContext } from "effect"
import { importProducts } from "../../../src/programs/tasks/ImportProducts.ts"
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

layerSuite("products import", layer, (it) => {
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
})
