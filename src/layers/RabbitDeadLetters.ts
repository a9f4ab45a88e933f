/**
 * The dead letters on RabbitMQ. Looking takes messages on a channel of its own without acknowledging them; closing
 * it puts them back in their places, which the broker counts as a delivery and this project does not.
 */
import type { GetMessage } from "amqplib"
import { Effect, Layer, Stream } from "effect"
import { type DeadLetter, DeadLetters, DeadLettersError } from "../services/DeadLetters.ts"
import { exchange, failedQueue } from "../services/InteractionQueue.ts"
import { call, type Outgoing, openChannel, Rabbit, type RabbitError } from "./Rabbit.ts"

const text = (message: GetMessage, name: string): string => {
  const value: unknown = message.properties.headers?.[name]
  return typeof value === "string" ? value : ""
}

const toLetter = (message: GetMessage): DeadLetter => {
  const attempts: unknown = message.properties.headers?.["x-attempts"]
  const messageId: unknown = message.properties.messageId
  return {
    id: text(message, "x-dead-letter-id"),
    messageId: typeof messageId === "string" ? messageId : null,
    error: text(message, "x-error"),
    message: text(message, "x-error-message"),
    attempts: typeof attempts === "number" ? attempts : 1,
    firstFailedAt: text(message, "x-first-failed-at"),
    lastFailedAt: text(message, "x-last-failed-at"),
    worker: text(message, "x-worker"),
    originalExchange: text(message, "x-original-exchange") || exchange,
    originalRoutingKey: text(message, "x-original-routing-key"),
    body: message.content,
  }
}

/** The message as it was before it failed; marked with the dead letter that it was. */
const toRetry = (message: GetMessage): Outgoing => {
  const { originalExchange, originalRoutingKey, id } = toLetter(message)
  const kept = ["traceparent", "tracestate", "x-published-at", "x-recorded-at"]
  const headers = Object.entries(message.properties.headers ?? {}).filter(([name]) => kept.includes(name))
  const { appId, contentType, messageId, timestamp, type } = message.properties
  return {
    exchange: originalExchange,
    routingKey: originalRoutingKey,
    body: message.content,
    options: {
      appId,
      contentType,
      deliveryMode: 2,
      messageId,
      timestamp,
      type,
      headers: { ...Object.fromEntries(headers), "x-retry-count": 0, "x-retried-from": id },
    },
  }
}

const make = Effect.gen(function* () {
  const { consuming, parking } = yield* Rabbit

  const failing = <A>(effect: Effect.Effect<A, RabbitError>) =>
    Effect.mapError(
      effect,
      ({ cause, operation, reason }) =>
        new DeadLettersError({ cause, operation, reason: reason === "not_set_up" ? "rejected" : reason }),
    )

  /** Takes every letter in turn, hands it to `use`, and acknowledges those that it answers `true` for. */
  const visit = (use: (message: GetMessage) => Effect.Effect<boolean, RabbitError>) =>
    Effect.scoped(
      Effect.gen(function* () {
        const channel = yield* openChannel(yield* consuming.session)
        let done = 0
        while (true) {
          const message = yield* call("get", () => channel.get(failedQueue))
          if (message === false) return done
          if (!(yield* use(message))) continue
          channel.ack(message)
          done += 1
        }
      }),
    )

  return DeadLetters.of({
    list: Stream.unwrap(
      Effect.gen(function* () {
        const letters: Array<DeadLetter> = []
        const look = (message: GetMessage) =>
          Effect.sync(() => {
            letters.push(toLetter(message))
            return false
          })
        yield* failing(visit(look))
        return Stream.fromIterable(letters)
      }),
    ),
    count: failing(
      Effect.flatMap(consuming.session, ({ channel }) =>
        call("check queue", () => channel.checkQueue(failedQueue)),
      ),
    ).pipe(Effect.map(({ messageCount }) => messageCount)),
    retry: (pick) =>
      failing(
        visit((message) =>
          pick(toLetter(message))
            ? Effect.map(parking.send([toRetry(message)]), ([answer]) => answer === "confirmed")
            : Effect.succeed(false),
        ),
      ),
    remove: (pick) => failing(visit((message) => Effect.sync(() => pick(toLetter(message))))),
  })
})

export const layer = Layer.effect(DeadLetters, make)
