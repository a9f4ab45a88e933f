/**
 * The queue on RabbitMQ: publishing in a confirm window, consuming with prefetch, acknowledging many at once. The
 * consumer survives lost connections: what was held on the lost one is forgotten here and delivered again.
 */
import { randomUUID } from "node:crypto"
import { hostname } from "node:os"
import type { Channel, ConsumeMessage } from "amqplib"
import { Clock, Deferred, Effect, Layer, Random, Schedule } from "effect"
import {
  type Consumer,
  type Delivery,
  exchange,
  failedQueue,
  InteractionQueue,
  InteractionQueueError,
  type Message,
  queue,
  retryQueue,
  routingKey,
  type Settled,
  type Settlement,
} from "../services/InteractionQueue.ts"
import * as RetryPolicies from "../services/RetryPolicies.ts"
import type { TraceContext } from "../services/Telemetry.ts"
import { call, type Outgoing, openChannel, Rabbit, RabbitError } from "./Rabbit.ts"
import * as RabbitTopology from "./RabbitTopology.ts"

/** How soon a copy that could not be parked is tried again. */
const parkingInterval = Schedule.spaced("2 seconds")
const longestErrorText = 1024

const header = (message: ConsumeMessage, name: string): unknown => message.properties.headers?.[name]
const numberIn = (message: ConsumeMessage, name: string): number | null => {
  const value = header(message, name)
  return typeof value === "number" && Number.isFinite(value) ? value : null
}
const textIn = (message: ConsumeMessage, name: string): string | null => {
  const value = header(message, name)
  return typeof value === "string" ? value : null
}
const countIn = (message: ConsumeMessage, name: string): number =>
  Math.max(0, Math.trunc(numberIn(message, name) ?? 0))

/** One consuming channel and what is not settled on it. */
class Session {
  /** By delivery tag in order of arrival: whether it may be acknowledged. */
  readonly outstanding = new Map<number, boolean>()
  readonly channel: Channel
  constructor(channel: Channel) {
    this.channel = channel
  }

  /** Acknowledges with as few frames as the order allows. */
  acknowledge(tags: ReadonlyArray<number>): void {
    for (const tag of tags) if (this.outstanding.has(tag)) this.outstanding.set(tag, true)
    let last: number | undefined
    for (const [tag, done] of this.outstanding) {
      if (!done) break
      this.outstanding.delete(tag)
      last = tag
    }
    try {
      if (last !== undefined) this.ack(last, true)
      for (const tag of tags)
        if (this.outstanding.get(tag) === true) {
          this.outstanding.delete(tag)
          this.ack(tag, false)
        }
    } catch {
      // The channel is closed: everything on it is delivered again.
      this.outstanding.clear()
    }
  }

  private ack(deliveryTag: number, upTo: boolean) {
    const fields = { deliveryTag, redelivered: false, exchange: "", routingKey: "", consumerTag: "" }
    this.channel.ack({ content: Buffer.alloc(0), fields, properties: emptyProperties }, upTo)
  }
}
const emptyProperties: ConsumeMessage["properties"] = {
  contentType: undefined,
  contentEncoding: undefined,
  headers: undefined,
  deliveryMode: undefined,
  priority: undefined,
  correlationId: undefined,
  replyTo: undefined,
  expiration: undefined,
  messageId: undefined,
  timestamp: undefined,
  type: undefined,
  userId: undefined,
  appId: undefined,
  clusterId: undefined,
}

class RabbitDelivery implements Delivery {
  readonly session: Session
  readonly message: ConsumeMessage
  readonly routingKey: string
  readonly retryCount: number
  readonly isolatedAttempts: number
  readonly redeliveries: number
  readonly publishedAt: number | null
  readonly recordedAt: number | null
  constructor(session: Session, message: ConsumeMessage) {
    this.session = session
    this.message = message
    this.routingKey = textIn(message, "x-original-routing-key") ?? message.fields.routingKey
    this.retryCount = countIn(message, "x-retry-count")
    this.isolatedAttempts = countIn(message, "x-isolated-attempts")
    this.redeliveries = countIn(message, "x-delivery-count")
    this.publishedAt = numberIn(message, "x-published-at")
    this.recordedAt = numberIn(message, "x-recorded-at")
  }
  get body(): Uint8Array {
    return this.message.content
  }
  get messageId(): string | null {
    const { messageId } = this.message.properties
    return typeof messageId === "string" ? messageId : null
  }
  get trace(): TraceContext | null {
    const traceparent = textIn(this.message, "traceparent")
    return traceparent === null ? null : { traceparent, tracestate: textIn(this.message, "tracestate") }
  }
  get tag(): number {
    return this.message.fields.deliveryTag
  }
}

