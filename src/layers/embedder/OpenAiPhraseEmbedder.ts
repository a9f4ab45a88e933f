/**
 * Embeds phrases with the OpenAI API, many per request. When the service rejects a batch, the batch is halved until the
 * invalid phrase is alone and the others succeed. The number of concurrent requests adapts to the service's rate limit.
 */
import { Array as Arr, Config, Duration, Effect, Either, Layer, Metric } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as Vector from "../../services/model/Vector.ts"
import { PhraseEmbedder, PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute, embeddingsDuration } from "../../services/Telemetry.ts"
import { OpenAi } from "./OpenAi.ts"

/** The service's limits for one request. A token has at least one byte, so bytes are an upper bound of tokens. */
const maxInputs = 2048
const maxTokens = 300_000

export interface Limits {
  /** A maximum: fewer after the service has reported too many requests. */
  readonly requestsAtOnce: number
  readonly phrasesPerRequest: number
}
const defaultLimits: Limits = { requestsAtOnce: 4, phrasesPerRequest: maxInputs }

type Result = Either.Either<Float32Array, PhraseEmbedderError>

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
 * Decodes base64 of little-endian float32, which the request asks for, or the numbers of services that ignore this. The
 * client library's own decoding of base64 is eight times as slow.
 */
const decodeVector = (embedding: unknown): Float32Array | undefined => {
  if (Array.isArray(embedding)) return Float32Array.from(embedding)
  if (typeof embedding !== "string") return undefined
  const bytes = Buffer.from(embedding, "base64")
  return bytes.length % Float32Array.BYTES_PER_ELEMENT === 0 ? Vector.fromBytes(bytes) : undefined
}

const checkVector = (embedding: unknown, dimensions: number): Result => {
  const vector = decodeVector(embedding)
  const problem =
    vector === undefined ? "is missing in the response or not a vector" : Vector.problem(vector, dimensions)
  return vector === undefined || problem !== undefined
    ? Either.left(new PhraseEmbedderError({ reason: "bad_vector", detail: `the vector ${problem}` }))
    : Either.right(Vector.normalise(vector))
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
    return <A>(request: Effect.Effect<A, PhraseEmbedderError>) =>
      request.pipe(
        Effect.tapBoth({
          onSuccess: () => set(limit + 1 / limit),
          onFailure: ({ reason }) => (reason === "rate_limited" ? set(limit / 2) : Effect.void),
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

  const request = (phrases: ReadonlyArray<string>) =>
    call(async (client, options) => {
      const { data, usage } = await client.embeddings.create(
        { model, input: [...phrases], encoding_format: "base64", ...dimensionsParameter },
        options,
      )
      const byIndex = new Map<number, unknown>(data.map(({ embedding, index }) => [index, embedding]))
      return {
        tokens: usage?.prompt_tokens ?? 0,
        vectors: phrases.map((_, index) => byIndex.get(index)),
      }
    }).pipe(
      Metric.trackDurationWith(embeddingsDuration, Duration.toSeconds),
      Effect.tap(({ tokens }) => Effect.annotateCurrentSpan(attribute.genAiInputTokens, tokens)),
      Effect.map(({ vectors }) => vectors.map((vector) => checkVector(vector, dimensions))),
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

  const embedBatch = (phrases: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Result>> =>
    Effect.catchAll(request(phrases), (error) => {
      if (error.reason !== "invalid_input" || phrases.length === 1)
        return Effect.succeed(phrases.map(() => Either.left(error)))
      const [left, right] = Arr.splitAt(phrases, phrases.length / 2)
      return Effect.zipWith(embedBatch(left), embedBatch(right), (a, b) => [...a, ...b])
    })

  return PhraseEmbedder.of({
    space: `openai:${model}:${dimensions}`,
    embed: (phrases) =>
      Effect.forEach(requests(phrases, phrasesPerRequest), embedBatch, { concurrency: requestsAtOnce }).pipe(
        Effect.map(Arr.flatten),
      ),
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
