/** Product vectors of the embedded stack. */
import type { Database } from "bun:sqlite"
import { Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import type { ProductId } from "../../services/model/Interaction.ts"
import * as Vector from "../../services/model/Vector.ts"
import {
  type Neighbour,
  NoVectorIndex,
  type ProductEmbedding,
  ProductEmbeddings,
  ProductEmbeddingsError,
  type StampSum,
  type StoredProduct,
  stampModulus,
} from "../../services/ports/ProductEmbeddings.ts"
import { insertTopK, moreSimilar } from "../../services/recommend/TopK.ts"
import { countOf, failingWith, paged, readById, Sqlite } from "./Sqlite.ts"

type Row<Column extends keyof StoredProduct> = Omit<Pick<StoredProduct, Column>, "embedding"> & {
  readonly embedding: Uint8Array
}
const descriptionColumns = ["product_id", "product_name", "category", "embedding"] as const
type DescriptionRow = Row<(typeof descriptionColumns)[number]>
const storedColumns = [...descriptionColumns, "space", "text", "updated_at"] as const

const rowsPerPage = 500
/** Of an index alone: about 5 ms. */
const stampsPerPage = 5_000

const load = (database: Database, products: ReadonlyArray<ProductId>, space: string) => {
  const select = database.query<Row<"embedding">, [string, string]>(
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

const texts = (database: Database, products: ReadonlyArray<ProductId>, space: string) => {
  const select = database.query<{ text: string }, [string, string]>(
    "SELECT text FROM product_embeddings WHERE product_id = ? AND space = ? AND text IS NOT NULL",
  )
  return readById(products, (id) => select.get(id, space)?.text)
}

const describe = (database: Database, products: ReadonlyArray<ProductId>) => {
  const select = database.query<Omit<DescriptionRow, "embedding">, [string]>(
    "SELECT product_id, product_name, category FROM product_embeddings WHERE product_id = ?",
  )
  return readById(products, (id) => select.get(id))
}

/** Inserts or replaces products, and tells for each whether it is new. */
const upsert = (database: Database, products: ReadonlyArray<ProductEmbedding>, now: number) => {
  const exists = database.query("SELECT 1 FROM product_embeddings WHERE product_id = ?")
  const write = database.query(
    `INSERT INTO product_embeddings
       (product_id, embedding, dimension_count, product_name, category, space, text, created_at, updated_at)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)
     ON CONFLICT (product_id) DO UPDATE SET embedding = ?2, dimension_count = ?3,
       product_name = COALESCE(?4, product_name), category = COALESCE(?5, category),
       space = ?6, text = ?7, updated_at = ?8`,
  )
  return products.map(({ category, embedding, product_id, product_name, space, text }) => {
    const isNew = exists.get(product_id) === null
    const bytes = Vector.toBytes(embedding)
    write.run(product_id, bytes, embedding.length, product_name, category, space, text, now)
    return isNew
  })
}

const count = (database: Database) => countOf(database, "SELECT COUNT(*) FROM product_embeddings")

const countInOtherSpaces = (database: Database, space: string) =>
  countOf(database, "SELECT COUNT(*) FROM product_embeddings WHERE space <> ?", space)

const pageOfSpace = <Column extends keyof StoredProduct>(
  database: Database,
  columns: ReadonlyArray<Column>,
  space: string,
  after: string,
) =>
  database
    .query<Row<Column | "product_id">, [string, string, number]>(
      `SELECT ${columns.join(", ")} FROM product_embeddings
       WHERE space = ? AND product_id > ? ORDER BY product_id LIMIT ?`,
    )
    .all(space, after, rowsPerPage)

type ChangedRow = Row<keyof StoredProduct>
type StampRow = Pick<ChangedRow, "product_id" | "updated_at">

const pageOfStamps = (database: Database, space: string, after: string) =>
  database
    .query<StampRow, [string, string, number]>(
      `SELECT product_id, updated_at FROM product_embeddings
       WHERE space = ? AND product_id > ? ORDER BY product_id LIMIT ?`,
    )
    .all(space, after, stampsPerPage)

const stampSum = (database: Database, space: string) =>
  database
    .query<StampSum, [number, string]>(
      `SELECT COUNT(*) AS count, COALESCE(SUM(updated_at % ?), 0) AS sum FROM product_embeddings WHERE space = ?`,
    )
    .get(stampModulus, space) ?? { count: 0, sum: 0 }

const find = (database: Database, products: ReadonlyArray<ProductId>) => {
  const select = database.query<ChangedRow, [string]>(
    `SELECT ${storedColumns.join(", ")} FROM product_embeddings WHERE product_id = ?`,
  )
  return products.flatMap((id) => select.get(id) ?? []).map(withVector)
}

/** A page of products updated after a position, ordered by the time of the update. */
const pageOfChanges = (database: Database, after: Pick<ChangedRow, "updated_at" | "product_id">) =>
  database
    .query<ChangedRow, [number, string, number]>(
      `SELECT ${storedColumns.join(", ")} FROM product_embeddings
       WHERE (updated_at, product_id) > (?, ?) ORDER BY updated_at, product_id LIMIT ?`,
    )
    .all(after.updated_at, after.product_id, rowsPerPage)

const withVector = <Row extends { readonly embedding: Uint8Array }>(row: Row) => ({
  ...row,
  embedding: Vector.fromBytes(row.embedding),
})
const withVectors = <Row extends { readonly embedding: Uint8Array }>(rows: ReadonlyArray<Row>) =>
  Chunk.map(Chunk.unsafeFromArray(rows), withVector)

/** Compares the vector with every product, which replaces the vector index that SQLite lacks. */
const nearest = <E>(
  pages: Stream.Stream<ReadonlyArray<DescriptionRow>, E>,
  vector: Float32Array,
  limit: number,
) =>
  Effect.suspend(() => {
    const best: Array<Neighbour> = []
    const compare = ({ embedding: bytes, ...product }: DescriptionRow) => {
      const embedding = Vector.fromBytes(bytes)
      if (embedding.length !== vector.length) return
      const similarity = Vector.cosine(vector, embedding)
      insertTopK(best, limit, { ...product, similarity }, moreSimilar)
    }
    return Effect.as(
      Stream.runForEach(pages, (rows) => Effect.sync(() => rows.forEach(compare))),
      best,
    )
  })

const make = Effect.map(Sqlite, ({ transaction, use }) => {
  const failing = failingWith((fields) => new ProductEmbeddingsError(fields), "product_embeddings")
  const pages = <Column extends keyof StoredProduct>(
    operation: string,
    columns: ReadonlyArray<Column | "product_id">,
    space: string,
  ) =>
    paged(
      rowsPerPage,
      "",
      (after: string) => failing(operation)(use((database) => pageOfSpace(database, columns, space, after))),
      ({ product_id }) => product_id,
    )

  return ProductEmbeddings.of({
    load: (products, space) => failing("load")(use((database) => load(database, products, space))),
    knownSince: (products, space) =>
      failing("knownSince")(use((database) => knownSince(database, products, space))),
    texts: (products, space) => failing("texts")(use((database) => texts(database, products, space))),
    describe: (products) => failing("describe")(use((database) => describe(database, products))),
    upsert: (products) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        failing("upsert")(transaction((database) => upsert(database, products, now))),
      ),
    nearest: (vector, { limit, space }) =>
      nearest(pages("nearest", descriptionColumns, space), vector, limit),
    indexed: () => Effect.fail(new NoVectorIndex({ detail: "SQLite has no vector index" })),
    count: failing("count")(use(count)),
    countInOtherSpaces: (space) => failing("count")(use((database) => countInOtherSpaces(database, space))),
    changed: (after) =>
      paged(
        rowsPerPage,
        // No product id sorts after this one, so that products updated in the same millisecond are left out.
        { updated_at: after, product_id: "\uffff" },
        (position) => failing("changed")(use((database) => pageOfChanges(database, position))),
        (last) => last,
      ).pipe(Stream.mapConcatChunk(withVectors)),
    problems: (space, dimensions) =>
      pages("problems", ["product_id", "embedding"], space).pipe(
        Stream.mapConcatChunk(withVectors),
        Stream.filterMap(({ embedding, product_id }) =>
          Option.map(Option.fromNullable(Vector.problem(embedding, dimensions)), (detail) => ({
            product_id,
            detail: `has a vector that ${detail}`,
          })),
        ),
      ),
    stampSum: (space) => failing("stampSum")(use((database) => stampSum(database, space))),
    stamps: (space) =>
      paged(
        stampsPerPage,
        "",
        (after: string) => failing("stamps")(use((database) => pageOfStamps(database, space, after))),
        ({ product_id }) => product_id,
      ).pipe(Stream.mapConcatChunk(Chunk.unsafeFromArray)),
    find: (products) => failing("find")(use((database) => find(database, products))),
    stream: (space) => Stream.mapConcatChunk(pages("stream", storedColumns, space), withVectors),
  })
})

export const layer = Layer.effect(ProductEmbeddings, make)
