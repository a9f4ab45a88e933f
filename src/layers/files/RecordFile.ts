/** Reads files of records, plain or gzip. Refuses other kinds of files at once, with the cause. */
import { createReadStream } from "node:fs"
import { pipeline } from "node:stream"
import { createGunzip } from "node:zlib"
import { FileSystem } from "@effect/platform"
import type { PlatformError } from "@effect/platform/Error"
import { Array as Arr, Effect, Schema, Stream } from "effect"
import { header } from "../../services/history/InteractionFile.ts"
import { type Form, type RawRecord, Splitter, type Start } from "../../services/history/RecordSplitter.ts"

class FileRefused extends Schema.TaggedError<FileRefused>()("FileRefused", {
  message: Schema.String,
  remedy: Schema.String,
}) {}

const bytesAtOnce = 1024 * 1024

/** Kinds of files by their first bytes, and what makes a readable file of them. */
const kinds: ReadonlyArray<readonly [start: string, is: string, remedy: string]> = [
  ["\xff\xfe", "is UTF-16", "iconv -f UTF-16 -t UTF-8 FILE converts it"],
  ["\xfe\xff", "is UTF-16", "iconv -f UTF-16 -t UTF-8 FILE converts it"],
  [
    "PK\x03\x04",
    "is an Excel workbook or a ZIP archive",
    "save the sheet as CSV UTF-8, or unpack the archive",
  ],
  ["PAR1", "is a Parquet file", "export it as CSV or JSON Lines"],
  ["\x28\xb5\x2f\xfd", "is compressed with Zstandard", "zstd -d FILE unpacks it"],
  ["\xfd7zXZ\0", "is compressed with xz", "xz -d FILE unpacks it"],
  ["BZh91AY", "is compressed with bzip2", "bzip2 -d FILE unpacks it"],
]

const isGzip = (beginning: Buffer): boolean => beginning[0] === 0x1f && beginning[1] === 0x8b

const kindOf = (beginning: Buffer): readonly [is: string, remedy: string] | undefined => {
  const text = beginning.toString("latin1")
  for (const [start, is, remedy] of kinds) if (text.startsWith(start)) return [is, remedy]
  return text.includes("\0") ? ["is no text", "give a CSV or JSON Lines file in UTF-8"] : undefined
}

const jsonProblem = (beginning: Buffer): readonly [is: string, remedy: string] | undefined => {
  const text = beginning.toString("latin1").replace(/^\xef\xbb\xbf/, "")
  if (/^\s*\[/.test(text))
    return ["is a JSON array, not JSON Lines", "jq -c '.[]' FILE writes one record a line"]
  if (/^\s*\{\s*[\r\n]/.test(text))
    return ["has JSON over several lines, not JSON Lines", "jq -c . FILE writes one record a line"]
  if (/^\s*[^\r\n]*[,;\t]/.test(text) && !/(^|[\r\n])\s*\{/.test(text))
    return ["seems to be CSV, not JSON Lines: no line begins with {", "--format csv reads it"]
  return undefined
}

const unpacked = (file: string, offset: number): Stream.Stream<Uint8Array, FileRefused> => {
  const cut = () =>
    new FileRefused({ message: `${file} is not a complete gzip file`, remedy: "copy or pack the file again" })
  let skipped = 0
  return Stream.suspend(() => {
    const gunzip = createGunzip({ chunkSize: bytesAtOnce })
    pipeline(createReadStream(file, { highWaterMark: bytesAtOnce }), gunzip, () => undefined)
    return Stream.fromAsyncIterable<Uint8Array, FileRefused>(gunzip, cut)
  }).pipe(
    Stream.map((chunk) => {
      const from = Math.min(chunk.length, offset - skipped)
      skipped += from
      return chunk.subarray(from)
    }),
  )
}

const firstBytes = Effect.fnUntraced(function* (file: string, most: number) {
  const files = yield* FileSystem.FileSystem
  return Buffer.concat([...(yield* Stream.runCollect(files.stream(file, { bytesToRead: most })))])
})

/** The bytes of the file, unpacked, from `offset` on. */
const bytes = (
  file: string,
  offset: number,
): Stream.Stream<Uint8Array, FileRefused | PlatformError, FileSystem.FileSystem> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const files = yield* FileSystem.FileSystem
      const plain: Stream.Stream<Uint8Array, FileRefused | PlatformError> = files.stream(file, {
        offset,
        chunkSize: bytesAtOnce,
        bufferSize: 2,
      })
      return isGzip(yield* firstBytes(file, 2)) ? unpacked(file, offset) : plain
    }),
  )

/** The first bytes of the file, unpacked. */
export const beginningOf = Effect.fnUntraced(function* (file: string, most: number) {
  let read = 0
  const chunks = yield* bytes(file, 0).pipe(
    Stream.takeUntil((chunk) => {
      read += chunk.length
      return read >= most
    }),
    Stream.runCollect,
  )
  return Buffer.concat([...chunks]).subarray(0, most)
})

/** Bytes of the file; `undefined` if it is packed, because its records are counted in unpacked bytes. */
export const sizeOf = Effect.fnUntraced(function* (file: string) {
  const files = yield* FileSystem.FileSystem
  return isGzip(yield* firstBytes(file, 2)) ? undefined : Number((yield* files.stat(file)).size)
})

/** Bytes at the beginning of a file that say what kind of file it is. */
const looksAt = 64 * 1024

/** Fails if the file is of another kind. */
export const requireReadable = Effect.fnUntraced(function* (file: string, { format }: Form) {
  const beginning = yield* beginningOf(file, looksAt)
  const problem = kindOf(beginning) ?? (format === "jsonl" ? jsonProblem(beginning) : undefined)
  if (problem !== undefined)
    return yield* new FileRefused({ message: `${file} ${problem[0]}`, remedy: problem[1] })
})

/** Where the records of a file begin, and the columns of a CSV file. Fails if the file can't be read in this form. */
export const beginningOfRecords = Effect.fnUntraced(function* (
  file: string,
  form: Form,
  {
    headerProblem,
    help,
  }: {
    readonly headerProblem: (columns: ReadonlyArray<string>) => string | undefined
    readonly help: string
  },
) {
  yield* requireReadable(file, form)
  const start = { columns: [] as ReadonlyArray<string>, offset: 0, line: 1 }
  if (form.format === "jsonl") return start
  const splitter = new Splitter(form, start)
  const [first] = [...splitter.push(yield* beginningOf(file, looksAt)), ...splitter.end()]
  if (first === undefined) return yield* new FileRefused({ message: `${file} has no header`, remedy: help })
  const columns = header(first.text, form.delimiter)
  const problem =
    first.problem === undefined ? headerProblem(columns) : `begins with a line that ${first.problem}`
  if (problem !== undefined) return yield* new FileRefused({ message: `${file} ${problem}`, remedy: help })
  return { columns, offset: first.end, line: first.nextLine }
})

/** The records from `start` on, in groups of at most `atOnce`. An unterminated record is a group of its own. */
export const records = (file: string, form: Form, start: Start, atOnce: number) => {
  const splitter = new Splitter(form, start)
  const inGroups = (all: ReadonlyArray<RawRecord>) => {
    const [terminated, last] = Arr.partition(all, ({ unterminated = false }) => unterminated)
    return Stream.fromIterable([...Arr.chunksOf(terminated, atOnce), ...Arr.chunksOf(last, 1)])
  }
  return bytes(file, start.offset).pipe(
    Stream.flatMap((chunk) => inGroups(splitter.push(chunk))),
    Stream.concat(Stream.suspend(() => inGroups(splitter.end()))),
  )
}
