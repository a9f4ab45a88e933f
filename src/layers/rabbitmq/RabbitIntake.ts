/**
 * Receives the deliveries of one consumer from its queues. While the consumer handles quarantined messages it holds no
 * others: before it hands out a company of them, it receives nothing from the main queue and from the queues of larger
 * companies, and waits until everything that came from there is settled.
 */
import type { ChannelModel } from "amqplib"
import { Effect } from "effect"
import {
  type Amount,
  companySizes,
  type Intake,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
import { call, channel, type Lost } from "./Rabbit.ts"
import { AckTracker, type RabbitDelivery } from "./RabbitDelivery.ts"
import { quarantineQueueOf } from "./RabbitTopology.ts"

/** How long a consumer waits for the next quarantined message before it receives other messages again. */
const nextQuarantinedWithin = "100 millis"

/** Time between the starts of sources: enough for the broker to deliver a message. */
const startMillis = 20

/** Time from the last acknowledgement to a cancel: enough for the broker to deliver what the acknowledgement made room for. */
const quietMillis = 50

/** Wakes fibers that wait until something holds. */
class Condition {
  private readonly waiting = new Set<{ readonly holds: () => boolean; readonly wake: () => void }>()

  /** Wakes the fibers for which it holds now: a dozen wait, and most changes concern none of them. */
  notify(): void {
    for (const waiter of this.waiting) if (waiter.holds()) waiter.wake()
  }

  until(holds: () => boolean): Effect.Effect<void> {
    return Effect.suspend(() =>
      holds() ? Effect.void : Effect.zipRight(this.nextTime(holds), this.until(holds)),
    )
  }

  private nextTime(holds: () => boolean): Effect.Effect<void> {
    return Effect.async<void>((resume) => {
      // The fiber may have yielded since it looked.
      if (holds()) return resume(Effect.void)
      const end = () => this.waiting.delete(waiter)
      const wake = () => {
        end()
        resume(Effect.void)
      }
      const waiter = { holds, wake }
      this.waiting.add(waiter)
      return Effect.sync(end)
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
  /** Received, but not yet handed out, because other messages are in hand. */
  waiting: Array<RabbitDelivery> = []
  tracker: AckTracker | undefined
  /**
   * Pausing: the consumer will be cancelled, and no message is handed out before. Draining: the broker sends nothing
   * more, and what it has sent is being settled.
   */
  state: "open" | "pausing" | "draining" | "closed" = "closed"

  /** `prefetch`: the number of messages to hold when all are wanted. */
  constructor(
    readonly queue: string,
    readonly prefetch: number,
  ) {}

  get inHand(): number {
    return this.tracker?.inHand ?? 0
  }
}

export class RabbitIntake {
  /** Received, but not yet taken. */
  private buffer: Array<RabbitDelivery> = []
  /** The main queue and partitions. They are known when a connection is open. */
  private mains: ReadonlyArray<Source> = []
  private wanted: Amount = "all"
  private readonly setAside: Source
  /** Of quarantined messages, those that are handled alone first. Messages of a source wait for all sources before it. */
  private readonly quarantine: ReadonlyArray<Source>
  /** Index of the source in `quarantine` whose messages are handled, or were a moment ago. */
  private handling = Number.POSITIVE_INFINITY
  private stopping = false
  private readonly arrival = new Condition()
  private readonly progress = new Condition()

  /** `trackers`: those of all consumers of this process. `prefetch`: of the main queue. */
  constructor(
    private readonly trackers: Set<AckTracker>,
    private readonly prefetch: number,
  ) {
    this.setAside = new Source(setAsideQueue, prefetch)
    this.quarantine = companySizes
      .map((size) => new Source(quarantineQueueOf(size), Math.min(size, prefetch)))
      .toReversed()
  }

  get full(): boolean {
    return this.mains.some(({ tracker }) => tracker?.full)
  }

  get draining(): boolean {
    return this.quarantine.some(({ waiting }) => waiting.length > 0)
  }

  want({ main, setAside }: Intake): void {
    this.wanted = main
    for (const source of [...this.mains, ...this.quarantine]) source.wanted = main
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

  private get sources(): ReadonlyArray<Source> {
    return [...this.mains, this.setAside, ...this.quarantine]
  }

  /** Receives nothing more. Ends when everything received is taken. */
  readonly stop: Effect.Effect<void> = Effect.suspend(() => {
    this.stopping = true
    this.progress.notify()
    return this.progress.until(
      () =>
        this.buffer.length === 0 &&
        !this.sources.some(
          ({ state, waiting }) => state === "open" || state === "pausing" || waiting.length > 0,
        ),
    )
  })

  /** Receives from these queues, and from those of messages apart, over a connection until the scope closes. */
  readonly receive = Effect.fnUntraced(function* (
    this: RabbitIntake,
    connection: ChannelModel,
    lost: Lost,
    queues: ReadonlyArray<string>,
  ) {
    this.mains = queues.map((name) => {
      const source = new Source(name, Math.ceil(this.prefetch / queues.length))
      source.wanted = this.wanted
      return source
    })
    const session = { connection, lost }
    this.handling = Number.POSITIVE_INFINITY
    // What killed the worker before is handled before anything else is in hand.
    const begin = (source: Source, index: number) =>
      Effect.delay(this.receiveFrom(session, source, index), index * startMillis)
    const all = [
      ...this.quarantine.map(begin),
      ...this.mains.map((source) => begin(source, this.quarantine.length)),
      begin(this.setAside, this.quarantine.length),
      Effect.forever(this.handOutCompany),
    ]
    yield* Effect.all(all, { concurrency: "unbounded", discard: true }).pipe(
      Effect.catchAll((error) => Effect.sync(() => lost(error))),
      Effect.forkScoped,
    )
  })

  /** Whether quarantined messages of a smaller company are in hand, so that other messages must not be. */
  private mustPause(index: number): boolean {
    return this.handling < index || this.quarantine.slice(0, index).some(({ inHand }) => inHand > 0)
  }

  /** Receives from a queue what is wanted of it. It pauses for the messages of `quarantine` before `index`. */
  private readonly receiveFrom = (session: Session, source: Source, index: number) =>
    Effect.gen(this, function* () {
      yield* this.progress.until(() => source.wanted !== "none" && !this.stopping && !this.mustPause(index))
      const { wanted } = source
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          source.state = "open"
        }),
        () =>
          Effect.sync(() => {
            source.state = "closed"
            this.progress.notify()
          }),
      )
      const { cancel, tracker } = yield* this.subscribe(session, source, wanted, (delivery) => {
        if (source.wanted === "one") source.wanted = "none"
        if (index === this.quarantine.length) return this.handOut(delivery)
        source.waiting.push(delivery)
        this.progress.notify()
      })
      yield* this.progress.until(() => source.wanted !== wanted || this.stopping || this.mustPause(index))
      if (index < this.quarantine.length) {
        // A message that meets the cancel comes back when the channel closes. That would be evidence against it.
        source.state = "pausing"
        yield* this.progress.until(() => this.handling !== index)
        yield* Effect.sleep(quietMillis)
      }
      yield* cancel
      source.state = "draining"
      this.progress.notify()
      // Closing a channel with unsettled deliveries would count against them. A consumer that stops keeps its channel:
      // the broker may lose acknowledgements if the connection is closed while the channel is being closed.
      yield* this.progress.until(() => tracker.inHand === 0 && (!this.stopping || this.mustPause(index)))
    }).pipe(Effect.scoped, Effect.forever)

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
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        this.trackers.add(tracker)
        source.tracker = tracker
      }),
      () =>
        Effect.sync(() => {
          closed = true
          source.tracker = undefined
          source.waiting = []
          this.trackers.delete(tracker)
          tracker.forget()
          this.buffer = this.buffer.filter((delivery) => delivery.tracker !== tracker)
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

  /** The source whose company can be handed out now. The largest company goes first: it must not wait in hand. */
  private nextCompany(): number | undefined {
    const index = this.quarantine.findLastIndex(({ waiting }) => waiting.length > 0)
    const others = [...this.mains, this.setAside, ...this.quarantine.slice(index + 1)]
    const isPausing = this.quarantine[index]?.state === "pausing"
    return index < 0 || isPausing || others.some(({ state }) => state !== "closed") ? undefined : index
  }

  /** Hands out a company of quarantined messages, and waits until it is settled. */
  private readonly handOutCompany = Effect.gen(this, function* () {
    yield* this.progress.until(() => this.nextCompany() !== undefined)
    const index = this.nextCompany()
    const source = this.quarantine[index ?? 0]
    if (index === undefined || source === undefined) return
    this.handling = index
    const company = source.waiting.splice(0)
    for (const delivery of company) this.handOut(delivery)
    yield* this.progress.until(() => company.every((one) => one.blocked || !one.tracker.holds(one)))
    yield* Effect.timeoutOption(
      this.progress.until(() => this.draining),
      nextQuarantinedWithin,
    )
    this.handling = Number.POSITIVE_INFINITY
    this.progress.notify()
  })

  private handOut(delivery: RabbitDelivery): void {
    this.buffer.push(delivery)
    this.arrival.notify()
  }
}
