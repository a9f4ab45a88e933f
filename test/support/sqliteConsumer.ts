/**
 * A consumer in a process of its own: `bun sqliteConsumer.ts DIRECTORY hold|drain`. Prints `ready`, then a line of JSON
 * with the message ids of every batch that it took; `drain` settles them, `hold` keeps them until it is killed.
 */
import { Console, Effect, Logger, LogLevel } from "effect"
import { Ack, InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { queueIn } from "./sqliteQueue.ts"

const [directory = "", mode] = process.argv.slice(2)

const program = Effect.gen(function* () {
  const queue = yield* InteractionQueue
  const consumer = yield* queue.consume(100)
  yield* Console.log("ready")
  while (true) {
    const taken = yield* consumer.take(10)
    yield* Console.log(JSON.stringify(taken.map(({ messageId }) => messageId)))
    if (mode === "hold") return yield* Effect.never
    yield* Effect.sleep("2 millis")
    yield* consumer.settle(taken.map((delivery) => [delivery, Ack]))
  }
})

await Effect.runPromise(
  program.pipe(Effect.scoped, Effect.provide(queueIn(directory)), Logger.withMinimumLogLevel(LogLevel.None)),
)
