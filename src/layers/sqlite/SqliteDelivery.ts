/** Messages of the embedded queue as rows of `queue_messages`, and where they move when they are not acknowledged. */
import { randomUUID } from "node:crypto"
import * as MessageTraces from "../../services/MessageTraces.ts"
import {
  type Delivery,
  failedQueue,
  type NotAcked,
  nextQuarantineAttempt,
  quarantineQueue,
  queue,
  retryQueue,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import { type RecordedFailure, recorded } from "../RecordedFailure.ts"

/** The column `headers`, as JSON: what RabbitMQ stores in properties and headers. */
export interface Headers {
  readonly messageId: string
  readonly exchange: string
  readonly routingKey: string
  readonly trace: TraceContext | null
  readonly retryCount: number
  readonly isolatedAttempts: number
  readonly publishedAt: number
  /** Absent in messages of release 0.1.0. */
  readonly logId?: number | null
  readonly recordedAt: number
  /** Id of the dead letter that was retried. */
  readonly retriedFrom?: string
  readonly failed?: RecordedFailure
  /** Only in dead letters. */
  readonly letter?: { readonly id: string; readonly attempts: number }
}

export interface Row {
  readonly id: number
  readonly queue: string
  readonly available_at: number
  readonly deliveries: number
  readonly headers: string
  readonly body: Uint8Array
}

export class SqliteDelivery implements Delivery {
  readonly id: number
  readonly queue: string
  readonly headers: Headers
  readonly body: Uint8Array
  readonly redeliveries: number
  readonly quarantined: boolean
  readonly wasSetAside: boolean
  constructor({ body, deliveries, headers, id, queue }: Row) {
    this.id = id
    this.queue = queue
    this.quarantined = queue === quarantineQueue
    this.wasSetAside = queue === setAsideQueue
    this.headers = JSON.parse(headers)
    this.body = body
    this.redeliveries = deliveries - 1
  }
  get routingKey() {
    return this.headers.routingKey
  }
  get messageId() {
    return this.headers.messageId
  }
  get trace() {
    return this.headers.trace
  }
  get retryCount() {
    return this.headers.retryCount
  }
  get quarantineAttempts() {
    return this.headers.isolatedAttempts
  }
  get publishedAt() {
    return this.headers.publishedAt
  }
  get logId() {
    return this.headers.logId ?? null
  }
  get recordedAt() {
    return this.headers.recordedAt
  }
}

/** The new place of a message that is not acknowledged. `retryDelay`: 0 unless the message is retried. */
export interface Move {
  readonly delivery: SqliteDelivery
  readonly queue: string
  readonly headers: Headers
  readonly retryDelay: number
  readonly availableAt: number
}

/** `jitter`: the share of the retry delay to wait. */
export const moveOf = (delivery: SqliteDelivery, settlement: NotAcked, now: number, jitter: number): Move => {
  const to = (queue: string, changes: Partial<Headers>, retryDelay = 0): Move => ({
    delivery,
    queue,
    headers: { ...delivery.headers, ...changes },
    retryDelay,
    availableAt: now + Math.round(retryDelay * jitter),
  })
  if (settlement._tag === "Return") return to(delivery.queue, {})
  if (settlement._tag === "SetAside") return to(setAsideQueue, {})
  if (settlement._tag === "Quarantine")
    return to(quarantineQueue, { isolatedAttempts: nextQuarantineAttempt(delivery) })
  const failed = recorded(settlement.failure, delivery.headers.failed?.firstFailedAt, now)
  const attempts = delivery.retryCount + 1
  return settlement._tag === "Retry"
    ? to(queue, { failed, retryCount: attempts }, settlement.delayMillis)
    : to(failedQueue, { failed, letter: { id: randomUUID(), attempts } })
}

/** A move is traced like a published message. */
export const tracedMove = ({ delivery, queue, retryDelay }: Move): MessageTraces.Outgoing => {
  const destination = retryDelay > 0 ? retryQueue(retryDelay) : queue
  return {
    messageId: delivery.messageId,
    trace: delivery.trace,
    parent: MessageTraces.spanOf(delivery),
    destination,
    routingKey: destination,
  }
}
