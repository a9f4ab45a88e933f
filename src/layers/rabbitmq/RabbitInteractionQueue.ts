/**
 * The queue on RabbitMQ: published in a confirm window, consumed with a prefetch, acknowledged many at once. The
 * consumer survives lost connections: what it held on the lost one is forgotten and delivered again.
 */
import type { Channel, ChannelModel } from "amqplib"
import { Clock, Effect, Layer, Random } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as MessageTraces from "../../services/MessageTraces.ts"
import {
  type Consumer,
  type Delivery,
  failedQueue,
  InteractionQueue,
  InteractionQueueError,
  type Message,
  type NotAcked,
  quarantineQueue,
  queue,
  retryQueue,
  type Settled,
} from "../../services/ports/InteractionQueue.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import { described } from "../../services/Telemetry.ts"
import { call, channel, type Lost, Rabbit, type RabbitError } from "./Rabbit.ts"
import { AckTracker, RabbitDelivery } from "./RabbitDelivery.ts"
import * as RabbitManagement from "./RabbitManagement.ts"
import { answers, batchMessages } from "./RabbitMessages.ts"
import { make as makePublisher, type Outgoing, publishTraced, system } from "./RabbitPublisher.ts"
import { republish } from "./RabbitRepublish.ts"
import * as RabbitTopology from "./RabbitTopology.ts"

const failing = <A>(effect: Effect.Effect<A, RabbitError>): Effect.Effect<A, InteractionQueueError> =>
  Effect.mapError(
    effect,
    ({ cause, operation, reason }) => new InteractionQueueError({ cause, operation, reason }),
  )

/** A delivery that is acknowledged once its copy is confirmed. */
interface Copied {
  readonly delivery: RabbitDelivery
  readonly copy: Outgoing
}

/** How long a consumer that has handled a suspect waits for the next, before it takes in others again. */
const nextSuspectWithin = "100 millis"

