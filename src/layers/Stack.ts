/** The external or the embedded stack, chosen by configuration. */
import { ConfigError, Effect, Layer, Option } from "effect"
import * as EmbeddingConfig from "../services/EmbeddingConfig.ts"
import type { DeadLetters } from "../services/ports/DeadLetters.ts"
import type { Dependencies, DependencyDown } from "../services/ports/Dependencies.ts"
import type { EmbeddingFeed } from "../services/ports/EmbeddingFeed.ts"
import type { InteractionLog } from "../services/ports/InteractionLog.ts"
import type { InteractionQueue } from "../services/ports/InteractionQueue.ts"
import type { PhraseEmbedder } from "../services/ports/PhraseEmbedder.ts"
import type { PhraseEmbeddings } from "../services/ports/PhraseEmbeddings.ts"
import type { ProductEmbeddings } from "../services/ports/ProductEmbeddings.ts"
import type { ProductPairs } from "../services/ports/ProductPairs.ts"
import type { ProductTally } from "../services/ports/ProductTally.ts"
import type { UserEmbeddings } from "../services/ports/UserEmbeddings.ts"
import type { WorkerReports } from "../services/ports/WorkerReports.ts"
import * as Settings from "../services/Settings.ts"
import * as Embedder from "./embedder/Embedder.ts"

/** All services that a stack provides to the steps and programs. */
export type Ports =
  | InteractionLog
  | ProductTally
  | WorkerReports
  | InteractionQueue
  | DeadLetters
  | UserEmbeddings
  | ProductEmbeddings
  | ProductPairs
  | PhraseEmbeddings
  | PhraseEmbedder
  | EmbeddingFeed
  | Dependencies
  | EmbeddingConfig.EmbeddingConfig

const servers = [Settings.RABBITMQ_DSN, Settings.MYSQL_URL, Settings.MONGODB_URL]

/** External if the URLs of all three servers are set, embedded if none is. Otherwise an error names the missing URLs. */
export const kind = Effect.gen(function* () {
  const given = yield* Effect.all(servers)
  const missing = servers.filter((_, index) => Option.isNone(given[index]!)).map(({ variable }) => variable)
  if (missing.length === 0) return "external" as const
  if (missing.length === servers.length) return "embedded" as const
  return yield* Effect.fail(
    ConfigError.MissingData(
      missing,
      `${missing.join(" and ")} must be set too: set RABBITMQ_DSN, MYSQL_URL and MONGODB_URL together, or none of them for the embedded stack`,
    ),
  )
})

/** A program loads the clients of the servers only if it uses them: they take a fifth of the time of a start. */
const chosen = Effect.gen(function* () {
  return (yield* kind) === "external"
    ? yield* Effect.promise(() => import("./StackExternal.ts"))
    : yield* Effect.promise(() => import("./StackEmbedded.ts"))
})

/** With any embedder: see {@link Embedder.of}. */
export const on = <E>(
  embedder: Layer.Layer<Embedder.Embedder, E, EmbeddingConfig.EmbeddingConfig>,
): Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown | E> =>
  Layer.unwrapEffect(Effect.map(chosen, (stack) => stack.on(embedder))).pipe(
    Layer.provideMerge(EmbeddingConfig.layerConfig),
  )

export const layer = on(Embedder.layerConfig)

/** For `setup` and `doctor`: building this layer changes nothing on the servers. */
export const forSetup: Layer.Layer<
  Exclude<Ports, EmbeddingFeed | InteractionLog | InteractionQueue | ProductTally | WorkerReports>,
  ConfigError.ConfigError | DependencyDown
> = Layer.unwrapEffect(Effect.map(chosen, ({ forSetup }) => forSetup)).pipe(
  Layer.provideMerge(EmbeddingConfig.layerConfig),
)
