/** Which parts a program stands on, picked by configuration. */
import { ConfigError, Effect, Layer, Option } from "effect"
import * as EmbeddingConfig from "../services/EmbeddingConfig.ts"
import type { DeadLetters } from "../services/ports/DeadLetters.ts"
import type { Dependencies, DependencyDown } from "../services/ports/Dependencies.ts"
import type { InteractionLog } from "../services/ports/InteractionLog.ts"
import type { InteractionQueue } from "../services/ports/InteractionQueue.ts"
import type { PhraseEmbedder } from "../services/ports/PhraseEmbedder.ts"
import type { PhraseEmbeddings } from "../services/ports/PhraseEmbeddings.ts"
import type { ProductEmbeddings } from "../services/ports/ProductEmbeddings.ts"
import type { UserEmbeddings } from "../services/ports/UserEmbeddings.ts"
import * as Settings from "../services/Settings.ts"
import * as Embedder from "./embedder/Embedder.ts"
import * as StackEmbedded from "./StackEmbedded.ts"
import * as StackExternal from "./StackExternal.ts"

/** Everything that the steps and programs need from outside. */
export type Ports =
  | InteractionLog
  | InteractionQueue
  | DeadLetters
  | UserEmbeddings
  | ProductEmbeddings
  | PhraseEmbeddings
  | PhraseEmbedder
  | Dependencies
  | EmbeddingConfig.EmbeddingConfig

const servers = [Settings.RABBITMQ_DSN, Settings.MYSQL_URL, Settings.MONGODB_URL]

/** All three servers named → external; none → embedded; some → an error that names the missing ones. */
export const kind = Effect.gen(function* () {
  const given = yield* Effect.all(servers)
  const missing = servers.filter((_, index) => Option.isNone(given[index]!)).map(({ variable }) => variable)
  if (missing.length === 0) return "external" as const
  if (missing.length === servers.length) return "embedded" as const
  return yield* Effect.fail(
    ConfigError.MissingData(
      missing,
      `${missing.join(" and ")} must be set too: RABBITMQ_DSN, MYSQL_URL and MONGODB_URL together, or none of them for the embedded stack`,
    ),
  )
})

/** With an embedder of one's own: {@link Embedder.of}. */
export const on = <E>(
  embedder: Layer.Layer<Embedder.Embedder, E, EmbeddingConfig.EmbeddingConfig>,
): Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown | E> =>
  Layer.unwrapEffect(
    Effect.map(kind, (chosen) =>
      chosen === "external" ? StackExternal.on(embedder) : StackEmbedded.on(embedder),
    ),
  ).pipe(Layer.provideMerge(EmbeddingConfig.layerConfig))

export const layer = on(Embedder.layerConfig)

/** For those who only look at the servers, or set them up: it changes nothing by itself. */
export const looking: Layer.Layer<
  Exclude<Ports, InteractionLog | InteractionQueue>,
  ConfigError.ConfigError | DependencyDown
> = Layer.unwrapEffect(
  Effect.map(kind, (chosen) => (chosen === "external" ? StackExternal.looking : StackEmbedded.layer)),
).pipe(Layer.provideMerge(EmbeddingConfig.layerConfig))
