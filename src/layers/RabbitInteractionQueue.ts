/**
 * The queue on RabbitMQ: published in a confirm window, consumed with a prefetch, acknowledged many at once. The
 * consumer survives lost connections: what it held on the lost one is forgotten and delivered again.
 */
import { randomUUID } from "node:crypto"
import { hostname } from "node:os"
import type { Channel, ChannelModel, ConsumeMessage } from "amqplib"
import { Clock, Effect, Layer, Random } from "effect"
import { EmbeddingConfig } from "../services/EmbeddingConfig.ts"
import {
  type Consumer,
  type Delivery,
  failedQueue,
  InteractionQueue,
  InteractionQueueError,
  isolatedQueue,
  type Message,
  nextIsolatedAttempt,
  queue,
  retryQueue,
  type Settled,
  type Settlement,
} from "../services/InteractionQueue.ts"
import * as MessageTraces from "../services/MessageTraces.ts"
import * as RetryPolicies from "../services/RetryPolicies.ts"
import { described, type TraceContext } from "../services/Telemetry.ts"
import { call, channel, type Lost, Rabbit, type RabbitError } from "./Rabbit.ts"
import * as RabbitManagement from "./RabbitManagement.ts"
import {
  answers,
  type Headers,
  instant,
  type Line,
  linesOf,
  messageIdOf,
  packed,
  propertiesOf,
  text,
} from "./RabbitPacks.ts"
import { copied, make as makePublisher, type Outgoing, publishTraced, system } from "./RabbitPublisher.ts"
import * as RabbitTopology from "./RabbitTopology.ts"

const failing = <A>(effect: Effect.Effect<A, RabbitError>): Effect.Effect<A, InteractionQueueError> =>
  Effect.mapError(
    effect,
    ({ cause, operation, reason }) => new InteractionQueueError({ cause, operation, reason }),
  )

const count = (value: unknown): number =>
  typeof value === "number" && Number.isSafeInteger(value) && value > 0 ? value : 0

/** An interaction held; anyone may have written the headers of its message, so garbage in them counts as absent. */
class Held implements Delivery {
  readonly subscription: Subscription
  readonly message: ConsumeMessage
  readonly body: Uint8Array
  readonly routingKey: string
  readonly trace: TraceContext | null
  readonly retryCount: number
  readonly isolatedAttempts: number
  readonly redeliveries: number
  readonly isolated: boolean
  readonly publishedAt: number | null
  readonly recordedAt: number | null
  settled = false

