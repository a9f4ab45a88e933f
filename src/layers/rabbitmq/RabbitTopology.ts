/** Exchanges and queues: how they are declared, and what is missing or not as it should be. */
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
import { call, channel, Rabbit, type RabbitError, version } from "./Rabbit.ts"
import * as RabbitManagement from "./RabbitManagement.ts"

interface QueueDeclaration {
  readonly name: string
  readonly options: Options.AssertQueue
}

/**
 * A queue that survives the loss of a broker. 4.x drops a message after 20 deliveries by default, which would punish
 * innocents and letters that were looked at often; suspects are counted by the worker instead.
 */
const lasting = (name: string, more: Readonly<Record<string, unknown>> = {}): QueueDeclaration => ({
  name,
  options: { durable: true, arguments: { "x-queue-type": "quorum", "x-delivery-limit": 100_000, ...more } },
})

/** One worker of all takes suspects, so that one suspect kills one worker at a time. */
const oneConsumer = "x-single-active-consumer"

/** A rung keeps messages for its delay and hands them back to the main queue, at least once. */
const rung = (delay: number): QueueDeclaration => ({
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
  { to: queue, from: exchange, key: "user.embedding.*" },
  { to: failedQueue, from: failedQueue, key: failedQueue },
]
const queues = (retryDelays: ReadonlyArray<number>) => [
  lasting(queue),
  lasting(quarantineQueue, { [oneConsumer]: true }),
  lasting(failedQueue),
  ...retryDelays.map(rung),
]

/** The delays of the configured ladder in ms, each once. */
export const retryDelays = Effect.map(EmbeddingConfig, ({ maxRetries, retryDelay }) =>
  Array.dedupe(RetryPolicies.retryDelays(retryDelay, maxRetries)),
)

/** Declares and binds everything; safe to repeat. Fails when something exists with other arguments. */
export const declare = (
  channel: Channel,
  retryDelays: ReadonlyArray<number>,
): Effect.Effect<void, RabbitError> =>
  call("declare topology", async () => {
    for (const { name, type } of exchanges) await channel.assertExchange(name, type, { durable: true })
    for (const { name, options } of queues(retryDelays)) await channel.assertQueue(name, options)
    for (const { from, key, to } of bindings) await channel.bindQueue(to, from, key)
  })

type Look = (channel: Channel) => Promise<unknown>

/** Passive, so that nothing is created; what exists must then bear being declared again. */
const lookAtExchange =
  ({ name, type }: (typeof exchanges)[number]): Look =>
  async (channel) => {
    await channel.checkExchange(name)
    await channel.assertExchange(name, type, { durable: true })
  }

/**
 * A quorum queue declared while its broker died can be left without a leader: it exists, and confirms nothing. The
 * counts come from the leader; where they are 0 it is asked for a message, or where it gives to one consumer only for
 * a consumer's place. A message that came just now goes back when the channel closes.
 */
const lookAtQueue =
  ({ name, options }: QueueDeclaration): Look =>
  async (channel) => {
    const { consumerCount, messageCount } = await channel.checkQueue(name)
    await channel.assertQueue(name, options)
    if (consumerCount > 0 || messageCount > 0) return
    if (options.arguments[oneConsumer] === undefined) return channel.get(name)
    const { consumerTag } = await channel.consume(name, () => {})
    return channel.cancel(consumerTag)
  }

export const dependency = Effect.gen(function* () {
  const { adminConnection: inspection } = yield* Rabbit
  const delays = yield* retryDelays
  const bound = yield* RabbitManagement.bindings
  const parts = [
    ...exchanges.map((declared) => ({ part: `exchange ${declared.name}`, look: lookAtExchange(declared) })),
    ...queues(delays).map((declared) => ({ part: `queue ${declared.name}`, look: lookAtQueue(declared) })),
  ]

  const on = <A>(use: (channel: Channel) => Effect.Effect<A, RabbitError>) =>
    Effect.scoped(
      inspection.current.pipe(
        Effect.flatMap((connection) => channel(connection)),
        Effect.flatMap(use),
      ),
    )
  const lookAt = (channel: Channel) =>
    Effect.forEach(parts, ({ look, part }) => call(`look at ${part}`, () => look(channel)), { discard: true })
  /** The broker closes a channel when the answer is no, so then each part is looked at on its own. */
  const complaints = Effect.forEach(parts, ({ look, part }) =>
    on((channel) => call(`look at ${part}`, () => look(channel))).pipe(
      Effect.as(Option.none<string>()),
      Effect.catchIf(
        ({ reason }) => reason === "not_set_up",
        () => Effect.succeedSome(part),
      ),
      Effect.catchIf(
        ({ reason }) => reason === "rejected",
        ({ cause }) => Effect.succeedSome(differently(part, cause)),
      ),
    ),
  )
  const missing = on(lookAt).pipe(
    Effect.as<ReadonlyArray<string>>([]),
    Effect.catchIf(
      ({ reason }) => reason === "not_set_up" || reason === "rejected",
      () => Effect.map(complaints, Array.getSomes),
    ),
  )

  /** What stays after `setup`: declared differently, or out of this user's reach; and what AMQP itself doesn't tell. */
  const inspect = Effect.gen(function* () {
    const stuck = yield* Effect.forEach(parts, ({ look, part }) =>
      on((channel) => call(`look at ${part}`, () => look(channel))).pipe(
        Effect.as(Option.none<Finding>()),
        Effect.catchIf(
          ({ reason }) => reason === "not_set_up",
          () => Effect.succeedNone,
        ),
        Effect.catchIf(
          ({ reason }) => reason === "rejected",
          ({ cause }) =>
            Effect.succeedSome({ problem: differently(part, cause), remedy: remedyOf(part, cause) }),
        ),
      ),
    )
    const existing = yield* bound
    const isThere = (wanted: RabbitManagement.Binding) =>
      existing?.some(({ from, key, to }) => from === wanted.from && key === wanted.key && to === wanted.to) ??
      true
    return [
      ...Array.getSomes(stuck),
      ...bindings
        .filter((wanted) => !isThere(wanted))
        .map(
          ({ from, key, to }): Finding => ({
            problem: `missing binding of queue ${to} to exchange ${from} by ${key}`,
            remedy: "run: user-embeddings setup",
          }),
        ),
    ]
  })

  const ask = <A>(effect: Effect.Effect<A, RabbitError>) =>
    Effect.mapError(
      effect,
      ({ cause, operation, reason }) =>
        new DependencyDown({
          dependency: "rabbitmq",
          detail: `${operation}: ${messageOf(cause)}`,
          remedy: reason === "rejected" ? remedyOf(operation, cause) : remedyOfConnecting(cause),
        }),
    )

  const dependency: Dependency = {
    name: "rabbitmq",
    essentialFor: ["worker", "relay"],
    ping: ask(Effect.map(inspection.current, version)),
    missing: ask(missing),
    inspect: ask(inspect),
    setup: ask(
      Effect.gen(function* () {
        yield* on((channel) => declare(channel, delays))
        yield* on(lookAt)
        return parts.map(({ part }) => part)
      }),
    ),
  }
  return dependency
})

/** All that amqplib says of a broker that closes the connection instead of opening the virtual host. */
const notLetIn = /ConnectionOpenOk/

const messageOf = (cause: unknown): string => {
  const message = cause instanceof Error ? cause.message : String(cause)
  return notLetIn.test(message) ? "there is no such virtual host, or this user may not enter it" : message
}

const differently = (part: string, cause: unknown) => `${part} as it should be (${messageOf(cause)})`

/** Of what the broker refused: it has other arguments, or the user lacks a right. */
const remedyOf = (part: string, cause: unknown): string =>
  messageOf(cause).includes("ACCESS_REFUSED") || messageOf(cause).includes("ACCESS-REFUSED")
    ? "let the user of RABBITMQ_DSN configure, write and read: rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'"
    : `another program declared it: drain it, rabbitmqctl delete_queue ${part.split(" ").at(-1)}, and run user-embeddings setup`

const remedyOfConnecting = (cause: unknown): string => {
  const message = cause instanceof Error ? cause.message : String(cause)
  if (notLetIn.test(message))
    return "correct the virtual host in RABBITMQ_DSN, or rabbitmqctl add_vhost VHOST and set_permissions"
  if (/ACCESS.REFUSED/.test(message)) return "correct user and password in RABBITMQ_DSN"
  return "start RabbitMQ, or correct host and port in RABBITMQ_DSN"
}
