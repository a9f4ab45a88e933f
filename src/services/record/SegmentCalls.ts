/** What the calls of Segment's tracking API mean here. A call without a meaning is counted by the reason. */
import { Either, Predicate, Schema } from "effect"
import type { EventTypes } from "../model/EventTypes.ts"
import { canonicalTimestamp, type Metadata, maxMetadataBytes, merge, UserId } from "../model/Interaction.ts"
import { orderIdOf } from "../model/Orders.ts"
import type { OrderRefund } from "../ports/InteractionLog.ts"
import type { Submission } from "./InteractionRecorder.ts"
import { ofBulkItem } from "./Submission.ts"

type Json = Readonly<Record<string, unknown>>

/**
 * Why a call changes nothing: no meaning here; an id or phrase that is refused; the key of another interaction; a merge
 * that contradicts earlier ones; a token without the scope `person`; a refund of a pruned purchase.
 */
export type Ignored = "no_meaning" | "invalid" | "key_reused" | "refused" | "missing_scope" | "pruned"

/** What a call means. */
export type Meant = Submission | OrderRefund | Ignored

export const isRefund = (meant: Meant): meant is OrderRefund =>
  typeof meant === "object" && "order_id" in meant

/** Events of Segment's e-commerce specification about one product. */
const productEvents: ReadonlyMap<unknown, string> = new Map([
  ["Product Viewed", "product_view"],
  ["Product Clicked", "product_click"],
  ["Product Added", "add_to_cart"],
])

/** Events that take an order back, or some of its products. */
const takingBack: ReadonlySet<unknown> = new Set(["Order Refunded", "Order Cancelled"])

const objectOf = (value: unknown): Json => (Predicate.isRecord(value) ? value : {})
const isFact = (value: unknown): value is string | number | boolean =>
  typeof value === "string" ? value.isWellFormed() : typeof value === "boolean" || Number.isFinite(value)

/** Bytes of `{"k":1}`. */
const smallestFact = 7

/** The properties that metadata can hold, up to a size as JSON. Nested and larger ones are left out. */
const factsOf = (properties: Json, maxBytes: number): Metadata => {
  const facts: Record<string, string | number | boolean> = {}
  let bytes = 2
  for (const [key, value] of Object.entries(properties)) {
    if (bytes + smallestFact > maxBytes) break
    if (!isFact(value) || !key.isWellFormed() || key === "__proto__") continue
    const size = Buffer.byteLength(JSON.stringify({ [key]: value }))
    if (bytes + size > maxBytes) continue
    facts[key] = value
    bytes += size
  }
  return facts
}
/** Products of an order: more of them would block other requests. */
const maxProducts = 1_000
/** Each product of an order repeats the facts of the order. Holds any id of an order: 128 characters of at most 6 bytes in JSON. */
const maxOrderBytes = 1_024

/** The items of the bulk route that a tracked event means. */
const itemsOf = (event: unknown, properties: Json, types: EventTypes): ReadonlyArray<Json> => {
  const { product_id, products, query, ...facts } = properties
  if (event === "Products Searched")
    return [{ event_type: "search", search_phrase: query, metadata: factsOf(facts, maxMetadataBytes) }]
  const event_type = productEvents.get(event)
  if (event_type !== undefined)
    return types.has(event_type)
      ? [{ event_type, product_id, metadata: factsOf(facts, maxMetadataBytes) }]
      : []
  if (event !== "Order Completed" || !Array.isArray(products)) return []
  // The id of the order stands first, so that a refund finds it.
  const order = factsOf({ order_id: properties.order_id, ...facts }, maxOrderBytes)
  return products.map(objectOf).map(({ order_id: _, product_id, ...facts }) => ({
    event_type: "product_purchase",
    product_id,
    metadata: factsOf({ ...order, ...facts }, maxMetadataBytes),
  }))
}

const isId = Schema.is(Schema.typeSchema(UserId))
const idOf = (value: unknown): string | undefined => {
  const text = typeof value === "number" ? String(value) : value
  return isId(text) ? text : undefined
}

const refundOf = (user: unknown, { order_id: order, products }: Json): OrderRefund | Ignored => {
  const [user_id, order_id] = [idOf(user), orderIdOf(order)]
  const refunded = Array.isArray(products) ? products.map((one) => idOf(objectOf(one).product_id)) : []
  if (user_id === undefined || order_id === undefined) return "invalid"
  const known = refunded.filter((id) => id !== undefined)
  // No product at all means the whole order. So a product that no purchase can have must not leave an empty list.
  return known.length === 0 && refunded.length > 0 ? "invalid" : { user_id, order_id, products: known }
}

const mergeOf = (user: unknown, other: unknown, now: number): Submission | Ignored => {
  if (!user || !other || user === other) return "no_meaning"
  const [user_id, reference] = [idOf(user), idOf(other)]
  if (user_id === undefined || reference === undefined) return "invalid"
  const interaction = merge(user_id, reference, new Date(now).toISOString())
  return { interaction, idempotencyKey: null, occurredAtGiven: false }
}

/** `now` is Unix ms. */
export const meaningOf = (call: unknown, now: number, types: EventTypes): ReadonlyArray<Meant> => {
  const { anonymousId, event, messageId, previousId, properties, timestamp, type, userId } = objectOf(call)
  const user_id = userId || anonymousId
  if (type === "identify" || type === "alias") return [mergeOf(userId, previousId || anonymousId, now)]
  if (type !== "track") return ["no_meaning"]
  const { products } = objectOf(properties)
  if (Array.isArray(products) && products.length > maxProducts) return ["invalid"]
  if (takingBack.has(event)) return [refundOf(user_id, objectOf(properties))]
  const items = itemsOf(event, objectOf(properties), types)
  if (items.length === 0) return ["no_meaning"]
  const given = typeof timestamp === "string" ? canonicalTimestamp(timestamp) : undefined
  // Clocks of clients run ahead.
  const occurred_at = given !== undefined && Date.parse(given) <= now ? given : undefined
  return items.map((item) => {
    const isOfOrder = item.event_type === "product_purchase" && messageId
    const idempotency_key = isOfOrder ? `${messageId}:${item.product_id}` : messageId
    const decoded = ofBulkItem({ ...item, user_id, occurred_at, idempotency_key }, now, types)
    return Either.isRight(decoded) && "interaction" in decoded.right ? decoded.right : "invalid"
  })
}
