/**
 * Splits, decodes and encodes files of interactions, JSON Lines or CSV (RFC 4180). Pure. A record has the fields of an
 * item of the bulk route, possibly under other column names; other columns become metadata.
 */
import { Either, Predicate } from "effect"
import type { EventTypes } from "../model/EventTypes.ts"
import { canonicalTimestamp, type Interaction, reference } from "../model/Interaction.ts"
import type { LoggedInteraction } from "../ports/InteractionLog.ts"
import type { Submission } from "../record/InteractionRecorder.ts"
import { ofBulkItem } from "../record/Submission.ts"

export type Format = "jsonl" | "csv"

export interface Reading {
  readonly format: Format
  /** The character between the cells of a CSV file. */
  readonly delimiter: string
  /** Field → its column, if that has another name. */
  readonly map: Readonly<Record<string, string>>
  /** Value in the file → event type, in addition to the event types and `view`, `click`, `purchase`. */
  readonly types: Readonly<Record<string, string>>
  /** Field → value for every record. */
  readonly set: Readonly<Record<string, string>>
  /** Columns not to store as metadata; `*` = all. */
  readonly ignore: ReadonlyArray<string>
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
}

/** Anything longer is not a record, but an unclosed quote or another kind of file. */
export const maxRecordBytes = 1024 * 1024

const newline = 0x0a
const quote = 0x22

/**
 * Splits bytes into records, beginning at `start`, and skips blank lines. In CSV a quote opens only at the beginning of a
 * cell, and lines within quotes belong to one record.
 */
export const splitter = (
  { format, delimiter }: Pick<Reading, "format" | "delimiter">,
  start: { readonly offset: number; readonly line: number },
) => {
  const delimiterByte = delimiter.charCodeAt(0)
  /** Bytes of the current record, of which the first `scanned` have been scanned. */
  let pending: Buffer = Buffer.alloc(0)
  let scanned = 0
  let quoted = false
  /** Position of the last closing quote. A quote right after it is an escaped quote. */
  let closed = -1
  /** Set while the rest of a record that is too long is skipped. */
  let problem: string | undefined
  let { offset, line } = start
  let nextLine = line

  const take = (length: number, records: Array<RawRecord>) => {
    const text = problem === undefined ? pending.toString("utf8", 0, length).replace(/\r?\n$/, "") : ""
    offset += length
    if (problem !== undefined) records.push({ line, text, end: offset, nextLine, problem })
    else if (text.trim() !== "") records.push({ line, text, end: offset, nextLine })
    pending = pending.subarray(length)
    scanned = 0
    quoted = false
    closed = -1
    problem = undefined
    line = nextLine
  }

  const scan = (records: Array<RawRecord>) => {
    while (scanned < pending.length) {
      const byte = pending[scanned++]
      if (byte === newline) {
        nextLine += 1
        if (!quoted) take(scanned, records)
      } else if (byte === quote && format === "csv" && problem === undefined) {
        if (quoted) {
          quoted = false
          closed = scanned - 1
        } else quoted = scanned === 1 || pending[scanned - 2] === delimiterByte || closed === scanned - 2
      }
    }
  }

  const tooLong = `is longer than ${maxRecordBytes} bytes`
  const push = (chunk: Uint8Array): ReadonlyArray<RawRecord> => {
    const records: Array<RawRecord> = []
    pending = pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([pending, chunk])
    scan(records)
    while (quoted && pending.length > maxRecordBytes && pending.includes(newline)) {
      // Rejects the line that opened the quote, and reads the next lines as unquoted.
      problem = `${tooLong}; a quote may not be closed`
      nextLine = line + 1
      take(pending.indexOf(newline) + 1, records)
      scan(records)
    }
    if (pending.length > maxRecordBytes || problem !== undefined) {
      problem ??= tooLong
      quoted = false
      offset += pending.length
      pending = Buffer.alloc(0)
      scanned = 0
    }
    return records
  }

  /** The last record, when the file ends without a newline. */
  const end = (): ReadonlyArray<RawRecord> => {
    const records: Array<RawRecord> = []
    nextLine += 1
    take(pending.length, records)
    return records
  }

  return { push, end }
}

export const parseCells = (text: string, delimiter: string): ReadonlyArray<string> => {
  const cells: Array<string> = []
  const find = (what: string, from: number) => {
    const at = text.indexOf(what, from)
    return at === -1 ? text.length : at
  }
  let at = 0
  while (at <= text.length) {
    if (text[at] !== '"') {
      const end = find(delimiter, at)
      cells.push(text.slice(at, end))
      at = end + 1
      continue
    }
    let cell = ""
    for (at += 1; at < text.length; ) {
      const end = find('"', at)
      cell += text.slice(at, end)
      at = end + 1
      if (text[at] !== '"') break
      cell += '"'
      at += 1
    }
    // Text between the closing quote and the next delimiter belongs to the cell, as in spreadsheets.
    const end = find(delimiter, at)
    cells.push(cell + text.slice(at, end))
    at = end + 1
  }
  return cells
}

const toCell = (value: string): string =>
  /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value

// ---------------------------------------------------------------------------------------------------------
// Decoding

const fields = [
  "user_id",
  "event_type",
  "search_phrase",
  "product_id",
  "occurred_at",
  "idempotency_key",
] as const
export const mappable: ReadonlyArray<string> = [...fields, "metadata"]
/** Fields that an export writes and an import computes. */
const derived = ["message_id", "recorded_at"]

/**
 * Event types by name and by the last word of their route. Names map to themselves, because a string cut from a line
 * would keep the whole line in memory.
 */
