/** Republishing interactions that are not acknowledged: to a retry queue, to `failed`, to quarantine, or as they were. */
import { randomUUID } from "node:crypto"
import { Array as Arr, Clock, Effect, Random } from "effect"
import * as MessageTraces from "../../services/MessageTraces.ts"
import {
  companySize,
  failedQueue,
  type NotAcked,
  nextQuarantineAttempt,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import { described } from "../../services/Telemetry.ts"
import { recorded } from "../RecordedFailure.ts"
import type { RabbitDelivery } from "./RabbitDelivery.ts"
import type { RabbitIntake } from "./RabbitIntake.ts"
import { type Headers, propertiesOf, text } from "./RabbitMessages.ts"
import { type Outgoing, type Publisher, publishTraced, republished } from "./RabbitPublisher.ts"
import { quarantineQueueOf } from "./RabbitTopology.ts"

/**
 * The message that replaces a delivery. It is routed by the name of a queue, so headers keep the original exchange and
 * routing key. `jitter`: the share of the retry delay to wait, at most 1.
 */
const toRepublish = (
  delivery: RabbitDelivery,
  settlement: NotAcked,
  now: number,
  jitter: number,
  retryQueue: (delayMillis: number) => string,
) => {
  const { body, message, retryCount, routingKey } = delivery
  const properties = propertiesOf(message, delivery)
  const headers: Headers = properties.headers ?? {}
  const origin = {
    "x-original-exchange": text(headers["x-original-exchange"]) ?? message.fields.exchange,
    "x-original-routing-key": routingKey,
  }
  const to = (exchange: string, routingKey: string, changes: Readonly<Record<string, string | number>>) => {
    const options = republished({ properties }, { ...origin, ...changes })
    return { exchange, routingKey, body, options } satisfies Outgoing
  }
  if (settlement._tag === "Return") return to("", delivery.tracker.queue, {})
  if (settlement._tag === "SetAside") return to("", setAsideQueue, {})
  if (settlement._tag === "Quarantine") {
    const attempt = nextQuarantineAttempt(delivery)
    return to("", quarantineQueueOf(companySize(attempt)), { "x-isolated-attempts": attempt })
  }

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
  const retry = to("", retryQueue(settlement.delayMillis), { ...failure, "x-retry-count": retryCount + 1 })
  const expiration = String(Math.round(settlement.delayMillis * jitter))
  return { ...retry, options: { ...retry.options, expiration } }
}

interface Republish {
  readonly delivery: RabbitDelivery
  readonly message: Outgoing
  /** Without a confirmation the delivery goes back as it is, because nothing about it changes. */
  readonly mayRequeue: boolean
}

/** Republishes deliveries of one consumer. Each is acknowledged when the broker has confirmed its republish. */
export class Republisher {
  /** Not confirmed yet. Their deliveries stay unacknowledged, so the prefetch limits their number. */
  private blocked: ReadonlyArray<Republish> = []
  private readonly anyBlocked = Effect.unsafeMakeLatch(false)

  constructor(
    private readonly publisher: Publisher,
    private readonly intake: RabbitIntake,
    private readonly retryQueue: (delayMillis: number) => string,
  ) {}

  /** Republishes once. What the broker does not confirm is left to {@link retryBlocked}. */
  readonly republish = Effect.fnUntraced(function* (
    this: Republisher,
    notAcked: ReadonlyArray<readonly [RabbitDelivery, NotAcked]>,
  ) {
    const now = yield* Clock.currentTimeMillis
    const left = yield* this.attempt(
      yield* Effect.forEach(notAcked, ([delivery, settlement]) =>
        Effect.map(Random.nextRange(0.9, 1), (jitter) => ({
          delivery,
          message: toRepublish(delivery, settlement, now, jitter, this.retryQueue),
          mayRequeue: settlement._tag === "Return",
        })),
      ),
    )
    if (left.length === 0) return
    const [blocked, returned] = Arr.partition(left, ({ mayRequeue }) => mayRequeue)
    this.intake.requeue(returned.map(({ delivery }) => delivery))
    if (blocked.length === 0) return
    this.blocked = [...this.blocked, ...blocked]
    this.anyBlocked.unsafeOpen()
    this.intake.block(blocked.map(({ delivery }) => delivery))
  })

  /** Tries blocked republishes again until the broker has confirmed all of them. */
  readonly retryBlocked = Effect.gen(this, function* () {
    yield* this.anyBlocked.await
    yield* Effect.annotateLogs(Effect.logError("republish.blocked"), {
      count: this.blocked.length,
      detail: "the messages stay unacknowledged; publishing them is tried again",
    })
    const again = Effect.gen(this, function* () {
      const tried = this.blocked
      const left = yield* this.attempt(tried)
      this.blocked = [...left, ...this.blocked.slice(tried.length)]
      return this.blocked.length === 0
    })
    yield* Effect.repeat(again, { schedule: RetryPolicies.reconnectRetry, until: (done) => done })
    this.anyBlocked.unsafeClose()
    yield* Effect.logInfo("republish.unblocked")
  })

  /** Publishes, acknowledges the deliveries whose republish was confirmed, and returns the others. */
  private readonly attempt = Effect.fnUntraced(function* (
    this: Republisher,
    republishes: ReadonlyArray<Republish>,
  ) {
    const held = republishes.filter(({ delivery }) => delivery.tracker.holds(delivery))
    const confirmations = yield* publishTraced(
      this.publisher,
      held.map(({ message }) => message),
      held.map(({ delivery }) => MessageTraces.spanOf(delivery)),
    ).pipe(
      Effect.catchAll((error) =>
        Effect.as(Effect.annotateLogs(Effect.logDebug("republish.failed"), described(error)), []),
      ),
    )
    const isConfirmed = (_: Republish, index: number) => confirmations[index] === "confirmed"
    this.intake.acknowledge(held.filter(isConfirmed).map(({ delivery }) => delivery))
    return held.filter((one, index) => !isConfirmed(one, index))
  })
}
