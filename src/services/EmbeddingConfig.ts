/** The settings of updating and reading embeddings, as one service. */
import { Config, Context, type Duration, Layer } from "effect"
import type { EventType } from "./model/Interaction.ts"
import type { History } from "./model/UserEmbedding.ts"
import * as Settings from "./Settings.ts"

export interface Knobs {
  readonly dimensions: number
  /** λ, per day. */
  readonly lambda: number
  readonly history: History
  readonly weights: Readonly<Record<EventType, number>>
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

const knobs: Config.Config<Knobs> = Config.all({
  dimensions: Settings.EMBEDDING_DIMENSIONS,
  lambda: Settings.EMBEDDING_DECAY_LAMBDA,
  history: Settings.EMBEDDING_HISTORY,
  weights: Config.all({
    product_purchase: Settings.EMBEDDING_WEIGHT_PURCHASE,
    search: Settings.EMBEDDING_WEIGHT_SEARCH,
    product_click: Settings.EMBEDDING_WEIGHT_CLICK,
    product_view: Settings.EMBEDDING_WEIGHT_VIEW,
  }),
  batchEnabled: Settings.EMBEDDING_BATCH_ENABLED,
  batchWindow: Settings.EMBEDDING_BATCH_WINDOW,
  cacheTtl: Settings.EMBEDDING_CACHE_TTL,
  maxRetries: Settings.WORKER_MAX_RETRIES,
  retryDelay: Settings.WORKER_RETRY_DELAY,
  prefetch: Settings.WORKER_PREFETCH,
  eventsPerMessage: Settings.EVENTS_PER_MESSAGE,
  popularityWeight: Settings.POPULARITY_WEIGHT,
})

/** From the environment, with the documented defaults. */
export const layerConfig = Layer.effect(EmbeddingConfig, knobs)

/** From the environment, with some settings replaced by the program. */
export const layer = (overrides: Partial<Knobs>) =>
  Layer.effect(
    EmbeddingConfig,
    Config.map(knobs, (configured) => ({ ...configured, ...overrides })),
  )
