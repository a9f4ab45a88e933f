/** Exchanges and queues: their declaration, and checks whether they exist with the expected arguments. */
import type { Channel, Options } from "amqplib"
import { Array, Effect, Option } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { type Dependency, DependencyDown, type Finding } from "../../services/ports/Dependencies.ts"
import {
  exchange,
  failedQueue,
  quarantineQueue,
  queue,
  retryQueue,
} from "../../services/ports/InteractionQueue.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import { call, channel, messageOf as messageIn, Rabbit, type RabbitError, version } from "./Rabbit.ts"
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

/** A retry queue keeps messages for its delay, then dead-letters them to the main queue, at least once. */
const retryQueueOf = (delay: number): QueueDeclaration => ({
  name: retryQueue(delay),
  options: {
    durable: true,
    arguments: {
      "x-queue-type": "quorum",
      "x-message-ttl": delay,
      "x-dead-letter-exchange": "",
      "x-dead-letter-routing-key": queue,
      "x-dead-letter-strategy": "at-least-once",
      "x-overflow": "reject-publish",
    },
  },
})

const exchanges = [
  { name: exchange, type: "topic" },
  { name: failedQueue, type: "direct" },
]
const bindings: ReadonlyArray<RabbitManagement.Binding> = [
  { source: exchange, destination: queue, routing_key: "user.embedding.*" },
  { source: failedQueue, destination: failedQueue, routing_key: failedQueue },
]
const queues = (retryDelays: ReadonlyArray<number>) => [
  quorumQueue(queue),
  quorumQueue(quarantineQueue, { [singleConsumer]: true }),
  quorumQueue(failedQueue),
  ...retryDelays.map(retryQueueOf),
]

export const retryDelays = Effect.map(EmbeddingConfig, ({ maxRetries, retryDelay }) =>
  Array.dedupe(RetryPolicies.retryDelays(retryDelay, maxRetries)),
)

/** Declares and binds everything. Idempotent. Fails if something exists with other arguments. */
export const declare = (channel: Channel, retryDelays: ReadonlyArray<number>) =>
  Effect.all(
    [
      ...exchanges.map(({ name, type }) =>
        call(`declare exchange ${name}`, () => channel.assertExchange(name, type, { durable: true })),
      ),
      ...queues(retryDelays).map(({ name, options }) =>
        call(`declare queue ${name}`, () => channel.assertQueue(name, options)),
      ),
      ...bindings.map(({ destination, routing_key, source }) =>
        call(`bind queue ${destination}`, () => channel.bindQueue(destination, source, routing_key)),
      ),
    ],
    { discard: true },
  )

interface Part {
  readonly name: string
  readonly check: (channel: Channel) => Promise<unknown>
}

/** A passive check creates nothing. Declaring what exists then shows whether its arguments are as expected. */
const exchangePart = ({ name, type }: (typeof exchanges)[number]): Part => ({
  name: `exchange ${name}`,
  check: async (channel) => {
    await channel.checkExchange(name)
    await channel.assertExchange(name, type, { durable: true })
  },
})

/**
 * A quorum queue that was declared while its broker died may be without a leader: it exists, but confirms nothing. Only a
 * leader reports counts above 0. Otherwise the queue is asked for a message, or, if it allows one consumer only, for the
 * place of a consumer. A message that is returned goes back when the channel closes.
 */
const queuePart = ({ name, options }: QueueDeclaration): Part => ({
  name: `queue ${name}`,
  check: async (channel) => {
    const { consumerCount, messageCount } = await channel.checkQueue(name)
    await channel.assertQueue(name, options)
    if (consumerCount > 0 || messageCount > 0) return
    if (options.arguments[singleConsumer] === undefined) return channel.get(name)
    const { consumerTag } = await channel.consume(name, () => {})
    return channel.cancel(consumerTag)
  },
})

const checkPart = (channel: Channel, { check, name }: Part) => call(`check ${name}`, () => check(channel))

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
  `queue ${destination} to exchange ${source} by ${routing_key}`

const missingBindings = (existing: ReadonlyArray<RabbitManagement.Binding>): ReadonlyArray<Finding> =>
  Array.difference(bindings.map(describeBinding), existing.map(describeBinding)).map((binding) => ({
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
  const delays = yield* retryDelays
  const existingBindings = yield* RabbitManagement.bindings
  const policies = yield* RabbitManagement.policies
  const operatorPolicies = yield* RabbitManagement.operatorPolicies
  const setPolicy = yield* RabbitPolicies.set
  const names = queues(delays).map(({ name }) => name)
  const parts = [...exchanges.map(exchangePart), ...queues(delays).map(queuePart)]

  const onChannel = <A>(use: (channel: Channel) => Effect.Effect<A, RabbitError>) =>
    Effect.scoped(
      adminConnection.current.pipe(
        Effect.flatMap((connection) => channel(connection)),
        Effect.flatMap(use),
      ),
    )
  const checkAll = onChannel((channel) =>
    Effect.forEach(parts, (part) => checkPart(channel, part), { discard: true }),
  )
  /** A refusal closes the channel, so each part is checked on a channel of its own. */
  const problems = Effect.forEach(parts, (part) =>
    onChannel((channel) => checkPart(channel, part)).pipe(
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
      ...(existing === null ? [] : missingBindings(existing)),
      ...RabbitPolicies.findings("policy", (yield* policies) ?? [], names),
      ...RabbitPolicies.findings("operator_policy", (yield* operatorPolicies) ?? [], names),
    ]
  })

  const setup = Effect.gen(function* () {
    // Before the queues: it chooses the nodes of their leaders.
    const hasPolicy = yield* setPolicy
    yield* onChannel((channel) => declare(channel, delays))
    yield* checkAll
    return [...parts.map(({ name }) => name), ...(hasPolicy ? [RabbitPolicies.part] : [])]
  })

  return {
    name: "rabbitmq",
    essentialFor: ["worker", "relay"],
    ping: Effect.mapError(Effect.map(adminConnection.current, version), toDependencyDown),
    missing: Effect.mapError(missing, toDependencyDown),
    inspect: Effect.mapError(inspect, toDependencyDown),
    notes: Effect.map(policies, (all) => [RabbitPolicies.consumerTimeoutNote(all, queue)]),
    setup: Effect.mapError(setup, toDependencyDown),
  } satisfies Dependency
})

/** The error of amqplib when the broker closes the connection instead of opening the virtual host. */
const virtualHostRefused = /ConnectionOpenOk/

const messageOf = (cause: unknown): string => {
  const message = messageIn(cause)
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
  const message = messageIn(cause)
  if (virtualHostRefused.test(message))
    return "correct the virtual host in RABBITMQ_DSN, or rabbitmqctl add_vhost VHOST and set_permissions"
  if (/ACCESS.REFUSED/.test(message)) return "correct user and password in RABBITMQ_DSN"
  return "start RabbitMQ, or correct host and port in RABBITMQ_DSN"
}
