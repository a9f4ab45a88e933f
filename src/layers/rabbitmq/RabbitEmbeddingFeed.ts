/**
 * The feed of changes on RabbitMQ: a topic exchange, published to with confirms. A message that matches no queue is
 * dropped. A subscription has a queue of its own.
 */
import { randomUUID } from "node:crypto"
import type { Channel, ConsumeMessage } from "amqplib"
import { Clock, Deferred, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as Change from "../../services/model/EmbeddingChange.ts"
import {
  EmbeddingFeed,
  EmbeddingFeedError,
  feedExchange,
  type Subscription,
} from "../../services/ports/EmbeddingFeed.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { call, channel, failed, Rabbit, RabbitError } from "./Rabbit.ts"
import { make as makePublisher, type Outgoing, type Publisher, system } from "./RabbitPublisher.ts"
import { assertExchange, feedDeclaration, quorumQueue, singleConsumer } from "./RabbitTopology.ts"

const toError = portError(EmbeddingFeedError)

const toOutgoing = (change: Change.EmbeddingChange, mode: Change.FeedMode, now: number): Outgoing => {
  const routingKey = Change.routingKey(change)
  return {
    exchange: feedExchange,
    routingKey,
    body: Buffer.from(Change.encode(change, mode)),
    options: {
      mandatory: false,
      contentType: "application/json",
      deliveryMode: 2,
      timestamp: Math.floor(now / 1000),
      appId: "user-embeddings",
      type: routingKey,
    },
  }
}

const publish = (
  publisher: Publisher,
  mode: Change.FeedMode,
  changes: ReadonlyArray<Change.EmbeddingChange>,
) =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const confirmations = yield* publisher.publish(changes.map((change) => toOutgoing(change, mode, now)))
    const refused = confirmations.filter((one) => one === "nacked").length
    Telemetry.count(Telemetry.announcements("confirmed"), changes.length - refused)
    if (refused === 0) return
    Telemetry.count(Telemetry.announcements("nacked"), refused)
    const cause = new Error(`the broker confirmed ${changes.length - refused} of ${changes.length} changes`)
    return yield* new RabbitError({ reason: "unavailable", operation: "publish", cause })
  }).pipe(
    Effect.mapError(toError),
    Effect.withSpan(`publish ${feedExchange}`, {
      kind: "producer",
      captureStackTrace: false,
      attributes: {
        [Telemetry.attribute.messagingSystem]: system,
        [Telemetry.attribute.messagingOperation]: "publish",
        [Telemetry.attribute.messagingOperationType]: "send",
        [Telemetry.attribute.messagingDestination]: feedExchange,
        [Telemetry.attribute.messagingBatchCount]: changes.length,
      },
    }),
  )

/** Deliveries that a subscriber holds. */
const prefetch = 2_000
const expiresMillis = 7 * 86_400_000
const bindingKey = "user.embedding.*"

/** Messages that arrived, in order. */
class Inbox {
  private readonly arrived: Array<ConsumeMessage> = []
  private readonly arrival = Effect.unsafeMakeLatch(false)
  private last: ConsumeMessage | undefined

  constructor(
    private readonly open: Channel,
    private readonly gone: Deferred.Deferred<never, RabbitError>,
  ) {}

  add(message: ConsumeMessage): void {
    this.arrived.push(message)
    this.arrival.unsafeOpen()
  }

  take(most: number): Effect.Effect<ReadonlyArray<ConsumeMessage>, RabbitError> {
    return Effect.suspend(() => {
      const taken = this.arrived.splice(0, most)
      if (this.arrived.length === 0) this.arrival.unsafeClose()
      if (taken.length === 0) return Effect.zipRight(this.arrival.await, this.take(most))
      this.last = taken.at(-1)
      return Effect.succeed(taken)
    }).pipe(Effect.raceFirst(Deferred.await(this.gone)))
  }

  readonly acknowledge: Effect.Effect<void, RabbitError> = Effect.suspend(() => {
    const { last } = this
    if (last === undefined) return Effect.void
    this.last = undefined
    // Acknowledging on a closed channel throws at once.
    return Effect.try({ try: () => this.open.ack(last, true), catch: failed("acknowledge") })
  })
}

const decode = (messages: ReadonlyArray<ConsumeMessage>) =>
  Effect.gen(function* () {
    const changes: Array<Change.EmbeddingChange> = []
    for (const { content, fields } of messages) {
      const change = Change.decode(fields.routingKey, content.toString())
      if (change !== undefined) changes.push(change)
      else
        yield* Effect.annotateLogs(Effect.logWarning("feed.unreadable"), { routing_key: fields.routingKey })
    }
    return changes
  })

const subscribe = Effect.fnUntraced(function* (rabbit: Rabbit["Type"], name: string | undefined) {
  const connection = yield* rabbit.adminConnection.current
  const gone = yield* Deferred.make<never, RabbitError>()
  const lost = (cause: unknown = new Error("closed by the broker")) =>
    Deferred.unsafeDone(gone, Effect.fail(failed("consume")(cause)))
  const open = yield* channel(connection, lost)
  const queue = name ?? `${feedExchange}.${randomUUID()}`
  const { options } =
    name === undefined
      ? { options: { exclusive: true, autoDelete: true } }
      : quorumQueue(queue, { [singleConsumer]: true, "x-expires": expiresMillis })
  yield* assertExchange(open, feedDeclaration)
  yield* call(`declare queue ${queue}`, () => open.assertQueue(queue, options))
  yield* call(`bind ${queue}`, () => open.bindQueue(queue, feedExchange, bindingKey))
  yield* call("set the prefetch", async () => open.prefetch(prefetch))
  const inbox = new Inbox(open, gone)
  yield* call(`consume ${queue}`, () =>
    // The broker sends no message, but null, when it cancels the consumer because its queue was deleted.
    open.consume(queue, (message) => (message === null ? lost() : inbox.add(message))),
  )
  return {
    take: (most) => Effect.flatMap(Effect.mapError(inbox.take(most), toError), decode),
    acknowledge: Effect.mapError(inbox.acknowledge, toError),
  } satisfies Subscription
}, Effect.mapError(toError))

const make = Effect.gen(function* () {
  const rabbit = yield* Rabbit
  const { feed: mode } = yield* EmbeddingConfig
  const publisher: Publisher =
    mode === "off"
      ? { publish: () => Effect.succeed([]) }
      : yield* makePublisher("feed", (connection) =>
          Effect.scoped(Effect.flatMap(channel(connection), (open) => assertExchange(open, feedDeclaration))),
        )
  return EmbeddingFeed.of({
    mode,
    publish: (changes) => (changes.length === 0 ? Effect.void : publish(publisher, mode, changes)),
    subscribe: (name) => subscribe(rabbit, name),
  })
})

export const layer = Layer.scoped(EmbeddingFeed, make)
