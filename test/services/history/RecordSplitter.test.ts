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
})
