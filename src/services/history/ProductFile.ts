/** Decodes and encodes records of files of products, JSON Lines or CSV. Pure. */
import { Either, Schema } from "effect"
import { productFields } from "../api/ProductApi.ts"
import { describeIssues, ProductId } from "../model/Interaction.ts"
import { type Attribute, isAttribute } from "../model/Product.ts"
import type { StoredProduct } from "../ports/ProductEmbeddings.ts"
import { textOf } from "../recommend/ProductWriter.ts"
import { parseCells, separatorProblem, toCell } from "./InteractionFile.ts"
import type { Form, Format } from "./RecordSplitter.ts"

/** A product as `POST /api/products` takes it, but without vector and text it is embedded by its names. */
const Line = Schema.Struct({ product_id: ProductId, ...productFields }).pipe(
  Schema.filter(
    (product) =>
      product.vector !== undefined || textOf(product) !== "" || "give a vector, a text or a product_name",
  ),
)
export type Line = typeof Line.Type
const decodeRecord = Schema.decodeUnknownEither(Line, { errors: "all" })
const decodeJson = Schema.decodeUnknownEither(Schema.parseJson(Line), { errors: "all" })

/** Columns of attributes: `attributes.price`. */
const prefix = "attributes."

const parsed = (cell: string): unknown => {
  try {
    return JSON.parse(cell)
  } catch {
    return cell
  }
}
/** `19.9`, `true` and `["S","M"]` are what they are in JSON; everything else is a string. */
const attributeOf = (cell: string): Attribute => {
  const value = parsed(cell)
  return isAttribute(value) ? value : cell
}
const cellOf = (value: Attribute): string =>
  typeof value === "string" && attributeOf(value) === value ? value : JSON.stringify(value)

const flags: Readonly<Record<string, boolean>> = { true: true, "1": true, false: false, "0": false }
const valueOf = (column: string, cell: string): unknown => {
  if (column === "available") return flags[cell.toLowerCase()] ?? cell
  return column === "vector" || column === "attributes" ? parsed(cell) : cell
}

const toRecord = (columns: ReadonlyArray<string>, cells: ReadonlyArray<string>) => {
  const record: Record<string, unknown> = {}
  const attributes: Array<readonly [string, Attribute]> = []
  for (const [index, cell] of cells.entries()) {
    const column = columns[index]!
    if (cell === "") continue
    if (column.startsWith(prefix)) attributes.push([column.slice(prefix.length), attributeOf(cell)])
    else record[column] = valueOf(column, cell)
  }
  // A file with columns of attributes gives all attributes, also of a product whose cells are empty.
  return columns.some((column) => column.startsWith(prefix))
    ? { ...record, attributes: Object.fromEntries(attributes) }
    : record
}

/** Decodes the text of records. `columns` is the header of a CSV file. */
export const decoder =
  ({ delimiter, format }: Form, columns: ReadonlyArray<string>) =>
  (text: string): Either.Either<Line, string> => {
    if (format === "jsonl") return Either.mapLeft(decodeJson(text), describeIssues)
    const cells = parseCells(text, delimiter)
    return cells.length === columns.length
      ? Either.mapLeft(decodeRecord(toRecord(columns, cells)), describeIssues)
      : Either.left(`has ${cells.length} cells, the header ${columns.length}`)
  }

/** Why a CSV file with this header can't be read. */
export const headerProblem = (columns: ReadonlyArray<string>): string | undefined =>
  separatorProblem(columns) ??
  (columns.includes("product_id")
    ? undefined
    : `has no column product_id; its columns are ${columns.join(", ")}`)

const columns = ["product_id", "product_name", "category", "available", "text", "vector"] as const

export const csvHeader = (attributes: ReadonlyArray<string>): string =>
  [...columns, ...attributes.map((name) => prefix + name)].map(toCell).join(",")

/** Nine significant digits identify every float32. */
const shortDecimal = (value: number): number => Number(value.toPrecision(9))

/** One line without its newline; {@link decoder} reads it back unchanged. The vector is only there without a text. */
export const encode = (
  format: Format,
  attributeNames: ReadonlyArray<string>,
  product: StoredProduct,
): string => {
  const { attributes, available, category, embedding, product_id, product_name, text } = product
  const vector = text === null ? Array.from(embedding, shortDecimal) : undefined
  if (format === "jsonl") {
    const facts = { product_id, product_name, category, available, attributes }
    return JSON.stringify({ ...facts, ...(text === null ? { vector } : { text }) })
  }
  return [
    product_id,
    product_name ?? "",
    category ?? "",
    String(available),
    text ?? "",
    vector === undefined ? "" : JSON.stringify(vector),
    ...attributeNames.map((name) => (Object.hasOwn(attributes, name) ? cellOf(attributes[name]!) : "")),
  ]
    .map(toCell)
    .join(",")
}
