/** `products import FILE`: JSON Lines → product embeddings. Reports bad lines and stores the others. */
import { fileURLToPath } from "node:url"
import { FileSystem } from "@effect/platform"
import { Chunk, Effect, Either, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { describeIssues, ProductId } from "../../services/model/Interaction.ts"
import * as Vector from "../../services/model/Vector.ts"
import { type ProductEmbedding, ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { EventVectors } from "../../services/update/EventVectors.ts"

/** A catalogue for trials. */
export const sampleCatalogue = fileURLToPath(new URL("../../../samples/catalogue.jsonl", import.meta.url))

/** A line of a catalogue. */
export const ProductLine = Schema.parseJson(
  Schema.Struct({
    product_id: ProductId,
    product_name: Schema.String,
    category: Schema.String,
    text: Schema.optional(Schema.NonEmptyTrimmedString),
    vector: Schema.optional(Schema.Array(Schema.Number)),
  }),
)
export const decodeLine = Schema.decodeUnknownEither(ProductLine, { errors: "all" })

export interface BadLine {
  readonly line: number
  readonly reason: string
}

export interface ImportReport {
  readonly imported: number
  readonly created: number
  readonly bad: ReadonlyArray<BadLine>
}

/** With `strict`, the first bad line ends the import. */
export class ImportStopped extends Schema.TaggedError<ImportStopped>()("ImportStopped", {
  line: Schema.Number,
  reason: Schema.String,
}) {
  override get message() {
    return `line ${this.line}: ${this.reason}`
  }
}

const linesAtOnce = 256

/**
 * Stores a product's own vector, or embeds its text, or else its name and category. `progress` receives the number of
 * lines read.
 */
export const importProducts = Effect.fn("importProducts")(function* (
  path: string,
  options: { readonly strict: boolean; readonly progress: (lines: number) => Effect.Effect<void> },
) {
  const files = yield* FileSystem.FileSystem
  const products = yield* ProductEmbeddings
  const vectors = yield* EventVectors
  const { dimensions } = yield* EmbeddingConfig
  const bad: Array<BadLine> = []
  let imported = 0
  let created = 0
  let read = 0

  const importLines = Effect.fnUntraced(function* (lines: ReadonlyArray<readonly [string, number]>) {
    const ready: Array<ProductEmbedding> = []
    const toEmbed: Array<{
      readonly line: number
      readonly product: Omit<ProductEmbedding, "embedding">
      readonly source: string
    }> = []
    const reject = (line: number, reason: string) =>
      options.strict
        ? Effect.fail(new ImportStopped({ line, reason }))
        : Effect.sync(() => void bad.push({ line, reason }))
    for (const [text, line] of lines) {
      if (text.trim() === "") continue
      const decoded = decodeLine(text)
      if (Either.isLeft(decoded)) {
        yield* reject(line, describeIssues(decoded.left))
        continue
      }
      const { category, product_id, product_name, vector } = decoded.right
      const product = {
        product_id,
        product_name,
        category,
        space: vectors.space,
        text: decoded.right.text ?? null,
      }
      if (vector === undefined)
        toEmbed.push({ line, product, source: product.text ?? `${product_name}, ${category}` })
      else {
        const problem = Vector.problem(vector, dimensions)
        if (problem !== undefined) yield* reject(line, `vector: ${problem}`)
        else ready.push({ ...product, embedding: Float32Array.from(vector) })
      }
    }
    const embedded = yield* vectors.ofTexts(toEmbed.map(({ source }) => source))
    for (const [index, { line, product }] of toEmbed.entries()) {
      const vector = embedded[index]!
      if (Either.isLeft(vector)) yield* reject(line, `text: ${vector.left.message}`)
      else ready.push({ ...product, embedding: vector.right })
    }
    if (ready.length > 0) {
      const isNew = yield* products.upsert(ready)
      imported += ready.length
      created += isNew.filter(Boolean).length
    }
    read += lines.length
    yield* options.progress(read)
  })

  yield* files.stream(path).pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.zipWithIndex,
    Stream.map(([text, index]) => [text, index + 1] as const),
    Stream.grouped(linesAtOnce),
    Stream.runForEach((lines) => importLines(Chunk.toReadonlyArray(lines))),
  )
  const report: ImportReport = { imported, created, bad }
  return report
})