const toOutgoing = ({ body, eventType, messageId, recordedAt, trace }: Message, now: number): Outgoing => ({
  exchange,
  routingKey: routingKey(eventType),
  body,
  options: {
    contentType: "application/json",
    deliveryMode: 2,
    messageId,
    timestamp: Math.floor(now / 1000),
    appId: "user-embeddings",
    type: eventType,
    headers: {
      ...(trace === null ? {} : { traceparent: trace.traceparent }),
      ...(trace?.tracestate ? { tracestate: trace.tracestate } : {}),
      "x-retry-count": 0,
      "x-published-at": now,
      "x-recorded-at": recordedAt,
    },
  },
})

const worker = `${hostname()}:${process.pid}`

/** The copy that goes on to the ladder, to `failed`, or back to be handled alone: same bytes, same properties. */
const copyOf = (
  delivery: RabbitDelivery,
  settlement: Exclude<Settlement, { readonly _tag: "Ack" }>,
  now: number,
  jitter: number,
): Outgoing => {
  const { content, properties } = delivery.message
  const { headers: given, messageId } = properties
  const original = { contentType: "application/json", deliveryMode: 2, appId: "user-embeddings" } as const
  const options = {
    ...original,
    // Returned copies are told apart by it, so one without gets one.
    messageId: typeof messageId === "string" ? messageId : randomUUID(),
    ...(typeof properties.timestamp === "number" ? { timestamp: properties.timestamp } : {}),
    ...(typeof properties.type === "string" ? { type: properties.type } : {}),
  }
  const { "x-death": _, "x-delivery-count": __, ...kept } = given ?? {}
  const headers = {
    ...kept,
    "x-original-exchange":
      textIn(delivery.message, "x-original-exchange") ?? delivery.message.fields.exchange,
    "x-original-routing-key": delivery.routingKey,
  }
  if (settlement._tag === "Isolate") {
    const isolated = { ...headers, "x-isolated-attempts": delivery.isolatedAttempts + 1 }
    return { exchange: "", routingKey: queue, body: content, options: { ...options, headers: isolated } }
  }
  const at = new Date(now).toISOString()
  const failed = {
    ...headers,
    "x-error": settlement.failure.error,
    "x-error-message": settlement.failure.message.slice(0, longestErrorText),
    "x-first-failed-at": textIn(delivery.message, "x-first-failed-at") ?? at,
    "x-last-failed-at": at,
    "x-worker": worker,
  }
  if (settlement._tag === "Retry") {
    const climbed = { ...failed, "x-retry-count": delivery.retryCount + 1 }
    const expiration = String(Math.round(settlement.delayMillis * jitter))
    return {
      exchange: "",
      routingKey: retryQueue(settlement.delayMillis),
      body: content,
      options: { ...options, expiration, headers: climbed },
    }
  }
  const parked = {
    ...failed,
    "x-retry-count": delivery.retryCount,
    "x-attempts": delivery.retryCount + 1,
    "x-dead-letter-id": randomUUID(),
  }
  return {
    exchange: failedQueue,
    routingKey: failedQueue,
    body: content,
    options: { ...options, headers: parked },
  }
}