const make = Effect.gen(function* () {
  const { adminConnection: inspection, supervise } = yield* Rabbit
  const { eventsPerMessage } = yield* EmbeddingConfig
  const delays = yield* RabbitTopology.retryDelays
  const subscriptions = new Set<AckTracker>()
  const declare = (channel: Channel) => RabbitTopology.declare(channel, delays)
  const publisher = yield* makePublisher("publisher", declare)

  const publish = Effect.fnUntraced(function* (messages: ReadonlyArray<Message>) {
    const now = yield* Clock.currentTimeMillis
    return yield* MessageTraces.publishing(system, messages.map(MessageTraces.update), (traces) =>
      failing(
        Effect.suspend(() => {
          const packs = batchMessages(messages, traces, eventsPerMessage, now)
          return Effect.map(publisher.publish(packs.map(({ outgoing }) => outgoing)), (confirmations) =>
            answers(packs, confirmations),
          )
        }),
      ),
    )
  })

  const consume = Effect.fnUntraced(function* (prefetch: number) {
    const arrival = yield* Effect.makeLatch(false)
    /** Opened by what the intake may wait for: a suspect that came, a settlement. */
    const progress = yield* Effect.makeLatch(false)
    const until = (holds: () => boolean): Effect.Effect<void> =>
      Effect.suspend(() => {
        if (holds()) return Effect.void
        progress.unsafeClose()
        return Effect.zipRight(progress.await, until(holds))
      })
    let stopping = false
    const stopped = yield* Effect.makeLatch(false)
    let buffer: Array<RabbitDelivery> = []
    let main: AckTracker | undefined
    const handOver = (delivery: RabbitDelivery) => {
      buffer.push(delivery)
      arrival.unsafeOpen()
    }

    /** Copies that found no way yet; their originals are unacknowledged, so the prefetch bounds them. */
    let stuck: ReadonlyArray<Copied> = []
    const inHand = (subscription: AckTracker): number =>
      stuck.reduce(
        (count, { delivery }) => (subscription.holds(delivery) ? count - 1 : count),
        subscription.unsettled,
      )

    const session = (connection: ChannelModel, lost: Lost) =>
      Effect.gen(function* () {
        /** Consumes a queue on a channel of its own, until the scope closes. */
        const subscribe = Effect.fnUntraced(function* (
          from: string,
          prefetch: number,
          receive: (delivery: RabbitDelivery) => void,
        ) {
          let over = false
          const consuming = yield* channel(connection, (cause) => {
            if (!over) lost(cause)
          })
          const subscription = yield* Effect.acquireRelease(
            Effect.sync(() => {
              const subscription = new AckTracker(from, consuming, prefetch)
              subscriptions.add(subscription)
              return subscription
            }),
            (subscription) =>
              Effect.sync(() => {
                over = true
                subscriptions.delete(subscription)
                subscription.forget()
                buffer = buffer.filter((delivery) => delivery.subscription !== subscription)
              }),
          )
          const { consumerTag } = yield* call("consume", async () => {
            await consuming.prefetch(prefetch)
            return consuming.consume(from, (message) => {
              // The broker cancels when the queue is deleted; the next session declares it again.
              if (message === null) return lost(new Error(`queue ${from} was deleted`))
              for (const delivery of subscription.receive(message)) receive(delivery)
            })
          })
          return { subscription, cancel: call("cancel", () => consuming.cancel(consumerTag)) }
        })

        yield* Effect.scoped(Effect.flatMap(channel(connection), declare))
        const suspects: Array<RabbitDelivery> = []
        const { subscription: quarantine } = yield* subscribe(quarantineQueue, 1, (delivery) => {
          suspects.push(delivery)
          progress.unsafeOpen()
        })

        /** Takes in until a suspect comes; then all that is held is settled, and suspects come one by one. */
        const shift = Effect.gen(function* () {
          const { cancel, subscription } = yield* subscribe(
            queue,
            Math.ceil(prefetch / eventsPerMessage),
            handOver,
          )
          main = subscription
          yield* until(() => stopping || suspects.length > 0)
          yield* cancel
          if (stopping) return yield* Effect.zipRight(stopped.open, Effect.never)
          yield* until(() => inHand(subscription) === 0)
          while (suspects.length > 0) {
            handOver(suspects.shift()!)
            yield* until(() => inHand(quarantine) === 0 || suspects.length > 0)
            yield* Effect.timeoutOption(
              until(() => suspects.length > 0),
              nextSuspectWithin,
            )
          }
        })
        yield* Effect.scoped(shift).pipe(
          Effect.forever,
          Effect.catchAll((error) => Effect.sync(() => lost(error))),
          Effect.forkScoped,
        )
      })
    yield* supervise("consumer", session)

    const take = (most: number): Effect.Effect<ReadonlyArray<Delivery>> =>
      Effect.suspend(() => {
        if (buffer.length > 0) {
          const taken = buffer.splice(0, most)
          progress.unsafeOpen()
          return Effect.succeed(taken)
        }
        arrival.unsafeClose()
        return Effect.zipRight(arrival.await, take(most))
      })

    const acknowledge = (deliveries: ReadonlyArray<RabbitDelivery>) => {
      for (const subscription of subscriptions) subscription.acknowledge(deliveries)
      progress.unsafeOpen()
    }

    /** Publishes copies, acknowledges the originals of those confirmed, and answers the others. */
    const pass = Effect.fnUntraced(function* (copies: ReadonlyArray<Copied>) {
      const held = copies.filter(({ delivery }) => delivery.subscription.holds(delivery))
      const confirmations = yield* publishTraced(
        publisher,
        held.map(({ copy }) => copy),
        held.map(({ delivery }) => MessageTraces.spanOf(delivery)),
      ).pipe(
        Effect.catchAll((error) =>
          Effect.as(Effect.annotateLogs(Effect.logDebug("copies.failed"), described(error)), []),
        ),
      )
      const confirmed = held.filter((_, index) => confirmations[index] === "confirmed")
      acknowledge(confirmed.map(({ delivery }) => delivery))
      return held.filter((_, index) => confirmations[index] !== "confirmed")
    })

    const stuckArrival = yield* Effect.makeLatch(false)
    const passStuck = Effect.gen(function* () {
      yield* stuckArrival.await
      yield* Effect.annotateLogs(Effect.logError("copies.stuck"), {
        count: stuck.length,
        detail: "kept unacknowledged and tried again",
      })
      const again = Effect.gen(function* () {
        const tried = stuck
        const left = yield* pass(tried)
        stuck = [...left, ...stuck.slice(tried.length)]
        return stuck.length === 0
      })
      yield* Effect.repeat(again, { schedule: RetryPolicies.reconnectRetry, until: (done) => done })
      stuckArrival.unsafeClose()
      yield* Effect.logInfo("copies.passed")
    })
    yield* Effect.forkScoped(Effect.forever(passStuck))

    const passOn = Effect.fnUntraced(function* (onward: ReadonlyArray<readonly [RabbitDelivery, NotAcked]>) {
      const now = yield* Clock.currentTimeMillis
      const copies = yield* Effect.forEach(onward, ([delivery, settlement]) =>
        Effect.map(Random.nextRange(0.9, 1), (share) => ({
          delivery,
          copy: republish(delivery, settlement, now, share),
        })),
      )
      const left = yield* pass(copies)
      if (left.length === 0) return
      stuck = [...stuck, ...left]
      stuckArrival.unsafeOpen()
      progress.unsafeOpen()
    })

    const settle = (settled: ReadonlyArray<Settled>) =>
      Effect.suspend(() => {
        const done: Array<RabbitDelivery> = []
        const onward: Array<readonly [RabbitDelivery, NotAcked]> = []
        for (const [delivery, settlement] of settled)
          if (!(delivery instanceof RabbitDelivery)) continue
          else if (settlement._tag === "Ack") done.push(delivery)
          else onward.push([delivery, settlement])
        const acknowledged = Effect.sync(() => acknowledge(done)).pipe(
          MessageTraces.acknowledging(system, done),
        )
        return onward.length === 0 ? acknowledged : Effect.zipRight(acknowledged, passOn(onward))
      })

    const stop = Effect.suspend(() => {
      stopping = true
      progress.unsafeOpen()
      return Effect.zipRight(
        stopped.await,
        until(() => buffer.length === 0),
      )
    })

    const holds = (delivery: Delivery) =>
      delivery instanceof RabbitDelivery && delivery.subscription.holds(delivery)

    const full = () => main?.full ?? false

    return { take, settle, stop, holds, full } satisfies Consumer
  })

  const depths = failing(
    Effect.scoped(
      Effect.gen(function* () {
        const looking = yield* channel(yield* inspection.current)
        const look = (name: string) => call(`look at ${name}`, () => looking.checkQueue(name))
        const { consumerCount: consumers, messageCount: ready } = yield* look(queue)
        let quarantined = (yield* look(quarantineQueue)).messageCount
        const retry: Record<string, number> = {}
        for (const delay of delays) retry[delay] = (yield* look(retryQueue(delay))).messageCount
        const { messageCount: failed } = yield* look(failedQueue)
        // AMQP tells what is ready; of what is held, this process knows its own consumers' part.
        let unacked = 0
        for (const { queue: from, unsettled } of subscriptions)
          if (from === quarantineQueue) quarantined += unsettled
          else unacked += unsettled
        return { main: { ready, unacked, consumers }, quarantined, retry, failed }
      }),
    ),
  )

  return InteractionQueue.of({
    system,
    eventsPerMessage,
    pauseAbove: Number.POSITIVE_INFINITY,
    publish,
    consume,
    depths,
    traffic: yield* RabbitManagement.traffic,
  })
})

export const layer = Layer.scoped(InteractionQueue, make)
