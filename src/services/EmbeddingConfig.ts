/** The settings of updating and reading embeddings, as one service. */
import { Config, ConfigError, Context, type Duration, Either, Layer, Option } from "effect"
import * as EventTypes from "./model/EventTypes.ts"
import type { History } from "./model/UserEmbedding.ts"
import * as Settings from "./Settings.ts"

export interface Knobs {
  readonly dimensions: number
  /** λ, per day. */
  readonly lambda: number
  readonly history: History
  /** The event types that this program accepts, with their weights. */
  readonly eventTypes: EventTypes.EventTypes
  readonly batchEnabled: boolean
  readonly batchWindow: Duration.Duration
  readonly cacheTtl: Duration.Duration
  readonly maxRetries: number
  readonly retryDelay: Duration.Duration
  readonly prefetch: number
  /** Maximum interactions in one message of the main queue. */
  readonly eventsPerMessage: number
  /** Maximum share of popularity in a recommendation's score. */
  readonly popularityWeight: number
}

export class EmbeddingConfig extends Context.Tag("user-embeddings/EmbeddingConfig")<
  EmbeddingConfig,
  Knobs
>() {}

const conflict = (variable: string, name: string, one: number, other: number) =>
  ConfigError.InvalidData(
    ["EVENT_WEIGHTS"],
    `EVENT_WEIGHTS sets the weight of ${name} to ${other}, ${variable} to ${one}: set one of the two`,
  )

export const eventTypes: Config.Config<EventTypes.EventTypes> = Config.all([
  Settings.EVENT_WEIGHTS,
  Config.all(Settings.eventTypeWeights),
  Config.all(Settings.eventTypeWeights.map(({ variable }) => Settings.given(variable))),
]).pipe(
  Config.mapOrFail(([own, builtIn, given]) => {
    const weights: Record<string, number> = { ...Option.getOrUndefined(own) }
    for (const [index, { name, variable }] of EventTypes.builtInEventTypes.entries()) {
      const weight = builtIn[index]!
      const other = weights[name] ?? weight
      if (Option.isSome(given[index]!) && other !== weight)
        return Either.left(conflict(variable, name, weight, other))
      weights[name] = other
    }
    return Either.right(EventTypes.make(weights))
  }),
)

const knobs: Config.Config<Knobs> = Config.all({
  dimensions: Settings.EMBEDDING_DIMENSIONS,
  lambda: Settings.EMBEDDING_DECAY_LAMBDA,
  history: Settings.EMBEDDING_HISTORY,
  eventTypes,
  batchEnabled: Settings.EMBEDDING_BATCH_ENABLED,
  batchWindow: Settings.EMBEDDING_BATCH_WINDOW,
  cacheTtl: Settings.EMBEDDING_CACHE_TTL,
  maxRetries: Settings.WORKER_MAX_RETRIES,
  retryDelay: Settings.WORKER_RETRY_DELAY,
  prefetch: Settings.WORKER_PREFETCH,
  eventsPerMessage: Settings.EVENTS_PER_MESSAGE,
  popularityWeight: Settings.POPULARITY_WEIGHT,
})

export const layerConfig = Layer.effect(EmbeddingConfig, knobs)

/** From the environment, with some settings replaced by the program. */
export const layer = (overrides: Partial<Knobs>) =>
  Layer.effect(
    EmbeddingConfig,
    Config.map(knobs, (configured) => ({ ...configured, ...overrides })),
  )
