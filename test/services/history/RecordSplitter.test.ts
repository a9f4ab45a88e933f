/** Splitting files into records: at any byte, with any line end, with broken quotes and in other encodings. */
import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { parseCells } from "../../../src/services/history/InteractionFile.ts"
import {
  type Form,
  maxRecordBytes,
  type RawRecord,
  Splitter,
  type Start,
} from "../../../src/services/history/RecordSplitter.ts"

const begin = { offset: 0, line: 1 }

/** Splits the text, fed in chunks of these sizes. */
const splitIn = (text: string, sizes: ReadonlyArray<number>, form: Form, start: Start = begin) => {
  const split = new Splitter(form, start)
  const bytes = Buffer.from(text)
  const records: Array<RawRecord> = []
  let at = 0
  for (const size of sizes) {
    records.push(...split.push(bytes.subarray(at, at + size)))
    at += size
  }
  records.push(...split.push(bytes.subarray(at)), ...split.end())
  return records
}

const jsonl = { format: "jsonl", delimiter: "," } as const
const csv = { format: "csv", delimiter: "," } as const
const quoteCell = (cell: string) => `"${cell.replaceAll('"', '""')}"`

describe("splitting", () => {
  const cells = fc.array(fc.string({ unit: fc.constantFrom("a", "é", "😀", ",", '"', "\n", "\r", " ") }), {
    minLength: 1,
    maxLength: 4,
  })

  test("CSV records and their cells are exact, wherever the chunks are cut", () => {
    fc.assert(
      fc.property(
        fc.array(cells, { maxLength: 6 }),
        fc.array(fc.nat(9), { maxLength: 40 }),
        (rows, sizes) => {
          const text = rows.map((row) => `${row.map(quoteCell).join(",")}\n`).join("")
          const records = splitIn(text, sizes, csv)
          expect(records.map((record) => [...parseCells(record.text, ",")])).toEqual(rows)
          expect(records.at(-1)?.end ?? 0).toBe(Buffer.byteLength(text))
        },
      ),
    )
  })

  test("resuming after any record gives the remaining records, with the same line numbers", () => {
    fc.assert(
      fc.property(fc.array(cells, { minLength: 1, maxLength: 6 }), (rows) => {
        const text = rows.map((row) => `${row.map(quoteCell).join(",")}\r\n`).join("\n")
        const all = splitIn(text, [], csv)
        for (const [index, { end, nextLine }] of all.entries()) {
          const rest = Buffer.from(text).subarray(end).toString()
          expect(splitIn(rest, [], csv, { offset: end, line: nextLine }).map(({ text }) => text)).toEqual(
            all.slice(index + 1).map(({ text }) => text),
          )
        }
      }),
    )
  })

  test("a quote in the middle of a cell is text", () => {
    const records = splitIn('a,5" pipe\nb,6""\nc,"x"" ""y"\n', [], csv)
    expect(records.map(({ text }) => parseCells(text, ","))).toEqual([
      ["a", '5" pipe'],
      ["b", '6""'],
      ["c", 'x" "y'],
    ])
  })

  test("blank lines are counted as lines but are not records", () => {
    expect(splitIn('\n{"a":1}\r\n\n\n{"b":2}', [3, 4], jsonl).map(({ line, text }) => [line, text])).toEqual([
      [2, '{"a":1}'],
      [5, '{"b":2}'],
    ])
  })

  test("an unclosed quote spoils its line, not the file", () => {
    const good = Array.from({ length: 200_000 }, (_, index) => `u-${index},p\n`)
    const text = `a,b\n"open,1\n${good.join("")}`
    const chunks = Array.from({ length: 40 }, () => 64 * 1024)
    const records = splitIn(text, chunks, csv)
    expect(records.slice(0, 3).map(({ line, problem }) => [line, problem?.replace(/\d+/, "N")])).toEqual([
      [1, undefined],
      [2, "is longer than N bytes; a quote may not be closed"],
      [3, undefined],
    ])
    expect(records.length).toBe(200_002)
    expect(records.at(-1)).toMatchObject({ text: "u-199999,p", line: 200_002, end: text.length })
  })

  test("an endless line is one bad record", () => {
    const text = `{"a":1}\n${"x".repeat(3_000_000)}\n{"b":2}\n`
    const records = splitIn(text, [500_000, 500_000, 500_000, 500_000], jsonl)
    expect(records.map(({ line, problem }) => [line, problem])).toEqual([
      [1, undefined],
      [2, `is longer than ${maxRecordBytes} bytes`],
      [3, undefined],
    ])
    expect(records.at(-1)?.end).toBe(text.length)
  })

  const plainCells = fc.array(fc.string({ unit: fc.constantFrom("a", "é", "😀", " ", "5"), minLength: 1 }), {
    minLength: 2,
    maxLength: 2,
  })
  const sizes = fc.array(fc.nat(9), { maxLength: 40 })
  const texts = (records: ReadonlyArray<RawRecord>) => records.map(({ line, text }) => [line, text])

  test("a record that has too many cells because of an open quote is read by lines", () => {
    const start = { ...begin, columns: ["a", "b"] }
    expect(texts(splitIn('"open,1\nx,5",y,z\nc,d\n', [], csv, start))).toEqual([
      [1, '"open,1'],
      [2, 'x,5",y,z'],
      [3, "c,d"],
    ])
  })

  test("LF, CRLF and CR end lines, wherever the chunks are cut", () => {
    fc.assert(
      fc.property(fc.array(plainCells, { minLength: 1, maxLength: 6 }), sizes, (rows, sizes) => {
        const lines = rows.map((row) => `x${row.join(",")}`)
        const expected = lines.map((text, index) => [index + 1, text])
        for (const end of ["\n", "\r\n", "\r"])
          expect(texts(splitIn(lines.map((line) => line + end).join(""), sizes, csv))).toEqual(expected)
      }),
    )
  })

  test("a quote that is not closed spoils its line only, wherever it is", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(plainCells, fc.boolean()), { minLength: 1, maxLength: 8 }),
        fc.nat(8),
        fc.constantFrom('"open,1', 'a,"open'),
        sizes,
        (rows, at, bad, sizes) => {
          // A quoted cell makes the record seem to end in a later line.
          const lines = rows.map(([row, isQuoted]) =>
            row.map((cell) => (isQuoted ? `"x${cell}"` : `x${cell}`)).join(","),
          )
          const where = Math.min(at, lines.length)
          lines.splice(where, 0, bad)
          const text = lines.map((line) => `${line}\n`).join("")
          const records = splitIn(text, sizes, csv, { ...begin, columns: ["a", "b"] })
          expect(texts(records)).toEqual(lines.map((line, index) => [index + 1, line]))
          expect(records.flatMap(({ line, problem }) => (problem === undefined ? [] : [line]))).toEqual([
            where + 1,
          ])
        },
      ),
    )
  })
})

