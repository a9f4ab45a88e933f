/** The snippets of docs/reading.md, as they stand there, against a running API. */
import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { HttpServer } from "@effect/platform"
import { Effect } from "effect"
import * as Vector from "../../src/services/model/Vector.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import { EventVectors } from "../../src/services/update/EventVectors.ts"
import { apiAndWorker, call } from "../support/api.ts"
import { layerSuite } from "../support/effect.ts"
import { drained } from "../support/pipeline.ts"
import { embedded } from "../support/stacks.ts"

const folder = mkdtempSync(join(tmpdir(), "reading-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const document = readFileSync(resolve(import.meta.dir, "../../docs/reading.md"), "utf8")
const snippet = (language: string) =>
  new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\``, "ms").exec(document)?.[1] ?? ""

interface Result {
  readonly order: ReadonlyArray<{ readonly product_id: string; readonly score: number }>
  readonly unchanged: ReadonlyArray<{ readonly product_id: string }>
  readonly tastes: Readonly<Record<string, ReadonlyArray<number>>>
}

const programs = {
  ts: {
    runtime: process.execPath,
    end: `const hits = JSON.parse(await Bun.stdin.text())
console.log(JSON.stringify({
  order: await rerank("u-1", hits),
  unchanged: await rerank("nobody", hits),
  tastes: Object.fromEntries([...await tastes(["u-1", "nobody"])].map(([id, v]) => [id, [...v]])),
}))`,
  },
  python: {
    runtime: Bun.which("python3"),
    end: `hits = json.load(sys.stdin)
print(json.dumps({
    "order": rerank("u-1", hits),
    "unchanged": rerank("nobody", hits),
    "tastes": {id: list(v) for id, v in tastes(["u-1", "nobody"]).items()},
}))`,
  },
} as const

const run = (language: keyof typeof programs, url: string, hits: unknown) =>
  Effect.promise(async (): Promise<Result> => {
    const { end, runtime } = programs[language]
    const file = join(folder, `snippet.${language === "ts" ? "ts" : "py"}`)
    writeFileSync(file, `${snippet(language)}\n${end}\n`)
    const child = Bun.spawn([runtime ?? "", file], {
      stdin: new Blob([JSON.stringify(hits)]),
      stderr: "inherit",
      env: { ...process.env, USER_EMBEDDINGS_URL: url },
    })
    return JSON.parse(await child.stdout.text())
  })

layerSuite(
  "the snippets of docs/reading.md",
  apiAndWorker(embedded({ API_PORT: "0", WORKER_PORT: "0", EMBEDDING_DIMENSIONS: "384" })),
  (it) => {
    const compare = (language: keyof typeof programs) =>
      Effect.gen(function* () {
        const { address } = yield* HttpServer.HttpServer
        const port = address._tag === "TcpAddress" ? address.port : 0
        for (const [id, text] of [
          ["lamp", "desk lamp"],
          ["tent", "tent for two"],
          ["boots", "hiking boots"],
        ])
          yield* call("PUT", `/api/product/${id}/embedding`, { text })
        yield* call("POST", "/api/user/u-1/product/boots/purchase", {})
        yield* drained
        const { json } = yield* call("GET", "/api/user/u-1/recommendations?exclude=none")
        const similarities = new Map(
          json.items.map((item: { product_id: string; similarity: number }) => [
            item.product_id,
            item.similarity,
          ]),
        )
        const { space } = yield* EventVectors
        const stored = yield* (yield* ProductEmbeddings).load(["lamp", "tent", "boots"], space)
        // The search found all three equally good.
        const hits = ["lamp", "tent", "boots"].map((product_id) => ({
          product_id,
          score: 1,
          vector: [...stored.get(product_id)!],
        }))
        const { order, tastes, unchanged } = yield* run(language, `http://127.0.0.1:${port}`, hits)
        expect(order.map(({ product_id }) => product_id)).toEqual(
          hits
            .map(({ product_id }) => product_id)
            .sort((a, b) => Number(similarities.get(b)) - Number(similarities.get(a))),
        )
        expect(order[0]!.product_id).toBe("boots")
        for (const { product_id, score } of order)
          expect(score).toBeCloseTo(1 + 0.3 * Number(similarities.get(product_id)), 5)
        expect(unchanged.map(({ product_id }) => product_id)).toEqual(["lamp", "tent", "boots"])
        expect(Object.keys(tastes)).toEqual(["u-1"])
        expect(tastes["u-1"]).toHaveLength(384)
        expect(Vector.norm(Float32Array.from(tastes["u-1"]!))).toBeCloseTo(1, 5)
      })

    it("TypeScript", () => compare("ts"))
    if (programs.python.runtime === null) test.skip("Python: SKIPPED, needs python3", () => {})
    else it("Python", () => compare("python"))
  },
)
