/** Deliveries as the queue hands them to a worker. */
import { defaults } from "../../src/services/model/EventTypes.ts"
import { decodeMessage } from "../../src/services/model/UpdateMessage.ts"
import type { Delivery } from "../../src/services/ports/InteractionQueue.ts"
import type { DecodedMessage } from "../../src/services/update/ReceivedMessage.ts"

/** The first delivery of a message. */
export const delivery = (body: Uint8Array, more: Partial<Delivery> = {}): Delivery => ({
  body,
  routingKey: "user.embedding.search",
  messageId: null,
  trace: null,
  retryCount: 0,
  quarantineAttempts: 0,
  quarantined: false,
  wasSetAside: false,
  redeliveries: 0,
  publishedAt: null,
  logId: null,
  recordedAt: null,
  ...more,
})

export const decoded = (delivery: Delivery): DecodedMessage => ({
  delivery,
  decoded: decodeMessage(delivery.body, defaults),
})