test("a byte-order mark is skipped", () => {
  for (const form of [jsonl, csv])
    expect(splitIn('\uFEFF{"a":1}\n', [1, 1, 2], form)).toMatchObject([{ text: '{"a":1}', line: 1, end: 11 }])
})

test("a record at the end without a line end is marked", () => {
  expect(splitIn('a,b\n"c\nd",e', [], csv)).toMatchObject([{ line: 1 }, { line: 2, unterminated: true }])
  expect(splitIn("a,b\n", [], csv)[0]).not.toHaveProperty("unterminated")
})

describe("encodings", () => {
  const decode = (bytes: ReadonlyArray<number>, encoding?: string) => {
    const splitter = new Splitter({ ...csv, ...(encoding === undefined ? {} : { encoding }) }, begin)
    return [...splitter.push(Uint8Array.from(bytes)), ...splitter.end()].map(({ line, problem, text }) => [
      line,
      problem ?? text,
    ])
  }
  const good = [0x61, 0x0a]

  test("bytes that are not UTF-8 are a problem of their line only", () => {
    expect(decode([...good, 0x6d, 0xfc, 0x6c, 0x0a, ...good])).toEqual([
      [1, "a"],
      [2, "is not UTF-8 (--encoding names another one)"],
      [3, "a"],
    ])
  })

  test("with its name another encoding is read, and what it does not have is a problem", () => {
    expect(decode([0x6d, 0xfc, 0x80, 0x0a, 0x81, 0x0a], "windows-1252")).toEqual([
      [1, "mü€"],
      [2, "is not windows-1252"],
    ])
    expect(decode([0x83, 0x65, 0x83, 0x93, 0x0a, 0x83, 0x0a], "shift_jis")).toEqual([
      [1, "テン"],
      [2, "is not shift_jis"],
    ])
  })
})
