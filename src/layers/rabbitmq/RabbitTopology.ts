/** Exchanges, queues and bindings, and their declaration. */
import type { Channel, ChannelModel, Options } from "amqplib"
import { Array, Effect } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { feedExchange } from "../../services/ports/EmbeddingFeed.ts"
import {
  type CompanySize,
  companySizes,
  exchange,
  failedQueue,
  partitionedRetryQueue,
  partitionQueue,
  partitionsExchange,
  quarantineQueue,
  queue,
  retryQueue,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import { call, channel, failed, type RabbitError } from "./Rabbit.ts"
import type * as RabbitManagement from "./RabbitManagement.ts"

export interface QueueDeclaration {
  readonly name: string
  readonly options: Options.AssertQueue
}

/**
 * A quorum queue. By default RabbitMQ 4 drops a message after 20 deliveries. That would lose dead letters that were
 * browsed often and messages that came with a poison message. The worker itself counts deliveries of poison messages.
 */
export const quorumQueue = (
  name: string,
  more: Readonly<Record<string, unknown>> = {},
): QueueDeclaration => ({
  name,
  options: { durable: true, arguments: { "x-queue-type": "quorum", "x-delivery-limit": 100_000, ...more } },
})

/** Only one worker receives quarantined messages, so a poison message kills one worker at a time. */
export const singleConsumer = "x-single-active-consumer"

/**
 * Quarantined messages are in a queue for the size of their company: a consumer holds no more messages of it than that,
 * so a death accuses no others. The last queue, of messages that are handled alone, has the plain name.
 */
export const quarantineQueueOf = (size: CompanySize): string =>
  size === 1 ? quarantineQueue : `${quarantineQueue}.${size}`
export const quarantineQueues = companySizes.map(quarantineQueueOf)

export interface Layout {
  /** Of the retry queues. */
  readonly delays: ReadonlyArray<number>
  /** 1: the main queue is not partitioned. */
  readonly partitions: number
  /** Whether changes of embeddings are announced. */
  readonly hasFeed?: boolean
}

/** The layout of the configuration. */
export const configured = Effect.map(
  EmbeddingConfig,
  ({ feed, maxRetries, partitions, retryDelay }): Layout => ({
    delays: Array.dedupe(RetryPolicies.retryDelays(retryDelay, maxRetries)),
    partitions,
    hasFeed: feed !== "off",
  }),
)

/** The number of queues that the exchange of partitions fills. */
export const partitionCount = ({ partitions }: Layout): number => (partitions === 1 ? 0 : partitions)
export const partitionQueues = (from: number, to: number): ReadonlyArray<string> =>
  from < to ? Array.range(from, to - 1).map(partitionQueue) : []
export const retryQueueIn = (layout: Layout) =>
  partitionCount(layout) > 0 ? partitionedRetryQueue : retryQueue

/**
 * The queues that a worker consumes: the main queue, its partitions, and those of a former, greater number of partitions.
 * `existing`: the number of partitions that exist.
 */
export const consumed = (layout: Layout, own: ReadonlyArray<number>, existing: number) => [
  queue,
  ...(partitionCount(layout) > 0 ? own.map(partitionQueue) : []),
  ...partitionQueues(partitionCount(layout), existing),
]

/** A retry queue keeps messages for its delay, then dead-letters them, at least once. */
const retryQueueOf = (
  name: string,
  delay: number,
  target: Readonly<Record<string, string>>,
): QueueDeclaration => ({
  name,
  options: {
    durable: true,
    arguments: {
      "x-queue-type": "quorum",
      "x-message-ttl": delay,
      ...target,
      "x-dead-letter-strategy": "at-least-once",
      "x-overflow": "reject-publish",
    },
  },
})

export interface ExchangeDeclaration {
  readonly name: string
  readonly type: string
  readonly options: Options.AssertExchange
}

/** Not mandatory: without a queue for them, announcements are dropped. */
export const feedDeclaration: ExchangeDeclaration = {
  name: feedExchange,
  type: "topic",
  options: { durable: true },
}

const hashType = "x-consistent-hash"
export const exchanges = (layout: Layout): ReadonlyArray<ExchangeDeclaration> => [
  { name: exchange, type: "topic", options: { durable: true } },
  { name: failedQueue, type: "direct", options: { durable: true } },
  ...(layout.hasFeed === true ? [feedDeclaration] : []),
  ...(partitionCount(layout) > 0
    ? [
        {
          name: partitionsExchange,
          type: hashType,
          options: { durable: true, arguments: { "hash-header": "user-id" } },
        },
      ]
    : []),
]

export const queues = (layout: Layout) => [
  quorumQueue(queue),
  quorumQueue(setAsideQueue),
  ...quarantineQueues.map((name) => quorumQueue(name, { [singleConsumer]: true })),
  quorumQueue(failedQueue),
  ...layout.delays.map((delay) =>
    retryQueueOf(retryQueue(delay), delay, {
      "x-dead-letter-exchange": "",
      "x-dead-letter-routing-key": queue,
    }),
  ),
  ...partitionQueues(0, partitionCount(layout)).map((name) => quorumQueue(name)),
  ...(partitionCount(layout) > 0 ? layout.delays : []).map((delay) =>
    retryQueueOf(partitionedRetryQueue(delay), delay, { "x-dead-letter-exchange": partitionsExchange }),
  ),
]

const toMain: RabbitManagement.Binding = {
  source: exchange,
  destination: queue,
  routing_key: "user.embedding.*",
}
const toPartitions: RabbitManagement.Binding = { ...toMain, destination: partitionsExchange }
/** The routing key is the weight of a partition. */
const toPartition = (name: string): RabbitManagement.Binding => ({
  source: partitionsExchange,
  destination: name,
  routing_key: "1",
})
export const bindings = (layout: Layout): ReadonlyArray<RabbitManagement.Binding> => [
  { source: failedQueue, destination: failedQueue, routing_key: failedQueue },
  ...partitionQueues(0, partitionCount(layout)).map(toPartition),
  partitionCount(layout) > 0 ? toPartitions : toMain,
]
/** Bindings of another number of partitions. Without partitions, those that exist still get their retried messages. */
const obsoleteBindings = (layout: Layout, existing: number): ReadonlyArray<RabbitManagement.Binding> => {
  if (partitionCount(layout) > 0)
    return [toMain, ...partitionQueues(partitionCount(layout), existing).map(toPartition)]
  return existing > 0 ? [toPartitions] : []
}

const bind = (channel: Channel, { destination, routing_key, source }: RabbitManagement.Binding) =>
  call(`bind ${destination}`, () =>
    destination === partitionsExchange
      ? channel.bindExchange(destination, source, routing_key)
      : channel.bindQueue(destination, source, routing_key),
  )
const unbind = (channel: Channel, { destination, routing_key, source }: RabbitManagement.Binding) =>
  call(`unbind ${destination}`, () =>
    destination === partitionsExchange
      ? channel.unbindExchange(destination, source, routing_key)
      : channel.unbindQueue(destination, source, routing_key),
  )

export const plugin = "rabbitmq_consistent_hash_exchange"
export const assertExchange = (channel: Channel, { name, options, type }: ExchangeDeclaration) =>
  call(`declare exchange ${name}`, () => channel.assertExchange(name, type, options)).pipe(
    Effect.mapError((error) =>
      // RabbitMQ closes the connection, and amqplib does not tell why.
      type === hashType && error.reason === "unavailable"
        ? failed(error.operation)(
            new Error(`RabbitMQ did not accept it: its plugin ${plugin} may be missing`),
          )
        : error,
    ),
  )

/** The number of partitions that exist. The first `known` do. */
export const countPartitions = (
  connection: ChannelModel,
  known: number,
): Effect.Effect<number, RabbitError> =>
  Effect.scoped(
    Effect.flatMap(channel(connection), (open) =>
      call(`check queue ${partitionQueue(known)}`, () => open.checkQueue(partitionQueue(known))),
    ),
  ).pipe(
    Effect.zipRight(Effect.suspend(() => countPartitions(connection, known + 1))),
    Effect.catchIf(
      ({ reason }) => reason === "not_set_up",
      () => Effect.succeed(known),
    ),
  )

/**
 * Declares and binds everything. Idempotent. Fails if something exists with other arguments. Answers the number of
 * partitions that exist. Old bindings are removed after the new ones exist, so that every message has a queue.
 */
export const declare = (connection: ChannelModel, layout: Layout) =>
  Effect.gen(function* () {
    const open = yield* channel(connection)
    yield* Effect.forEach(exchanges(layout), (one) => assertExchange(open, one))
    for (const { name, options } of queues(layout))
      yield* call(`declare queue ${name}`, () => open.assertQueue(name, options))
    yield* Effect.forEach(bindings(layout), (binding) => bind(open, binding))
    const existing = yield* countPartitions(connection, partitionCount(layout))
    yield* Effect.forEach(obsoleteBindings(layout, existing), (binding) => unbind(open, binding))
    return existing
  }).pipe(Effect.scoped)
