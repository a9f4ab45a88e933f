/**
 * A worker in a process of its own, with the stack of the environment. A batch with the word `lethal` kills it at once,
 * as a bug of the runtime would, and nothing is settled. With DIE_AT=n it kills itself at its n-th step: before and after
 * each write, and before the settlement of a batch. On SIGTERM it stops in order.
 */
import { Effect, Layer } from "effect"
import * as Stack from "../../src/layers/Stack.ts"
import * as Logging from "../../src/layers/telemetry/Logging.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as EmbeddingUpdater from "../../src/services/update/EmbeddingUpdater.ts"
import * as EmbeddingWorker from "../../src/services/update/EmbeddingWorker.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"

const dieAt = Number(process.env.DIE_AT)
let steps = 0
const step = Effect.sync(() => {
  steps += 1
  if (steps === dieAt) process.kill(process.pid, "SIGKILL")
})
const stepwise = <A, E>(write: Effect.Effect<A, E>) => Effect.zipLeft(Effect.zipRight(step, write), step)
const users = Layer.effect(
  UserEmbeddings,
  Effect.map(UserEmbeddings, (users) => ({
    ...users,
    save: (writes) => stepwise(users.save(writes)),
    saveToLedger: (kind, entries) => stepwise(users.saveToLedger(kind, entries)),
  })),
)

const updater = Layer.effect(
  EmbeddingUpdater.EmbeddingUpdater,
  Effect.map(EmbeddingUpdater.EmbeddingUpdater, ({ needsEmbedder, update }) => ({
    needsEmbedder,
    update: (messages) => {
      if (messages.some(({ delivery }) => Buffer.from(delivery.body).includes("lethal"))) process.exit(139)
      return Effect.zipLeft(update(messages), step)
    },
  })),
).pipe(Layer.provide(EmbeddingUpdater.layer))

const worker = EmbeddingWorker.layer.pipe(
  Layer.provide(updater),
  Layer.provide(EventVectors.layer),
  Layer.provide(users),
  Layer.provide(Stack.layer),
  Layer.provide(Logging.layerConfig(false)),
)
const running = Effect.runFork(Layer.launch(worker))
process.once("SIGTERM", () => running.unsafeInterruptAsFork(running.id()))
