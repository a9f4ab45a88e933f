/** Product vectors of the embedded stack. */
import type { Database } from "bun:sqlite"
import { Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import type { ProductId } from "../../services/model/Interaction.ts"
import { readAttributes } from "../../services/model/Product.ts"
import * as Vector from "../../services/model/Vector.ts"
import {
  type Neighbour,
  NoVectorIndex,
  type ProductChange,
  ProductEmbeddings,
  ProductEmbeddingsError,
  type StampSum,
  type StoredProduct,
  stampModulus,
  type Upserted,
} from "../../services/ports/ProductEmbeddings.ts"
import { insertTopK, moreSimilar } from "../../services/recommend/TopK.ts"
import { countOf, failingWith, paged, readById, Sqlite } from "./Sqlite.ts"

const productColumns = "product_id, product_name, category, available, attributes, deleted_at"
/** A deleted product is read without its vector. */
const storedColumns = `${productColumns}, space, text, updated_at, IIF(deleted_at IS NULL, embedding, x'') AS embedding`

interface ProductRow extends Pick<StoredProduct, "product_id" | "product_name" | "category"> {
  readonly available: number
  /** JSON. */
  readonly attributes: string
  readonly deleted_at: number | null
}
interface VectorRow {
  readonly product_id: ProductId
  readonly embedding: Uint8Array
}
interface StoredRow extends ProductRow, VectorRow {
  readonly space: string
  readonly text: string | null
  readonly updated_at: number
}

const toProduct = ({
  attributes,
  available,
  category,
  deleted_at,
  product_id,
  product_name,
}: ProductRow) => ({
  product_id,
  product_name,
  category,
  available: available === 1 && deleted_at === null,
  attributes: readAttributes(JSON.parse(attributes)),
})
const toStored = (row: StoredRow): StoredProduct => ({
  ...toProduct(row),
  embedding: Vector.fromBytes(row.embedding),
  space: row.space,
  text: row.text,
  updated_at: row.updated_at,
  deleted: row.deleted_at !== null,
})

const rowsPerPage = 500
/** Of an index alone: about 5 ms. */
const stampsPerPage = 5_000

const load = (database: Database, products: ReadonlyArray<ProductId>, space: string) => {
  const select = database.query<VectorRow, [string, string]>(
    "SELECT embedding FROM product_embeddings WHERE product_id = ? AND space = ?",
  )
  return readById(products, (id) => {
    const row = select.get(id, space)
    return row && Vector.fromBytes(row.embedding)
  })
}

const knownSince = (database: Database, products: ReadonlyArray<ProductId>, space: string) => {
  const select = database.query<{ created_at: number }, [string, string]>(
    "SELECT created_at FROM product_embeddings WHERE product_id = ? AND space = ?",
  )
  return readById(products, (id) => select.get(id, space)?.created_at)
}

const vectorsSince = (database: Database, products: ReadonlyArray<ProductId>) => {
  const select = database.query<{ since: number }, [string]>(
    "SELECT COALESCE(vector_since, updated_at) AS since FROM product_embeddings WHERE product_id = ?",
  )
  return readById(products, (id) => select.get(id)?.since)
}

const describe = (database: Database, products: ReadonlyArray<ProductId>) => {
  const select = database.query<ProductRow, [string]>(
    `SELECT ${productColumns} FROM product_embeddings WHERE product_id = ?`,
  )
  return readById(products, (id) =>
    Option.getOrUndefined(Option.map(Option.fromNullable(select.get(id)), toProduct)),
  )
}

const upsert = (database: Database, changes: ReadonlyArray<ProductChange>, now: number) => {
  const exists = database.query(
    "SELECT 1 FROM product_embeddings WHERE product_id = ? AND deleted_at IS NULL",
  )
  const write = database.query(
    `INSERT INTO product_embeddings
       (product_id, product_name, category, available, attributes, embedding, dimension_count, space, text,
        created_at, updated_at, vector_since)
     VALUES (?1, ?2, ?3, COALESCE(?4, 1), COALESCE(?5, '{}'), ?7, ?8, ?9, ?10, ?6, ?6, ?6)
     ON CONFLICT (product_id) DO UPDATE SET product_name = COALESCE(?2, product_name),
       category = COALESCE(?3, category), available = COALESCE(?4, available),
       attributes = COALESCE(?5, attributes), updated_at = ?6, embedding = ?7, dimension_count = ?8, space = ?9,
       text = ?10, deleted_at = NULL,
       vector_since = IIF(embedding = ?7 AND space = ?9, COALESCE(vector_since, updated_at), ?6)`,
  )
  const change = database.query(
    `UPDATE product_embeddings SET product_name = COALESCE(?2, product_name), category = COALESCE(?3, category),
       available = COALESCE(?4, available), attributes = COALESCE(?5, attributes), updated_at = ?6,
       vector_since = COALESCE(vector_since, updated_at)
     WHERE product_id = ?1`,
  )
  return changes.map((given): Upserted => {
    const { attributes, available = null, category = null, product_id, product_name = null } = given
    const isNew = exists.get(product_id) === null
    const facts = [
      product_id,
      product_name,
      category,
      available,
      attributes === undefined ? null : JSON.stringify(attributes),
      now,
    ]
    if (given.embedding !== undefined) {
      const { embedding, space, text } = given
      write.run(...facts, Vector.toBytes(embedding), embedding.length, space, text)
    } else if (isNew) return "missing"
    else change.run(...facts)
    return isNew ? "created" : "changed"
  })
}

const remove = (database: Database, products: ReadonlyArray<ProductId>, now: number) => {
  const update = database.query(
    `UPDATE product_embeddings SET product_name = NULL, category = NULL, available = 1, attributes = '{}',
       deleted_at = ?2, updated_at = ?2, vector_since = COALESCE(vector_since, updated_at) WHERE product_id = ?1 AND deleted_at IS NULL`,
  )
  return new Set(products.filter((id) => update.run(id, now).changes > 0))
}

/** Counts the deleted ones by their index, because `deleted_at` lies behind the vector. */
const countWhere = (database: Database, condition: string, ...params: Array<string>) => {
  const from = `SELECT COUNT(*) FROM product_embeddings WHERE ${condition}`
  return (
    countOf(database, from, ...params) - countOf(database, `${from} AND deleted_at IS NOT NULL`, ...params)
  )
}

const pageOfSpace = <Row>(
  database: Database,
  columns: string,
  space: string,
  after: string,
  size: number,
  condition = "",
) =>
  database
    .query<Row, [string, string, number]>(
      `SELECT ${columns} FROM product_embeddings
       WHERE space = ? AND product_id > ? ${condition} ORDER BY product_id LIMIT ?`,
    )
    .all(space, after, size)

type StampRow = Pick<StoredRow, "product_id" | "updated_at">

const stampSum = (database: Database, space: string) =>
  database
    .query<StampSum, [number, string]>(
      `SELECT COUNT(*) AS count, COALESCE(SUM(updated_at % ?), 0) AS sum FROM product_embeddings WHERE space = ?`,
    )
    .get(stampModulus, space) ?? { count: 0, sum: 0 }

const find = (database: Database, products: ReadonlyArray<ProductId>) => {
  const select = database.query<StoredRow, [string]>(
    `SELECT ${storedColumns} FROM product_embeddings WHERE product_id = ?`,
  )
  return products.flatMap((id) => select.get(id) ?? []).map(toStored)
}

/** A page of products updated after a position, ordered by the time of the update. */
const pageOfChanges = (database: Database, after: StampRow) =>
  database
    .query<StoredRow, [number, string, number]>(
      `SELECT ${storedColumns} FROM product_embeddings
       WHERE (updated_at, product_id) > (?, ?) ORDER BY updated_at, product_id LIMIT ?`,
    )
    .all(after.updated_at, after.product_id, rowsPerPage)

const mapRows = <Row, A>(rows: ReadonlyArray<Row>, map: (row: Row) => A) =>
  Chunk.map(Chunk.unsafeFromArray(rows), map)

/** Compares the vector with every product, which replaces the vector index that SQLite lacks. */
const nearest = <E>(
  pages: Stream.Stream<ReadonlyArray<Neighbouring>, E>,
  vector: Float32Array,
  limit: number,
) =>
  Effect.suspend(() => {
    const best: Array<Neighbour> = []
    const compare = ({ category, embedding: bytes, product_id, product_name }: Neighbouring) => {
      const embedding = Vector.fromBytes(bytes)
      if (embedding.length !== vector.length) return
      const similarity = Vector.cosine(vector, embedding)
      insertTopK(best, limit, { product_id, product_name, category, similarity }, moreSimilar)
    }
    return Effect.as(
      Stream.runForEach(pages, (rows) => Effect.sync(() => rows.forEach(compare))),
      best,
    )
  })
type Neighbouring = VectorRow & Pick<ProductRow, "product_name" | "category">

const make = Effect.map(Sqlite, ({ transaction, use }) => {
  const failing = failingWith((fields) => new ProductEmbeddingsError(fields), "product_embeddings")
  const pages = <Row extends { readonly product_id: ProductId }>(
    operation: string,
    columns: string,
    space: string,
    { condition = "", size = rowsPerPage } = {},
  ) =>
    paged(
      size,
      "",
      (after: string) =>
        failing(operation)(
          use((database) => pageOfSpace<Row>(database, columns, space, after, size, condition)),
        ),
      ({ product_id }) => product_id,
    )
  const writing = <A>(operation: string, write: (database: Database, now: number) => A) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) =>
      failing(operation)(transaction((database) => write(database, now))),
    )

  return ProductEmbeddings.of({
    load: (products, space) => failing("load")(use((database) => load(database, products, space))),
    knownSince: (products, space) =>
      failing("knownSince")(use((database) => knownSince(database, products, space))),
    vectorsSince: (products) => failing("vectorsSince")(use((database) => vectorsSince(database, products))),
    describe: (products) => failing("describe")(use((database) => describe(database, products))),
    upsert: (changes) => writing("upsert", (database, now) => upsert(database, changes, now)),
    remove: (products) => writing("remove", (database, now) => remove(database, products, now)),
    nearest: (vector, { limit, space }) => {
      const columns = "product_id, product_name, category, embedding"
      const available = { condition: "AND available AND deleted_at IS NULL" }
      return nearest(pages<Neighbouring>("nearest", columns, space, available), vector, limit)
    },
    indexed: () => Effect.fail(new NoVectorIndex({ detail: "SQLite has no vector index" })),
    count: failing("count")(use((database) => countWhere(database, "TRUE"))),
    countInOtherSpaces: (space) =>
      failing("count")(use((database) => countWhere(database, "space <> ?", space))),
    changed: (after) =>
      paged(
        rowsPerPage,
        // No product id sorts after this one, so that products updated in the same millisecond are left out.
        { updated_at: after, product_id: "\uffff" },
        (position: StampRow) => failing("changed")(use((database) => pageOfChanges(database, position))),
        (last) => last,
      ).pipe(Stream.mapConcatChunk((rows) => mapRows(rows, toStored))),
    problems: (space, dimensions) =>
      pages<VectorRow>("problems", "product_id, embedding", space).pipe(
        Stream.mapConcat((rows) => rows),
        Stream.filterMap(({ embedding, product_id }) =>
          Option.map(
            Option.fromNullable(Vector.problem(Vector.fromBytes(embedding), dimensions)),
            (detail) => ({ product_id, detail: `has a vector that ${detail}` }),
          ),
        ),
      ),
    stampSum: (space) => failing("stampSum")(use((database) => stampSum(database, space))),
    stamps: (space) =>
      pages<StampRow>("stamps", "product_id, updated_at", space, { size: stampsPerPage }).pipe(
        Stream.mapConcatChunk(Chunk.unsafeFromArray),
      ),
    find: (products) => failing("find")(use((database) => find(database, products))),
    stream: (space) =>
      Stream.mapConcatChunk(pages<StoredRow>("stream", storedColumns, space), (rows) =>
        mapRows(rows, toStored),
      ),
  })
})

export const layer = Layer.effect(ProductEmbeddings, make)
