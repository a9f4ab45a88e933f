/** The embedder of both stacks: OpenAI when there is a key, else the local one. */
import { Context, Effect, Layer, Option } from "effect"
import type { Dependency } from "../services/Dependencies.ts"
import { PhraseEmbedder } from "../services/PhraseEmbedder.ts"
import * as Settings from "../services/Settings.ts"
import * as LocalPhraseEmbedder from "./LocalPhraseEmbedder.ts"
import * as OpenAi from "./OpenAi.ts"
import * as OpenAiPhraseEmbedder from "./OpenAiPhraseEmbedder.ts"

/** The chosen embedder among the dependencies. */
export class EmbedderDependency extends Context.Tag("user-embeddings/EmbedderDependency")<
  EmbedderDependency,
  Dependency
>() {}

const openAi = Layer.merge(
  OpenAiPhraseEmbedder.layer,
  Layer.effect(EmbedderDependency, OpenAi.dependency),
).pipe(Layer.provide(OpenAi.layerConfig))
const local = Layer.merge(
  LocalPhraseEmbedder.layer,
  Layer.succeed(EmbedderDependency, LocalPhraseEmbedder.dependency),
)

/** By OPENAI_API_KEY; the log says which, and its space. */
export const layerConfig = Layer.unwrapEffect(
  Effect.map(Settings.OPENAI_API_KEY, (key) => (Option.isSome(key) ? openAi : local)),
).pipe(
  Layer.tap((context) =>
    Effect.logInfo("embedder.chosen").pipe(
      Effect.annotateLogs({ space: Context.get(context, PhraseEmbedder).space }),
    ),
  ),
)
