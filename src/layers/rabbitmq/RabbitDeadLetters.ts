/**
 * The dead letters on RabbitMQ. Browsing consumes without acknowledging; when its channels close, also after a crash, the
 * broker takes the messages back. Meanwhile other browsers would not see them, so one browses at a time. Each browsing
 * counts as a delivery, so the delivery limit of `failed` is out of reach.
 */
import type { Channel, ChannelModel, Message } from "amqplib"
import { Array, Chunk, Deferred, Effect, Exit, FiberId, Layer, Option, Schedule, Scope, Stream } from "effect"
import { type DeadLetter, DeadLetters, DeadLettersError } from "../../services/ports/DeadLetters.ts"
import { failedQueue, queue } from "../../services/ports/InteractionQueue.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import { call, channel, failed, type Lost, Rabbit, RabbitError } from "./Rabbit.ts"
import { make as makePublisher, type Outgoing, publishTraced, republished } from "./RabbitPublisher.ts"
import * as RabbitTopology from "./RabbitTopology.ts"

/** An exclusive queue, which exists while a browser of one process holds it. The broker deletes it with its connection. */
const lockQueue = `${queue}.failed.lock`
const lockDeadline = "30 seconds"
const lockRetry = Schedule.exponential("50 millis").pipe(
  Schedule.union(Schedule.spaced("500 millis")),
  Schedule.jittered,
)

/**
 * Bodies of this size together are in memory at once, as far as the largest one so far tells. A page is at most 2,000
 * messages: the prefetch of AMQP ends at 65,535, and a page may still be larger than those before it.
 */
const pageBytes = 32 * 1024 * 1024
const firstPage = 100
const largestPage = 2_000
const smallestPage = 16
const chunkSize = 1_000
/**
 * Acknowledgements in flight. From 32 on, the channel of a quorum queue collects them, and loses them when it is closed.
 * A `get` after them is answered when all of them are done.
 */
const acknowledgedAtOnce = 16
/** If a counted message does not arrive, another program has taken it. */
const arrivalDeadline = "5 seconds"

const text = (value: unknown): string => (typeof value === "string" ? value : "")

