/**
 * The dead letters on RabbitMQ. Browsing consumes without acknowledging; when its channel closes, also after a crash, the
 * broker takes the messages back. Meanwhile other browsers do not see them. Each browsing counts as a delivery, so the
 * delivery limit of `failed` is out of reach.
 */
import type { Channel, ChannelModel, ConsumeMessage } from "amqplib"
import { Array, Chunk, Deferred, Effect, Layer, Queue, Schedule, Stream } from "effect"
import { type DeadLetter, DeadLetters, DeadLettersError } from "../../services/ports/DeadLetters.ts"
import { failedQueue, queue } from "../../services/ports/InteractionQueue.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import { call, channel, failed, type Lost, Rabbit, type RabbitError } from "./Rabbit.ts"
import { make as makePublisher, type Outgoing, publishTraced, republished } from "./RabbitPublisher.ts"
import * as RabbitTopology from "./RabbitTopology.ts"

/** The greatest prefetch of AMQP. */
const messagesPerBrowser = 65_535
const chunkSize = 1_000
/**
 * Acknowledgements in flight. From 32 on, the channel of a quorum queue collects them, and loses them when it is closed.
 * A `get` after them is answered when all of them are done. A message that it returns is taken back with the others.
 */
const acknowledgedAtOnce = 16
/** If a counted message does not arrive, another program has taken it. */
const arrivalDeadline = "1 second"

const text = (value: unknown): string => (typeof value === "string" ? value : "")

/** Other programs may publish to `failed` too, so every header may be absent. */
const toDeadLetter = ({ content, properties }: ConsumeMessage): DeadLetter => {
  const headers: Readonly<Record<string, unknown>> = properties.headers ?? {}
  const attempts = headers["x-attempts"]
  const logId = headers["x-log-id"]
  const recordedAt = headers["x-recorded-at"]
  const messageId: unknown = properties.messageId
  return {
    id: text(headers["x-dead-letter-id"]),
    messageId: typeof messageId === "string" ? messageId : null,
    error: text(headers["x-error"]),
    message: text(headers["x-error-message"]),
    attempts: typeof attempts === "number" ? attempts : 1,
    firstFailedAt: text(headers["x-first-failed-at"]),
    lastFailedAt: text(headers["x-last-failed-at"]),
    worker: text(headers["x-worker"]),
    originalExchange: text(headers["x-original-exchange"]),
    originalRoutingKey: text(headers["x-original-routing-key"]),
    retriedFrom: text(headers["x-retried-from"]) || null,
    logId: typeof logId === "number" ? logId : null,
    recordedAt: typeof recordedAt === "number" ? recordedAt : null,
    body: content,
  }
}

const failureHeaders = [
  "x-dead-letter-id",
  "x-error",
  "x-error-message",
  "x-attempts",
  "x-first-failed-at",
  "x-last-failed-at",
  "x-worker",
  "x-isolated-attempts",
  "x-original-exchange",
  "x-original-routing-key",
]

/** The message before its failure, with the id of the dead letter. It goes to the main queue if its origin is unknown. */
const toRetry = (message: ConsumeMessage): Outgoing => {
  const { id, originalExchange, originalRoutingKey } = toDeadLetter(message)
  return {
    exchange: originalRoutingKey === "" ? "" : originalExchange,
    routingKey: originalRoutingKey === "" ? queue : originalRoutingKey,
    body: message.content,
    options: republished(message, {
      ...Object.fromEntries(failureHeaders.map((name) => [name, undefined])),
      "x-retry-count": 0,
      "x-retried-from": id,
    }),
  }
}

const countOn = (channel: Channel): Effect.Effect<number, RabbitError> =>
  Effect.map(
    call("check queue failed", () => channel.checkQueue(failedQueue)),
    ({ messageCount }) => messageCount,
  )

interface Browser {
  /** The messages in `failed` when browsing began, oldest first. A retried message that fails again is left out. */
  readonly messages: Stream.Stream<ConsumeMessage, RabbitError>
  readonly acknowledge: (messages: ReadonlyArray<ConsumeMessage>) => Effect.Effect<void, RabbitError>
}

