/** Exchanges and queues: their declaration, and checks whether they exist with the expected arguments. */
import type { Channel, ChannelModel, Options } from "amqplib"
import { Array, Effect, Option } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { type Dependency, DependencyDown, type Finding } from "../../services/ports/Dependencies.ts"
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
import { textOf } from "../../services/ports/PortFailure.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import { call, channel, failed, Rabbit, type RabbitError, version } from "./Rabbit.ts"
import * as RabbitManagement from "./RabbitManagement.ts"
import * as RabbitPolicies from "./RabbitPolicies.ts"

interface QueueDeclaration {
  readonly name: string
  readonly options: Options.AssertQueue
}

/**
 * A quorum queue. By default RabbitMQ 4 drops a message after 20 deliveries. That would lose dead letters that were
 * browsed often and messages that came with a poison message. The worker itself counts deliveries of poison messages.
 */
const quorumQueue = (name: string, more: Readonly<Record<string, unknown>> = {}): QueueDeclaration => ({
  name,
  options: { durable: true, arguments: { "x-queue-type": "quorum", "x-delivery-limit": 100_000, ...more } },
})

/** Only one worker receives quarantined messages, so a poison message kills one worker at a time. */
const singleConsumer = "x-single-active-consumer"

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
}

/** The layout of the configuration. */
export const configured = Effect.map(
  EmbeddingConfig,
  ({ maxRetries, partitions, retryDelay }): Layout => ({
    delays: Array.dedupe(RetryPolicies.retryDelays(retryDelay, maxRetries)),
    partitions,
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

interface ExchangeDeclaration {
  readonly name: string
  readonly type: string
  readonly options: Options.AssertExchange
}

const hashType = "x-consistent-hash"
const exchanges = (layout: Layout): ReadonlyArray<ExchangeDeclaration> => [
  { name: exchange, type: "topic", options: { durable: true } },
  { name: failedQueue, type: "direct", options: { durable: true } },
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

const queues = (layout: Layout) => [
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
const bindings = (layout: Layout): ReadonlyArray<RabbitManagement.Binding> => [
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

const plugin = "rabbitmq_consistent_hash_exchange"
const assertExchange = (channel: Channel, { name, options, type }: ExchangeDeclaration) =>
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
const countPartitions = (connection: ChannelModel, known: number): Effect.Effect<number, RabbitError> =>
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

interface Part {
  readonly name: string
  readonly check: (channel: Channel) => Effect.Effect<unknown, RabbitError>
}

/** A passive check creates nothing. Declaring what exists then shows whether its arguments are as expected. */
const exchangePart = (declaration: ExchangeDeclaration): Part => ({
  name: `exchange ${declaration.name}`,
  check: (channel) =>
    Effect.zipRight(
      call(`check exchange ${declaration.name}`, () => channel.checkExchange(declaration.name)),
      assertExchange(channel, declaration),
    ),
})

/**
 * A quorum queue that was declared while its broker died may be without a leader: it exists, but confirms nothing. Only a
 * leader reports counts above 0. Otherwise the queue is asked for a message, or, if it allows one consumer only, for the
 * place of a consumer. A message that is returned goes back when the channel closes.
 */
const queuePart = ({ name, options }: QueueDeclaration): Part => ({
  name: `queue ${name}`,
  check: (channel) =>
    call(`check queue ${name}`, async () => {
      const { consumerCount, messageCount } = await channel.checkQueue(name)
      await channel.assertQueue(name, options)
      if (consumerCount > 0 || messageCount > 0) return
      if (options.arguments[singleConsumer] === undefined) return channel.get(name)
      const { consumerTag } = await channel.consume(name, () => {})
      return channel.cancel(consumerTag)
    }),
})

/** A part with a problem: it is missing, or the broker refuses the declaration. */
interface Problem {
  readonly part: string
  /** `undefined`: the part is missing. */
  readonly refusal?: unknown
}

const describeProblem = ({ part, refusal }: Problem): string =>
  refusal === undefined ? part : `${part} as it should be (${messageOf(refusal)})`

const isProblem = ({ reason }: RabbitError): boolean => reason === "not_set_up" || reason === "rejected"

const describeBinding = ({ destination, routing_key, source }: RabbitManagement.Binding): string =>
  `${destination === partitionsExchange ? "exchange" : "queue"} ${destination} to exchange ${source} by ${routing_key}`

const missingBindings = (
  layout: Layout,
  existing: ReadonlyArray<RabbitManagement.Binding>,
): ReadonlyArray<Finding> =>
  Array.difference(bindings(layout).map(describeBinding), existing.map(describeBinding)).map((binding) => ({
    problem: `missing binding of ${binding}`,
    remedy: "run: user-embeddings setup",
  }))

const toDependencyDown = ({ cause, operation, reason }: RabbitError) =>
  new DependencyDown({
    dependency: "rabbitmq",
    detail: `${operation}: ${messageOf(cause)}`,
    remedy: reason === "rejected" ? remedyOf(operation, cause) : remedyOfConnecting(cause),
  })

export const dependency = Effect.gen(function* () {
  const { adminConnection } = yield* Rabbit
  const layout = yield* configured
  const existingBindings = yield* RabbitManagement.bindings
  const policies = yield* RabbitManagement.policies
  const operatorPolicies = yield* RabbitManagement.operatorPolicies
  const setPolicy = yield* RabbitPolicies.set
  const names = queues(layout).map(({ name }) => name)
  const parts = [...exchanges(layout).map(exchangePart), ...queues(layout).map(queuePart)]

  const onChannel = <A>(use: (channel: Channel) => Effect.Effect<A, RabbitError>) =>
    Effect.scoped(
      adminConnection.current.pipe(
        Effect.flatMap((connection) => channel(connection)),
        Effect.flatMap(use),
      ),
    )
  const checkAll = onChannel((channel) =>
    Effect.forEach(parts, (part) => part.check(channel), { discard: true }),
  )
  /** A refusal closes the channel, so each part is checked on a channel of its own. */
  const problems = Effect.forEach(parts, (part) =>
    onChannel((channel) => part.check(channel)).pipe(
      Effect.as(Option.none<Problem>()),
      Effect.catchIf(isProblem, ({ cause, reason }) =>
        Effect.succeedSome({ part: part.name, ...(reason === "rejected" && { refusal: cause }) }),
      ),
    ),
  ).pipe(Effect.map(Array.getSomes))

  const missing = checkAll.pipe(
    Effect.as<ReadonlyArray<string>>([]),
    Effect.catchIf(isProblem, () => Effect.map(problems, (all) => all.map(describeProblem))),
  )

  /** Problems that `setup` does not solve: other arguments, no permission, policies; and bindings, which AMQP cannot list. */
  const inspect = Effect.gen(function* () {
    const refused = (yield* problems).filter(({ refusal }) => refusal !== undefined)
    const existing = yield* existingBindings
    return [
      ...refused.map(
        (problem): Finding => ({
          problem: describeProblem(problem),
          remedy: remedyOf(problem.part, problem.refusal),
        }),
      ),
      ...(existing === null ? [] : missingBindings(layout, existing)),
      ...(yield* abandoned),
      ...RabbitPolicies.findings("policy", (yield* policies) ?? [], names),
      ...RabbitPolicies.findings("operator_policy", (yield* operatorPolicies) ?? [], names),
    ]
  })

  const existingPartitions = Effect.flatMap(adminConnection.current, (connection) =>
    countPartitions(connection, 0),
  )
  /** Partitions with messages that none of the workers consumes. */
  const abandoned = Effect.gen(function* () {
    const names = partitionQueues(0, yield* existingPartitions)
    const found = yield* onChannel((channel) =>
      Effect.forEach([queue, ...names], (name) =>
        call(`check queue ${name}`, () => channel.checkQueue(name)),
      ),
    )
    if ((found[0]?.consumerCount ?? 0) === 0) return []
    return found
      .filter(({ consumerCount, messageCount }) => consumerCount === 0 && messageCount > 0)
      .map(({ messageCount, queue }) => ({
        problem: `no worker consumes ${queue}, which holds ${messageCount} messages`,
        remedy: "start a worker with this partition in WORKER_PARTITIONS, or start the workers again",
      }))
  }).pipe(Effect.catchIf(isProblem, () => Effect.succeed<ReadonlyArray<Finding>>([])))

  const formerPartitions = Effect.map(existingPartitions, (existing) => {
    const former = partitionQueues(partitionCount(layout), existing)
    return former.length === 0
      ? []
      : [
          `${former.join(", ")}: from a greater RABBITMQ_PARTITIONS; workers consume them; delete them when they are empty`,
        ]
  })

  const setup = Effect.gen(function* () {
    // Before the queues: it chooses the nodes of their leaders.
    const hasPolicy = yield* setPolicy
    yield* Effect.flatMap(adminConnection.current, (connection) => declare(connection, layout))
    yield* checkAll
    return [...parts.map(({ name }) => name), ...(hasPolicy ? [RabbitPolicies.part] : [])]
  })

  return {
    name: "rabbitmq",
    essentialFor: ["worker", "relay"],
    // A channel asks the broker. The connection alone is believed to be open until its heartbeats fail.
    ping: adminConnection.current.pipe(
      Effect.flatMap((connection) => Effect.as(channel(connection), version(connection))),
      Effect.scoped,
      Effect.mapError(toDependencyDown),
    ),
    missing: Effect.mapError(missing, toDependencyDown),
    inspect: Effect.mapError(inspect, toDependencyDown),
    notes: Effect.mapError(
      Effect.zipWith(formerPartitions, policies, (former, all) => [
        RabbitPolicies.consumerTimeoutNote(all, queue),
        ...former,
      ]),
      toDependencyDown,
    ),
    setup: Effect.mapError(setup, toDependencyDown),
  } satisfies Dependency
})

/** The error of amqplib when the broker closes the connection instead of opening the virtual host. */
const virtualHostRefused = /ConnectionOpenOk/

const messageOf = (cause: unknown): string => {
  const message = textOf(cause)
  return virtualHostRefused.test(message)
    ? "there is no such virtual host, or this user may not enter it"
    : message
}

/** The broker refused a declaration: it exists with other arguments, or the user lacks a permission. */
const remedyOf = (part: string, cause: unknown): string =>
  /ACCESS.REFUSED/.test(messageOf(cause))
    ? "let the user of RABBITMQ_DSN configure, write and read: rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'"
    : `another program declared it: drain it, rabbitmqctl delete_queue ${part.split(" ").at(-1)}, and run user-embeddings setup`

const remedyOfConnecting = (cause: unknown): string => {
  const message = textOf(cause)
  if (virtualHostRefused.test(message))
    return "correct the virtual host in RABBITMQ_DSN, or rabbitmqctl add_vhost VHOST and set_permissions"
  if (message.includes(plugin))
    return `rabbitmq-plugins enable ${plugin} on every node, or RABBITMQ_PARTITIONS=1`
  if (/ACCESS.REFUSED/.test(message)) return "correct user and password in RABBITMQ_DSN"
  return "start RabbitMQ, or correct host and port in RABBITMQ_DSN"
}