/** Other programs may publish to `failed` too, so every header may be absent. */
const toDeadLetter = ({ content, properties }: Message): DeadLetter => {
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
const toRetry = (message: Message): Outgoing => {
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

const check = (channel: Channel) => call("check queue failed", () => channel.checkQueue(failedQueue))

const incomplete = (problem: string) =>
  new RabbitError({
    reason: "unavailable",
    operation: "read dead letters",
    cause: new Error(`${problem}; try again later`),
  })

/** Waits until no other process browses. */
const lock = Effect.fnUntraced(function* (connection: ChannelModel) {
  const onLock = (operation: string, use: (channel: Channel) => Promise<unknown>) =>
    Effect.scoped(Effect.flatMap(channel(connection), (open) => call(operation, () => use(open))))
  // The broker refuses this while another process holds the lock.
  yield* Effect.addFinalizer(() =>
    Effect.ignore(onLock("unlock", (channel) => channel.deleteQueue(lockQueue))),
  )
  yield* onLock("lock", (channel) =>
    channel.assertQueue(lockQueue, { exclusive: true, durable: false }),
  ).pipe(
    Effect.retry({ schedule: lockRetry, while: ({ cause }) => Object(cause).code === 405 }),
    Effect.timeoutFail({
      duration: lockDeadline,
      onTimeout: () => incomplete("another program reads or changes the dead letters"),
    }),
  )
})

/** A consumer with a channel of its own. */
interface Page {
  readonly channel: Channel
  readonly cancel: Effect.Effect<unknown, RabbitError>
  readonly scope: Scope.CloseableScope
  /** Unacknowledged messages. */
  held: number
}

interface Browsed {
  readonly page: Page
  readonly message: Message
}

/** What an acknowledgement needs of a message. */
interface Taken {
  readonly page: Page
  readonly fields: Message["fields"]
}

/**
 * Browses with one consumer for each page, on a channel of its own. A page stays open until the end: when it closes, a
 * quorum queue takes its messages back in their order. After `nack` it does not.
 */
class Browser {
  private readonly pages: Array<Page> = []
  private readonly arrived: Array<Browsed> = []
  private readonly arrival = Effect.unsafeMakeLatch(false)
  private readonly closed = Deferred.unsafeMake<never, RabbitError>(FiberId.none)
  private readonly lost: Lost = (cause = new Error("closed by the broker")) =>
    Deferred.unsafeDone(this.closed, Effect.fail(failed("consume failed")(cause)))
  /** Messages that the open pages may hold. */
  private capacity = 0
  private taken = 0
  /** Bytes of the largest body so far. */
  private largest = 0

  /** `total`: the messages in `failed` when browsing began. A retried message that fails again is left out. */
  constructor(
    private readonly connection: ChannelModel,
    private readonly total: number,
  ) {}

  /** The messages when browsing began, oldest first. Fails if not all of them come. */
  get messages(): Stream.Stream<Browsed, RabbitError> {
    return Stream.repeatEffectChunkOption(this.next).pipe(Stream.interruptWhenDeferred(this.closed))
  }

  private readonly next = Effect.gen(this, function* () {
    if (this.taken === this.total) return yield* Effect.fail(Option.none<RabbitError>())
    if (this.arrived.length === 0) {
      const held = this.pages.reduce((sum, page) => sum + page.held, 0)
      if (held >= this.capacity) yield* Effect.asSomeError(this.openPage)
      yield* Effect.timeoutFail(this.arrival.await, {
        duration: arrivalDeadline,
        onTimeout: () =>
          Option.some(
            incomplete(
              `${this.taken} of ${this.total} dead letters came; another program holds or removes the others`,
            ),
          ),
      })
    }
    const some = this.arrived.splice(0, Math.min(chunkSize, this.total - this.taken))
    this.taken += some.length
    if (this.arrived.length === 0) this.arrival.unsafeClose()
    return Chunk.unsafeFromArray(some)
  })

  private readonly openPage = Effect.gen(this, function* () {
    const fitting = this.largest === 0 ? firstPage : Math.floor(pageBytes / this.largest)
    const size = Math.min(Math.max(fitting, smallestPage), largestPage, this.total - this.taken)
    const scope = yield* Scope.make()
    const open = yield* Scope.extend(channel(this.connection, this.lost), scope)
    const tag = `page ${this.pages.length}`
    const page: Page = { channel: open, cancel: call("cancel", () => open.cancel(tag)), scope, held: 0 }
    this.pages.push(page)
    this.capacity += size
    yield* call("consume failed", async () => {
      await open.prefetch(size)
      await open.consume(
        failedQueue,
        (message) => (message === null ? this.lost() : this.receive({ page, message })),
        { consumerTag: tag },
      )
    })
  })

  private receive(browsed: Browsed): void {
    browsed.page.held += 1
    this.largest = Math.max(this.largest, browsed.message.content.length)
    this.arrived.push(browsed)
    this.arrival.unsafeOpen()
  }

  /** Takes what is left, so that a `get` cannot take a message out of its order. */
  readonly rest: Effect.Effect<void, RabbitError> = Effect.suspend(() => Stream.runDrain(this.messages))

  /** After {@link rest}. */
  readonly acknowledge = (taken: ReadonlyArray<Taken>): Effect.Effect<void, RabbitError> =>
    Effect.forEach(
      Map.groupBy(taken, ({ page }) => page),
      ([page, all]) =>
        Effect.forEach(Array.chunksOf(all, acknowledgedAtOnce), (some) =>
          call("ack", async () => {
            for (const { fields } of some) page.channel.ack({ fields } as Message)
            const arrivedLater = await page.channel.get(failedQueue)
            page.held += (arrivedLater === false ? 0 : 1) - some.length
          }),
        ),
      { discard: true },
    )

  /**
   * Gives the messages back in their order, one page after the other. All must have been taken, because the broker puts
   * what comes back behind what came back before. A consumer that was not cancelled would get messages of another page.
   * The broker takes messages back after it has answered the close, so this waits until they are there.
   */
  readonly close = (count: Effect.Effect<number, RabbitError>): Effect.Effect<void> =>
    Effect.gen(this, function* () {
      yield* Effect.ignore(this.rest)
      const concurrency = { concurrency: "unbounded", discard: true } as const
      yield* Effect.forEach(this.pages, ({ cancel }) => Effect.ignore(cancel), concurrency)
      let expected = yield* count
      for (const { held, scope } of this.pages) {
        expected += held
        yield* Scope.close(scope, Exit.void)
        yield* Effect.repeat(count, {
          schedule: Schedule.spaced("5 millis"),
          until: (found) => found >= expected,
        })
      }
    }).pipe(Effect.interruptible, Effect.timeout("30 seconds"), Effect.ignore)
}

const make = Effect.gen(function* () {
  const rabbit = yield* Rabbit
  const layout = yield* RabbitTopology.configured
  const { current } = rabbit.adminConnection
  const toError = portError(DeadLettersError)
  const oneBrowser = yield* Effect.makeSemaphore(1)
  const onChannel = Effect.scoped(
    Effect.flatMap(current, (connection) => Effect.flatMap(channel(connection), check)),
  )
  const count = Effect.map(onChannel, ({ messageCount }) => messageCount)

  /** One browser at a time: of this process by a semaphore, of all processes by the lock. */
  const browser = Effect.gen(function* () {
    yield* Effect.uninterruptibleMask((restore) =>
      Effect.zipRight(
        restore(oneBrowser.take(1)),
        Effect.addFinalizer(() => oneBrowser.release(1)),
      ),
    )
    const connection = yield* current
    yield* lock(connection)
    // A process that died may have let the lock go before its messages, and other programs know no lock.
    const { messageCount } = yield* Effect.filterOrFail(
      onChannel,
      ({ consumerCount }) => consumerCount === 0,
      () => incomplete("another program consumes the queue failed"),
    ).pipe(Effect.retry(Schedule.upTo(Schedule.spaced("50 millis"), arrivalDeadline)))
    const opened = new Browser(connection, messageCount)
    yield* Effect.addFinalizer(() => opened.close(count))
    return opened
  })

  /** Removes the picked messages that `use` returns, also if it fails later, and counts them. */
  const removeAfter = (
    pick: (deadLetter: DeadLetter) => boolean,
    use: (browsed: ReadonlyArray<Browsed>) => Effect.Effect<ReadonlyArray<Browsed>, RabbitError>,
  ) =>
    Effect.gen(function* () {
      const { acknowledge, messages, rest } = yield* browser
      const done: Array<Taken> = []
      const finish = Effect.zipRight(
        Effect.ignore(rest),
        Effect.suspend(() => acknowledge(done)),
      )
      const used = yield* messages.pipe(
        Stream.chunks,
        Stream.map((chunk) =>
          Chunk.toReadonlyArray(chunk).filter(({ message }) => pick(toDeadLetter(message))),
        ),
        Stream.mapEffect(use),
        Stream.runForEach((some) =>
          Effect.sync(() => {
            for (const { message, page } of some) done.push({ page, fields: message.fields })
          }),
        ),
        Effect.exit,
        Effect.onInterrupt(() => Effect.ignore(finish)),
      )
      yield* finish
      return yield* Effect.as(used, done.length)
    }).pipe(Effect.scoped, Effect.mapError(toError))

  return DeadLetters.of({
    list: Stream.unwrapScoped(Effect.map(browser, ({ messages }) => messages)).pipe(
      Stream.map(({ message }) => toDeadLetter(message)),
      Stream.mapError(toError),
    ),
    count: Effect.mapError(count, toError),
    retry: (pick) =>
      Effect.gen(function* () {
        const publisher = yield* makePublisher("dead letters", (connection) =>
          RabbitTopology.declare(connection, layout),
        )
        return yield* removeAfter(pick, (browsed) =>
          Effect.map(
            publishTraced(
              publisher,
              browsed.map(({ message }) => toRetry(message)),
            ),
            (confirmations) => browsed.filter((_, index) => confirmations[index] === "confirmed"),
          ),
        )
      }).pipe(Effect.scoped, Effect.provideService(Rabbit, rabbit)),
    remove: (pick) => removeAfter(pick, Effect.succeed),
  })
})

export const layer = Layer.effect(DeadLetters, make)
