import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import * as LocalPhraseEmbedder from "../../../src/layers/embedder/LocalPhraseEmbedder.ts"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import { PhraseEmbedder } from "../../../src/services/ports/PhraseEmbedder.ts"
import { suite, vectorsOf } from "../../contracts/PhraseEmbedderContract.ts"
import { effectTest, layerSuite } from "../../support/effect.ts"

const layerOf = (dimensions: number) =>
  LocalPhraseEmbedder.layer.pipe(Layer.provide(EmbeddingConfig.layer({ dimensions })))

suite("local", layerOf(1536), { dimensions: 1536, space: "local:minilm-words:1536" })

effectTest("repeating the dimensions preserves cosines", () =>
  Effect.gen(function* () {
    const cosine = (dimensions: number) =>
      vectorsOf(["wireless headphones", "bluetooth earbuds"]).pipe(
        Effect.map(([a, b]) => Vector.dot(a!, b!)),
        Effect.provide(layerOf(dimensions)),
      )
    expect(yield* cosine(1536)).toBeCloseTo(yield* cosine(384), 6)
  }),
)

layerSuite("local: meaning", layerOf(384), (it) => {
  const cosine = (one: string, other: string) =>
    Effect.map(vectorsOf([one, other]), ([a, b]) => Vector.dot(a!, b!))

  it("related words are more similar than unrelated words", () =>
    Effect.gen(function* () {
      const related = [
        ["wireless headphones", "bluetooth earbuds"],
        ["dog food", "treats for puppies"],
        ["cast iron skillet", "frying pan"],
        ["running shoes", "sneakers"],
        ["science fiction novel", "fantasy book"],
      ] as const
      for (const [phrase, near] of related)
        for (const [, far] of related.filter(([other]) => other !== phrase))
          expect(yield* cosine(phrase, near)).toBeGreaterThan(yield* cosine(phrase, far))
    }))

  it("case, accents and invisible characters have no effect", () =>
    Effect.gen(function* () {
      expect(yield* cosine("Café Table", "cafe table")).toBeCloseTo(1, 6)
      expect(yield* cosine("head\u00adphones", "headphones")).toBeCloseTo(1, 6)
    }))

  it("a character outside the vocabulary has little effect on known words", () =>
    Effect.gen(function* () {
      expect(yield* cosine("wireless headphones 🎧", "wireless headphones")).toBeGreaterThan(0.99)
    }))

  it("frequent words have little weight", () =>
    Effect.gen(function* () {
      const withArticle = yield* cosine("the headphones", "headphones")
      expect(withArticle).toBeGreaterThan(yield* cosine("orange headphones", "headphones"))
    }))

  it("a phrase without visible characters has the vector of an unknown word", () =>
    Effect.gen(function* () {
      const { embed } = yield* PhraseEmbedder
      expect(yield* embed(["\u200d"])).toEqual(yield* embed(["🎧"]))
    }))
})
