/** The copies of interactions that go on: to the ladder, to `failed`, or back to be handled alone. */
import { randomUUID } from "node:crypto"
import {
  failedQueue,
  type NotAcked,
  nextQuarantineAttempt,
  quarantineQueue,
  retryQueue,
} from "../../services/ports/InteractionQueue.ts"
import { recorded } from "../RecordedFailure.ts"
import type { RabbitDelivery } from "./RabbitDelivery.ts"
import { type Headers, propertiesOf, text } from "./RabbitMessages.ts"
import { copied, type Outgoing } from "./RabbitPublisher.ts"

/**
 * The copy that goes on to the ladder, to `failed`, or back to be handled alone; its routing key will be the name of
 * a queue, so the original one goes along. `share` of the delay is waited for, at most 1.
 */
export const republish = (
  delivery: RabbitDelivery,
  settlement: NotAcked,
  now: number,
  share: number,
): Outgoing => {
  const { body, message, retryCount, routingKey } = delivery
  const properties = propertiesOf(message, delivery)
  const headers: Headers = properties.headers ?? {}
  const origin = {
    "x-original-exchange": text(headers["x-original-exchange"]) ?? message.fields.exchange,
    "x-original-routing-key": routingKey,
  }
  const to = (
    exchange: string,
    routingKey: string,
    changes: Readonly<Record<string, string | number>>,
  ): Outgoing => ({
    exchange,
    routingKey,
    body,
    options: copied({ properties }, { ...origin, ...changes }),
  })
  if (settlement._tag === "Quarantine")
    return to("", quarantineQueue, { "x-isolated-attempts": nextQuarantineAttempt(delivery) })

  const failed = recorded(settlement.failure, text(headers["x-first-failed-at"]), now)
  const failure = {
    "x-error": failed.error,
    "x-error-message": failed.message,
    "x-first-failed-at": failed.firstFailedAt,
    "x-last-failed-at": failed.lastFailedAt,
    "x-worker": failed.worker,
  }
  if (settlement._tag === "DeadLetter")
    return to(failedQueue, failedQueue, {
      ...failure,
      "x-dead-letter-id": randomUUID(),
      "x-retry-count": retryCount,
      "x-attempts": retryCount + 1,
    })
  const copy = to("", retryQueue(settlement.delayMillis), { ...failure, "x-retry-count": retryCount + 1 })
  const expiration = String(Math.round(settlement.delayMillis * share))
  return { ...copy, options: { ...copy.options, expiration } }
}
