/** Exchanges and queues: what they are called, how they are declared, and what is missing. */
import type { Channel, Options } from "amqplib"
import { Effect } from "effect"
import { type Dependency, DependencyDown } from "../services/Dependencies.ts"
import { EmbeddingConfig } from "../services/EmbeddingConfig.ts"
import { exchange, failedQueue, queue, retryQueue } from "../services/InteractionQueue.ts"
import { ladderDelays } from "../services/RetryPolicies.ts"
import { call, Rabbit, type RabbitError } from "./Rabbit.ts"

const binding = "user.embedding.*"
const quorum = { "x-queue-type": "quorum" }
/** 4.x gives up after 20 deliveries by default, which would punish innocents; suspects are counted by us. */
const deliveryLimit = { "x-delivery-limit": 100_000 }

interface QueueDeclaration {
  readonly name: string
  readonly options: Options.AssertQueue
}

/** A rung keeps messages for its delay and gives them back to the main queue, at least once. */
const rung = (delay: number): QueueDeclaration => ({
  name: retryQueue(delay),
  options: {
    durable: true,
    arguments: {
      ...quorum,
      "x-message-ttl": delay,
      "x-dead-letter-exchange": "",
      "x-dead-letter-routing-key": queue,
      "x-dead-letter-strategy": "at-least-once",
      "x-overflow": "reject-publish",
    },
  },
})

export const queuesFor = (delays: ReadonlyArray<number>): ReadonlyArray<QueueDeclaration> => [
  { name: queue, options: { durable: true, arguments: { ...quorum, ...deliveryLimit } } },
  { name: failedQueue, options: { durable: true, arguments: { ...quorum, ...deliveryLimit } } },
  ...[...new Set(delays)].map(rung),
]

/** Declares everything; safe to repeat. */
export const declare = (channel: Channel, delays: ReadonlyArray<number>) =>
  call("declare topology", async () => {
    await channel.assertExchange(exchange, "topic", { durable: true })
    await channel.assertExchange(failedQueue, "direct", { durable: true })
    for (const { name, options } of queuesFor(delays)) await channel.assertQueue(name, options)
    await channel.bindQueue(queue, exchange, binding)
    await channel.bindQueue(failedQueue, failedQueue, failedQueue)
  })

/** The delays of the configured ladder. */
export const delays = Effect.map(EmbeddingConfig, ({ maxRetries, retryDelay }) =>
  ladderDelays(retryDelay, maxRetries),
)

export const dependency = Effect.gen(function* () {
  const { consuming } = yield* Rabbit
  const rungs = yield* delays
  const ask = <A>(effect: Effect.Effect<A, RabbitError>) =>
    Effect.mapError(
      effect,
      (error) =>
        new DependencyDown({
          dependency: "rabbitmq",
          detail: error.cause instanceof Error ? error.cause.message : String(error.cause),
          remedy: "start RabbitMQ, or mend host, user, password or virtual host in RABBITMQ_DSN",
        }),
    )

  /** A look at what is not there closes the channel, so each has one of its own. */
  const exists = (look: (channel: Channel) => Promise<unknown>) =>
    Effect.gen(function* () {
      const { connection } = yield* consuming.session
      return yield* call("check topology", async () => {
        const channel = await connection.createChannel()
        channel.on("error", () => {})
        try {
          await look(channel)
          await channel.close()
          return true
        } catch (cause) {
          if (typeof cause === "object" && cause !== null && "code" in cause && cause.code === 404)
            return false
          throw cause
        }
      })
    })

  const dependency: Dependency = {
    name: "rabbitmq",
    essentialFor: ["worker", "relay"],
    ping: ask(Effect.map(consuming.session, ({ version }) => version)),
    missing: ask(
      Effect.gen(function* () {
        const missing: Array<string> = []
        for (const name of [exchange, failedQueue])
          if (!(yield* exists((channel) => channel.checkExchange(name)))) missing.push(`exchange ${name}`)
        for (const { name } of queuesFor(rungs))
          if (!(yield* exists((channel) => channel.checkQueue(name)))) missing.push(`queue ${name}`)
        return missing
      }),
    ),
    setup: ask(
      Effect.gen(function* () {
        const { channel } = yield* consuming.session
        yield* declare(channel, rungs)
        return [
          `exchanges ${exchange}, ${failedQueue}`,
          `queues ${queuesFor(rungs)
            .map(({ name }) => name)
            .join(", ")}`,
        ]
      }),
    ),
  }
  return dependency
})
