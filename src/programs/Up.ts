/** API, relay and worker in one process, with setup. An empty embedded stack that embeds texts gets sample products. */
import { Effect, Either, Layer, Option, Stream } from "effect"
import * as Stack from "../layers/Stack.ts"
import { harmlessText } from "../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../services/ports/ProductEmbeddings.ts"
import * as RetryPolicies from "../services/RetryPolicies.ts"
import * as EventVectors from "../services/update/EventVectors.ts"
import * as Api from "./Api.ts"
import { importProducts, sampleCatalogue } from "./tasks/ImportProducts.ts"
import * as Provision from "./tasks/ProvisionServers.ts"
import * as Worker from "./Worker.ts"

const importSamples = Effect.gen(function* () {
  const products = yield* ProductEmbeddings
  if ((yield* Stack.kind) !== "embedded") return
  // Also deleted products, so that samples that were deleted stay deleted.
  if (Option.isSome(yield* Stream.runHead(products.changed(0)))) return
  const { ofTexts } = yield* EventVectors.EventVectors
  const [sample] = yield* ofTexts([harmlessText])
  if (sample && Either.isLeft(sample) && sample.left.reason === "no_embedder") return
  const { imported } = yield* importProducts(sampleCatalogue, { strict: true, progress: () => Effect.void })
  yield* Effect.logInfo("samples.imported").pipe(
    Effect.annotateLogs({ products: imported, file: "samples/catalogue.jsonl" }),
  )
})

/** Sets up the servers. Until they answer, it logs a warning and tries again. */
const prepare = Provision.setup.pipe(
  Effect.tapError((error) =>
    Effect.logWarning("setup.waiting").pipe(
      Effect.annotateLogs({ dependency: error.dependency, detail: error.detail, remedy: error.remedy }),
    ),
  ),
  Effect.retry(RetryPolicies.reconnectRetry),
  Effect.zipRight(importSamples),
)

export const layer = Layer.merge(Api.layer, Worker.layer).pipe(
  Layer.provide(Layer.effectDiscard(prepare)),
  Layer.provide(EventVectors.layer),
)