const make = Effect.gen(function* () {
  const { consuming, parking, publishing } = yield* Rabbit
  const delays = yield* RabbitTopology.delays
  const sessions = new Set<Session>()

  const failing = <A>(effect: Effect.Effect<A, RabbitError>) =>
    Effect.mapError(
      effect,
      ({ cause, operation, reason }) => new InteractionQueueError({ cause, operation, reason }),
    )

  const publish = Effect.fn("publish user_events", { captureStackTrace: false })(function* (
    messages: ReadonlyArray<Message>,
  ) {
    const now = yield* Clock.currentTimeMillis
    return yield* failing(publishing.send(messages.map((message) => toOutgoing(message, now))))
  })

  const consume = Effect.fnUntraced(function* (prefetch: number) {
    const scope = yield* Effect.scope
    const arrival = yield* Effect.makeLatch(false)
    let buffer: Array<RabbitDelivery> = []

    /** Declares, consumes, and waits until the channel is gone. */
    const consumeOnce = Effect.scoped(
      Effect.gen(function* () {
        const gone = yield* Deferred.make<void>()
        const channel = yield* openChannel(yield* consuming.session)
        const session = new Session(channel)
        channel.on("close", () => Deferred.unsafeDone(gone, Effect.void))
        yield* RabbitTopology.declare(channel, delays)
        sessions.add(session)
        yield* Effect.addFinalizer(() =>
          Effect.sync(() => {
            sessions.delete(session)
            buffer = buffer.filter((delivery) => delivery.session !== session)
          }),
        )
        yield* call("consume", async () => {
          await channel.prefetch(prefetch)
          await channel.consume(queue, (message) => {
            // The broker cancels when the queue is deleted: start over and declare it again.
            if (message === null) return Deferred.unsafeDone(gone, Effect.void)
            session.outstanding.set(message.fields.deliveryTag, false)
            buffer.push(new RabbitDelivery(session, message))
            arrival.unsafeOpen()
          })
        })
        yield* Effect.logInfo("consumer.started").pipe(Effect.annotateLogs({ queue, prefetch }))
        yield* Deferred.await(gone)
        return yield* new RabbitError({
          reason: "unavailable",
          operation: "consume",
          cause: new Error("the channel was closed"),
        })
      }),
    )
    yield* consumeOnce.pipe(
      Effect.tapError((error) =>
        Effect.logWarning("consumer.waiting").pipe(
          Effect.annotateLogs({
            operation: error.operation,
            error: error.cause instanceof Error ? error.cause.message : String(error.cause),
          }),
        ),
      ),
      Effect.retry(RetryPolicies.reconnectRetry),
      Effect.forkScoped,
    )

    const take = (most: number): Effect.Effect<ReadonlyArray<Delivery>> =>
      Effect.suspend(() => {
        if (buffer.length > 0) {
          const taken = buffer.slice(0, most)
          buffer = buffer.slice(most)
          return Effect.succeed<ReadonlyArray<Delivery>>(taken)
        }
        arrival.unsafeClose()
        return Effect.flatMap(arrival.await, () => take(most))
      })

    const acknowledge = (deliveries: ReadonlyArray<RabbitDelivery>) => {
      const bySession = Map.groupBy(deliveries, ({ session }) => session)
      for (const [session, own] of bySession)
        if (sessions.has(session)) session.acknowledge(own.map(({ tag }) => tag))
    }

    type Parked = readonly [RabbitDelivery, Exclude<Settlement, { readonly _tag: "Ack" }>]

    /** Copies what can be copied and acknowledges it; answers what is still to be parked. */
    const park = Effect.fnUntraced(function* (waiting: ReadonlyArray<Parked>) {
      const alive = waiting.filter(([{ session }]) => sessions.has(session))
      const now = yield* Clock.currentTimeMillis
      const jitter = yield* Random.nextRange(0.9, 1)
      const copies = alive.map(([delivery, settlement]) => copyOf(delivery, settlement, now, jitter))
      const confirmations = yield* Effect.orElseSucceed(parking.send(copies), () => [])
      const confirmed = alive.filter((_, index) => confirmations[index] === "confirmed")
      acknowledge(confirmed.map(([delivery]) => delivery))
      return alive.filter((_, index) => confirmations[index] !== "confirmed")
    })

    const keepParking = Effect.fnUntraced(function* (waiting: ReadonlyArray<Parked>) {
      let left = waiting
      yield* Effect.logError("park.failed").pipe(
        Effect.annotateLogs({ count: left.length, detail: "kept unacknowledged and tried again" }),
      )
      const again = Effect.gen(function* () {
        left = yield* park(left)
        return left.length
      })
      yield* Effect.repeat(again, { schedule: parkingInterval, while: (count) => count > 0 })
    })

    const settle = Effect.fnUntraced(function* (settled: ReadonlyArray<Settled>) {
      const acked: Array<RabbitDelivery> = []
      const parked: Array<Parked> = []
      for (const [delivery, settlement] of settled) {
        if (!(delivery instanceof RabbitDelivery)) continue
        if (settlement._tag === "Ack") acked.push(delivery)
        else parked.push([delivery, settlement])
      }
      acknowledge(acked)
      if (parked.length === 0) return
      const left = yield* park(parked)
      if (left.length > 0) yield* Effect.forkIn(keepParking(left), scope)
    })

    return { take, settle } satisfies Consumer
  })

  const depths = failing(
    Effect.scoped(
      Effect.gen(function* () {
        const channel = yield* openChannel(yield* consuming.session)
        const look = (name: string) => call("check queue", () => channel.checkQueue(name))
        const { consumerCount: consumers, messageCount: ready } = yield* look(queue)
        const retry: Record<string, number> = {}
        for (const delay of new Set(delays)) retry[delay] = (yield* look(retryQueue(delay))).messageCount
        const failed = (yield* look(failedQueue)).messageCount
        // AMQP tells what is ready; what is held is known of this process's own consumers.
        const unacked = [...sessions].reduce((total, { outstanding }) => total + outstanding.size, 0)
        return { main: { ready, unacked, consumers }, retry, failed }
      }),
    ),
  )

  return { publish, consume, depths }
})

export const layer = Layer.effect(InteractionQueue, make)
