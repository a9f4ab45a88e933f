/**
 * The dead letters on RabbitMQ. A look consumes without acknowledging; closing its channel gives back what is left.
 * Meanwhile that is hidden from other looks, and the broker counts a delivery more, which is why `failed` has a
 * delivery limit out of reach. A crash gives everything back.
 */
import type { Channel, ConsumeMessage } from "amqplib"
import { Array, Chunk, Deferred, Effect, Layer, Queue, Schedule, Stream } from "effect"
import { type DeadLetter, DeadLetters, DeadLettersError } from "../../services/ports/DeadLetters.ts"
import { failedQueue, queue } from "../../services/ports/InteractionQueue.ts"
import { call, channel, failed, type Lost, Rabbit, type RabbitError } from "./Rabbit.ts"
import { make as makePublisher, type Outgoing, publishTraced, republished } from "./RabbitPublisher.ts"
import * as RabbitTopology from "./RabbitTopology.ts"

/** A look sees no more at once: AMQP's greatest prefetch. What is removed makes room for the next. */
const lettersPerLook = 65_535
/** Letters retried or removed together. */
const lettersAtOnce = 1_000
/**
 * Acknowledgements on their way. From 32 on the channel of a quorum queue gathers them, and forgets them when it is
 * closed; a `get` is answered after all that went before, and what it may get goes back with the rest.
 */
const acknowledgedAtOnce = 16
/** A letter that was counted and doesn't come has been taken by somebody else. */
const arrivalDeadline = "1 second"

const text = (value: unknown): string => (typeof value === "string" ? value : "")

/** Whatever lies in `failed`, also what others put there. */
const toLetter = ({ content, properties }: ConsumeMessage): DeadLetter => {
  const headers: Readonly<Record<string, unknown>> = properties.headers ?? {}
  const attempts = headers["x-attempts"]
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
    recordedAt: typeof recordedAt === "number" ? recordedAt : null,
    body: content,
  }
}

/** The message as it was before it failed, marked with the letter that it was; to the main queue if that is unknown. */
const toRetry = (message: ConsumeMessage): Outgoing => {
  const { id, originalExchange, originalRoutingKey } = toLetter(message)
  const forgotten = [
    ...[
      "x-dead-letter-id",
      "x-error",
      "x-error-message",
      "x-attempts",
      "x-first-failed-at",
      "x-last-failed-at",
    ],
    ...["x-worker", "x-isolated-attempts", "x-original-exchange", "x-original-routing-key"],
  ]
  return {
    exchange: originalRoutingKey === "" ? "" : originalExchange,
    routingKey: originalRoutingKey === "" ? queue : originalRoutingKey,
    body: message.content,
    options: republished(message, {
      ...Object.fromEntries(forgotten.map((name) => [name, undefined])),
      "x-retry-count": 0,
      "x-retried-from": id,
    }),
  }
}

const count = (looking: Channel): Effect.Effect<number, RabbitError> =>
  Effect.map(
    call("look at failed", () => looking.checkQueue(failedQueue)),
    ({ messageCount }) => messageCount,
  )

interface Look {
  /** The letters that are there now, oldest first; not those that arrive meanwhile, for a retried one may come back. */
  readonly letters: Stream.Stream<ConsumeMessage, RabbitError>
  readonly acknowledge: (messages: ReadonlyArray<ConsumeMessage>) => Effect.Effect<void, RabbitError>
}

const make = Effect.gen(function* () {
  const rabbit = yield* Rabbit
  const delays = yield* RabbitTopology.retryDelays
  const { current } = rabbit.adminConnection
  const counted = Effect.scoped(
    Effect.flatMap(
      Effect.flatMap(current, (connection) => channel(connection)),
      count,
    ),
  )

  const toError = ({ cause, operation, reason }: RabbitError) =>
    new DeadLettersError({ cause, operation, reason })
  const failing = <A, R>(effect: Effect.Effect<A, RabbitError, R>) => Effect.mapError(effect, toError)

  /**
   * One consumer on a channel of its own: the order in which quorum queues take back is that of the queue for the
   * deliveries of one consumer at its end, and no order for `nack` or `get`.
   */
  const looking = Effect.gen(function* () {
    let expected = 0
    // The broker takes back after it has answered the close: whoever looks next shall find everything.
    yield* Effect.addFinalizer(() =>
      counted.pipe(
        Effect.repeat({ schedule: Schedule.spaced("5 millis"), until: (found) => found >= expected }),
        Effect.timeout("2 seconds"),
        Effect.ignore,
      ),
    )
    const gone = yield* Deferred.make<never, RabbitError>()
    const lost: Lost = (cause = new Error("closed by the broker")) =>
      Deferred.unsafeDone(gone, Effect.fail(failed("look at failed")(cause)))
    const own = yield* channel(yield* current, lost)
    const total = Math.min(yield* count(own), lettersPerLook)
    expected = total
    const arrived = yield* Queue.unbounded<ConsumeMessage>()
    if (total > 0)
      yield* call("consume failed", async () => {
        await own.prefetch(total)
        await own.consume(failedQueue, (message) => {
          if (message === null) lost()
          else arrived.unsafeOffer(message)
        })
      })
    const look: Look = {
      letters: Stream.fromQueue(arrived, { maxChunkSize: lettersAtOnce }).pipe(
        Stream.take(total),
        Stream.timeout(arrivalDeadline),
        Stream.interruptWhenDeferred(gone),
      ),
      acknowledge: (messages) =>
        Effect.forEach(
          Array.chunksOf(messages, acknowledgedAtOnce),
          (some) =>
            call("ack", async () => {
              for (const message of some) own.ack(message)
              await own.get(failedQueue)
              expected -= some.length
            }),
          { discard: true },
        ),
    }
    return look
  })

  /** Removes those of the picked letters that `use` answers, and tells how many. */
  const removing = (
    pick: (letter: DeadLetter) => boolean,
    use: (
      messages: ReadonlyArray<ConsumeMessage>,
    ) => Effect.Effect<ReadonlyArray<ConsumeMessage>, RabbitError>,
  ) =>
    Effect.gen(function* () {
      const { acknowledge, letters } = yield* looking
      return yield* letters.pipe(
        Stream.chunks,
        Stream.map((chunk) => Chunk.toReadonlyArray(chunk).filter((message) => pick(toLetter(message)))),
        Stream.mapEffect(use),
        Stream.tap(acknowledge),
        Stream.runFold(0, (removed, done) => removed + done.length),
      )
    }).pipe(Effect.scoped, failing)

  return DeadLetters.of({
    list: Stream.unwrapScoped(Effect.map(looking, ({ letters }) => letters)).pipe(
      Stream.map(toLetter),
      Stream.mapError(toError),
    ),
    count: failing(counted),
    retry: (pick) =>
      Effect.gen(function* () {
        const publisher = yield* makePublisher("dead letters", (channel) =>
          RabbitTopology.declare(channel, delays),
        )
        return yield* removing(pick, (messages) =>
          Effect.map(publishTraced(publisher, messages.map(toRetry)), (answers) =>
            messages.filter((_, index) => answers[index] === "confirmed"),
          ),
        )
      }).pipe(Effect.scoped, Effect.provideService(Rabbit, rabbit)),
    remove: (pick) => removing(pick, Effect.succeed),
  })
})

export const layer = Layer.effect(DeadLetters, make)
