/**
 * Embeds phrases with the OpenAI API, many per request. The number of concurrent requests adapts to the service's rate
 * limit.
 */
import { Array as Arr, Config, Duration, Effect, Either, Layer, Metric } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { PhraseEmbedder, PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute, embeddingsDuration } from "../../services/Telemetry.ts"
import { inOrder, toVector } from "./EmbeddingsResponse.ts"
import { embedApart, harmlessText, type Request } from "./FaultyPhrases.ts"
import { type CallFailure, OpenAi } from "./OpenAi.ts"

/** The service's limits for one request. A token has at least one byte, so bytes are an upper bound of tokens. */
const maxInputs = 2048
const maxTokens = 300_000

export interface Limits {
  /** A maximum: fewer after the service has reported too many requests. */
  readonly requestsAtOnce: number
  readonly phrasesPerRequest: number
}
const defaultLimits: Limits = { requestsAtOnce: 4, phrasesPerRequest: maxInputs }

/** Splits phrases into batches that fit into one request each. */
export const requests = (
  phrases: ReadonlyArray<string>,
  maxPhrases = maxInputs,
): ReadonlyArray<ReadonlyArray<string>> => {
  const batches: Array<Array<string>> = []
  let tokens = 0
  for (const phrase of phrases) {
    const size = Buffer.byteLength(phrase)
    const batch = batches.at(-1)
    if (batch === undefined || batch.length === maxPhrases || tokens + size > maxTokens) {
      batches.push([phrase])
      tokens = size
    } else {
      batch.push(phrase)
      tokens += size
    }
  }
  return batches
}

/**
 * Limits concurrent requests by additive increase and multiplicative decrease, like TCP. The limit is halved by a 429
 * response, and grows by one after as many successes as the limit.
 */
const adaptiveLimit = (most: number) =>
  Effect.map(Effect.makeSemaphore(most), (semaphore) => {
    let limit = most
    const set = (to: number) => {
      const before = Math.floor(limit)
      limit = Math.max(1, Math.min(most, to))
      return Math.floor(limit) === before ? Effect.void : semaphore.resize(Math.floor(limit))
    }
    return <A>(request: Effect.Effect<A, CallFailure>) =>
      request.pipe(
        Effect.tapBoth({
          onSuccess: () => set(limit + 1 / limit),
          onFailure: ({ error: { reason } }) => (reason === "rate_limited" ? set(limit / 2) : Effect.void),
        }),
        semaphore.withPermits(1),
      )
  })

const make = Effect.fnUntraced(function* ({ phrasesPerRequest, requestsAtOnce }: Limits) {
  const { call, model } = yield* OpenAi
  const limited = yield* adaptiveLimit(requestsAtOnce)
  const { dimensions } = yield* EmbeddingConfig
  // Older models have a fixed number of dimensions and reject the parameter.
  const dimensionsParameter = model.startsWith("text-embedding-3-") ? { dimensions } : {}

  const request: Request = (phrases, within) =>
    call(async (client, options) => {
      const { data, usage } = await client.embeddings.create(
        { model, input: [...phrases], encoding_format: "base64", ...dimensionsParameter },
        options,
      )
      return { tokens: usage?.prompt_tokens ?? 0, embeddings: inOrder(data, phrases.length) }
    }, within).pipe(
      Metric.trackDurationWith(embeddingsDuration, Duration.toSeconds),
      Effect.tap(({ tokens }) => Effect.annotateCurrentSpan(attribute.genAiInputTokens, tokens)),
      Effect.map(({ embeddings }) =>
        embeddings.map((embedding) =>
          Either.mapLeft(
            toVector(embedding, dimensions),
            (problem) => new PhraseEmbedderError({ reason: "bad_vector", detail: `the vector ${problem}` }),
          ),
        ),
      ),
      Effect.withSpan(`embeddings ${model}`, {
        kind: "client",
        captureStackTrace: false,
        attributes: {
          [attribute.genAiOperation]: "embeddings",
          [attribute.genAiProvider]: "openai",
          [attribute.genAiModel]: model,
        },
      }),
      limited,
    )

  return PhraseEmbedder.of({
    space: `openai:${model}:${dimensions}`,
    embed: (phrases) =>
      Effect.forEach(
        requests(phrases, phrasesPerRequest),
        (batch) => embedApart(request, batch, harmlessText),
        { concurrency: requestsAtOnce },
      ).pipe(Effect.map(Arr.flatten)),
  })
})

export const layer = (limits: Partial<Limits> = {}) =>
  Layer.effect(PhraseEmbedder, make({ ...defaultLimits, ...limits }))

/** From OPENAI_REQUESTS_AT_ONCE and OPENAI_PHRASES_PER_REQUEST. */
export const layerConfig = Layer.effect(
  PhraseEmbedder,
  Effect.flatMap(
    Config.all({
      requestsAtOnce: Settings.OPENAI_REQUESTS_AT_ONCE,
      phrasesPerRequest: Settings.OPENAI_PHRASES_PER_REQUEST,
    }),
    make,
  ),
)
