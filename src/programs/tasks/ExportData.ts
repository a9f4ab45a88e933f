/** `export …`: writes embeddings or interactions to files for other programs, page by page. */
import type { PlatformError } from "@effect/platform/Error"
import { Chunk, Clock, Effect, Option, Stream } from "effect"
import * as EmbeddingFile from "../../layers/files/EmbeddingFile.ts"
import { type OutputClosed, write } from "../../layers/files/StandardOutput.ts"
import { embeddingJson } from "../../services/api/EmbeddingJson.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as InteractionFile from "../../services/history/InteractionFile.ts"
import * as ProductFile from "../../services/history/ProductFile.ts"
import type { Format } from "../../services/history/RecordSplitter.ts"
import type { UserId } from "../../services/model/Interaction.ts"
import { showDeadLetters } from "../../services/operate/DeadLetterAdmin.ts"
import { InteractionLog, type LogFilter } from "../../services/ports/InteractionLog.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { UserEmbeddings, type UserRecord } from "../../services/ports/UserEmbeddings.ts"
import { Catalogue } from "../../services/recommend/Catalogue.ts"
import { type Read, readTastes } from "../../services/recommend/EmbeddingReads.ts"
import { EventVectors } from "../../services/update/EventVectors.ts"

const pageSize = 500

interface Output {
  readonly write: (text: string) => Effect.Effect<void, OutputClosed | PlatformError>
  /** Answers the names of the files written. */
  readonly finish: Effect.Effect<ReadonlyArray<string>, PlatformError>
}

/** Writes lines to stdout, or to a file that gets its name when it is complete. */
const openLines = Effect.fnUntraced(function* (out: Option.Option<string>) {
  if (Option.isNone(out)) {
    const stdout: Output = { write, finish: Effect.succeed([]) }
    return stdout
  }
  const { file, rename } = yield* EmbeddingFile.create(out.value)
  const output: Output = {
    write: (text: string) => file.writeAll(Buffer.from(text)),
    finish: Effect.as(rename, [out.value]),
  }
  return output
})

/** Writes rows of the log in the order in which they were recorded. */
export const exportInteractions = Effect.fn("exportInteractions")(function* (options: {
  readonly format: Format
  readonly out: Option.Option<string>
  readonly filter: LogFilter
  readonly progress: (count: number) => Effect.Effect<void>
}) {
  const log = yield* InteractionLog
  const output = yield* openLines(options.out)
  if (options.format === "csv") yield* output.write(`${InteractionFile.csvHeader}\n`)
  let exported = 0
  yield* log.stream(options.filter).pipe(
    Stream.chunks,
    Stream.filter(Chunk.isNonEmpty),
    Stream.runForEach((page) => {
      exported += page.length
      const text = Chunk.toReadonlyArray(page)
        .map((row) => `${InteractionFile.encode(options.format, row)}\n`)
        .join("")
      return Effect.zipRight(output.write(text), options.progress(exported))
    }),
  )
  return { exported, files: yield* output.finish }
}, Effect.scoped)

/**
 * Writes all that is stored about a person, as one JSON document. Its interactions are in the format of
 * `import interactions`. They are written page by page, because a history may be long.
 */
export const exportUser = Effect.fn("exportUser")(function* (options: {
  readonly user: UserId
  readonly out: Option.Option<string>
  readonly progress: (count: number) => Effect.Effect<void>
}) {
  const { out, progress, user } = options
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const { ids, user_id } = yield* log.person(user)
  const record = (yield* users.load([user_id])).get(user_id)
  const embedding = record?.embedding && {
    ...embeddingJson(record.embedding, record.version),
    embedding: Array.from(record.embedding.embedding),
  }
  const checkpoints = yield* log.pruned.checkpoints(ids)
  const deadLetters = yield* Effect.forEach(ids, (id) => showDeadLetters({ user: id }))
  const output = yield* openLines(out)
  const head = JSON.stringify({
    user_id,
    aliases: ids.filter((id) => id !== user_id),
    exported_at: new Date(yield* Clock.currentTimeMillis).toISOString(),
    embedding: embedding ?? null,
    dead_letters: deadLetters.flat(),
    pruned: checkpoints.map(({ rows, sums }) => ({
      rows,
      sums: sums && { ...sums, embedding: Array.from(sums.embedding) },
    })),
    pruned_products: yield* log.pruned.products(ids),
    refunds: (yield* log.refundsOf([user])).map(({ order_id, products }) => ({ order_id, products })),
  })
  yield* output.write(`${head.slice(0, -1)},"interactions":[`)
  let exported = 0
  yield* log.stream({ user }).pipe(
    Stream.chunks,
    Stream.filter(Chunk.isNonEmpty),
    Stream.runForEach((page) => {
      const separator = exported === 0 ? "" : ","
      exported += page.length
      const rows = Chunk.toReadonlyArray(page).map((row) => InteractionFile.encode("jsonl", row))
      return Effect.zipRight(output.write(separator + rows.join(",")), progress(exported))
    }),
  )
  yield* output.write("]}\n")
  return {
    user_id,
    interactions: exported,
    embedding: embedding !== undefined,
    dead_letters: deadLetters.flat().length,
    files: yield* output.finish,
  }
}, Effect.scoped)

