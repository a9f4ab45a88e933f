/** What `setup`, `doctor` and health checks do with RabbitMQ: checks whether all parts exist with the expected arguments. */
import type { Channel } from "amqplib"
import { Array, Effect, Option } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { type Dependency, DependencyDown, type Finding } from "../../services/ports/Dependencies.ts"
import { feedExchange } from "../../services/ports/EmbeddingFeed.ts"
import { partitionsExchange, queue } from "../../services/ports/InteractionQueue.ts"
import { textOf } from "../../services/ports/PortFailure.ts"
import { call, channel, Rabbit, type RabbitError, version } from "./Rabbit.ts"
import * as RabbitManagement from "./RabbitManagement.ts"
import * as RabbitPolicies from "./RabbitPolicies.ts"
import {
  assertExchange,
  bindings,
  configured,
  countPartitions,
  declare,
  type ExchangeDeclaration,
  exchanges,
  type Layout,
  partitionCount,
  partitionQueues,
  plugin,
  type QueueDeclaration,
  queues,
  singleConsumer,
} from "./RabbitTopology.ts"

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

/** On a channel of its own. */
const onChannel = <A>(rabbit: Rabbit["Type"], use: (channel: Channel) => Effect.Effect<A, RabbitError>) =>
  Effect.scoped(
    rabbit.adminConnection.current.pipe(
      Effect.flatMap((connection) => channel(connection)),
      Effect.flatMap(use),
    ),
  )

const checkAll = (rabbit: Rabbit["Type"], parts: ReadonlyArray<Part>) =>
  onChannel(rabbit, (channel) => Effect.forEach(parts, (part) => part.check(channel), { discard: true }))

/** A refusal closes the channel, so each part is checked on a channel of its own. */
const problemsOf = (rabbit: Rabbit["Type"], parts: ReadonlyArray<Part>) =>
  Effect.forEach(parts, (part) =>
    onChannel(rabbit, (channel) => part.check(channel)).pipe(
      Effect.as(Option.none<Problem>()),
      Effect.catchIf(isProblem, ({ cause, reason }) =>
        Effect.succeedSome({ part: part.name, ...(reason === "rejected" && { refusal: cause }) }),
      ),
    ),
  ).pipe(Effect.map(Array.getSomes))

const existingPartitions = ({ adminConnection }: Rabbit["Type"]) =>
  Effect.flatMap(adminConnection.current, (connection) => countPartitions(connection, 0))

/** Partitions with messages that none of the workers consumes. */
const abandonedPartitions = (rabbit: Rabbit["Type"]) =>
  Effect.gen(function* () {
    const names = partitionQueues(0, yield* existingPartitions(rabbit))
    const found = yield* onChannel(rabbit, (channel) =>
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

const formerPartitions = (rabbit: Rabbit["Type"], layout: Layout) =>
  Effect.map(existingPartitions(rabbit), (existing) => {
    const former = partitionQueues(partitionCount(layout), existing)
    return former.length === 0
      ? []
      : [
          `${former.join(", ")}: from a greater RABBITMQ_PARTITIONS; workers consume them; delete them when they are empty`,
        ]
  })

/** The effects that ask the management API. */
const askManagement = Effect.all({
  bindings: RabbitManagement.bindings,
  policies: RabbitManagement.policies,
  operatorPolicies: RabbitManagement.operatorPolicies,
  setPolicy: RabbitPolicies.set,
})
type Management = Effect.Effect.Success<typeof askManagement>

/** Problems that `setup` does not solve: other arguments, no permission, policies; and bindings, which AMQP cannot list. */
const inspect = Effect.fnUntraced(function* (
  rabbit: Rabbit["Type"],
  management: Management,
  layout: Layout,
  parts: ReadonlyArray<Part>,
) {
  const refused = (yield* problemsOf(rabbit, parts)).filter(({ refusal }) => refusal !== undefined)
  const existing = yield* management.bindings
  const names = queues(layout).map(({ name }) => name)
  return [
    ...refused.map(
      (problem): Finding => ({
        problem: describeProblem(problem),
        remedy: remedyOf(problem.part, problem.refusal),
      }),
    ),
    ...(existing === null ? [] : missingBindings(layout, existing)),
    ...(yield* abandonedPartitions(rabbit)),
    ...RabbitPolicies.findings("policy", (yield* management.policies) ?? [], names),
    ...RabbitPolicies.findings("operator_policy", (yield* management.operatorPolicies) ?? [], names),
  ]
})

const feedNotes = {
  off: "EMBEDDING_FEED=off: changes of embeddings are not announced",
  ids: `EMBEDDING_FEED=ids: changes of embeddings are announced on the exchange ${feedExchange}, without vectors`,
  vectors: `EMBEDDING_FEED=vectors: changes of embeddings are announced on the exchange ${feedExchange}, with vectors`,
} as const

export const dependency = Effect.gen(function* () {
  const rabbit = yield* Rabbit
  const layout = yield* configured
  const { feed } = yield* EmbeddingConfig
  const management = yield* askManagement
  const { current } = rabbit.adminConnection
  const parts = [...exchanges(layout).map(exchangePart), ...queues(layout).map(queuePart)]
  const missing = checkAll(rabbit, parts).pipe(
    Effect.as<ReadonlyArray<string>>([]),
    Effect.catchIf(isProblem, () => Effect.map(problemsOf(rabbit, parts), (all) => all.map(describeProblem))),
  )
  const notes = Effect.zipWith(formerPartitions(rabbit, layout), management.policies, (former, all) => [
    RabbitPolicies.consumerTimeoutNote(all, queue),
    feedNotes[feed],
    ...former,
  ])
  const setup = Effect.gen(function* () {
    // Before the queues: it chooses the nodes of their leaders.
    const hasPolicy = yield* management.setPolicy
    yield* Effect.flatMap(current, (connection) => declare(connection, layout))
    yield* checkAll(rabbit, parts)
    return [...parts.map(({ name }) => name), ...(hasPolicy ? [RabbitPolicies.part] : [])]
  })
  return {
    name: "rabbitmq",
    essentialFor: ["worker", "relay"],
    // A channel asks the broker. The connection alone is believed to be open until its heartbeats fail.
    ping: current.pipe(
      Effect.flatMap((connection) => Effect.as(channel(connection), version(connection))),
      Effect.scoped,
      Effect.mapError(toDependencyDown),
    ),
    missing: Effect.mapError(missing, toDependencyDown),
    inspect: Effect.mapError(inspect(rabbit, management, layout, parts), toDependencyDown),
    notes: Effect.mapError(notes, toDependencyDown),
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
