/** The settings of updating and reading embeddings, as one service. */
import { Config, ConfigError, Context, Either, Layer, Option } from "effect"
import * as EventTypes from "./model/EventTypes.ts"
import * as Settings from "./Settings.ts"

const conflict = (variable: string, name: string, one: number, other: number) =>
  ConfigError.InvalidData(
    ["EVENT_WEIGHTS"],
    `EVENT_WEIGHTS sets the weight of ${name} to ${other}, ${variable} to ${one}: set one of the two. Example: EVENT_WEIGHTS=add_to_cart:0.8`,
  )

/** The length of the local embedder's vectors, which are repeated up to a multiple of it. */
export const localDimensions = 384

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

const workerPartitions = Config.all([Settings.RABBITMQ_PARTITIONS, Settings.WORKER_PARTITIONS]).pipe(
  Config.mapOrFail(([partitions, chosen]) => {
    const all = Array.from({ length: partitions }, (_, index) => index)
    const own = Option.getOrElse(chosen, () => all)
    const unknown = own.find((index) => index >= partitions)
    return unknown === undefined
      ? Either.right(own)
      : Either.left(
          ConfigError.InvalidData(
            ["WORKER_PARTITIONS"],
            `WORKER_PARTITIONS names partition ${unknown}, but RABBITMQ_PARTITIONS=${partitions}: the last one is ${partitions - 1}. Example: WORKER_PARTITIONS=0,2`,
          ),
        )
  }),
)

const knobs = Config.all({
  dimensions: Settings.EMBEDDING_DIMENSIONS,
  /** λ, per day. */
  lambda: Settings.EMBEDDING_DECAY_LAMBDA,
  history: Settings.EMBEDDING_HISTORY,
  /** The event types that this program accepts, with their weights. */
  eventTypes,
  feed: Settings.EMBEDDING_FEED,
  batchEnabled: Settings.EMBEDDING_BATCH_ENABLED,
  batchWindow: Settings.EMBEDDING_BATCH_WINDOW,
  cacheTtl: Settings.EMBEDDING_CACHE_TTL,
  maxRetries: Settings.WORKER_MAX_RETRIES,
  retryDelay: Settings.WORKER_RETRY_DELAY,
  prefetch: Settings.WORKER_PREFETCH,
  /** Minimum time between the beginnings of two batches of a worker, in ms. */
  workerInterval: Settings.WORKER_INTERVAL,
  /** Number of partitions of the main queue, and those that a worker consumes. */
  partitions: Settings.RABBITMQ_PARTITIONS,
  workerPartitions,
  /** Maximum interactions in one message of the main queue. */
  eventsPerMessage: Settings.EVENTS_PER_MESSAGE,
  /** Maximum share of popularity in a recommendation's score. */
  popularityWeight: Settings.POPULARITY_WEIGHT,
  /** The same of products that people interact with together, and of the user's own purchases. */
  togetherWeight: Settings.TOGETHER_WEIGHT,
  againWeight: Settings.AGAIN_WEIGHT,
})
export type Knobs = Config.Config.Success<typeof knobs>

export class EmbeddingConfig extends Context.Tag("user-embeddings/EmbeddingConfig")<
  EmbeddingConfig,
  Knobs
>() {}

export const layerConfig = Layer.effect(EmbeddingConfig, knobs)

/** From the environment, with some settings replaced by the program. */
export const layer = (overrides: Partial<Knobs>) =>
  Layer.effect(
    EmbeddingConfig,
    Config.map(knobs, (configured) => ({ ...configured, ...overrides })),
  )
