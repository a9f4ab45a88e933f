/** `products import FILE`: JSON Lines or CSV → products. Reports bad lines and stores the others. */
import { fileURLToPath } from "node:url"
import { Array as Arr, Chunk, Clock, Duration, Effect, Either, Schema, Stream } from "effect"
import * as RecordFile from "../../layers/files/RecordFile.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as ProductFile from "../../services/history/ProductFile.ts"
import { type Form, formOf } from "../../services/history/RecordSplitter.ts"
import type { ProductId } from "../../services/model/Interaction.ts"
import * as Vector from "../../services/model/Vector.ts"
import { harmlessText, type PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import {
  type ProductInput,
  textOf,
  type Written,
  writeProducts,
} from "../../services/recommend/ProductWriter.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { EventVectors } from "../../services/update/EventVectors.ts"

/** A catalogue for trials. */
export const sampleCatalogue = fileURLToPath(new URL("../../../samples/catalogue.jsonl", import.meta.url))

interface CatalogueLine {
  readonly line: number
  /** Why the line has no product, or its product. */
  readonly product: Either.Either<ProductFile.Line, string>
}

export const productLines = Effect.fnUntraced(function* (path: string, form: Form = formOf(path)) {
  const start = yield* RecordFile.beginningOfRecords(path, form, {
    headerProblem: ProductFile.headerProblem,
    help: "user-embeddings products import --help explains the format and the options",
  })
  const decode = ProductFile.decoder(form, start.columns)
  return RecordFile.records(path, form, start, linesAtOnce).pipe(
    Stream.mapConcat((records) => records),
    Stream.map(
      ({ line, problem, text }): CatalogueLine => ({
        line,
        product: problem === undefined ? decode(text) : Either.left(problem),
      }),
    ),
  )
}, Stream.unwrap)

export interface BadLine {
  readonly line: number
  readonly reason: string
}

export interface ImportReport {
  readonly imported: number
  readonly created: number
  /** Products that the file lacks, with `replace`. */
  readonly made_unavailable?: number
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
      if (Either.isLeft(result) && !RetryPolicies.isFinal(result.left)) failed.set(text, result.left)
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

/** Lines that are not imported. */
class BadLines {
  readonly first: Array<BadLine> = []
  others = 0

  constructor(private readonly strict: boolean) {}

  add(bad: BadLine): Effect.Effect<void, ImportStopped> {
    if (this.strict) return new ImportStopped(bad)
    if (this.first.length < mostListed) this.first.push(bad)
    else this.others += 1
    return Effect.void
  }
}

/**
 * Makes the products unavailable that the file lacks. Succeeds with their number. What others wrote after the import `began`
 * (Unix ms) is newer than the file.
 */
const retire = Effect.fnUntraced(function* (listed: ReadonlySet<ProductId>, began: number, dryRun: boolean) {
  const products = yield* ProductEmbeddings
  const { space } = yield* EventVectors
  let retired = 0
  yield* products.stamps(space).pipe(
    Stream.filter(({ product_id, updated_at }) => updated_at <= began && !listed.has(product_id)),
    Stream.grouped(linesAtOnce),
    Stream.runForEach((page) =>
      Effect.gen(function* () {
        const known = yield* products.describe(Array.from(page, ({ product_id }) => product_id))
        const lacking = [...known.values()].filter(({ available }) => available)
        retired += lacking.length
        if (!dryRun)
          yield* products.upsert(lacking.map(({ product_id }) => ({ product_id, available: false })))
      }),
    ),
  )
  return retired
})

/** What is written of a line: its own vector, or the text to embed, or else its name and category. */
const toInput = (line: ProductFile.Line, replace: boolean, dimensions: number) => {
  const problem = line.vector && Vector.problem(line.vector, dimensions)
  if (problem !== undefined) return Either.left(`vector: ${problem}`)
  const text = line.vector === undefined ? textOf(line) : undefined
  const input: ProductInput = { ...line, text, available: line.available ?? (replace || undefined) }
  return Either.right(input)
}

/** What `writeProducts` would answer if no text were refused. */
const foresee = Effect.fnUntraced(function* (
  inputs: ReadonlyArray<ProductInput>,
  listed: ReadonlySet<ProductId>,
) {
  const products = yield* ProductEmbeddings
  const existing = new Set(listed)
  for (const { deleted, product_id } of yield* products.find(inputs.map(({ product_id }) => product_id)))
    if (!deleted) existing.add(product_id)
  return inputs.map(({ product_id }): Written => {
    const outcome = existing.has(product_id) ? "changed" : "created"
    existing.add(product_id)
    return Either.right(outcome)
  })
})

/** Stores the products of a file. `progress` receives the last line read. */
export const importProducts = Effect.fn("importProducts")(function* (
  path: string,
  options: {
    readonly strict: boolean
    readonly form?: Form
    /** What the file lists is available, unless it says otherwise. What it lacks is not available any more. */
    readonly replace?: boolean
    /** Counts, but writes and embeds nothing. */
    readonly dryRun?: boolean
    readonly progress: (lines: number) => Effect.Effect<void>
  },
) {
  const { dimensions } = yield* EmbeddingConfig
  const { dryRun = false, replace = false } = options
  const began = yield* Clock.currentTimeMillis
  const bad = new BadLines(options.strict)
  const listed = new Set<ProductId>()
  let imported = 0
  let created = 0

  const importLines = Effect.fnUntraced(function* (lines: ReadonlyArray<CatalogueLine>) {
    const good: Array<{ readonly line: number; readonly input: ProductInput }> = []
    for (const { line, product } of lines) {
      const input = Either.flatMap(product, (product) => toInput(product, replace, dimensions))
      if (Either.isLeft(input)) yield* bad.add({ line, reason: input.left })
      else good.push({ line, input: input.right })
    }
    const inputs = good.map(({ input }) => input)
    const results = yield* dryRun ? foresee(inputs, listed) : writeProducts(inputs, embedTexts)
    for (const [{ input, line }, result] of Arr.zip(good, results)) {
      if (Either.isLeft(result)) {
        const { left } = result
        const reason = "field" in left ? `${left.field}: ${left.detail}` : `text: ${left.message}`
        yield* bad.add({ line, reason })
        continue
      }
      imported += 1
      if (result.right === "created") created += 1
      listed.add(input.product_id)
    }
    yield* options.progress(lines.at(-1)!.line)
  })

  yield* productLines(path, options.form).pipe(
    Stream.grouped(linesAtOnce),
    Stream.runForEach((lines) => importLines(Chunk.toReadonlyArray(lines))),
  )
  // A rejected line may be about a product that the file has.
  const isWhole = bad.first.length === 0 && listed.size > 0
  const report: ImportReport = {
    imported,
    created,
    ...(replace ? { made_unavailable: isWhole ? yield* retire(listed, began, dryRun) : 0 } : {}),
    bad: bad.first,
    ...(bad.others > 0 ? { bad_not_listed: bad.others } : {}),
  }
  return report
})
