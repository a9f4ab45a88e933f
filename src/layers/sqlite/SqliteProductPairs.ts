/** The pairs of products of the embedded stack. */
import { Effect, Layer } from "effect"
import { decodePairs, encodePairs } from "../../services/model/Together.ts"
import { ProductEmbeddingsError } from "../../services/ports/ProductEmbeddings.ts"
import { notBegun, type PairProgress, ProductPairs } from "../../services/ports/ProductPairs.ts"
import { failingWith, readById, Sqlite } from "./Sqlite.ts"

interface ProgressRow {
  readonly counted_up_to: number
  readonly begun_up_to: number
  readonly rebuilding: number
}
const toRow = ({ begunUpTo, countedUpTo, rebuilding }: PairProgress): [number, number, number] => [
  countedUpTo,
  begunUpTo,
  Number(rebuilding),
]

const make = Effect.map(Sqlite, ({ transaction, use }): ProductPairs["Type"] => {
  const failing = failingWith((failure) => new ProductEmbeddingsError(failure), "product_pairs")
  return {
    progress: failing("select")(
      use((database) => {
        const row = database.query<ProgressRow, []>("SELECT * FROM product_pairs_state").get()
        return row === null
          ? notBegun
          : {
              countedUpTo: row.counted_up_to,
              begunUpTo: row.begun_up_to,
              rebuilding: row.rebuilding === 1,
            }
      }),
    ),
    advance: (from, to) =>
      failing("update")(
        use((database) => {
          database.run("INSERT INTO product_pairs_state VALUES (1, 0, 0, 0) ON CONFLICT DO NOTHING")
          const { changes } = database
            .query(
              `UPDATE product_pairs_state SET counted_up_to = ?, begun_up_to = ?, rebuilding = ?
               WHERE counted_up_to = ? AND begun_up_to = ? AND rebuilding = ?`,
            )
            .run(...toRow(to), ...toRow(from))
          return changes === 1
        }),
      ),
    load: (products, most) =>
      failing("select")(
        use((database) => {
          const select = database.query<{ readonly up_to: number; readonly pairs: string }, [string]>(
            "SELECT up_to, pairs FROM product_pairs WHERE product_id = ?",
          )
          return readById(products, (id) => {
            const row = select.get(id)
            return row && { upTo: row.up_to, pairs: decodePairs(row.pairs, most) }
          })
        }),
      ),
    save: (upTo, rows) =>
      failing("update")(
        transaction((database) => {
          const insert = database.query(
            "INSERT INTO product_pairs VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
          )
          const update = database.query(
            "UPDATE product_pairs SET up_to = ?2, pairs = ?3 WHERE product_id = ?1 AND up_to < ?2",
          )
          for (const { known, pairs, product_id } of rows)
            (known ? update : insert).run(product_id, upTo, encodePairs(pairs))
        }),
      ),
    remove: (products) =>
      failing("delete")(
        transaction((database) => {
          const remove = database.query("DELETE FROM product_pairs WHERE product_id = ?")
          for (const product of products) remove.run(product)
        }),
      ),
    outdate: failing("update")(
      use((database) => {
        database.run("UPDATE product_pairs SET up_to = -1")
      }),
    ),
    removeBefore: (upTo) =>
      failing("delete")(
        use((database) => {
          database.query("DELETE FROM product_pairs WHERE up_to < ?").run(upTo)
        }),
      ),
  }
})

export const layer = Layer.effect(ProductPairs, make)
