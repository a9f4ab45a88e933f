/** A delivery as a fresh message would arrive. */
import type { Delivery } from "../../src/services/ports/InteractionQueue.ts"

export const delivery = (body: Uint8Array, more: Partial<Delivery> = {}): Delivery => ({
  body,
  routingKey: "user.embedding.search",
  messageId: null,
  trace: null,
  retryCount: 0,
  quarantineAttempts: 0,
  quarantined: false,
  redeliveries: 0,
  publishedAt: null,
  recordedAt: null,
  ...more,
})
