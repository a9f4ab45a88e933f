/** Interactions delivered by RabbitMQ, and the channels on which they are acknowledged. */
import type { Channel, ConsumeMessage } from "amqplib"
import { type Delivery, setAsideQueue } from "../../services/ports/InteractionQueue.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import { type BatchEntry, entriesOf, type Headers, instant, messageIdOf, text } from "./RabbitMessages.ts"
import { quarantineQueues } from "./RabbitTopology.ts"

const count = (value: unknown): number =>
  typeof value === "number" && Number.isSafeInteger(value) && value > 0 ? value : 0

/** One delivered interaction. Other programs may publish too, so a header of the wrong type counts as absent. */
export class RabbitDelivery implements Delivery {
  readonly body: Uint8Array
  readonly routingKey: string
  readonly trace: TraceContext | null
  readonly retryCount: number
  readonly quarantineAttempts: number
  readonly redeliveries: number
  readonly quarantined: boolean
  readonly wasSetAside: boolean
  readonly publishedAt: number | null
  readonly logId: number | null
  readonly recordedAt: number | null
  settled = false
  /** Its republish waits for a confirmation, see {@link AckTracker.block}. */
  blocked = false

  constructor(
    readonly tracker: AckTracker,
    readonly message: ConsumeMessage,
    { body, logId, recordedAt, trace }: BatchEntry,
  ) {
    const { fields, properties } = message
    const headers: Headers = properties.headers ?? {}
    this.body = body
    this.routingKey = text(headers["x-original-routing-key"]) ?? fields.routingKey
    this.trace = trace
    this.retryCount = count(headers["x-retry-count"])
    this.quarantineAttempts = count(headers["x-isolated-attempts"])
    this.redeliveries = count(headers["x-delivery-count"])
    this.quarantined = tracker.isQuarantine
    this.wasSetAside = tracker.queue === setAsideQueue
    this.publishedAt = instant(headers["x-published-at"])
    this.logId = logId
    this.recordedAt = recordedAt
  }

  get messageId(): string | null {
    return messageIdOf(this.message, this)
  }

  get tag(): number {
    return this.message.fields.deliveryTag
  }
}

/** The unacknowledged deliveries of one consuming channel. */
export class AckTracker {
  unsettled = 0
  /** Unsettled interactions whose republish is blocked. */
  private blocked = 0
  /** Number of unsettled interactions by delivery tag, in the order of arrival. */
  private readonly outstanding = new Map<number, number>()

  constructor(
    readonly queue: string,
    private readonly channel: Channel,
    private readonly prefetch: number,
  ) {}

  get full(): boolean {
    return this.outstanding.size >= this.prefetch
  }

  get isQuarantine(): boolean {
    return quarantineQueues.includes(this.queue)
  }

  /** Interactions that the worker has to settle. */
  get inHand(): number {
    return this.unsettled - this.blocked
  }

  receive(message: ConsumeMessage): ReadonlyArray<RabbitDelivery> {
    const deliveries = entriesOf(message).map((entry) => new RabbitDelivery(this, message, entry))
    this.outstanding.set(message.fields.deliveryTag, deliveries.length)
    this.unsettled += deliveries.length
    return deliveries
  }

  holds({ settled, tag, tracker }: RabbitDelivery): boolean {
    return tracker === this && !settled && this.outstanding.has(tag)
  }

  /** The worker has settled the delivery, but the broker did not confirm its republish: it stays unacknowledged. */
  block(delivery: RabbitDelivery): void {
    if (!this.holds(delivery) || delivery.blocked) return
    delivery.blocked = true
    this.blocked += 1
  }

  /**
   * A message is acknowledged with the last of its interactions. One frame acknowledges all messages before the
   * earliest outstanding one.
   */
  acknowledge(deliveries: ReadonlyArray<RabbitDelivery>): void {
    const done: Array<ConsumeMessage> = []
    for (const delivery of deliveries) {
      if (!this.holds(delivery)) continue
      delivery.settled = true
      this.unsettled -= 1
      if (delivery.blocked) this.blocked -= 1
      const left = (this.outstanding.get(delivery.tag) ?? 1) - 1
      if (left > 0) this.outstanding.set(delivery.tag, left)
      else {
        this.outstanding.delete(delivery.tag)
        done.push(delivery.message)
      }
    }
    const [earliest = Number.POSITIVE_INFINITY] = this.outstanding.keys()
    let last: ConsumeMessage | undefined
    try {
      for (const message of done) {
        const { deliveryTag } = message.fields
        if (deliveryTag > earliest) this.channel.ack(message)
        else if (last === undefined || deliveryTag > last.fields.deliveryTag) last = message
      }
      if (last !== undefined) this.channel.ack(last, true)
    } catch {
      // The channel is closing: the broker will deliver its messages again.
    }
  }

  /** Gives messages back without a republish. RabbitMQ 4.2 and older count that as a failed delivery. */
  requeue(deliveries: ReadonlyArray<RabbitDelivery>): void {
    for (const delivery of deliveries) {
      if (!this.holds(delivery)) continue
      this.unsettled -= this.outstanding.get(delivery.tag) ?? 0
      this.outstanding.delete(delivery.tag)
      try {
        this.channel.nack(delivery.message, false, true)
      } catch {
        // The channel is closing: the broker will deliver its messages again.
      }
    }
  }

  /** The channel is closed: the broker will deliver its messages again. */
  forget(): void {
    this.outstanding.clear()
    this.unsettled = 0
    this.blocked = 0
  }
}
