/**
 * The queue on RabbitMQ. Publishing waits for publisher confirms. A consumer has a prefetch and acknowledges many
 * messages at once. It survives lost connections: the broker delivers their unacknowledged messages again.
 */
import type { ChannelModel } from "amqplib"
import { Clock, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as MessageTraces from "../../services/MessageTraces.ts"
import {
  type Consumer,
  failedQueue,
  InteractionQueue,
  InteractionQueueError,
  type Message,
  type NotAcked,
  partitionedRetryQueue,
  queue,
  retryQueue,
  type Settled,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import { call, channel, Rabbit } from "./Rabbit.ts"
import { type AckTracker, RabbitDelivery } from "./RabbitDelivery.ts"
import { RabbitIntake } from "./RabbitIntake.ts"
import * as RabbitManagement from "./RabbitManagement.ts"
import { batchMessages, confirmationsOf, spreadOf } from "./RabbitMessages.ts"
import { make as makePublisher, system } from "./RabbitPublisher.ts"
import { Republisher } from "./RabbitRepublish.ts"
import * as RabbitTopology from "./RabbitTopology.ts"

const toError = portError(InteractionQueueError)

/** Acknowledges, then republishes what is not acknowledged. Deliveries of another queue are ignored. */
const settle = (intake: RabbitIntake, republisher: Republisher, settled: ReadonlyArray<Settled>) =>
  Effect.suspend(() => {
    const done: Array<RabbitDelivery> = []
    const notAcked: Array<readonly [RabbitDelivery, NotAcked]> = []
    for (const [delivery, settlement] of settled)
      if (!(delivery instanceof RabbitDelivery)) continue
      else if (settlement._tag === "Ack") done.push(delivery)
      else notAcked.push([delivery, settlement])
    const acknowledged = Effect.sync(() => intake.acknowledge(done)).pipe(
      MessageTraces.acknowledging(system, done),
    )
    return notAcked.length === 0
      ? acknowledged
      : Effect.zipRight(acknowledged, republisher.republish(notAcked))
  })

/** AMQP counts ready messages only. Unacknowledged ones are known for the consumers of this process. */
const countMessages = Effect.fnUntraced(function* (
  connection: ChannelModel,
  { delays }: RabbitTopology.Layout,
  partitions: number,
  trackers: ReadonlySet<AckTracker>,
) {
  const admin = yield* channel(connection)
  const check = (name: string) => call(`check queue ${name}`, () => admin.checkQueue(name))
  const { consumerCount: consumers, messageCount } = yield* check(queue)
  let ready = messageCount + (yield* check(setAsideQueue)).messageCount
  for (const name of RabbitTopology.partitionQueues(0, partitions)) ready += (yield* check(name)).messageCount
  let quarantined = 0
  for (const name of RabbitTopology.quarantineQueues) quarantined += (yield* check(name)).messageCount
  const retry: Record<string, number> = {}
  for (const delay of delays) {
    const { messageCount: plain } = yield* check(retryQueue(delay))
    const returning = partitions > 0 ? yield* check(partitionedRetryQueue(delay)) : { messageCount: 0 }
    retry[delay] = plain + returning.messageCount
  }
  const { messageCount: failed } = yield* check(failedQueue)
  let unacked = 0
  for (const { isQuarantine, unsettled } of trackers)
    if (isQuarantine) quarantined += unsettled
    else unacked += unsettled
  return { main: { ready, unacked, consumers }, quarantined, retry, failed }
}, Effect.scoped)

const make = Effect.gen(function* () {
  const { adminConnection, supervise } = yield* Rabbit
  const { eventsPerMessage, workerPartitions } = yield* EmbeddingConfig
  const layout = yield* RabbitTopology.configured
  /** Of all consumers of this process. */
  const trackers = new Set<AckTracker>()
  /** Partitions that exist: there may be more than configured, if there were more before. */
  let partitions = RabbitTopology.partitionCount(layout)
  const declare = (connection: ChannelModel) =>
    Effect.tap(RabbitTopology.declare(connection, layout), (existing) =>
      Effect.sync(() => {
        partitions = existing
      }),
    )
  const spread = spreadOf(layout.partitions, eventsPerMessage)
  const publisher = yield* makePublisher("publisher", declare)

  const publish = Effect.fnUntraced(function* (messages: ReadonlyArray<Message>) {
    const now = yield* Clock.currentTimeMillis
    return yield* MessageTraces.publishing(system, messages.map(MessageTraces.update), (traces) =>
      Effect.suspend(() => {
        const batches = batchMessages(messages, traces, eventsPerMessage, now, spread)
        return Effect.map(publisher.publish(batches.map(({ outgoing }) => outgoing)), (confirmations) =>
          confirmationsOf(batches, confirmations),
        )
      }).pipe(Effect.mapError(toError)),
    )
  })

  const consume = Effect.fnUntraced(function* (prefetch: number) {
    const intake = new RabbitIntake(trackers, Math.ceil(prefetch / eventsPerMessage))
    const republisher = new Republisher(publisher, intake, RabbitTopology.retryQueueIn(layout))
    yield* supervise("consumer", (connection, lost) =>
      Effect.flatMap(declare(connection), (existing) =>
        intake.receive(connection, lost, RabbitTopology.consumed(layout, workerPartitions, existing)),
      ),
    )
    yield* Effect.forkScoped(Effect.forever(republisher.retryBlocked))
    return {
      take: (most) => intake.take(most),
      receive: (wanted) => intake.want(wanted),
      settle: (settled) => settle(intake, republisher, settled),
      stop: intake.stop,
      holds: (delivery) => delivery instanceof RabbitDelivery && delivery.tracker.holds(delivery),
      full: () => intake.full,
      draining: () => intake.draining,
    } satisfies Consumer
  })

  return InteractionQueue.of({
    system,
    eventsPerMessage,
    pauseAbove: Number.POSITIVE_INFINITY,
    publish,
    consume,
    depths: adminConnection.current.pipe(
      Effect.flatMap((connection) => countMessages(connection, layout, partitions, trackers)),
      Effect.mapError(toError),
    ),
    traffic: yield* RabbitManagement.traffic([
      queue,
      setAsideQueue,
      ...RabbitTopology.partitionQueues(0, partitions),
    ]),
  })
})

export const layer = Layer.scoped(InteractionQueue, make)
