/**
 * A consumer in another process: `bun sqliteConsumer.ts DIRECTORY hold|drain`. Prints `ready`, then the message ids of
 * each batch as a line of JSON. `drain` settles each batch; `hold` keeps the first until the process is killed.
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
