/** Files of records: packed or not, and other kinds of files. */
import { afterAll, describe, expect } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { gzipSync } from "node:zlib"
import { BunContext } from "@effect/platform-bun"
import { Chunk, Effect, Stream } from "effect"
import * as RecordFile from "../../../src/layers/files/RecordFile.ts"
import { effectTest } from "../../support/effect.ts"

const folder = mkdtempSync(join(tmpdir(), "records-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
let files = 0
const write = (bytes: Uint8Array | string) => {
  const path = join(folder, String(files++))
  writeFileSync(path, bytes)
  return path
}
const csv = { format: "csv", delimiter: "," } as const
const jsonl = { format: "jsonl", delimiter: "," } as const

const read = (file: string, start = { offset: 0, line: 1 }, atOnce = 100) =>
  RecordFile.records(file, csv, start, atOnce).pipe(
    Stream.runCollect,
    Effect.map(Chunk.toReadonlyArray),
    Effect.provide(BunContext.layer),
  )

describe("gzip", () => {
  const text = `${Array.from({ length: 250 }, (_, n) => `u-${n},"p\n${n}"`).join("\n")}\nlast,1`
  const half = Math.floor(text.length / 2)
  // Two members, as `cat a.gz b.gz` writes them.
  const packed = Buffer.concat([gzipSync(text.slice(0, half)), gzipSync(text.slice(half))])

  effectTest("a packed file has the records of the file, from any of them on", () =>
    Effect.gen(function* () {
      const [plainFile, packedFile] = [write(text), write(packed)]
      const groups = yield* read(packedFile)
      expect(groups).toEqual(yield* read(plainFile))
      expect(groups.map((group) => group.length)).toEqual([100, 100, 50, 1])
      for (const { end: offset, nextLine: line } of groups.flat().filter((_, n) => n % 60 === 0))
        expect(yield* read(packedFile, { offset, line })).toEqual(yield* read(plainFile, { offset, line }))
    }),
  )

  effectTest("a packed file that is cut is named, after its records", () =>
    Effect.gen(function* () {
      const cut = write(packed.subarray(0, packed.length - 20))
      expect(yield* Effect.flip(read(cut))).toMatchObject({ message: `${cut} is not a complete gzip file` })
    }),
  )
})

const utf16 = Buffer.from("\uFEFFuser_id;was\n", "utf16le")
const kinds: ReadonlyArray<
  readonly [string, Uint8Array | string, typeof csv | typeof jsonl, string | undefined]
> = [
  ["UTF-16, little-endian", utf16, csv, "is UTF-16"],
  ["UTF-16, big-endian", Buffer.from(utf16).swap16(), csv, "is UTF-16"],
  ["UTF-16 without a mark", utf16.subarray(2), csv, "is no text"],
  ["an Excel workbook", "PK\x03\x04...", csv, "is an Excel workbook or a ZIP archive"],
  ["an Excel workbook, packed", gzipSync("PK\x03\x04..."), csv, "is an Excel workbook or a ZIP archive"],
  ["Parquet", "PAR1...", csv, "is a Parquet file"],
  ["Zstandard", Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 4]), jsonl, "is compressed with Zstandard"],
  ["a JSON array", '[{"user_id":1}]', jsonl, "is a JSON array"],
  ["a JSON array with a mark", '\uFEFF\n [\n{"user_id":1}]', jsonl, "is a JSON array"],
  ["JSON over several lines", '{\n  "user_id": 1\n}', jsonl, "has JSON over several lines"],
  ["CSV read as JSON Lines", "user_id,event_type\n1,view\n", jsonl, "seems to be CSV"],
  ["JSON Lines", '{"user_id":1}\n', jsonl, undefined],
  ["JSON Lines after a bad line", 'oops, sorry\n{"user_id":1}\n', jsonl, undefined],
  ["CSV", "[a],b\n", csv, undefined],
  ["an empty file", "", jsonl, undefined],
]
for (const [what, content, form, problem] of kinds)
  effectTest(`${what}: ${problem ?? "is read"}`, () =>
    Effect.gen(function* () {
      const file = write(content)
      const checked = Effect.either(RecordFile.requireReadable(file, form))
      const { _tag, ...rest } = yield* Effect.provide(checked, BunContext.layer)
      if (problem === undefined) expect(_tag).toBe("Right")
      else expect(rest).toMatchObject({ left: { message: expect.stringContaining(`${file} ${problem}`) } })
    }),
  )
