/** A shop with product vectors of its own, in dimensions that the local embedder does not have. */
import { expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { BunContext } from "@effect/platform-bun"
import { Effect, Layer, Stream } from "effect"
import { open } from "../../src/programs/Open.ts"
import { importProducts, sampleCatalogue } from "../../src/programs/tasks/ImportProducts.ts"
import * as Provision from "../../src/programs/tasks/ProvisionServers.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import { Dependencies } from "../../src/services/ports/Dependencies.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { EventVectors } from "../../src/services/update/EventVectors.ts"
import { apiAndWorker, call } from "../support/api.ts"
import { layerSuite } from "../support/effect.ts"
import { drained } from "../support/pipeline.ts"
import { embedded } from "../support/stacks.ts"

/** Products with an even index are near one axis, the others near another one. */
const vectorOf = (dimensions: number, index: number) =>
  Array.from({ length: dimensions }, (_, i) => (i === index % 2 ? 1 : 0) + (i === index ? 0.3 : 0))

const variables = (dimensions: number) => ({
  API_PORT: "0",
  WORKER_PORT: "0",
  EMBEDDING_DIMENSIONS: String(dimensions),
})

for (const dimensions of [8, 64, 100, 128, 512])
  layerSuite(
    `own vectors of ${dimensions} dimensions`,
    apiAndWorker(embedded(variables(dimensions))),
    (it) => {
      it("events with products are applied, and products are recommended", () =>
        Effect.gen(function* () {
          for (let index = 0; index < 6; index++) {
            const vector = vectorOf(dimensions, index)
            const { json, status } = yield* call("PUT", `/api/product/p-${index}`, { vector })
            expect([status, json.space]).toEqual([201, `own:${dimensions}`])
          }
          yield* call("POST", "/api/user/u-1/product/p-2/purchase", {})
          const search = yield* call("POST", "/api/user/u-1/search", { query: "red shoes" })
          expect(search.status).toBe(201)
          yield* call("POST", "/api/user/u-2/search", { query: "red shoes" })
          yield* drained
          const own = (yield* call("GET", "/api/user/u-1/embedding?vector=true")).json
          expect(own).toMatchObject({
            event_count: 1,
            dimension_count: dimensions,
            last_event_type: "product_purchase",
          })
          const recommended = (yield* call("GET", "/api/user/u-1/recommendations?limit=2")).json
          expect(recommended.source).toBe("taste")
          const ids = recommended.items.map(({ product_id }: { product_id: string }) => product_id)
          expect(ids.toSorted()).toEqual(["p-0", "p-4"])
          // Only a search: nothing to go by.
          expect((yield* call("GET", "/api/user/u-2/recommendations")).json.source).toBe("popular")
        }))
    },
  )

layerSuite(
  "a system that embeds no texts",
  Layer.provideMerge(Rebuilder.layer, apiAndWorker(embedded(variables(100)))),
  (it) => {
    it("a search is skipped: it is no dead letter, nothing waits for it, and the audit knows it", () =>
      Effect.gen(function* () {
        yield* call("PUT", "/api/product/p-1", { vector: vectorOf(100, 1) })
        yield* call("POST", "/api/user/u-1/product/p-1/view", {})
        const search = yield* call("POST", "/api/user/u-1/search", { query: "red shoes" })
        yield* drained
        const { audit } = yield* Auditor.Auditor
        expect(yield* audit({})).toMatchObject({ dead: 0, extra: 0, in_flight: 0, missing: 0, skipped: 1 })
        const { rebuild } = yield* Rebuilder.Rebuilder
        expect(yield* rebuild({ user: "u-1" })).toMatchObject({ rebuilt: 1, failed: 0 })
        const taken = yield* call("POST", "/api/user/u-1/retractions", { message_id: search.json.message_id })
        expect(taken.status).toBe(201)
        yield* drained
        expect(yield* audit({})).toMatchObject({ dead: 0, extra: 0, in_flight: 0, missing: 0 })
        expect((yield* (yield* UserEmbeddings).load(["u-1"])).get("u-1")?.embedding?.event_count).toBe(1)
      }))

    it("what needs a text to be embedded is refused with the reason", () =>
      Effect.gen(function* () {
        const found = yield* call("POST", "/api/search", { query: "red shoes" })
        expect([found.status, found.json.detail]).toEqual([501, expect.stringContaining("embeds no texts")])
        const text = yield* call("PUT", "/api/product/p-2", { text: "red shoes" })
        expect([text.status, text.json.errors[0].field]).toEqual([422, "text"])
        const named = yield* call("PUT", "/api/product/p-2", { product_name: "Red shoes" })
        expect([named.status, named.json.detail]).toEqual([422, expect.stringContaining("embeds no texts")])
        // A product that exists keeps its vector.
        expect((yield* call("PUT", "/api/product/p-1", { product_name: "Boots" })).status).toBe(200)
        const report = yield* importProducts(sampleCatalogue, {
          strict: false,
          progress: () => Effect.void,
        }).pipe(Effect.provide(BunContext.layer))
        expect(report).toMatchObject({ imported: 0 })
        expect(report.bad?.[0]?.reason).toContain("embeds no texts")
      }))

    it("doctor and the health checks say so, and find nothing wrong", () =>
      Effect.gen(function* () {
        const [embedder] = (yield* Dependencies).filter(({ name }) => name === "embedder")
        expect(yield* embedder!.ping).toContain("embeds no texts")
        const wrong = (yield* Provision.doctor).filter(({ status }) => status !== "ok")
        expect(wrong).toEqual([])
        const ready = yield* call("GET", "/readyz")
        expect([ready.status, ready.json.status]).toEqual([200, "ok"])
        const { space } = yield* EventVectors
        expect(yield* (yield* ProductEmbeddings).countInOtherSpaces(space)).toBe(0)
        expect(yield* Stream.runCollect((yield* ProductEmbeddings).problems(space, 100))).toHaveLength(0)
      }))
  },
)

test("the library reads vectors, tastes and the mean", async () => {
  const folder = mkdtempSync(join(tmpdir(), "own-vectors-"))
  const shop = await open({
    stack: "embedded",
    DATA_DIR: folder,
    EMBEDDING_DIMENSIONS: 64,
    LOG_LEVEL: "error",
  })
  try {
    const products = [0, 1, 2].map((index) => ({ product_id: `p-${index}`, vector: vectorOf(64, index) }))
    await shop.putProducts(products)
    await shop.record({ user_id: "u-1", event_type: "product_view", product_id: "p-2" })
    await shop.drained()
    const [stored, nobody] = await shop.vectors(["u-1", "u-2"])
    expect(nobody).toBeNull()
    expect(stored).toMatchObject({ user_id: "u-1", space: "own:64", version: 1 })
    expect(stored?.embedding).toEqual((await shop.embedding("u-1"))!.embedding)
    const mean = await shop.catalogueMean()
    for (const [i, of] of [0, 1, 2, 3].entries())
      expect(mean[i]).toBeCloseTo(
        products.reduce((sum, { vector }) => sum + Vector.normalise(Float32Array.from(vector))[of]! / 3, 0),
        6,
      )
    const [taste] = await shop.vectors(["u-1"], { read: "taste" })
    const seen = Vector.normalise(Float32Array.from(vectorOf(64, 2))).map((x, i) => x - mean[i]!)
    expect(Vector.dot(taste!.embedding, Vector.normalise(seen))).toBeCloseTo(1, 5)
  } finally {
    await shop.close()
    rmSync(folder, { recursive: true, force: true })
  }
})
