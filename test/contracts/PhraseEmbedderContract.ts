/** Tests for every implementation of the phrase embedder. */
import { expect } from "bun:test"
import { Effect, Either, type Layer, Schema } from "effect"
import fc from "fast-check"
import { SearchPhrase } from "../../src/services/model/Interaction.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import { PhraseEmbedder } from "../../src/services/ports/PhraseEmbedder.ts"
import { layerSuite } from "../support/effect.ts"

/** The vectors of phrases; fails when a phrase has none. */
export const vectorsOf = (phrases: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const { embed } = yield* PhraseEmbedder
    const found = yield* embed(phrases)
    expect(found).toHaveLength(phrases.length)
    return found.map(Either.getOrThrow)
  })

const decode = Schema.decodeUnknownEither(SearchPhrase)
/** Valid phrases: any script, emoji, marks and invisible characters, 1–255 code points. */
const phrase = fc
  .oneof(
    fc.string({ unit: "grapheme", minLength: 1, maxLength: 255 }),
    fc.string({ unit: "binary", minLength: 1, maxLength: 255 }),
    fc.constantFrom(
      "🎧",
      "👩🏽‍🚀",
      "ヘッドホン",
      "سماعات لاسلكية",
      "наушники",
      "หูฟัง",
      "무선 헤드폰",
      "\u200d",
      "\ufe0f",
      "́",
      "—",
      "x",
    ),
    fc.constantFrom("a", "ß", "🎧", "耳", "ง").map((unit) => unit.repeat(255)),
  )
  .map((text) => Either.getOrUndefined(decode(text)))
  .filter((text) => text !== undefined)

export const suite = <E>(
  name: string,
  layer: Layer.Layer<PhraseEmbedder, E>,
  { dimensions, space }: { readonly dimensions: number; readonly space: string },
) =>
  layerSuite(`${name}: phrase embedder`, layer, (it) => {
    it("the name of the space contains the dimensions", () =>
      Effect.gen(function* () {
        expect((yield* PhraseEmbedder).space).toBe(space)
      }))

    it("every valid phrase has a unit vector of the configured dimensions", () =>
      Effect.gen(function* () {
        const phrases = [...new Set(fc.sample(phrase, { numRuns: 500, seed: 42 }))]
        for (const vector of yield* vectorsOf(phrases)) {
          expect(Vector.problem(vector, dimensions)).toBeUndefined()
          expect(Math.abs(Vector.norm(vector) - 1)).toBeLessThan(1e-6)
        }
      }))

    it("a phrase has the same vector alone, among other phrases and again", () =>
      Effect.gen(function* () {
        const phrases = ["wireless headphones", "tomato seeds", "red dress", "🎧"]
        const together = yield* vectorsOf(phrases)
        const again = yield* vectorsOf(phrases.toReversed())
        expect(again.toReversed()).toEqual(together)
        for (const [index, one] of phrases.entries())
          expect(yield* vectorsOf([one])).toEqual([together[index]!])
      }))

    it("different phrases have different vectors", () =>
      Effect.gen(function* () {
        const [a, b] = yield* vectorsOf(["wireless headphones", "tomato seeds"])
        expect(Vector.dot(a!, b!)).toBeLessThan(0.9)
      }))

    it("no phrases have no vectors", () =>
      Effect.gen(function* () {
        expect(yield* vectorsOf([])).toEqual([])
      }))

    it("any number of phrases is accepted, and vectors are in the order of the phrases", () =>
      Effect.gen(function* () {
        const phrases = Array.from({ length: 5000 }, (_, i) => `red shoes of size ${i}`)
        const all = yield* vectorsOf(phrases)
        for (const index of [0, 2047, 2048, 4999])
          expect(yield* vectorsOf([phrases[index]!])).toEqual([all[index]!])
      }))
  })
