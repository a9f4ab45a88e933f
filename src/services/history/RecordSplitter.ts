/** Splits the bytes of a file into records: lines of JSON, or rows of CSV (RFC 4180). */
import { isUtf8 } from "node:buffer"

export type Format = "jsonl" | "csv"

export interface Form {
  readonly format: Format
  /** The character between the cells of a CSV file. */
  readonly delimiter: string
  /** Label of the Encoding Standard, such as `windows-1252`; default: UTF-8. */
  readonly encoding?: string
}

/** The form of a file by its name, also with `.gz`. */
export const formOf = (file: string): Form => {
  const ending = /\.([ct])sv(\.gz)?$/i.exec(file)?.[1]?.toLowerCase()
  return { format: ending === undefined ? "jsonl" : "csv", delimiter: ending === "t" ? "\t" : "," }
}

/** The text of a record and its place in the file. */
export interface RawRecord {
  /** Line on which it begins, from 1. */
  readonly line: number
  readonly text: string
  /** Byte offset of the end of the record, and the line that begins there. */
  readonly end: number
  readonly nextLine: number
  readonly problem?: string
  /** The file ends without a line end: more of this record may follow. */
  readonly unterminated?: true
}

/** Anything longer is not a record, but an unclosed quote or another kind of file. */
export const maxRecordBytes = 1024 * 1024

const newline = 0x0a
const carriageReturn = 0x0d
const quote = 0x22

/** Decodes the bytes of a record; `undefined` if they are not valid. */
const textDecoder = (encoding: string | undefined): ((bytes: Buffer) => string | undefined) => {
  if (encoding === undefined) return (bytes) => (isUtf8(bytes) ? bytes.toString("utf8") : undefined)
  const decoder = new TextDecoder(encoding as Bun.Encoding, { fatal: true })
  return (bytes) => {
    try {
      const text = decoder.decode(bytes)
      // The Encoding Standard gives bytes without a character to control characters that no text has.
      return /[\u0080-\u009f]/.test(text) ? undefined : text
    } catch {
      return undefined
    }
  }
}

/** Position of the first byte of the line end with which the bytes end, or their length. */
const withoutLineEnd = (bytes: Buffer): number => {
  let end = bytes.length
  if (bytes[end - 1] === newline) end -= 1
  if (bytes[end - 1] === carriageReturn) end -= 1
  return end
}

const byteOrderMark = Buffer.from([0xef, 0xbb, 0xbf])

/** Where to begin, and the header of a CSV file if it was read before. */
export interface Start {
  readonly offset: number
  readonly line: number
  readonly columns?: ReadonlyArray<string>
}

/**
 * Splits bytes into records and skips blank lines. Lines end with LF, CRLF or CR. In CSV a quote opens only at the
 * beginning of a cell, and lines within quotes belong to one record. If such a record has no closing quote, text after
 * its closing quote, or a wrong number of cells, then its first line is bad, and the next lines are read by themselves.
 */
export class Splitter {
  /** Bytes of the current record, of which the first `scanned` have been scanned. */
  private pending: Buffer = Buffer.alloc(0)
  private scanned = 0
  private quoted = false
  /** Position of the last closing quote. A quote right after it is an escaped quote. */
  private closed = -1
  private cells = 1
  /** Where the first line ends if the record has more lines. */
  private firstLineEnd = 0
  /** Set while the rest of a record that is too long is skipped. */
  private skipping = false
  private offset: number
  private line: number
  private nextLine: number
  private readonly isCsv: boolean
  private readonly delimiter: number
  private readonly width: number
  private readonly encoding: string
  private readonly decode: ReturnType<typeof textDecoder>

  constructor(form: Form, start: Start) {
    this.isCsv = form.format === "csv"
    this.delimiter = form.delimiter.charCodeAt(0)
    this.width = start.columns?.length ?? 0
    this.encoding = form.encoding ?? "UTF-8 (--encoding names another one)"
    this.decode = textDecoder(form.encoding)
    this.offset = start.offset
    this.line = start.line
    this.nextLine = start.line
  }

