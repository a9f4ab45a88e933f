/** Consumes update messages and folds them into the users' embeddings; any number side by side. */
import { getPriority, setPriority } from "node:os"
import { Effect, Layer } from "effect"
import * as Settings from "../services/Settings.ts"
import * as EmbeddingUpdater from "../services/update/EmbeddingUpdater.ts"
import * as EmbeddingWorker from "../services/update/EmbeddingWorker.ts"
import * as EventVectors from "../services/update/EventVectors.ts"

export const layer = EmbeddingWorker.layer.pipe(
  Layer.provide(EmbeddingUpdater.layer),
  Layer.provide(EventVectors.layer),
)

/** Lets everything else on the machine go first: while a worker waits its batches grow, and cost less an event. */
export const lowerPriority = Layer.effectDiscard(
  Effect.flatMap(Settings.WORKER_NICENESS, (niceness) =>
    Effect.sync(() => setPriority(Math.max(getPriority(), niceness))),
  ),
)
