/** The embedder of both stacks: OpenAI when there is a key, else the local one. */
import { Effect, Layer, Option } from "effect"
import { PhraseEmbedder } from "../services/PhraseEmbedder.ts"
import * as Settings from "../services/Settings.ts"
import * as LocalPhraseEmbedder from "./LocalPhraseEmbedder.ts"
import * as OpenAi from "./OpenAi.ts"
import * as OpenAiPhraseEmbedder from "./OpenAiPhraseEmbedder.ts"

const openAi = OpenAiPhraseEmbedder.layer.pipe(Layer.provideMerge(OpenAi.layerConfig))

/** The chosen embedder; the log says which, and its space. */
export const layerConfig = Layer.unwrapEffect(
  Effect.map(Settings.OPENAI_API_KEY, (key) => (Option.isSome(key) ? openAi : LocalPhraseEmbedder.layer)),
).pipe(
  Layer.tap((context) =>
    Effect.logInfo("embedder.chosen").pipe(
      Effect.annotateLogs({ space: context.unsafeMap.get(PhraseEmbedder.key)?.space }),
    ),
  ),
)
