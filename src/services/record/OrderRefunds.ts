/**
 * Takes purchases back by the id of their order. An order, its refund and the merges that make their users one person may
 * arrive in any order, and at the same time. Each is stored before the others are looked for, so the last one finds them.
 */
import { Clock, Effect, Stream } from "effect"
import { isMerge, type Retraction, retract, type UserId } from "../model/Interaction.ts"
import { orderOf } from "../model/Orders.ts"
import { InteractionLog, type LoggedInteraction, type OrderRefund } from "../ports/InteractionLog.ts"
import * as Telemetry from "../Telemetry.ts"

/** What refunds come to. */
export interface Refunded {
  /** Of those purchases that are in the log. */
  readonly retractions: ReadonlyArray<Retraction>
  /** The number of purchases that are pruned, so that they can't be taken back any more. */
  readonly pruned: number
  /** The number of purchases that were taken back before they were pruned. */
  readonly prunedRefunds: number
  /** The number of refunds without any purchase so far. */
  readonly waiting: number
}

/** Looks for the purchases of a person that these refunds take back. */
const find = Effect.fnUntraced(function* (user: UserId, refunds: ReadonlyArray<OrderRefund>) {
  const log = yield* InteractionLog
  const byOrder = Map.groupBy(refunds, ({ order_id }) => order_id)
  const found = new Set<OrderRefund>()
  const isRefunded = (order: string | undefined, product: string | null) => {
    const matching = (byOrder.get(order ?? "") ?? []).filter(
      ({ products }) => products.length === 0 || products.includes(product ?? ""),
    )
    for (const refund of matching) found.add(refund)
    return matching.length > 0
  }
  const purchases = yield* Stream.runCollect(log.stream({ user, type: "product_purchase" }))
  const retractions = Array.from(purchases).flatMap(({ interaction }) =>
    isRefunded(orderOf(interaction), interaction.product_id) ? [retract(interaction)] : [],
  )
  const gone = (yield* log.pruned.purchases(user, [...byOrder.keys()])).filter(({ order_id, product_id }) =>
    isRefunded(order_id, product_id),
  )
  const pruned = gone.filter(({ taken_back }) => !taken_back).length
  if (pruned > 0)
    yield* Effect.logWarning("refund.pruned").pipe(
      Effect.annotateLogs({ count: pruned, orders: [...new Set(gone.map(({ order_id }) => order_id))] }),
    )
  const waiting = refunds.length - found.size
  return { retractions, pruned, prunedRefunds: gone.length - pruned, waiting } satisfies Refunded
})

/** Notes refunds, and looks for the purchases of their orders. Reads the purchases of a user once, however many refunds there are. */
export const refund = Effect.fnUntraced(function* (refunds: ReadonlyArray<OrderRefund>) {
  const log = yield* InteractionLog
  yield* log.noteRefunds(refunds)
  const people = [...Map.groupBy(refunds, ({ user_id }) => user_id)]
  return yield* Effect.forEach(people, ([user, some]) => find(user, some))
})

/** The retractions of refunds that have waited for these rows: for purchases of their orders, or for merges of their people. */
const waitingFor = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>) {
  const log = yield* InteractionLog
  const [users, orders] = [new Set<UserId>(), new Set<string>()]
  const merged = new Set<UserId>()
  for (const { interaction } of rows) {
    const order = orderOf(interaction)
    if (order !== undefined) orders.add(order)
    if (isMerge(interaction)) merged.add(interaction.user_id)
    else if (order !== undefined) users.add(interaction.user_id)
  }
  const ofOrders = (yield* log.refundsOf([...users])).filter(({ order_id }) => orders.has(order_id))
  const waiting = [...ofOrders, ...(yield* log.refundsOf([...merged]))]
  const people = [...Map.groupBy(waiting, ({ user_id }) => user_id)]
  const found = yield* Effect.forEach(people, ([user, refunds]) => find(user, refunds))
  return found.flatMap(({ retractions }) => retractions)
})

/** Records the retractions of refunds that have waited for these rows. Succeeds with the new rows. */
export const takeBackFor = Effect.fnUntraced(function* (rows: ReadonlyArray<LoggedInteraction>) {
  const log = yield* InteractionLog
  const retractions = yield* waitingFor(rows)
  const trace = yield* Telemetry.currentTrace
  const recordedAt = yield* Clock.currentTimeMillis
  return yield* log.takeBack(
    retractions.map((interaction) => ({
      interaction,
      idempotencyKey: null,
      occurredAtGiven: true,
      trace,
      recordedAt,
    })),
  )
})
