/** The events for all contestants: product interactions of about 400 bytes, the same in every run. */
import { make } from "../../src/services/model/Interaction.ts"

/** A part of the endless sequence of events. Every number gives another event with a time of its own. */
export interface Range {
  readonly from: number
  readonly count: number
  readonly users: number
  readonly products: number
  /** Time of event 0, Unix ms. */
  readonly epoch: number
}

/** A well mixed number from an index (the finaliser of MurmurHash3). */
const mixed = (index: number): number => {
  let h = Math.imul(index ^ (index >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

const actions = ["view", "view", "view", "click", "click", "purchase"] as const

export const productId = (index: number): string => `product-${index}`

/** The vector of a product: an arbitrary direction, the same in every run. */
export const productVector = (index: number, dimensions: number): Float32Array =>
  Float32Array.from({ length: dimensions }, (_, i) => mixed(index * 8191 + i) / 2 ** 31 - 1)

export const event = ({ epoch, products, users }: Range, number: number) => {
  const user = mixed(number) % users
  const action = actions[mixed(number + 7) % actions.length]!
  return {
    user_id: `user-${user}`,
    product_id: productId(mixed(number + 13) % products),
    action,
    occurred_at: new Date(epoch + number).toISOString(),
    metadata: {
      device: "mobile",
      channel: "newsletter-2026-autumn",
      category: "kitchen-and-dining",
      session_id: `5f0c1d7e-9a3b-4c52-8d61-${user.toString(16).padStart(12, "0")}`,
    },
  }
}

export type Event = ReturnType<typeof event>

export const body = ({ metadata, occurred_at }: Event): string => JSON.stringify({ occurred_at, ...metadata })

export const bulkItem = ({ action, metadata, occurred_at, product_id, user_id }: Event) => ({
  user_id,
  event_type: `product_${action}` as const,
  product_id,
  occurred_at,
  metadata,
})

export const interaction = (of: Event) => make(bulkItem(of))