  push(chunk: Uint8Array): ReadonlyArray<RawRecord> {
    const records: Array<RawRecord> = []
    this.pending = this.pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.pending, chunk])
    this.scan(records, false)
    while (this.pending.length > maxRecordBytes && this.firstLineEnd > 0) {
      this.takeFirstLine(records, `${tooLong}; a quote may not be closed`)
      this.scan(records, false)
    }
    if (this.pending.length > maxRecordBytes || this.skipping) {
      this.skipping = true
      this.quoted = false
      this.offset += this.pending.length
      this.pending = Buffer.alloc(0)
      this.scanned = 0
    }
    return records
  }

  /** The last record, when the file ends without a line end. */
  end(): ReadonlyArray<RawRecord> {
    const records: Array<RawRecord> = []
    this.scan(records, true)
    while (this.firstLineEnd > 0 && (this.quoted || this.hasWrongWidth())) {
      this.takeFirstLine(records, unclosed)
      this.scan(records, true)
    }
    this.nextLine += 1
    if (this.pending.length > 0 || this.skipping)
      this.take(this.pending.length, records, this.quoted ? unclosed : undefined, true)
    return records
  }

  private scan(records: Array<RawRecord>, atEnd: boolean) {
    while (this.scanned < this.pending.length) {
      const byte = this.pending[this.scanned]
      const next = this.pending[this.scanned + 1]
      // The line feed of CRLF may be in the next chunk.
      if (byte === carriageReturn && next === undefined && !atEnd) return
      this.scanned += 1
      if (byte === newline || (byte === carriageReturn && next !== newline)) this.endLine(records)
      else if (this.isCsv && !this.skipping) {
        if (this.quoted) {
          if (byte === quote) {
            this.quoted = false
            this.closed = this.scanned - 1
          }
        } else if (byte === quote) this.quoted = this.scanned === 1 || this.opensQuote()
        else if (byte === this.delimiter) this.cells += 1
        else if (this.firstLineEnd > 0 && this.closed === this.scanned - 2 && byte !== carriageReturn)
          this.takeFirstLine(records, unclosed)
      }
    }
  }

  private opensQuote(): boolean {
    return this.pending[this.scanned - 2] === this.delimiter || this.closed === this.scanned - 2
  }

  private hasWrongWidth(): boolean {
    return this.width > 0 && this.cells !== this.width
  }

  private endLine(records: Array<RawRecord>) {
    this.nextLine += 1
    if (this.quoted) this.firstLineEnd ||= this.scanned
    else if (this.firstLineEnd > 0 && this.hasWrongWidth()) this.takeFirstLine(records, unclosed)
    else this.take(this.scanned, records)
  }

  /** Rejects the line that opened a quote, and reads the next lines by themselves. */
  private takeFirstLine(records: Array<RawRecord>, problem: string) {
    this.nextLine = this.line + 1
    this.take(this.firstLineEnd, records, problem)
  }

  private take(length: number, records: Array<RawRecord>, quoteProblem?: string, unterminated = false) {
    let bytes = this.pending.subarray(0, length)
    bytes = bytes.subarray(0, withoutLineEnd(bytes))
    if (this.offset === 0 && bytes.subarray(0, 3).equals(byteOrderMark)) bytes = bytes.subarray(3)
    const decoded = this.decode(bytes)
    const encodingProblem = decoded === undefined ? `is not ${this.encoding}` : undefined
    const problem = this.skipping ? tooLong : (quoteProblem ?? encodingProblem)
    const text = decoded ?? bytes.toString("latin1")
    this.offset += length
    if (problem !== undefined || text.trim() !== "")
      records.push({
        line: this.line,
        text,
        end: this.offset,
        nextLine: this.nextLine,
        ...(problem === undefined ? {} : { problem }),
        ...(unterminated ? { unterminated } : {}),
      })
    this.pending = this.pending.subarray(length)
    this.scanned = 0
    this.quoted = false
    this.closed = -1
    this.cells = 1
    this.firstLineEnd = 0
    this.skipping = false
    this.line = this.nextLine
  }
}

const tooLong = `is longer than ${maxRecordBytes} bytes`
const unclosed = "has a quote that is not closed"
