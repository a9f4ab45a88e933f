import { expect, it } from "bun:test"
import * as EventTypes from "../../../src/services/model/EventTypes.ts"
import { orderOf } from "../../../src/services/model/Orders.ts"
import { isRefund, meaningOf } from "../../../src/services/record/SegmentCalls.ts"

it("purchases and refunds have the same order, however long its id is", () => {
  const orders = ["😀", "\u0001", '"', "Ä"].map((character) => character.repeat(128))
  for (const order_id of [...orders, "o-1", 7, " 7 "]) {
    const [purchase, refund] = ["Order Completed", "Order Refunded"].map((event) => {
      const properties = { order_id, note: "n".repeat(300), products: [{ product_id: "p-1" }] }
      return meaningOf({ type: "track", userId: "u", event, properties }, 0, EventTypes.defaults)[0]!
    })
    if (typeof purchase !== "object" || isRefund(purchase)) throw new Error("no purchase")
    if (typeof refund !== "object" || !isRefund(refund)) throw new Error("no refund")
    expect(orderOf(purchase.interaction)).toBe(refund.order_id)
  }
})
