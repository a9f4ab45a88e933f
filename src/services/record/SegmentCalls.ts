/** What the calls of Segment's tracking API mean here. A call without a meaning is counted by the reason. */
import { Either, Predicate } from "effect"
import type { EventTypes } from "../model/EventTypes.ts"
import { canonicalTimestamp, type Metadata, maxMetadataBytes } from "../model/Interaction.ts"
import type { Submission } from "./InteractionRecorder.ts"
import { ofBulkItem } from "./Submission.ts"

type Json = Readonly<Record<string, unknown>>

/** Why a call changes nothing: no meaning here, an id or phrase that is refused, or a key of another interaction. */
export type Ignored = "no_meaning" | "invalid" | "key_reused"

/** Events of Segment's e-commerce specification about one product. */
const productEvents: ReadonlyMap<unknown, string> = new Map([
  ["Product Viewed", "product_view"],
  ["Product Clicked", "product_click"],
  ["Product Added", "add_to_cart"],
])

const objectOf = (value: unknown): Json => (Predicate.isRecord(value) ? value : {})
const isFact = (value: unknown): value is string | number | boolean =>
  typeof value === "string" ? value.isWellFormed() : typeof value === "boolean" || Number.isFinite(value)

/** The properties that metadata can hold, up to a size as JSON. Nested and larger ones are left out. */
const factsOf = (properties: Json, maxBytes: number): Metadata => {
  const facts: Record<string, string | number | boolean> = {}
  let bytes = 2
  for (const [key, value] of Object.entries(properties)) {
    if (!isFact(value) || !key.isWellFormed() || key === "__proto__") continue
    const size = Buffer.byteLength(JSON.stringify({ [key]: value }))
    if (bytes + size > maxBytes) continue
    facts[key] = value
    bytes += size
  }
  return facts
}
/** Each product of an order repeats the facts of the order. */
const maxOrderBytes = 512

/** The items of the bulk route that a tracked event means. */
const itemsOf = (event: unknown, properties: Json, types: EventTypes): ReadonlyArray<Json> => {
  const { product_id, products, query, ...facts } = properties
  const metadata = factsOf(facts, maxMetadataBytes)
  if (event === "Products Searched") return [{ event_type: "search", search_phrase: query, metadata }]
  const event_type = productEvents.get(event)
  if (event_type !== undefined) return types.has(event_type) ? [{ event_type, product_id, metadata }] : []
  if (event !== "Order Completed" || !Array.isArray(products)) return []
  const order = factsOf(facts, maxOrderBytes)
  return products.map(objectOf).map(({ product_id, ...facts }) => ({
    event_type: "product_purchase",
    product_id,
    metadata: factsOf({ ...order, ...facts }, maxMetadataBytes),
  }))
}

/** What a call means: interactions, or why not. `now` is Unix ms. */
export const meaningOf = (
  call: unknown,
  now: number,
  types: EventTypes,
): ReadonlyArray<Submission | Ignored> => {
  const { anonymousId, event, messageId, properties, timestamp, type, userId } = objectOf(call)
  const items = type === "track" ? itemsOf(event, objectOf(properties), types) : []
  if (items.length === 0) return ["no_meaning"]
  const given = typeof timestamp === "string" ? canonicalTimestamp(timestamp) : undefined
  // Clocks of clients run ahead.
  const occurred_at = given !== undefined && Date.parse(given) <= now ? given : undefined
  return items.map((item) => {
    const decoded = ofBulkItem(
      {
        ...item,
        user_id: userId || anonymousId,
        occurred_at,
        idempotency_key:
          event === "Order Completed" && messageId ? `${messageId}:${item.product_id}` : messageId,
      },
      now,
      types,
    )
    return Either.isRight(decoded) && "interaction" in decoded.right ? decoded.right : "invalid"
  })
}
