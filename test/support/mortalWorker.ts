/**
 * A worker in a process of its own, with the stack of the environment. A batch with the word `lethal` kills it at once,
 * as a bug of the runtime would, and nothing is settled. On SIGTERM it stops in order.
 */
import { Effect, Layer } from "effect"
import * as Stack from "../../src/layers/Stack.ts"
import * as Logging from "../../src/layers/telemetry/Logging.ts"
import * as EmbeddingUpdater from "../../src/services/update/EmbeddingUpdater.ts"
import * as EmbeddingWorker from "../../src/services/update/EmbeddingWorker.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"

const updater = Layer.effect(
  EmbeddingUpdater.EmbeddingUpdater,
  Effect.map(EmbeddingUpdater.EmbeddingUpdater, ({ needsEmbedder, update }) => ({
    needsEmbedder,
    update: (messages) => {
      if (messages.some(({ delivery }) => Buffer.from(delivery.body).includes("lethal"))) process.exit(139)
      return update(messages)
    },
  })),
).pipe(Layer.provide(EmbeddingUpdater.layer))

const worker = EmbeddingWorker.layer.pipe(
  Layer.provide(updater),
  Layer.provide(EventVectors.layer),
  Layer.provide(Stack.layer),
  Layer.provide(Logging.layerConfig(false)),
)
const running = Effect.runFork(Layer.launch(worker))
process.once("SIGTERM", () => running.unsafeInterruptAsFork(running.id()))