const typesByWord = ({ all }: EventTypes): ReadonlyMap<string, string> =>
  new Map(all.flatMap(({ name, route }) => [[route, name] as const, [name, name] as const]))

const wallTime =
  /^(\d{4}-\d{2}-\d{2})(?:[ T](\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?))?(?: ?(Z|UTC|[+-]\d{2}:?\d{2}))?$/

/**
 * Converts timestamps of histories to a canonical timestamp: ISO 8601, `2020-01-31 12:34:56`, a day, Unix seconds or
 * milliseconds; UTC without an offset. Returns anything else unchanged, for the validation to reject.
 */
export const toTimestamp = (value: unknown): unknown => {
  const unix =
    typeof value === "number" ? value : /^\d{9,14}(\.\d+)?$/.test(String(value)) ? Number(value) : Number.NaN
  if (Number.isFinite(unix) && unix >= 0) {
    const date = new Date(Math.trunc(unix < 1e11 ? unix * 1_000 : unix))
    return Number.isNaN(date.getTime()) ? value : date.toISOString()
  }
  if (typeof value !== "string") return value
  const canonical = canonicalTimestamp(value)
  if (canonical !== undefined) return canonical
  const match = wallTime.exec(value.trim())
  if (match === null) return value
  const [, day, time = "00:00:00", zone = "Z"] = match
  return canonicalTimestamp(`${day}T${time}${zone === "UTC" ? "Z" : zone}`) ?? value
}

const parseObject = (text: string): Readonly<Record<string, unknown>> | string => {
  try {
    const value: unknown = JSON.parse(text)
    return Predicate.isRecord(value) && !Array.isArray(value) ? value : "must be a JSON object"
  } catch {
    return "is not JSON"
  }
}

const toRow = (columns: ReadonlyArray<string>, delimiter: string) => (text: string) => {
  const cells = parseCells(text, delimiter)
  if (cells.length !== columns.length) return `has ${cells.length} cells, the header ${columns.length}`
  const row: Record<string, unknown> = {}
  for (const [index, cell] of cells.entries()) if (cell !== "") row[columns[index]!] = cell
  return row
}

const asMetadata = (value: unknown): unknown => {
  if (typeof value !== "string") return value ?? {}
  const parsed = parseObject(value)
  return typeof parsed === "string" ? value : parsed
}

/** Decodes the text of records. `columns` is the header of a CSV file. `now` in Unix ms. */
export const decoder = (reading: Reading, columns: ReadonlyArray<string>, types: EventTypes) => {
  const knownTypes = typesByWord(types)
  const columnOf = (field: string) => reading.map[field] ?? field
  const consumed = new Set([...mappable.map(columnOf), ...derived, ...reading.ignore])
  const keepsOthers = !reading.ignore.includes("*")
  const parse = reading.format === "csv" ? toRow(columns, reading.delimiter) : parseObject
  const typeNamed = (word: string) => knownTypes.get(word) ?? word
  const typeOf = (value: unknown) =>
    typeof value === "string"
      ? typeNamed(Object.hasOwn(reading.types, value) ? reading.types[value]! : value)
      : value
  const nameOf = (field: string) => {
    const column = columnOf(field)
    return column === field ? field : `${field} (${column})`
  }

  return (text: string, now: number): Either.Either<Submission, string> => {
    const record = parse(text)
    if (typeof record === "string") return Either.left(record)
    const item: Record<string, unknown> = {}
    for (const field of fields) {
      const value = reading.set[field] ?? record[columnOf(field)]
      if (value !== undefined && value !== null && value !== "") item[field] = value
    }
    if (item.occurred_at === undefined) return Either.left(`${nameOf("occurred_at")}: is missing`)
    item.event_type = typeOf(item.event_type)
    item.occurred_at = toTimestamp(item.occurred_at)
    let metadata = asMetadata(record[columnOf("metadata")])
    if (keepsOthers && Predicate.isRecord(metadata)) {
      const all: Record<string, unknown> = { ...metadata }
      for (const column in record) if (!consumed.has(column)) all[column] = record[column]
      metadata = all
    }
    item.metadata = metadata
    return Either.mapLeft(ofBulkItem(item, now, types), (issues) =>
      issues.map(({ field, detail }) => (field === "" ? detail : `${nameOf(field)}: ${detail}`)).join("; "),
    )
  }
}

export const header = (text: string, delimiter: string): ReadonlyArray<string> =>
  parseCells(text.replace(/^\uFEFF/, ""), delimiter).map((cell) => cell.trim())

// ---------------------------------------------------------------------------------------------------------
// Encoding

export const csvHeader =
  "user_id,event_type,search_phrase,product_id,occurred_at,metadata,message_id,recorded_at"

/** One line without its newline; {@link decoder} reads it back unchanged. */
export const encode = (format: Format, { interaction, recordedAt }: LoggedInteraction): string => {
  const recorded_at = new Date(recordedAt).toISOString()
  if (format === "csv") {
    const { event_type, message_id, metadata, occurred_at, product_id, search_phrase, user_id } = interaction
    return [
      user_id,
      event_type,
      search_phrase ?? "",
      product_id ?? "",
      occurred_at,
      JSON.stringify(metadata),
      message_id,
      recorded_at,
    ]
      .map(toCell)
      .join(",")
  }
  return JSON.stringify({ ...about(interaction), recorded_at })
}

const about = (interaction: Interaction) => {
  const { event_type, message_id, metadata, occurred_at, user_id } = interaction
  const what = event_type === "search" ? "search_phrase" : "product_id"
  return { user_id, event_type, [what]: reference(interaction), occurred_at, metadata, message_id }
}
