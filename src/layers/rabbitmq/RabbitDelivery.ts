/** An interaction that came from RabbitMQ, and the channel on which it is to be acknowledged. */
import type { Channel, ConsumeMessage } from "amqplib"
import { type Delivery, quarantineQueue } from "../../services/ports/InteractionQueue.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import { type BatchEntry, entriesOf, type Headers, instant, messageIdOf, text } from "./RabbitMessages.ts"

const count = (value: unknown): number =>
  typeof value === "number" && Number.isSafeInteger(value) && value > 0 ? value : 0

/** An interaction held; anyone may have written the headers of its message, so garbage in them counts as absent. */
export class RabbitDelivery implements Delivery {
  readonly subscription: AckTracker
  readonly message: ConsumeMessage
  readonly body: Uint8Array
  readonly routingKey: string
  readonly trace: TraceContext | null
  readonly retryCount: number
  readonly quarantineAttempts: number
  readonly redeliveries: number
  readonly quarantined: boolean
  readonly publishedAt: number | null
  readonly recordedAt: number | null
  settled = false

  constructor(subscription: AckTracker, message: ConsumeMessage, { body, recordedAt, trace }: BatchEntry) {
    const { fields, properties } = message
    const headers: Headers = properties.headers ?? {}
    this.subscription = subscription
    this.message = message
    this.body = body
    this.routingKey = text(headers["x-original-routing-key"]) ?? fields.routingKey
    this.trace = trace
    this.retryCount = count(headers["x-retry-count"])
    this.quarantineAttempts = count(headers["x-isolated-attempts"])
    this.redeliveries = count(headers["x-delivery-count"])
    this.quarantined = subscription.queue === quarantineQueue
    this.publishedAt = instant(headers["x-published-at"])
    this.recordedAt = recordedAt
  }

  get messageId(): string | null {
    return messageIdOf(this.message, this)
  }

  get tag(): number {
    return this.message.fields.deliveryTag
  }
}

/** One consuming channel and what is not settled on it. */
export class AckTracker {
  readonly queue: string
  /** Interactions not settled. */
  unsettled = 0
  /** How many of them came with each delivery tag, in the order of arrival. */
  private readonly outstanding = new Map<number, number>()
  private readonly channel: Channel
  /** Messages that may be unacknowledged. */
  private readonly prefetch: number

  constructor(queue: string, channel: Channel, prefetch: number) {
    this.queue = queue
    this.channel = channel
    this.prefetch = prefetch
  }

  get full(): boolean {
    return this.outstanding.size >= this.prefetch
  }

  receive(message: ConsumeMessage): ReadonlyArray<RabbitDelivery> {
    const held = entriesOf(message).map((line) => new RabbitDelivery(this, message, line))
    this.outstanding.set(message.fields.deliveryTag, held.length)
    this.unsettled += held.length
    return held
  }

  holds({ settled, subscription, tag }: RabbitDelivery): boolean {
    return subscription === this && !settled && this.outstanding.has(tag)
  }

  /** A message goes with the last of its interactions; those before the earliest outstanding one go by one frame. */
  acknowledge(deliveries: ReadonlyArray<RabbitDelivery>): void {
    const done: Array<ConsumeMessage> = []
    for (const delivery of deliveries) {
      if (!this.holds(delivery)) continue
      delivery.settled = true
      this.unsettled -= 1
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
      // The channel is closing: everything on it is delivered again.
    }
  }

  /** The channel is gone: everything on it is delivered again. */
  forget(): void {
    this.outstanding.clear()
    this.unsettled = 0
  }
}
