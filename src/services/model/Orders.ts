/** Orders of a shop. A purchase names its order in the metadata `order_id`. */
import type { Interaction } from "./Interaction.ts"

/**
 * The id of an order as text, in a call and in the metadata of a purchase; `undefined` for one that is too long. Without the
 * space around it, because MySQL takes texts for equal that differ in the space at their ends.
 */
export const orderIdOf = (value: unknown): string | undefined => {
  if (typeof value !== "number" && !(typeof value === "string" && value.isWellFormed())) return undefined
  const id = String(value).trim()
  return /^.{1,128}$/su.test(id) ? id : undefined
}

/** The order of a purchase. */
export const orderOf = ({ event_type, metadata }: Interaction): string | undefined =>
  event_type === "product_purchase" ? orderIdOf(metadata.order_id) : undefined
