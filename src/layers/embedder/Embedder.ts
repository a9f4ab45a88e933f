/** The embedder of both stacks: OpenAI if OPENAI_API_KEY is set, otherwise the local one. */
import { Context, Effect, Layer, Option } from "effect"
import type { Dependency } from "../../services/ports/Dependencies.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import * as Settings from "../../services/Settings.ts"
import * as LocalPhraseEmbedder from "./LocalPhraseEmbedder.ts"
import * as OpenAi from "./OpenAi.ts"
import * as OpenAiPhraseEmbedder from "./OpenAiPhraseEmbedder.ts"

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

const openAi = Layer.effect(EmbedderDependency, OpenAi.dependency).pipe(
  Layer.provideMerge(OpenAiPhraseEmbedder.layerConfig),
  Layer.provide(OpenAi.layerConfig),
)
const local = Layer.merge(
  LocalPhraseEmbedder.layer,
  Layer.succeed(EmbedderDependency, LocalPhraseEmbedder.dependency),
)

/** Chosen by OPENAI_API_KEY. Logs the space of the chosen embedder. */
export const layerConfig = Layer.unwrapEffect(
  Effect.map(Settings.OPENAI_API_KEY, (key) => (Option.isSome(key) ? openAi : local)),
).pipe(
  Layer.tap((context) =>
    Effect.logInfo("embedder.chosen").pipe(
      Effect.annotateLogs({ space: Context.get(context, PhraseEmbedder).space }),
    ),
  ),
)
