/** `products import FILE`: JSON Lines → product embeddings. Reports bad lines and stores the others. */
import { fileURLToPath } from "node:url"
import { Array as Arr, Chunk, Duration, Effect, Either, Schema, Stream } from "effect"
import * as RecordFile from "../../layers/files/RecordFile.ts"
import { productFields } from "../../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { describeIssues, ProductId } from "../../services/model/Interaction.ts"
import * as Vector from "../../services/model/Vector.ts"
import { harmlessText, type PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import { type ProductEmbedding, ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { EventVectors } from "../../services/update/EventVectors.ts"

/** A catalogue for trials. */
export const sampleCatalogue = fileURLToPath(new URL("../../../samples/catalogue.jsonl", import.meta.url))

const Product = Schema.Struct({ product_id: ProductId, ...productFields })
export type Product = typeof Product.Type
/** A line of a catalogue: a product as `PUT` takes it, but without vector and text it is embedded by its names. */
const ProductLine = Schema.parseJson(Product).pipe(
  Schema.filter(
    (product) =>
      product.vector !== undefined || textOf(product) !== "" || "give a vector, a text or a product_name",
  ),
)
const decodeLine = Schema.decodeUnknownEither(ProductLine, { errors: "all" })

/** The text to embed for a product without a vector. */
export const textOf = ({ category, product_name, text }: Omit<Product, "product_id">): string =>
  text ?? [product_name, category].filter((name) => (name ?? "").trim() !== "").join(", ")

interface CatalogueLine {
  readonly line: number
  /** Why the line has no product, or its product. */
  readonly product: Either.Either<Product, string>
}

export const productLines = (path: string, encoding?: string) =>
  Effect.gen(function* () {
    const form = { format: "jsonl", delimiter: ",", ...(encoding === undefined ? {} : { encoding }) } as const
    yield* RecordFile.requireReadable(path, form)
    return RecordFile.records(path, form, { offset: 0, line: 1 }, linesAtOnce).pipe(
      Stream.mapConcat((records) => records),
      Stream.map(
        ({ line, problem, text }): CatalogueLine => ({
          line,
          product:
            problem === undefined ? Either.mapLeft(decodeLine(text), describeIssues) : Either.left(problem),
        }),
      ),
    )
  }).pipe(Stream.unwrap)

export interface BadLine {
  readonly line: number
  readonly reason: string
}

export interface ImportReport {
  readonly imported: number
  readonly created: number
  /** The first ones. */
  readonly bad: ReadonlyArray<BadLine>
  readonly bad_not_listed?: number
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
const mostListed = 1_000
/** How often a text that fails is tried again although the service works. */
const mostRetries = 6

/** A product whose vector will be the embedding of `text`. */
interface ToEmbed {
  readonly line: number
  readonly product: Omit<ProductEmbedding, "embedding" | "text">
  readonly text: string
}

const toProduct = (
  line: number,
  given: Product,
  space: string,
  dimensions: number,
): Either.Either<ToEmbed | ProductEmbedding, BadLine> => {
  const { category = null, product_id, product_name = null, vector } = given
  const product = { product_id, product_name, category, space }
  if (vector === undefined) return Either.right({ line, product, text: textOf(given) })
  const problem = Vector.problem(vector, dimensions)
  return problem === undefined
    ? Either.right({ ...product, embedding: Float32Array.from(vector), text: null })
    : Either.left({ line, reason: `vector: ${problem}` })
}

/** Stored vectors by text, of products whose text is the same as before. They are not paid for again. */
const storedVectors = Effect.fnUntraced(function* (toEmbed: ReadonlyArray<ToEmbed>, space: string) {
  const products = yield* ProductEmbeddings
  const { dimensions } = yield* EmbeddingConfig
  const texts = yield* products.texts(
    toEmbed.map(({ product }) => product.product_id),
    space,
  )
  const unchanged = toEmbed.filter(({ product, text }) => texts.get(product.product_id) === text)
  const vectors = yield* products.load(
    unchanged.map(({ product }) => product.product_id),
    space,
  )
  return new Map(
    unchanged.flatMap(({ product, text }) => {
      const vector = vectors.get(product.product_id)
      return vector && Vector.problem(vector, dimensions) === undefined
        ? [[text, Either.right(vector)] as const]
        : []
    }),
  )
})

/** Fails if the service refuses all texts and does not say for how long, because no other line could succeed. */
const waitForEmbedder = Effect.fnUntraced(function* (
  errors: ReadonlyArray<PhraseEmbedderError>,
  tries: number,
) {
  const refusal = errors.find(
    (error) => RetryPolicies.classify(error)._tag === "Outage" && error.retryAfter === undefined,
  )
  if (refusal !== undefined) return yield* refusal
  const delay = errors.reduce(
    (longest, { retryAfter = 0 }) => Duration.max(longest, retryAfter),
    RetryPolicies.probeDelay(tries),
  )
  yield* Effect.logWarning("import.embed_failed").pipe(
    Effect.annotateLogs({
      texts: errors.length,
      retry_in_s: Math.round(Duration.toSeconds(delay)),
      ...Telemetry.described(errors[0]!),
    }),
  )
  yield* Effect.sleep(delay)
})

/**
 * Vectors of distinct texts. Waits and tries again while the service is busy or down. A text that keeps failing while
 * the service embeds a harmless text gets its error.
 */
const embedTexts = Effect.fnUntraced(function* (texts: ReadonlyArray<string>) {
  const { ofTexts } = yield* EventVectors
  const found = new Map<string, Either.Either<Float32Array, PhraseEmbedderError>>()
  let left = texts
  let retries = 0
  for (let tries = 0; left.length > 0; tries++) {
    const failed = new Map<string, PhraseEmbedderError>()
    for (const [text, result] of Arr.zip(left, yield* ofTexts(left))) {
      found.set(text, result)
      if (Either.isLeft(result) && RetryPolicies.classify(result.left)._tag !== "Unrecoverable")
        failed.set(text, result.left)
    }
    if (failed.size < left.length) retries = 0
    left = [...failed.keys()]
    if (left.length === 0 || retries === mostRetries) break
    yield* waitForEmbedder([...failed.values()], tries)
    const [harmless] = yield* ofTexts([harmlessText])
    if (harmless && Either.isRight(harmless)) retries += 1
  }
  return found
})

/**
 * Stores a product's own vector, or embeds its text, or else its name and category. `progress` receives the last
 * line read.
 */
export const importProducts = Effect.fn("importProducts")(function* (
  path: string,
  options: {
    readonly strict: boolean
    readonly encoding?: string
    readonly progress: (lines: number) => Effect.Effect<void>
  },
) {
  const products = yield* ProductEmbeddings
  const { space } = yield* EventVectors
  const { dimensions } = yield* EmbeddingConfig
  const bad: Array<BadLine> = []
  let imported = 0
  let created = 0
  let unlisted = 0

  const reject = (line: BadLine) =>
    options.strict
      ? Effect.fail(new ImportStopped(line))
      : Effect.sync(() => {
          if (bad.length < mostListed) bad.push(line)
          else unlisted += 1
        })

  const importLines = Effect.fnUntraced(function* (lines: ReadonlyArray<CatalogueLine>) {
    const ready: Array<ProductEmbedding> = []
    const toEmbed: Array<ToEmbed> = []
    for (const { line, product } of lines) {
      const decoded = Either.isLeft(product)
        ? Either.left({ line, reason: product.left })
        : toProduct(line, product.right, space, dimensions)
      if (Either.isLeft(decoded)) yield* reject(decoded.left)
      else if ("embedding" in decoded.right) ready.push(decoded.right)
      else toEmbed.push(decoded.right)
    }
    const stored = yield* storedVectors(toEmbed, space)
    const texts = new Set(toEmbed.flatMap(({ text }) => (stored.has(text) ? [] : [text])))
    const embedded = new Map([...stored, ...(yield* embedTexts([...texts]))])
    for (const { line, product, text } of toEmbed) {
      const vector = embedded.get(text)!
      if (Either.isLeft(vector)) yield* reject({ line, reason: `text: ${vector.left.message}` })
      else ready.push({ ...product, text, embedding: vector.right })
    }
    if (ready.length > 0) {
      const isNew = yield* products.upsert(ready)
      imported += ready.length
      created += isNew.filter(Boolean).length
    }
    yield* options.progress(lines.at(-1)!.line)
  })

  yield* productLines(path, options.encoding).pipe(
    Stream.grouped(linesAtOnce),
    Stream.runForEach((lines) => importLines(Chunk.toReadonlyArray(lines))),
  )
  const report: ImportReport = {
    imported,
    created,
    bad,
    ...(unlisted > 0 ? { bad_not_listed: unlisted } : {}),
  }
  return report
})