/**
 * Browses with one consumer on a channel of its own. When a consumer ends, a quorum queue takes its messages back in
 * their order; after `nack` or `get` it does not.
 */
const browse = Effect.fnUntraced(function* (
  connection: ChannelModel,
  count: Effect.Effect<number, RabbitError>,
) {
  let expected = 0
  // The broker takes messages back after it has answered the close. The next browser must find all of them.
  yield* Effect.addFinalizer(() =>
    count.pipe(
      Effect.repeat({ schedule: Schedule.spaced("5 millis"), until: (found) => found >= expected }),
      Effect.interruptible,
      Effect.timeout("2 seconds"),
      Effect.ignore,
    ),
  )
  const closed = yield* Deferred.make<never, RabbitError>()
  const lost: Lost = (cause = new Error("closed by the broker")) =>
    Deferred.unsafeDone(closed, Effect.fail(failed("consume failed")(cause)))
  const browsing = yield* channel(connection, lost)
  const total = Math.min(yield* countOn(browsing), messagesPerBrowser)
  expected = total
  const arrived = yield* Queue.unbounded<ConsumeMessage>()
  if (total > 0)
    yield* call("consume failed", async () => {
      await browsing.prefetch(total)
      await browsing.consume(failedQueue, (message) => {
        if (message === null) lost()
        else arrived.unsafeOffer(message)
      })
    })
  return {
    messages: Stream.fromQueue(arrived, { maxChunkSize: chunkSize }).pipe(
      Stream.take(total),
      Stream.timeout(arrivalDeadline),
      Stream.interruptWhenDeferred(closed),
    ),
    acknowledge: (messages) =>
      Effect.forEach(
        Array.chunksOf(messages, acknowledgedAtOnce),
        (some) =>
          call("ack", async () => {
            for (const message of some) browsing.ack(message)
            await browsing.get(failedQueue)
            expected -= some.length
          }),
        { discard: true },
      ),
  } satisfies Browser
})

const make = Effect.gen(function* () {
  const rabbit = yield* Rabbit
  const delays = yield* RabbitTopology.retryDelays
  const { current } = rabbit.adminConnection
  const toError = portError(DeadLettersError)
  const countFailed = Effect.flatMap(current, (connection) => Effect.flatMap(channel(connection), countOn))
  const count = Effect.scoped(countFailed)
  const browser = Effect.flatMap(current, (connection) => browse(connection, count))

  /** Removes the picked messages that `use` returns, and counts them. */
  const removeAfter = (
    pick: (letter: DeadLetter) => boolean,
    use: (
      messages: ReadonlyArray<ConsumeMessage>,
    ) => Effect.Effect<ReadonlyArray<ConsumeMessage>, RabbitError>,
  ) =>
    Effect.flatMap(browser, ({ acknowledge, messages }) =>
      messages.pipe(
        Stream.chunks,
        Stream.map((chunk) => Chunk.toReadonlyArray(chunk).filter((message) => pick(toDeadLetter(message)))),
        Stream.mapEffect(use),
        Stream.tap(acknowledge),
        Stream.runFold(0, (removed, done) => removed + done.length),
      ),
    ).pipe(Effect.scoped, Effect.mapError(toError))

  return DeadLetters.of({
    list: Stream.unwrapScoped(Effect.map(browser, ({ messages }) => messages)).pipe(
      Stream.map(toDeadLetter),
      Stream.mapError(toError),
    ),
    count: Effect.mapError(count, toError),
    retry: (pick) =>
      Effect.gen(function* () {
        const publisher = yield* makePublisher("dead letters", (channel) =>
          RabbitTopology.declare(channel, delays),
        )
        return yield* removeAfter(pick, (messages) =>
          Effect.map(publishTraced(publisher, messages.map(toRetry)), (confirmations) =>
            messages.filter((_, index) => confirmations[index] === "confirmed"),
          ),
        )
      }).pipe(Effect.scoped, Effect.provideService(Rabbit, rabbit)),
    remove: (pick) => removeAfter(pick, Effect.succeed),
  })
})

export const layer = Layer.effect(DeadLetters, make)
