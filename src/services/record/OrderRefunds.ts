/**
 * Takes purchases back by the id of their order. An order and its refund may arrive in any order, and at the same time.
 * Each is stored before the other one is looked for, so at least one of them finds the other.
 */
import { Array as Arr, Effect, Stream } from "effect"
import { retract } from "../model/Interaction.ts"
import { type Appended, InteractionLog, type OrderRefund } from "../ports/InteractionLog.ts"
import { InteractionRecorder, type Submission } from "./InteractionRecorder.ts"
import { orderIdOf } from "./SegmentCalls.ts"

/** Interactions of one append: a batch may hold more than may wait for a commit. */
const mostPerAppend = 1_000

/** Records any number of interactions; answers in their order. */
export const recordAll = Effect.fnUntraced(function* (submissions: ReadonlyArray<Submission>) {
  const recorder = yield* InteractionRecorder
  const pages = yield* Effect.forEach(Arr.chunksOf(submissions, mostPerAppend), recorder.record)
  return pages.flat()
})

/** Takes back those purchases of the order that are in the log. */
const takeBack = Effect.fnUntraced(function* ({ order_id, products, user_id }: OrderRefund) {
  const log = yield* InteractionLog
  const purchases = yield* Stream.runCollect(log.stream({ user: user_id, type: "product_purchase" }))
  const wanted = new Set<string | null>(products)
  const refunded = [...purchases].filter(
    ({ interaction: { metadata, product_id } }) =>
      orderIdOf(metadata.order_id) === order_id && (wanted.size === 0 || wanted.has(product_id)),
  )
  return yield* recordAll(
    refunded.map(({ interaction }) => ({
      interaction: retract(interaction),
      idempotencyKey: null,
      occurredAtGiven: true,
    })),
  )
})

/** Answers the retractions. None: the refund waits for its order. */
export const refund = Effect.fnUntraced(function* (refund: OrderRefund) {
  const log = yield* InteractionLog
  yield* log.noteRefund(refund)
  return yield* takeBack(refund)
})

/** Takes back those of these recorded purchases whose refunds wait for them. Answers the retractions of each refund. */
export const refundOrders = Effect.fnUntraced(function* (submissions: ReadonlyArray<Submission>) {
  const log = yield* InteractionLog
  const orders = new Map<string, readonly [string, string]>()
  for (const { interaction } of submissions) {
    const order = orderIdOf(interaction.metadata.order_id)
    if (interaction.event_type === "product_purchase" && order !== undefined)
      orders.set(`${interaction.user_id}|${order}`, [interaction.user_id, order])
  }
  const retractions: Array<ReadonlyArray<Appended>> = []
  for (const [user, order] of orders.values()) {
    const noted = yield* log.refundOf(user, order)
    if (noted !== undefined) retractions.push(yield* takeBack(noted))
  }
  return retractions
})
