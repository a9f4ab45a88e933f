/**
 * Receives the deliveries of one consumer from its queues. When messages wait in quarantine, the consumer receives
 * nothing else, waits until all its other deliveries are settled, and handles the quarantined messages in companies.
 */
import type { ChannelModel } from "amqplib"
import { Effect } from "effect"
import {
  type Amount,
  type Intake,
  largestCompany,
  nextCompany,
  quarantineQueue,
  queue,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
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

/** A queue from which messages are received. */
class Source {
  wanted: Amount = "all"
  /** While the broker sends messages. */
  tracker: AckTracker | undefined

  /** `prefetch`: the number of messages to hold when all are wanted. */
  constructor(
    readonly queue: string,
    readonly prefetch: number,
  ) {}
}

export class RabbitIntake {
  /** Received, but not yet taken. */
  private buffer: Array<RabbitDelivery> = []
  /** Received from quarantine, but not yet to be taken. */
  private candidates: Array<RabbitDelivery> = []
  private readonly main: Source
  private readonly setAside: Source
  private readonly quarantine: Source
  private stopping = false
  private readonly arrival = new Condition()
  private readonly progress = new Condition()

  /** `trackers`: those of all consumers of this process. `prefetch`: of the main queue. */
  constructor(
    private readonly trackers: Set<AckTracker>,
    prefetch: number,
  ) {
    this.main = new Source(queue, prefetch)
    this.setAside = new Source(setAsideQueue, prefetch)
    this.quarantine = new Source(quarantineQueue, Math.min(largestCompany, prefetch))
  }

  get full(): boolean {
    return this.main.tracker?.full ?? false
  }

  want({ main, setAside }: Intake): void {
    this.main.wanted = main
    this.quarantine.wanted = main
    this.setAside.wanted = setAside
    this.progress.notify()
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

  requeue(deliveries: ReadonlyArray<RabbitDelivery>): void {
    for (const tracker of this.trackers) tracker.requeue(deliveries)
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
    return this.progress.until(() => {
      const receiving = [this.main, this.setAside, this.quarantine].some(({ tracker }) => tracker)
      return !receiving && this.candidates.length + this.buffer.length === 0
    })
  })

  /** Receives over a connection until the scope closes. */
  readonly receive = Effect.fnUntraced(function* (this: RabbitIntake, connection: ChannelModel, lost: Lost) {
    const session = { connection, lost }
    const isStopping = () => this.stopping
    const mustPause = () => this.stopping || this.candidates.length > 0
    const handOut = (delivery: RabbitDelivery) => this.handOut(delivery)
    const addCandidate = (delivery: RabbitDelivery) => {
      this.candidates.push(delivery)
      this.progress.notify()
    }
    const round = Effect.all(
      [
        this.receiveFrom(session, this.main, handOut, mustPause),
        this.receiveFrom(session, this.setAside, handOut, mustPause),
      ],
      { concurrency: 2 },
    ).pipe(
      Effect.zipRight(this.handOutCandidates),
      Effect.zipRight(this.progress.until(() => !this.stopping || this.candidates.length > 0)),
    )
    yield* Effect.all(
      [this.receiveFrom(session, this.quarantine, addCandidate, isStopping), Effect.forever(round)],
      { concurrency: 2 },
    ).pipe(
      Effect.catchAll((error) => Effect.sync(() => lost(error))),
      Effect.forkScoped,
    )
  })

  /** Receives from a queue what is wanted of it, until it must pause. Ends when all of it is settled. */
  private readonly receiveFrom = (
    session: Session,
    source: Source,
    receive: (delivery: RabbitDelivery) => void,
    mustPause: () => boolean,
  ) =>
    Effect.gen(this, function* () {
      yield* this.progress.until(() => source.wanted !== "none" || mustPause())
      if (mustPause()) return
      const { wanted } = source
      const { cancel, tracker } = yield* this.subscribe(session, source, wanted, (delivery) => {
        if (source.wanted === "one") source.wanted = "none"
        receive(delivery)
      })
      yield* this.progress.until(() => source.wanted !== wanted || mustPause())
      yield* cancel
      source.tracker = undefined
      // Closing a channel with unsettled deliveries would count against them.
      yield* this.progress.until(() => tracker.inHand === 0)
    }).pipe(Effect.scoped, Effect.repeat({ until: mustPause }))

  /** Consumes a queue on a channel of its own. When the scope closes, the deliveries of the channel are forgotten. */
  private readonly subscribe = Effect.fnUntraced(function* (
    this: RabbitIntake,
    { connection, lost }: Session,
    source: Source,
    wanted: Amount,
    receive: (delivery: RabbitDelivery) => void,
  ) {
    let closed = false
    const consuming = yield* channel(connection, (cause) => {
      if (!closed) lost(cause)
    })
    const prefetch = wanted === "one" ? 1 : source.prefetch
    const tracker = new AckTracker(source.queue, consuming, prefetch)
    source.tracker = tracker
    yield* Effect.acquireRelease(
      Effect.sync(() => this.trackers.add(tracker)),
      () =>
        Effect.sync(() => {
          closed = true
          source.tracker = undefined
          this.trackers.delete(tracker)
          tracker.forget()
          const isOther = (delivery: RabbitDelivery) => delivery.tracker !== tracker
          this.buffer = this.buffer.filter(isOther)
          this.candidates = this.candidates.filter(isOther)
          this.progress.notify()
        }),
    )
    const { consumerTag } = yield* call("consume", async () => {
      await consuming.prefetch(prefetch)
      return consuming.consume(source.queue, (message) => {
        // The next session declares the queue again, if it was deleted.
        if (message === null)
          return lost(
            new Error(
              `the broker cancelled the consumer of ${source.queue}: the queue was deleted or moved, or a message was held for longer than consumer_timeout`,
            ),
          )
        for (const delivery of tracker.receive(message)) receive(delivery)
      })
    })
    return { tracker, cancel: call("cancel", () => consuming.cancel(consumerTag)) }
  })

  /** Hands out the quarantined messages that wait, each company after the last one was settled. */
  private readonly handOutCandidates = Effect.gen(this, function* () {
    while (this.candidates.length > 0) {
      const company = this.candidates.splice(0, nextCompany(this.candidates))
      for (const delivery of company) this.handOut(delivery)
      yield* this.progress.until(() => company.every((one) => one.blocked || !one.tracker.holds(one)))
      yield* Effect.timeoutOption(
        this.progress.until(() => this.candidates.length > 0),
        nextQuarantinedWithin,
      )
    }
  })

  private handOut(delivery: RabbitDelivery): void {
    this.buffer.push(delivery)
    this.arrival.notify()
  }
}
