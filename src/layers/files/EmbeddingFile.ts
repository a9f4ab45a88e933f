/**
 * Writes user embeddings page by page to files for other programs: JSON Lines, NumPy and Parquet. A file gets its final
 * name only when it is complete.
 */
import { dirname } from "node:path"
import { FileSystem } from "@effect/platform"
import type { PlatformError } from "@effect/platform/Error"
import { Effect, Option, Schema } from "effect"
import type { SchemaElement } from "hyparquet"
import { fileWriter, ParquetWriter } from "hyparquet-writer"
import { embeddingJson } from "../../services/api/EmbeddingJson.ts"
import type { UserEmbedding } from "../../services/model/UserEmbedding.ts"
import * as Vector from "../../services/model/Vector.ts"

export interface Exported {
  readonly embedding: UserEmbedding
  readonly version: number
  /** The vector is the user's taste. */
  readonly read?: "taste"
}

export class ExportFailed extends Schema.TaggedError<ExportFailed>()("ExportFailed", {
  message: Schema.String,
  cause: Schema.optional(Schema.Defect),
}) {}

type Failure = ExportFailed | PlatformError

/** One or more files that are being written. `finish` follows the last page. */
export interface EmbeddingFile {
  readonly write: (page: ReadonlyArray<Exported>) => Effect.Effect<void, Failure>
  /** Completes the files, renames them, and succeeds with their names. */
  readonly finish: Effect.Effect<ReadonlyArray<string>, Failure>
}

const partial = (path: string) => `${path}.partial`

/** Creates the file under the name of an unfinished file. It is removed with the scope, unless `rename` ran before. */
export const create = Effect.fnUntraced(function* (path: string) {
  const files = yield* FileSystem.FileSystem
  const cannot = (why: string) => new ExportFailed({ message: `cannot write ${path}: ${why}` })
  if (!(yield* files.exists(dirname(path))))
    return yield* cannot(`the folder ${dirname(path)} does not exist`)
  const target = yield* Effect.option(files.stat(path))
  if (Option.isSome(target) && target.value.type === "Directory") return yield* cannot("it is a folder")
  const unfinished = partial(path)
  const file = yield* Effect.mapError(files.open(unfinished, { flag: "w" }), (error) =>
    cannot("reason" in error && error.reason === "PermissionDenied" ? "permission denied" : error.message),
  )
  yield* Effect.addFinalizer(() => Effect.ignore(files.remove(unfinished, { force: true })))
  return { file, unfinished, rename: files.rename(unfinished, path) }
})

/** Nine significant digits identify every float32. */
const shortDecimal = (value: number): number => Number(value.toPrecision(9))

/** One user as a line of JSON: the document of the API with its vector. */
export const toLine = ({ embedding, version, ...read }: Exported): string =>
  JSON.stringify({
    ...embeddingJson(embedding, version),
    ...read,
    embedding: Array.from(embedding.embedding, shortDecimal),
  })

// ---------------------------------------------------------------------------------------------------------
// NumPy format 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

const npyHeaderBytes = 128

/** The header of a row-major matrix of little-endian float32. Its length is fixed, so that it can be rewritten at the end. */
export const npyHeader = (rows: number, columns: number): Uint8Array => {
  const description = `{'descr': '<f4', 'fortran_order': False, 'shape': (${rows}, ${columns}), }`
  const header = Buffer.alloc(npyHeaderBytes, " ")
  header.write("\x93NUMPY\x01\x00", 0, "latin1")
  header.writeUInt16LE(npyHeaderBytes - 10, 8)
  header.write(description, 10, "latin1")
  header.write("\n", npyHeaderBytes - 1, "latin1")
  return header
}

/** The file with the user id of each row: `users.npy` → `users.ids.txt`. */
export const idsFile = (path: string): string => `${path.replace(/\.npy$/, "")}.ids.txt`

/** A matrix of vectors, and a file with the user ids of its rows. */
export const npy = Effect.fnUntraced(function* (path: string, dimensions: number) {
  const files = yield* FileSystem.FileSystem
  const ids = idsFile(path)
  const { file: vectors, rename, unfinished } = yield* create(path)
  const { file: names, rename: renameIds } = yield* create(ids)
  yield* vectors.writeAll(npyHeader(0, dimensions))
  let rows = 0
  return {
    write: Effect.fnUntraced(function* (page) {
      yield* vectors.writeAll(Buffer.concat(page.map(({ embedding }) => Vector.toBytes(embedding.embedding))))
      yield* names.writeAll(Buffer.from(page.map(({ embedding }) => `${embedding.user_id}\n`).join("")))
      rows += page.length
    }),
    finish: Effect.gen(function* () {
      // Reopened, because Bun 1.4.5 ignores a seek: `fs.write` without offset and length appends.
      const reopened = yield* files.open(unfinished, { flag: "r+" })
      yield* reopened.writeAll(npyHeader(rows, dimensions))
      yield* rename
      yield* renameIds
      return [path, ids]
    }).pipe(Effect.scoped),
  } satisfies EmbeddingFile
})

// ---------------------------------------------------------------------------------------------------------
// Parquet

const required = { repetition_type: "REQUIRED" } as const
const text = { ...required, type: "BYTE_ARRAY", converted_type: "UTF8" } as const
const timestamp = { ...required, type: "INT64", converted_type: "TIMESTAMP_MILLIS" } as const
const integer = { ...required, type: "INT32" } as const
const double = { ...required, type: "DOUBLE" } as const

const columns: Record<string, readonly [Omit<SchemaElement, "name">, (row: Exported) => unknown]> = {
  user_id: [text, ({ embedding }) => embedding.user_id],
  event_count: [integer, ({ embedding }) => embedding.event_count],
  last_event_type: [text, ({ embedding }) => embedding.last_event_type],
  mass: [double, ({ embedding }) => embedding.mass],
  total_weight: [double, ({ embedding }) => embedding.total_weight],
  space: [text, ({ embedding }) => embedding.space],
  history: [text, ({ embedding }) => embedding.history],
  last_updated: [timestamp, ({ embedding }) => new Date(embedding.last_updated)],
  updated_at: [timestamp, ({ embedding }) => new Date(embedding.updated_at)],
  version: [integer, ({ version }) => version],
  embedding: [
    { ...required, converted_type: "LIST", num_children: 1 },
    ({ embedding }) => Array.from(embedding.embedding),
  ],
}

const schema: Array<SchemaElement> = [
  { name: "user_embeddings", num_children: Object.keys(columns).length },
  ...Object.entries(columns).map(([name, [element]]) => ({ name, ...element })),
  { name: "list", repetition_type: "REPEATED", num_children: 1 },
  { name: "element", type: "FLOAT", ...required },
]

export const parquet = Effect.fnUntraced(function* (path: string) {
  const { rename, unfinished } = yield* create(path)
  const attempt = <A>(run: () => A) =>
    Effect.try({
      try: run,
      catch: (cause) => new ExportFailed({ message: `cannot write ${path}: ${cause}`, cause }),
    })
  const writer = yield* attempt(
    () => new ParquetWriter({ writer: fileWriter(unfinished), schema, createdBy: "user-embeddings" }),
  )
  return {
    write: (page) =>
      attempt(() => {
        const columnData = Object.entries(columns).map(([name, [, valueOf]]) => ({
          name,
          data: page.map(valueOf),
        }))
        void writer.write({ columnData, rowGroupSize: page.length })
      }),
    finish: attempt(() => void writer.finish()).pipe(Effect.zipRight(rename), Effect.as([path])),
  } satisfies EmbeddingFile
})