  constructor(subscription: Subscription, message: ConsumeMessage, { body, recordedAt, trace }: Line) {
    const { fields, properties } = message
    const headers: Headers = properties.headers ?? {}
    this.subscription = subscription
    this.message = message
    this.body = body
    this.routingKey = text(headers["x-original-routing-key"]) ?? fields.routingKey
    this.trace = trace
    this.retryCount = count(headers["x-retry-count"])
    this.isolatedAttempts = count(headers["x-isolated-attempts"])
    this.redeliveries = count(headers["x-delivery-count"])
    this.isolated = subscription.queue === isolatedQueue
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
class Subscription {
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

  receive(message: ConsumeMessage): ReadonlyArray<Held> {
    const held = linesOf(message).map((line) => new Held(this, message, line))
    this.outstanding.set(message.fields.deliveryTag, held.length)
    this.unsettled += held.length
    return held
  }

  holds({ settled, subscription, tag }: Held): boolean {
    return subscription === this && !settled && this.outstanding.has(tag)
  }

  /** A message goes with the last of its interactions; those before the earliest outstanding one go by one frame. */
  acknowledge(deliveries: ReadonlyArray<Held>): void {
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

/** Who parked a message: `x-worker`. */
const worker = `${hostname()}:${process.pid}`
const longestErrorBytes = 1024

/** As much as fits; a character cut in two is left out. */
const truncated = (message: string): string =>
  Buffer.byteLength(message) <= longestErrorBytes
    ? message
    : new TextDecoder().decode(Buffer.from(message).subarray(0, longestErrorBytes), { stream: true })

type Onward = Exclude<Settlement, { readonly _tag: "Ack" }>

/**
 * The copy that goes on to the ladder, to `failed`, or back to be handled alone; its routing key will be the name of
 * a queue, so the original one goes along. `share` of the delay is waited for, at most 1.
 */
const copyOf = (delivery: Held, settlement: Onward, now: number, share: number): Outgoing => {
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
  if (settlement._tag === "Isolate")
    return to("", isolatedQueue, { "x-isolated-attempts": nextIsolatedAttempt(delivery) })

  const at = new Date(now).toISOString()
  const failure = {
    "x-error": settlement.failure.error,
    "x-error-message": truncated(settlement.failure.message),
    "x-first-failed-at": text(headers["x-first-failed-at"]) ?? at,
    "x-last-failed-at": at,
    "x-worker": worker,
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

/** A delivery that is acknowledged once its copy is confirmed. */
interface Copied {
  readonly delivery: Held
  readonly copy: Outgoing
}

/** How long a consumer that has handled a suspect waits for the next, before it takes in others again. */
const nextSuspectWithin = "100 millis"

const make = Effect.gen(function* () {
  const { inspection, supervise } = yield* Rabbit
  const { eventsPerMessage } = yield* EmbeddingConfig
  const rungs = yield* RabbitTopology.rungs
  const subscriptions = new Set<Subscription>()
  const declare = (channel: Channel) => RabbitTopology.declare(channel, rungs)
  const publisher = yield* makePublisher("publisher", declare)

  const publish = Effect.fnUntraced(function* (messages: ReadonlyArray<Message>) {
    const now = yield* Clock.currentTimeMillis
    return yield* MessageTraces.publishing(system, messages.map(MessageTraces.update), (traces) =>
      failing(
        Effect.suspend(() => {
          const packs = packed(messages, traces, eventsPerMessage, now)
          return Effect.map(publisher.publish(packs.map(({ outgoing }) => outgoing)), (confirmations) =>
            answers(packs, confirmations),
          )
        }),
      ),
    )
  })

  const consume = Effect.fnUntraced(function* (prefetch: number) {
    const arrival = yield* Effect.makeLatch(false)
    /** Opened by what the intake may wait for: a suspect that came, a settlement. */
    const progress = yield* Effect.makeLatch(false)
    const until = (holds: () => boolean): Effect.Effect<void> =>
      Effect.suspend(() => {
        if (holds()) return Effect.void
        progress.unsafeClose()
        return Effect.zipRight(progress.await, until(holds))
      })
    let stopping = false
    const stopped = yield* Effect.makeLatch(false)
    let buffer: Array<Held> = []
    let main: Subscription | undefined
    const handOver = (delivery: Held) => {
      buffer.push(delivery)
      arrival.unsafeOpen()
    }

    /** Copies that found no way yet; their originals are unacknowledged, so the prefetch bounds them. */
    let stuck: ReadonlyArray<Copied> = []
    const inHand = (subscription: Subscription): number =>
      stuck.reduce(
        (count, { delivery }) => (subscription.holds(delivery) ? count - 1 : count),
        subscription.unsettled,
      )

    const session = (connection: ChannelModel, lost: Lost) =>
      Effect.gen(function* () {
        /** Consumes a queue on a channel of its own, until the scope closes. */
        const subscribe = Effect.fnUntraced(function* (
          from: string,
          prefetch: number,
          receive: (delivery: Held) => void,
        ) {
          let over = false
          const consuming = yield* channel(connection, (cause) => {
            if (!over) lost(cause)
          })
          const subscription = yield* Effect.acquireRelease(
            Effect.sync(() => {
              const subscription = new Subscription(from, consuming, prefetch)
              subscriptions.add(subscription)
              return subscription
            }),
            (subscription) =>
              Effect.sync(() => {
                over = true
                subscriptions.delete(subscription)
                subscription.forget()
                buffer = buffer.filter((delivery) => delivery.subscription !== subscription)
              }),
          )
          const { consumerTag } = yield* call("consume", async () => {
            await consuming.prefetch(prefetch)
            return consuming.consume(from, (message) => {
              // The broker cancels when the queue is deleted; the next session declares it again.
              if (message === null) return lost(new Error(`queue ${from} was deleted`))
              for (const delivery of subscription.receive(message)) receive(delivery)
            })
          })
          return { subscription, cancel: call("cancel", () => consuming.cancel(consumerTag)) }
        })

        yield* Effect.scoped(Effect.flatMap(channel(connection), declare))
        const suspects: Array<Held> = []
        const { subscription: isolated } = yield* subscribe(isolatedQueue, 1, (delivery) => {
          suspects.push(delivery)
          progress.unsafeOpen()
        })

        /** Takes in until a suspect comes; then all that is held is settled, and suspects come one by one. */
        const shift = Effect.gen(function* () {
          const { cancel, subscription } = yield* subscribe(
            queue,
            Math.ceil(prefetch / eventsPerMessage),
            handOver,
          )
          main = subscription
          yield* until(() => stopping || suspects.length > 0)
          yield* cancel
          if (stopping) return yield* Effect.zipRight(stopped.open, Effect.never)
          yield* until(() => inHand(subscription) === 0)
          while (suspects.length > 0) {
            handOver(suspects.shift()!)
            yield* until(() => inHand(isolated) === 0 || suspects.length > 0)
            yield* Effect.timeoutOption(
              until(() => suspects.length > 0),
              nextSuspectWithin,
            )
          }
        })
        yield* Effect.scoped(shift).pipe(
          Effect.forever,
          Effect.catchAll((error) => Effect.sync(() => lost(error))),
          Effect.forkScoped,
        )
      })
    yield* supervise("consumer", session)

    const take = (most: number): Effect.Effect<ReadonlyArray<Delivery>> =>
      Effect.suspend(() => {
        if (buffer.length > 0) {
          const taken = buffer.splice(0, most)
          progress.unsafeOpen()
          return Effect.succeed(taken)
        }
        arrival.unsafeClose()
        return Effect.zipRight(arrival.await, take(most))
      })

    const acknowledge = (deliveries: ReadonlyArray<Held>) => {
      for (const subscription of subscriptions) subscription.acknowledge(deliveries)
      progress.unsafeOpen()
    }

    /** Publishes copies, acknowledges the originals of those confirmed, and answers the others. */
    const pass = Effect.fnUntraced(function* (copies: ReadonlyArray<Copied>) {
      const held = copies.filter(({ delivery }) => delivery.subscription.holds(delivery))
      const confirmations = yield* publishTraced(
        publisher,
        held.map(({ copy }) => copy),
        held.map(({ delivery }) => MessageTraces.spanOf(delivery)),
      ).pipe(
        Effect.catchAll((error) =>
          Effect.as(Effect.annotateLogs(Effect.logDebug("copies.failed"), described(error)), []),
        ),
      )
      const confirmed = held.filter((_, index) => confirmations[index] === "confirmed")
      acknowledge(confirmed.map(({ delivery }) => delivery))
      return held.filter((_, index) => confirmations[index] !== "confirmed")
    })

    const stuckArrival = yield* Effect.makeLatch(false)
    const passStuck = Effect.gen(function* () {
      yield* stuckArrival.await
      yield* Effect.annotateLogs(Effect.logError("copies.stuck"), {
        count: stuck.length,
        detail: "kept unacknowledged and tried again",
      })
      const again = Effect.gen(function* () {
        const tried = stuck
        const left = yield* pass(tried)
        stuck = [...left, ...stuck.slice(tried.length)]
        return stuck.length === 0
      })
      yield* Effect.repeat(again, { schedule: RetryPolicies.reconnectRetry, until: (done) => done })
      stuckArrival.unsafeClose()
      yield* Effect.logInfo("copies.passed")
    })
    yield* Effect.forkScoped(Effect.forever(passStuck))

    const passOn = Effect.fnUntraced(function* (onward: ReadonlyArray<readonly [Held, Onward]>) {
      const now = yield* Clock.currentTimeMillis
      const copies = yield* Effect.forEach(onward, ([delivery, settlement]) =>
        Effect.map(Random.nextRange(0.9, 1), (share) => ({
          delivery,
          copy: copyOf(delivery, settlement, now, share),
        })),
      )
      const left = yield* pass(copies)
      if (left.length === 0) return
      stuck = [...stuck, ...left]
      stuckArrival.unsafeOpen()
      progress.unsafeOpen()
    })

    const settle = (settled: ReadonlyArray<Settled>) =>
      Effect.suspend(() => {
        const done: Array<Held> = []
        const onward: Array<readonly [Held, Onward]> = []
        for (const [delivery, settlement] of settled)
          if (!(delivery instanceof Held)) continue
          else if (settlement._tag === "Ack") done.push(delivery)
          else onward.push([delivery, settlement])
        const acknowledged = Effect.sync(() => acknowledge(done)).pipe(
          MessageTraces.acknowledging(system, done),
        )
        return onward.length === 0 ? acknowledged : Effect.zipRight(acknowledged, passOn(onward))
      })

    const stop = Effect.suspend(() => {
      stopping = true
      progress.unsafeOpen()
      return Effect.zipRight(
        stopped.await,
        until(() => buffer.length === 0),
      )
    })

    const holds = (delivery: Delivery) => delivery instanceof Held && delivery.subscription.holds(delivery)

    const full = () => main?.full ?? false

    return { take, settle, stop, holds, full } satisfies Consumer
  })

  const depths = failing(
    Effect.scoped(
      Effect.gen(function* () {
        const looking = yield* channel(yield* inspection.current)
        const look = (name: string) => call(`look at ${name}`, () => looking.checkQueue(name))
        const { consumerCount: consumers, messageCount: ready } = yield* look(queue)
        let isolated = (yield* look(isolatedQueue)).messageCount
        const retry: Record<string, number> = {}
        for (const delay of rungs) retry[delay] = (yield* look(retryQueue(delay))).messageCount
        const { messageCount: failed } = yield* look(failedQueue)
        // AMQP tells what is ready; of what is held, this process knows its own consumers' part.
        let unacked = 0
        for (const { queue: from, unsettled } of subscriptions)
          if (from === isolatedQueue) isolated += unsettled
          else unacked += unsettled
        return { main: { ready, unacked, consumers }, isolated, retry, failed }
      }),
    ),
  )

  return InteractionQueue.of({
    system,
    eventsPerMessage,
    busyBatch: Number.POSITIVE_INFINITY,
    publish,
    consume,
    depths,
    traffic: yield* RabbitManagement.traffic,
  })
})

export const layer = Layer.scoped(InteractionQueue, make)