/** Writes the products of the configured space, which `products import` reads back. */
export const exportProducts = Effect.fn("exportProducts")(function* (options: {
  readonly format: Format
  readonly out: Option.Option<string>
  readonly progress: (count: number) => Effect.Effect<void>
}) {
  const products = yield* ProductEmbeddings
  const { space } = yield* PhraseEmbedder
  const stored = products.stream(space).pipe(Stream.filter(({ deleted }) => !deleted))
  const output = yield* openLines(options.out)
  const attributes = new Set<string>()
  if (options.format === "csv") {
    yield* Stream.runForEach(stored, (product) =>
      Effect.sync(() => {
        for (const name in product.attributes) attributes.add(name)
      }),
    )
    yield* output.write(`${ProductFile.csvHeader([...attributes])}\n`)
  }
  let exported = 0
  yield* stored.pipe(
    Stream.grouped(pageSize),
    Stream.runForEach((page) => {
      exported += page.length
      const text = Chunk.toReadonlyArray(page)
        .map((product) => `${ProductFile.encode(options.format, [...attributes], product)}\n`)
        .join("")
      return Effect.zipRight(output.write(text), options.progress(exported))
    }),
  )
  const other_space = yield* products.countInOtherSpaces(space)
  return { exported, other_space, space, files: yield* output.finish }
}, Effect.scoped)

export const embeddingFormats = ["jsonl", "npy", "parquet"] as const

/** Why a user has no embedding any more. It is not known since when aliases and users without events have none. */
const goneUser = (
  { applied, erased_at, links, user_id }: UserRecord,
  since: number,
): Readonly<Record<string, string | number>> | undefined => {
  if (links?.alias_of !== undefined) return { user_id, merged_into: links.alias_of }
  if (applied.length > 0) return { user_id, event_count: 0 }
  return erased_at < since ? undefined : { user_id, erased_at: new Date(erased_at).toISOString() }
}

/** Users as JSON Lines. With `since`, also users without an embedding, so that the reader can remove them too. */
const jsonLines = Effect.fnUntraced(function* (out: Option.Option<string>) {
  const output = yield* openLines(out)
  return {
    write: (page: ReadonlyArray<EmbeddingFile.Exported>) =>
      output.write(page.map((one) => `${EmbeddingFile.toLine(one)}\n`).join("")),
    finish: output.finish,
    gone: (user: unknown) => output.write(`${JSON.stringify(user)}\n`),
  }
})

/** The same users with their taste in place of the stored vector. Users without taste are left out. */
const withTastes = Effect.fnUntraced(function* (page: ReadonlyArray<EmbeddingFile.Exported>) {
  const sources = yield* Effect.all({ catalogue: Catalogue, config: EmbeddingConfig, vectors: EventVectors })
  const tastes = yield* readTastes(
    sources,
    page.map(({ embedding }) => embedding),
  )
  return page.flatMap(({ embedding, version }, index): ReadonlyArray<EmbeddingFile.Exported> => {
    const direction = tastes[index]?.taste?.direction
    return direction === undefined
      ? []
      : [{ embedding: { ...embedding, embedding: direction }, version, read: "taste" }]
  })
})

/**
 * Writes embeddings in the configured space, in the order of user ids; with `since` (Unix ms) only those written since.
 * `other_space` counts the users left out because their embedding is in another space, `without_taste` those whose taste
 * has no direction.
 */
export const exportEmbeddings = Effect.fn("exportEmbeddings")(function* (options: {
  readonly format: (typeof embeddingFormats)[number]
  readonly out: Option.Option<string>
  readonly since: number | undefined
  readonly read: Read
  readonly progress: (count: number) => Effect.Effect<void>
}) {
  const users = yield* UserEmbeddings
  const { space } = yield* PhraseEmbedder
  const { dimensions } = yield* EmbeddingConfig
  const { format, out, read, since = 0 } = options
  if (format !== "jsonl" && Option.isNone(out))
    return yield* new EmbeddingFile.ExportFailed({ message: `${format} needs a file: --out FILE` })
  const path = Option.getOrElse(out, () => "")
  const json = format === "jsonl" ? yield* jsonLines(out) : undefined
  const output =
    json ?? (yield* format === "npy" ? EmbeddingFile.npy(path, dimensions) : EmbeddingFile.parquet(path))
  let exported = 0
  let gone = 0
  let otherSpace = 0

  const pages = users.stream.pipe(
    Stream.mapEffect((record) =>
      Effect.gen(function* () {
        const { embedding, version } = record
        if (embedding === undefined) {
          const user = options.since === undefined ? undefined : goneUser(record, since)
          if (json !== undefined && user !== undefined) {
            yield* json.gone(user)
            gone += 1
          }
          return []
        }
        if (embedding.updated_at < since) return []
        if (embedding.space === space) return [{ embedding, version }]
        otherSpace += 1
        return []
      }),
    ),
    Stream.mapConcat((found) => found),
    Stream.grouped(pageSize),
  )
  let withoutTaste = 0
  yield* pages.pipe(
    Stream.runForEach((chunk) =>
      Effect.gen(function* () {
        const stored = Chunk.toReadonlyArray(chunk)
        const page = read === "taste" ? yield* withTastes(stored) : stored
        exported += page.length
        withoutTaste += stored.length - page.length
        yield* output.write(page)
        yield* options.progress(exported)
      }),
    ),
  )
  return {
    exported,
    gone,
    other_space: otherSpace,
    without_taste: withoutTaste,
    space,
    files: yield* output.finish,
  }
}, Effect.scoped)
