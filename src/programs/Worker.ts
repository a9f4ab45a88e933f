/** Consumes update messages and folds them into the users' embeddings; any number side by side. */
import { Layer } from "effect"
import * as EmbeddingUpdater from "../services/EmbeddingUpdater.ts"
import * as EmbeddingWorker from "../services/EmbeddingWorker.ts"
import * as EventVectors from "../services/EventVectors.ts"

export const layer = EmbeddingWorker.layer.pipe(
  Layer.provide(EmbeddingUpdater.layer),
  Layer.provide(EventVectors.layer),
)
