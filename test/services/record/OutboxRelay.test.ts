/** A drain of a large outbox, as after an import, keeps the queue short. A defect ends neither the drain nor a lane. */
import { expect } from "bun:test"
import { Effect, Fiber, Layer } from "effect"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { Ack, InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { draining, OutboxRelay, layer as outboxRelay } from "../../../src/services/record/OutboxRelay.ts"
import { layerSuite } from "../../support/effect.ts"
import { eventually, search } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const rows = 16_000
/** The queue's limit and the rows of one read, which may follow when the queue is just below the limit. */
const maxDepth = 5_000 + 5_000

const history = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, index) => ({
    interaction: search("u-history", "tent", new Date(1_700_000_000_000 + from + index).toISOString()),
    idempotencyKey: null,
    occurredAtGiven: true,
    trace: null,
    recordedAt: Date.now() - 60_000,
  }))

/** Times that the relay has read the queue's depths. */
let depthReads = 0
const countDepthReads = Layer.effect(
  InteractionQueue,
  Effect.map(InteractionQueue, (queue) => ({
    ...queue,
    depths: Effect.tap(queue.depths, () => {
      depthReads += 1
    }),
  })),
)

/** How often the look-up of refunds still dies, as by a row that another program has written. */
let deaths = 0
const dying = Layer.effect(
  InteractionLog,
  Effect.map(InteractionLog, (log) => ({
    ...log,
    refundsOf: (users) =>
      Effect.suspend(() => (deaths-- > 0 ? Effect.die("a defect") : log.refundsOf(users))),
  })),
)

layerSuite(
  "after a defect",
  outboxRelay.pipe(Layer.provideMerge(dying), Layer.provideMerge(embedded())),
  (it) => {
    it("a process goes on to publish what it commits, and to drain the outbox", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const { offer } = yield* OutboxRelay
        const entries = history(0, 2)
        const [first, second] = (yield* log.append(entries)).flatMap((answer, index) =>
          answer._tag === "Recorded" ? [{ ...entries[index]!, id: answer.id }] : [],
        )
        const left = (rows: number) =>
          eventually(Effect.map(log.outbox, ({ unpublished }) => unpublished === rows || undefined))
        deaths = 1
        offer([first!])
        yield* eventually(Effect.sync(() => deaths <= 0 || undefined))
        offer([second!])
        yield* left(1)
        deaths = 1
        yield* Layer.build(draining)
        yield* left(0)
        expect(deaths).toBeLessThanOrEqual(0)
      }).pipe(Effect.scoped))
  },
)

const suite = (name: string, stack: ReturnType<typeof embedded> | ReturnType<typeof external>) =>
  layerSuite(name, outboxRelay.pipe(Layer.provide(countDepthReads), Layer.provideMerge(stack)), (it) => {
    it(
      "a drain pauses while the queue is long, and ends when the workers have received everything",
      () =>
        Effect.gen(function* () {
          const log = yield* InteractionLog
          const queue = yield* InteractionQueue
          const { drain } = yield* OutboxRelay
          for (let from = 0; from < rows; from += 1_000) yield* log.append(history(from, from + 1_000))
          const consumer = yield* queue.consume(2_000)
          yield* eventually(Effect.map(queue.depths, ({ main }) => (main.consumers > 0 ? true : undefined)))
          const draining = yield* Effect.fork(drain)
          const depth = Effect.map(
            queue.depths,
            ({ main }) => main.ready * queue.eventsPerMessage + main.unacked,
          )
          yield* eventually(Effect.map(depth, (waiting) => (waiting >= maxDepth ? true : undefined)))
          const readsBefore = depthReads
          yield* eventually(Effect.sync(() => (depthReads >= readsBefore + 3 ? true : undefined)))
          expect(yield* depth).toBeLessThanOrEqual(maxDepth + 2_000)
          const delivered = new Set<string | null>()
          while (delivered.size < rows) {
            const deliveries = yield* consumer.take(2_000)
            for (const { messageId } of deliveries) delivered.add(messageId)
            yield* consumer.settle(deliveries.map((delivery) => [delivery, Ack]))
          }
          expect(yield* Fiber.join(draining)).toBe(rows)
        }).pipe(Effect.scoped),
      60_000,
    )
  })

suite("on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () => {
  suite("relay", external())
  suite("relay of message batches", external({ EVENTS_PER_MESSAGE: "50" }))
})
