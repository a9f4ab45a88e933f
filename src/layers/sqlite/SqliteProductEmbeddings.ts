/** Product vectors of the embedded stack. */
import { Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import * as Vector from "../../services/model/Vector.ts"
import {
  type Neighbour,
  NoVectorIndex,
  type ProductEmbedding,
  ProductEmbeddings,
  ProductEmbeddingsError,
} from "../../services/ports/ProductEmbeddings.ts"
import { insertTopK, moreSimilar } from "../../services/recommend/TopK.ts"
import { failingWith, Sqlite } from "./Sqlite.ts"

/** Some columns of a product's row. */
type Row<Column extends keyof ProductEmbedding> = Omit<Pick<ProductEmbedding, Column>, "embedding"> & {
  readonly embedding: Uint8Array
}
const descriptionColumns = ["product_id", "product_name", "category", "embedding"] as const
const allColumns = [...descriptionColumns, "space", "text"] as const

const rowsPerPage = 500

const make = Effect.map(Sqlite, (sqlite) => {
  const failing = failingWith((failure) => new ProductEmbeddingsError(failure), "product_embeddings")

  /** Products of a space, ordered by id, in pages so that other fibers run in between. */
  const pages = <Column extends keyof ProductEmbedding>(
    operation: string,
    columns: ReadonlyArray<Column | "product_id">,
    space: string,
  ) =>
    Stream.paginateEffect("", (after: string) =>
      sqlite
        .use((database) =>
          database
            .query<Row<Column | "product_id">, [string, string, number]>(
              `SELECT ${columns.join(", ")} FROM product_embeddings
               WHERE space = ? AND product_id > ? ORDER BY product_id LIMIT ?`,
            )
            .all(space, after, rowsPerPage),
        )
        .pipe(
          failing(operation),
          Effect.map((rows) => [
            rows,
            Option.filter(Option.fromNullable(rows.at(-1)?.product_id), () => rows.length === rowsPerPage),
          ]),
        ),
    )

  /** Products updated after `after` (Unix ms), in pages. */
  const changedPages = (after: number) =>
    Stream.paginateEffect({ updated_at: after, product_id: "\uffff" }, (last) =>
      sqlite
        .use((database) =>
          database
            .query<Row<keyof ProductEmbedding> & { readonly updated_at: number }, [number, string, number]>(
              `SELECT ${allColumns.join(", ")}, updated_at FROM product_embeddings
               WHERE (updated_at, product_id) > (?, ?) ORDER BY updated_at, product_id LIMIT ?`,
            )
            .all(last.updated_at, last.product_id, rowsPerPage),
        )
        .pipe(
          failing("changed"),
          Effect.map((rows) => [
            rows,
            Option.filter(Option.fromNullable(rows.at(-1)), () => rows.length === rowsPerPage),
          ]),
        ),
    )

  return ProductEmbeddings.of({
    load: (products, space) =>
      failing("load")(
        sqlite.use((database) => {
          const select = database.query<Row<"embedding">, [string, string]>(
            "SELECT embedding FROM product_embeddings WHERE product_id = ? AND space = ?",
          )
          return new Map(
            products.flatMap((id) => {
              const row = select.get(id, space)
              return row === null ? [] : [[id, Vector.fromBytes(row.embedding)] as const]
            }),
          )
        }),
      ),

    knownSince: (products, space) =>
      failing("knownSince")(
        sqlite.use((database) => {
          const select = database.query<{ created_at: number }, [string, string]>(
            "SELECT created_at FROM product_embeddings WHERE product_id = ? AND space = ?",
          )
          return new Map(
            products.flatMap((id) => {
              const row = select.get(id, space)
              return row === null ? [] : [[id, row.created_at] as const]
            }),
          )
        }),
      ),

    upsert: (products) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        failing("upsert")(
          sqlite.transaction((database) => {
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
          }),
        ),
      ),

    nearest: (vector, { limit, space }) =>
      Effect.suspend(() => {
        const asked = Vector.norm(vector)
        const best: Array<Neighbour> = []
        return pages("nearest", descriptionColumns, space).pipe(
          Stream.runForEach((rows) =>
            Effect.sync(() => {
              for (const { embedding: bytes, ...product } of rows) {
                const embedding = Vector.fromBytes(bytes)
                if (embedding.length !== vector.length) continue
                const lengths = asked * Vector.norm(embedding)
                const similarity = lengths === 0 ? 0 : Vector.dot(vector, embedding) / lengths
                insertTopK(best, limit, { ...product, similarity }, moreSimilar)
              }
            }),
          ),
          Effect.as(best),
        )
      }),

    count: failing("count")(
      sqlite.use(
        (database) =>
          database.query<{ n: number }, []>("SELECT COUNT(*) AS n FROM product_embeddings").get()?.n ?? 0,
      ),
    ),

    elsewhere: (space) =>
      failing("count")(
        sqlite.use(
          (database) =>
            database
              .query<{ n: number }, [string]>("SELECT COUNT(*) AS n FROM product_embeddings WHERE space <> ?")
              .get(space)?.n ?? 0,
        ),
      ),

    indexed: () => Effect.fail(new NoVectorIndex({ detail: "SQLite has no vector index" })),

    describe: (products) =>
      failing("describe")(
        sqlite.use((database) => {
          const select = database.query<
            Omit<Row<(typeof descriptionColumns)[number]>, "embedding">,
            [string]
          >("SELECT product_id, product_name, category FROM product_embeddings WHERE product_id = ?")
          return new Map(
            products.flatMap((id) => {
              const row = select.get(id)
              return row === null ? [] : [[id, row] as const]
            }),
          )
        }),
      ),

    changed: (after) =>
      Stream.mapConcatChunk(changedPages(after), (rows) =>
        Chunk.map(Chunk.unsafeFromArray(rows), (row) => ({
          ...row,
          embedding: Vector.fromBytes(row.embedding),
        })),
      ),

    stream: (space) =>
      Stream.mapConcatChunk(pages("stream", allColumns, space), (rows) =>
        Chunk.map(Chunk.unsafeFromArray(rows), (row) => ({
          ...row,
          embedding: Vector.fromBytes(row.embedding),
        })),
      ),
  })
})

export const layer = Layer.effect(ProductEmbeddings, make)
