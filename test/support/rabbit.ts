/** The ports on a new virtual host, and a plain client of the same broker. */
import type { Channel, GetMessage } from "amqplib"
import { Duration, Effect, Layer, Logger, LogLevel, Redacted, type Scope } from "effect"
import * as Rabbit from "../../src/layers/rabbitmq/Rabbit.ts"
import * as RabbitDeadLetters from "../../src/layers/rabbitmq/RabbitDeadLetters.ts"
import * as RabbitDependency from "../../src/layers/rabbitmq/RabbitDependency.ts"
import * as RabbitInteractionQueue from "../../src/layers/rabbitmq/RabbitInteractionQueue.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import type { DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import { Dependencies, type Dependency } from "../../src/services/ports/Dependencies.ts"
import type { InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { eventually } from "../contracts/InteractionQueueContract.ts"
import { effectTest } from "./effect.ts"
import { connectAmqp, freshRabbit, virtualHostIn } from "./servers.ts"

/** The ports on one broker, with retry delays of 200, 400 and 800 ms. */
export const ports = (dsn: string, knobs: Partial<EmbeddingConfig.Knobs> = {}) =>
  Layer.mergeAll(
    RabbitInteractionQueue.layer,
    RabbitDeadLetters.layer,
    Layer.effect(Dependencies, Effect.all([RabbitDependency.dependency])),
  ).pipe(
    Layer.provide(Rabbit.layer({ dsn: Redacted.make(dsn) })),
    Layer.provide(EmbeddingConfig.layer({ maxRetries: 3, retryDelay: Duration.millis(200), ...knobs })),
    Layer.provide(Logger.minimumLogLevel(LogLevel.None)),
  )
export const dependency = Effect.map(Dependencies, ([rabbitmq]): Dependency => rabbitmq!)

export const virtualHost = Effect.map(
  Effect.acquireRelease(
    Effect.promise(() => freshRabbit()),
    ({ drop }) => Effect.promise(drop),
  ),
  ({ dsn }) => ({ dsn, name: virtualHostIn(dsn) }),
)

/** A channel of another client. */
export const client = (dsn: string) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(async () => {
        const connection = await connectAmqp(dsn)
        return { connection, channel: await connection.createConfirmChannel() }
      }),
      ({ connection }) => Effect.promise(() => connection.close()),
    ),
    ({ channel }) => channel,
  )

/** Waits for the next message of a queue and removes it. */
export const get = (channel: Channel, name: string) =>
  eventually(
    Effect.promise(() => channel.get(name, { noAck: true })),
    (message) => message !== false,
  ).pipe(Effect.filterOrDieMessage((message): message is GetMessage => message !== false, "nothing came"))

/** Without the header that a quorum queue adds. */
export const headersOf = ({ headers }: GetMessage["properties"]) => {
  const { "x-delivery-count": _, ...rest } = headers ?? {}
  return rest
}

/** Tests on a new virtual host that is set up. */
export const onRabbit =
  (knobs: Partial<EmbeddingConfig.Knobs> = {}) =>
  <E>(
    name: string,
    program: (host: {
      readonly dsn: string
      readonly name: string
    }) => Effect.Effect<unknown, E, InteractionQueue | DeadLetters | Dependencies | Scope.Scope>,
    timeout = 30_000,
  ) =>
    effectTest(
      name,
      () =>
        Effect.flatMap(virtualHost, (host) =>
          Effect.flatMap(dependency, ({ setup }) => Effect.zipRight(setup, program(host))).pipe(
            Effect.provide(ports(host.dsn, knobs)),
          ),
        ),
      timeout,
    )
