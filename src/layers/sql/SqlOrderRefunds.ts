/**
 * - `order_refunds`: refunds of orders, which may come before the order.
 * - `pruned_orders`: the purchases of orders that are pruned, so that a refund does not wait for them. The id of an order is
 *   a hash there.
 */
import { createHash } from "node:crypto"
import type { SqlClient } from "@effect/sql/SqlClient"
import { Array as Arr, Effect } from "effect"
import { type PrunedPart, purchasesOf } from "../../services/model/Checkpoint.ts"
import type { InteractionLog, OrderRefund } from "../../services/ports/InteractionLog.ts"
import type { PrunedRows } from "../../services/ports/PrunedRows.ts"
import { linksOf, ownerIn } from "./SqlAliases.ts"
import { person, rowsPerPage, type Table } from "./SqlTable.ts"

/** As a product id: all products of the order. */
const allProducts = ""

/** Leaves a row with the same key as it is. */
const unlessKnown = (sql: SqlClient) =>
  sql.onDialectOrElse({
    mysql: () => sql.literal("ON DUPLICATE KEY UPDATE user_id = user_id"),
    orElse: () => sql.literal("ON CONFLICT DO NOTHING"),
  })

export const noteRefunds =
  ({ erasing, sql }: Table): InteractionLog["Type"]["noteRefunds"] =>
  (refunds) => {
    const rows = refunds.flatMap(({ order_id, products, user_id }) =>
      (products.length === 0 ? [allProducts] : products).map((product_id) => ({
        user_id,
        order_id,
        product_id,
      })),
    )
    return Effect.forEach(
      Arr.chunksOf(rows, rowsPerPage),
      (page) => sql`INSERT INTO order_refunds ${sql.insert(page)} ${unlessKnown(sql)}`.unprepared,
      { discard: true },
    ).pipe(erasing("noteRefunds"))
  }

export const refundsOf =
  ({ select, sql }: Table): InteractionLog["Type"]["refundsOf"] =>
  (users) =>
    Effect.gen(function* () {
      const refunds = new Map<string, OrderRefund>()
      if (users.length === 0) return []
      // Many shops note none, and have millions of orders.
      const [any] = yield* sql`SELECT 1 FROM order_refunds LIMIT 1`.pipe(select("refundsOf"))
      if (any === undefined) return []
      for (const some of Arr.chunksOf(users, rowsPerPage)) {
        const { ids, links } = yield* select("refundsOf")(linksOf(sql, some))
        const rows = yield* sql<{ user_id: string; order_id: string; product_id: string }>`
          SELECT user_id, order_id, product_id FROM order_refunds WHERE ${sql.in("user_id", ids)}`.unprepared.pipe(
          select("refundsOf"),
        )
        const notes = Map.groupBy(rows, (row) => `${ownerIn(links, row.user_id)} ${row.order_id}`)
        for (const [key, [first, ...others]] of notes) {
          if (first === undefined) continue
          const products = [first, ...others].map(({ product_id }) => product_id)
          refunds.set(key, {
            user_id: ownerIn(links, first.user_id),
            order_id: first.order_id,
            products: products.includes(allProducts) ? [] : [...new Set(products)],
          })
        }
      }
      return [...refunds.values()]
    })

const hashOf = (order: string) => createHash("sha256").update(order).digest("hex").slice(0, 32)

/** For the transaction of a prune. */
export const keepPurchases = (sql: SqlClient, parts: ReadonlyArray<PrunedPart>) => {
  const rows = parts.flatMap((part) =>
    purchasesOf(part).map(({ order_id, product_id, taken_back }) => ({
      user_id: part.user_id,
      order_id: hashOf(order_id),
      product_id,
      taken_back: taken_back ? 1 : 0,
    })),
  )
  return Effect.forEach(
    Arr.chunksOf(rows, rowsPerPage),
    (page) => sql`INSERT INTO pruned_orders ${sql.insert(page)} ${unlessKnown(sql)}`.unprepared,
    { discard: true },
  )
}

export const purchases =
  (table: Table): PrunedRows["purchases"] =>
  (user, orders) =>
    Effect.gen(function* () {
      const { select, sql } = table
      const { ids } = yield* person(table)(user)
      const byHash = new Map(orders.map((order) => [hashOf(order), order]))
      const pages = yield* Effect.forEach(Arr.chunksOf(byHash.keys(), rowsPerPage), (hashes) =>
        sql<{ order_id: string; product_id: string; taken_back: number }>`
          SELECT order_id, product_id, taken_back FROM pruned_orders
          WHERE ${sql.in("user_id", ids)} AND ${sql.in("order_id", hashes)}`.unprepared.pipe(
          select("purchases"),
        ),
      )
      return pages.flat().map(({ order_id, product_id, taken_back }) => ({
        order_id: byHash.get(order_id)!,
        product_id,
        taken_back: Number(taken_back) === 1,
      }))
    })
