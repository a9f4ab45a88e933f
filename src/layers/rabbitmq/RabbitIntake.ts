/**
 * Receives the deliveries of one consumer from the main queue, until a message waits in quarantine. The consumer then
 * receives nothing more, waits until all its deliveries are settled, and handles the quarantined messages one by one.
 */
import type { ChannelModel } from "amqplib"
import { Effect } from "effect"
import { quarantineQueue, queue } from "../../services/ports/InteractionQueue.ts"
import { call, channel, type Lost } from "./Rabbit.ts"
import { AckTracker, type RabbitDelivery } from "./RabbitDelivery.ts"

/** How long a consumer waits for the next quarantined message before it receives from the main queue again. */
const nextQuarantinedWithin = "100 millis"

/** Wakes fibers that wait until something holds. */
class Condition {
  private readonly latch = Effect.unsafeMakeLatch(false)

  notify(): void {
    this.latch.unsafeOpen()
  }

  until(holds: () => boolean): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (holds()) return Effect.void
      this.latch.unsafeClose()
      return Effect.zipRight(this.latch.await, this.until(holds))
    })
  }
}

interface Session {
  readonly connection: ChannelModel
  readonly lost: Lost
}

export class RabbitIntake {
  /** Received, but not yet taken. */
  private buffer: Array<RabbitDelivery> = []
  private main: AckTracker | undefined
  private stopping = false
  private readonly stopped = Effect.unsafeMakeLatch(false)
  private readonly arrival = new Condition()
  private readonly progress = new Condition()

  /** `trackers`: those of all consumers of this process. `prefetch`: of the main queue. */
  constructor(
    private readonly trackers: Set<AckTracker>,
    private readonly prefetch: number,
  ) {}

  get full(): boolean {
    return this.main?.full ?? false
  }

  take(most: number): Effect.Effect<ReadonlyArray<RabbitDelivery>> {
    return Effect.suspend(() => {
      if (this.buffer.length === 0)
        return Effect.zipRight(
          this.arrival.until(() => this.buffer.length > 0),
          this.take(most),
        )
      const taken = this.buffer.splice(0, most)
      this.progress.notify()
      return Effect.succeed(taken)
    })
  }

  acknowledge(deliveries: ReadonlyArray<RabbitDelivery>): void {
    for (const tracker of this.trackers) tracker.acknowledge(deliveries)
    this.progress.notify()
  }

  /** The broker did not confirm the republishes of these deliveries. They no longer keep quarantined messages waiting. */
  block(deliveries: ReadonlyArray<RabbitDelivery>): void {
    for (const delivery of deliveries) delivery.tracker.block(delivery)
    this.progress.notify()
  }

  /** Receives nothing more. Ends when everything received is taken. */
  readonly stop: Effect.Effect<void> = Effect.suspend(() => {
    this.stopping = true
    this.progress.notify()
    return Effect.zipRight(
      this.stopped.await,
      this.progress.until(() => this.buffer.length === 0),
    )
  })

  /** Receives over a connection until the scope closes. */
  readonly receive = Effect.fnUntraced(function* (this: RabbitIntake, connection: ChannelModel, lost: Lost) {
    const session = { connection, lost }
    const waiting: Array<RabbitDelivery> = []
    const { tracker } = yield* this.subscribe(session, quarantineQueue, 1, (delivery) => {
      waiting.push(delivery)
      this.progress.notify()
    })
    const round = Effect.scoped(
      Effect.zipRight(
        this.receiveMain(session, () => waiting.length > 0),
        this.handOutQuarantined(waiting, tracker),
      ),
    )
    yield* Effect.forever(round).pipe(
      Effect.catchAll((error) => Effect.sync(() => lost(error))),
      Effect.forkScoped,
    )
  })

  /** Consumes a queue on a channel of its own. When the scope closes, the deliveries of the channel are forgotten. */
  private readonly subscribe = Effect.fnUntraced(function* (
    this: RabbitIntake,
    { connection, lost }: Session,
    from: string,
    prefetch: number,
    receive: (delivery: RabbitDelivery) => void,
  ) {
    let closed = false
    const consuming = yield* channel(connection, (cause) => {
      if (!closed) lost(cause)
    })
    const tracker = new AckTracker(from, consuming, prefetch)
    yield* Effect.acquireRelease(
      Effect.sync(() => this.trackers.add(tracker)),
      () =>
        Effect.sync(() => {
          closed = true
          this.trackers.delete(tracker)
          tracker.forget()
          this.buffer = this.buffer.filter((delivery) => delivery.tracker !== tracker)
        }),
    )
    const { consumerTag } = yield* call("consume", async () => {
      await consuming.prefetch(prefetch)
      return consuming.consume(from, (message) => {
        // The broker cancels a consumer when its queue is deleted. The next session declares the queue again.
        if (message === null) return lost(new Error(`queue ${from} was deleted`))
        for (const delivery of tracker.receive(message)) receive(delivery)
      })
    })
    return { tracker, cancel: call("cancel", () => consuming.cancel(consumerTag)) }
  })

  /** Receives from the main queue until a message is quarantined. Ends when the worker holds nothing. */
  private readonly receiveMain = Effect.fnUntraced(function* (
    this: RabbitIntake,
    session: Session,
    isQuarantined: () => boolean,
  ) {
    const { cancel, tracker } = yield* this.subscribe(session, queue, this.prefetch, (delivery) =>
      this.handOut(delivery),
    )
    this.main = tracker
    yield* this.progress.until(() => this.stopping || isQuarantined())
    yield* cancel
    if (this.stopping) return yield* Effect.zipRight(this.stopped.open, Effect.never)
    yield* this.progress.until(() => tracker.inHand === 0)
  })

  /** Hands out the quarantined messages that `waiting` receives, each after the last one was settled. */
  private readonly handOutQuarantined = Effect.fnUntraced(function* (
    this: RabbitIntake,
    waiting: Array<RabbitDelivery>,
    tracker: AckTracker,
  ) {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      this.handOut(next)
      yield* this.progress.until(() => tracker.inHand === 0 || waiting.length > 0)
      yield* Effect.timeoutOption(
        this.progress.until(() => waiting.length > 0),
        nextQuarantinedWithin,
      )
    }
  })

  private handOut(delivery: RabbitDelivery): void {
    this.buffer.push(delivery)
    this.arrival.notify()
  }
}
