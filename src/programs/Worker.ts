/** Consumes update messages and folds them into user embeddings. Any number of workers may run at once. */
import { getPriority, setPriority } from "node:os"
import { Effect, Layer } from "effect"
import { workerName } from "../layers/RecordedFailure.ts"
import * as Settings from "../services/Settings.ts"
import * as EmbeddingUpdater from "../services/update/EmbeddingUpdater.ts"
import * as EmbeddingWorker from "../services/update/EmbeddingWorker.ts"
import * as EventVectors from "../services/update/EventVectors.ts"
import * as WorkerReporter from "../services/update/WorkerReporter.ts"

export const layer = WorkerReporter.reporting(workerName).pipe(
  Layer.provideMerge(EmbeddingWorker.layer),
  Layer.provide(EmbeddingUpdater.layer),
  Layer.provide(EventVectors.layer),
)

/** Gives other programs precedence: while a worker waits, its batches grow, and an event costs less. */
export const lowerPriority = Layer.effectDiscard(
  Effect.flatMap(Settings.WORKER_NICENESS, (niceness) =>
    Effect.sync(() => setPriority(Math.max(getPriority(), niceness))),
  ),
)
