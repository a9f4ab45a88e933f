/**
 * Decodes and encodes records of files of interactions, JSON Lines or CSV (RFC 4180). Pure. A record has the fields of an
 * item of the bulk route, possibly under other column names; other columns become metadata.
 */
import { Either, Predicate } from "effect"
import { type EventTypes, isReferenceEventType, referenceEventTypes } from "../model/EventTypes.ts"
import type { Interaction } from "../model/Interaction.ts"
import type { LoggedInteraction } from "../ports/InteractionLog.ts"
import { ofBulkItem, type Requested } from "../record/Submission.ts"
import { type TimestampOptions, timestampReader } from "./FileTimestamps.ts"
import type { Form, Format } from "./RecordSplitter.ts"

export interface Reading extends Form, TimestampOptions {
  /** Field → its column, if that has another name: `a.b` is `b` in the object `a`; of `a|b` the first with a value. */
  readonly map: Readonly<Record<string, string>>
  /** Value in the file → event type, in addition to the event types and `view`, `click`, `purchase`. */
  readonly types: Readonly<Record<string, string>>
  /** Field → value for every record. */
  readonly set: Readonly<Record<string, string>>
  /** Columns not to store as metadata; `*` = all. */
  readonly ignore: ReadonlyArray<string>
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

export const toCell = (value: string): string =>
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
export const mappable: ReadonlyArray<string> = [...fields, "reference", "metadata"]
/** Fields that an export writes and an import computes. */
const derived = ["message_id", "recorded_at"]

/**
 * Event types by name and by the last word of their route. Names map to themselves, because a string cut from a line
 * would keep the whole line in memory.
 */
export const typesByWord = ({ all }: EventTypes): ReadonlyMap<string, string> =>
  new Map([
    ...all.flatMap(({ name, route }) => [[route, name] as const, [name, name] as const]),
    ...referenceEventTypes.map((name) => [name, name] as const),
  ])

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
  for (const [index, cell] of cells.entries()) {
    const column = columns[index]!
    if (cell !== "" && column !== "") row[column] = cell
  }
  return row
}

const asMetadata = (value: unknown): unknown => {
  if (typeof value !== "string") return value ?? {}
  const parsed = parseObject(value)
  return typeof parsed === "string" ? value : parsed
}

type Row = Readonly<Record<string, unknown>>
type Cell = (row: Row) => unknown

const isGiven = (value: unknown) => value !== undefined && value !== null && value !== ""

/** The column of that name, or else the property at that path. */
const cellOf = (column: string): Cell => {
  const path = column.split(".")
  if (path.length === 1) return (row) => row[column]
  return (row) =>
    Object.hasOwn(row, column)
      ? row[column]
      : path.reduce<unknown>(
          (value, key) => (Predicate.isRecord(value) && Object.hasOwn(value, key) ? value[key] : undefined),
          row,
        )
}
const fallbacks = (columns: string): ReadonlyArray<string> => columns.split("|").map((name) => name.trim())
/** The first of these columns that has a value. */
const firstCellOf = (columns: string): Cell => {
  const [first, ...others] = fallbacks(columns).map(cellOf)
  if (first === undefined || others.length === 0) return cellOf(columns)
  return (row) => {
    const value = first(row)
    return isGiven(value) ? value : others.map((cell) => cell(row)).find(isGiven)
  }
}

/** Objects nested deeper are no metadata; the validation says so. */
const mostLevels = 8

