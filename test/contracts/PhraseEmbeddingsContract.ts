/** What every store of phrase embeddings promises. */
import { expect } from "bun:test"
import { Effect, type Layer } from "effect"
import fc from "fast-check"
import { toBytes } from "../../src/services/model/Vector.ts"
import { PhraseEmbeddings, phraseKey } from "../../src/services/ports/PhraseEmbeddings.ts"
import { layerSuite } from "../support/effect.ts"

const hex = (vectors: ReadonlyMap<string, Float32Array>) =>
  new Map([...vectors].map(([key, vector]) => [key, Buffer.from(toBytes(vector)).toString("hex")]))
/** Vectors of `count` phrases, the same in every run. */
const vectors = (prefix: string, count: number): ReadonlyMap<string, Float32Array> =>
  new Map(
    fc
      .sample(fc.float32Array({ minLength: 8, maxLength: 8, noNaN: true, noDefaultInfinity: true }), {
        numRuns: count,
        seed: 42,
      })
      .map((vector, i) => [phraseKey("space", `${prefix} ${i}`), vector]),
  )

export const suite = <E>(name: string, layer: Layer.Layer<PhraseEmbeddings, E>) =>
  layerSuite(`${name}: phrase embeddings`, layer, (it) => {
    it("loads saved vectors exactly, and nothing for unknown phrases", () =>
      Effect.gen(function* () {
        const store = yield* PhraseEmbeddings
        const written = vectors("exact", 100)
        yield* store.save(written)
        const found = yield* store.load([...written.keys(), phraseKey("space", "unknown")])
        expect(hex(found)).toEqual(hex(written))
        expect((yield* store.load([])).size).toBe(0)
        yield* store.save(new Map())
      }))

    it("saving again replaces vectors, also when several callers save at the same time", () =>
      Effect.gen(function* () {
        const store = yield* PhraseEmbeddings
        const first = vectors("again", 20)
        yield* Effect.all([store.save(first), store.save(first), store.save(first)], {
          concurrency: "unbounded",
        })
        expect(hex(yield* store.load([...first.keys()]))).toEqual(hex(first))
        const second = new Map([...first.keys()].map((key, i) => [key, Float32Array.of(i, -i, 0.1)]))
        yield* store.save(second)
        expect(hex(yield* store.load([...first.keys()]))).toEqual(hex(second))
      }))

    it("removes vectors and returns their number", () =>
      Effect.gen(function* () {
        const store = yield* PhraseEmbeddings
        const written = vectors("removed", 10)
        const keys = [...written.keys()]
        yield* store.save(written)
        expect(yield* store.remove([...keys.slice(0, 4), phraseKey("space", "unknown")])).toBe(4)
        expect(yield* store.remove(keys.slice(0, 4))).toBe(0)
        expect(yield* store.remove([])).toBe(0)
        expect([...(yield* store.load(keys)).keys()].sort()).toEqual(keys.slice(4).sort())
      }))
  })
