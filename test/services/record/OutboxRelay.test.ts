/** A large outbox, as an import leaves it, goes to the workers no faster than they work. */
import { expect } from "bun:test"
import { Effect, Fiber, Layer } from "effect"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { Ack, InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { OutboxRelay, layer as outboxRelay } from "../../../src/services/record/OutboxRelay.ts"
import { layerSuite } from "../../support/effect.ts"
import { eventually, search } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const rows = 16_000
/** What may wait, and the rows of one read. */
const deepest = 5_000 + 5_000

const history = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, index) => ({
    interaction: search("u-history", "tent", new Date(1_700_000_000_000 + from + index).toISOString()),
    idempotencyKey: null,
    occurredAtGiven: true,
    trace: null,
    recordedAt: Date.now() - 60_000,
  }))

const suite = (name: string, stack: ReturnType<typeof embedded> | ReturnType<typeof external>) =>
  layerSuite(name, outboxRelay.pipe(Layer.provideMerge(stack)), (it) => {
    it(
      "the sweep waits while workers have enough to do, and ends when all is with them",
      () =>
        Effect.gen(function* () {
          const log = yield* InteractionLog
          const queue = yield* InteractionQueue
          const { sweep } = yield* OutboxRelay
          for (let from = 0; from < rows; from += 1_000) yield* log.append(history(from, from + 1_000))
          const consumer = yield* queue.consume(2_000)
          yield* eventually(Effect.map(queue.depths, ({ main }) => (main.consumers > 0 ? true : undefined)))
          const sweeping = yield* Effect.fork(sweep)
          const depth = Effect.map(
            queue.depths,
            ({ main }) => main.ready * queue.eventsPerMessage + main.unacked,
          )
          yield* eventually(Effect.map(depth, (waiting) => (waiting >= deepest ? true : undefined)))
          yield* Effect.timeoutOption(Fiber.join(sweeping), "1 second")
          expect(yield* depth).toBeLessThanOrEqual(deepest + 2_000)
          const delivered = new Set<string | null>()
          while (delivered.size < rows) {
            const deliveries = yield* consumer.take(2_000)
            for (const { messageId } of deliveries) delivered.add(messageId)
            yield* consumer.settle(deliveries.map((delivery) => [delivery, Ack]))
          }
          expect(yield* Fiber.join(sweeping)).toBe(rows)
        }).pipe(Effect.scoped),
      60_000,
    )
  })

suite("on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () => {
  suite("relay", external())
  suite("relay of packs", external({ EVENTS_PER_MESSAGE: "50" }))
})