/** Decodes the text of records. `columns` is the header of a CSV file. `now` in Unix ms. */
export const decoder = (reading: Reading, columns: ReadonlyArray<string>, types: EventTypes) => {
  const knownTypes = typesByWord(types)
  const columnOf = (field: string) => reading.map[field] ?? field
  const cells = fields.map((field) => [field, firstCellOf(columnOf(field))] as const)
  const metadataCell = firstCellOf(columnOf("metadata"))
  const referenceCell = firstCellOf(columnOf("reference"))
  const consumed = new Set([
    ...mappable.flatMap((field) => fallbacks(columnOf(field))),
    ...derived,
    ...reading.ignore,
  ])
  // A shop's own column of this name means something else, except for a retraction or merge.
  const consumedOfEvent = new Set(consumed)
  if (reading.map.reference === undefined) consumedOfEvent.delete("reference")
  const keepsOthers = !reading.ignore.includes("*")
  const parse = reading.format === "csv" ? toRow(columns, reading.delimiter) : parseObject
  const toTimestamp = timestampReader(reading)
  const typeNamed = (word: string) => knownTypes.get(word) ?? word
  const typeOf = (value: unknown) =>
    typeof value === "string"
      ? typeNamed(Object.hasOwn(reading.types, value) ? reading.types[value]! : value)
      : value
  const nameOf = (field: string) => {
    const column = columnOf(field)
    return column === field ? field : `${field} (${column})`
  }
  /** Adds the columns that are no fields; those of nested objects by their path. */
  const addOthers = (
    row: Row,
    used: ReadonlySet<string>,
    facts: Record<string, unknown>,
    prefix = "",
    level = 1,
  ) => {
    for (const column in row) {
      const path = prefix + column
      if (used.has(path)) continue
      const value = row[column]
      if (level < mostLevels && Predicate.isRecord(value))
        addOthers(value, used, facts, `${path}.`, level + 1)
      else facts[path] = value
    }
  }

  return (text: string, now: number): Either.Either<Requested, string> => {
    const record = parse(text)
    if (typeof record === "string") return Either.left(record)
    const item: Record<string, unknown> = {}
    for (const [field, cell] of cells) {
      const value = reading.set[field] ?? cell(record)
      if (isGiven(value)) item[field] = value
    }
    if (item.occurred_at === undefined) return Either.left(`${nameOf("occurred_at")}: is missing`)
    const occurredAt = toTimestamp(item.occurred_at)
    if (Either.isLeft(occurredAt)) return Either.left(`${nameOf("occurred_at")}: ${occurredAt.left}`)
    item.event_type = typeOf(item.event_type)
    const hasReference = isReferenceEventType(item.event_type)
    if (hasReference) item.reference = reading.set.reference ?? referenceCell(record)
    item.occurred_at = occurredAt.right
    let metadata = asMetadata(metadataCell(record))
    if (keepsOthers && Predicate.isRecord(metadata)) {
      const all: Record<string, unknown> = { ...metadata }
      addOthers(record, hasReference ? consumed : consumedOfEvent, all)
      metadata = all
    }
    item.metadata = metadata
    return Either.mapLeft(ofBulkItem(item, now, types), (issues) =>
      issues.map(({ field, detail }) => (field === "" ? detail : `${nameOf(field)}: ${detail}`)).join("; "),
    )
  }
}

export const header = (text: string, delimiter: string): ReadonlyArray<string> =>
  parseCells(text, delimiter).map((cell) => cell.trim())

const delimiters = [",", ";", "\t", "|"]

/** Why no file with these columns can be read, whatever it is about. */
export const separatorProblem = (columns: ReadonlyArray<string>): string | undefined => {
  const other = delimiters.find((delimiter) => columns.length === 1 && columns[0]!.includes(delimiter))
  if (other !== undefined)
    return `seems to have ${JSON.stringify(other)} between its cells: --delimiter ${other === "\t" ? "tab" : `"${other}"`}`
  const twice = columns.find((column, index) => column !== "" && columns.indexOf(column) !== index)
  return twice === undefined ? undefined : `has two columns "${twice}"`
}

/** Why a file with this header can't be read. */
export const headerProblem = (columns: ReadonlyArray<string>, reading: Reading): string | undefined => {
  const problem = separatorProblem(columns)
  if (problem !== undefined) return problem
  const its = `its columns are ${columns.join(", ")}`
  for (const [field, names] of Object.entries(reading.map))
    for (const column of fallbacks(names))
      if (!columns.includes(column)) return `has no column "${column}" for ${field}; ${its}`
  const has = (field: string) =>
    Object.hasOwn(reading.map, field) || Object.hasOwn(reading.set, field) || columns.includes(field)
  const missing = [
    ...["user_id", "event_type", "occurred_at"].filter((field) => !has(field)),
    ...(["product_id", "search_phrase", "reference"].some(has) ? [] : ["product_id or search_phrase"]),
  ]
  return missing.length === 0
    ? undefined
    : `has no column ${missing.join(", ")}; ${its}; --map names other columns, --set gives a value for all`
}

// ---------------------------------------------------------------------------------------------------------
// Encoding

export const csvHeader =
  "user_id,event_type,search_phrase,product_id,occurred_at,metadata,message_id,recorded_at,reference"

/** One line without its newline; {@link decoder} reads it back unchanged. */
export const encode = (format: Format, { interaction, recordedAt }: LoggedInteraction): string => {
  const recorded_at = new Date(recordedAt).toISOString()
  if (format === "csv") {
    const { event_type, message_id, metadata, occurred_at, user_id } = interaction
    const about = aboutOf(interaction)
    return [
      user_id,
      event_type,
      about.search_phrase ?? "",
      about.product_id ?? "",
      occurred_at,
      JSON.stringify(metadata),
      message_id,
      recorded_at,
      about.reference ?? "",
    ]
      .map(toCell)
      .join(",")
  }
  const { event_type, message_id, metadata, occurred_at, user_id } = interaction
  const facts = { user_id, event_type, ...aboutOf(interaction), occurred_at, metadata, message_id }
  return JSON.stringify({ ...facts, recorded_at })
}

/** What the interaction refers to. The importer looks up what a retraction takes back. */
const aboutOf = ({
  product_id,
  reference,
  search_phrase,
}: Interaction): { readonly [Field in "search_phrase" | "product_id" | "reference"]?: string } => {
  if (reference !== null) return { reference }
  if (search_phrase !== null) return { search_phrase }
  return product_id === null ? {} : { product_id }
}
