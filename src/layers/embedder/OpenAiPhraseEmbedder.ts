/**
 * Embeds phrases by the OpenAI service, many a request. A refused phrase is found by halving its batch, so that the
 * others succeed; every vector is checked before anybody sees it. How many requests run at once follows what the
 * service bears: half as many after "too many requests", slowly more while it answers.
 */
import { Array as Arr, Config, Duration, Effect, Either, Layer, Metric } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as Vector from "../../services/model/Vector.ts"
import { PhraseEmbedder, PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute, embeddingsDuration } from "../../services/Telemetry.ts"
import { OpenAi } from "./OpenAi.ts"

/** The service's limits of one request. A token is at least one byte, so bytes are a safe estimate. */
const mostInputs = 2048
const mostTokens = 300_000

export interface Limits {
  /** At the most; fewer when the service says so. */
  readonly requestsAtOnce: number
  readonly phrasesPerRequest: number
}
const usualLimits: Limits = { requestsAtOnce: 4, phrasesPerRequest: mostInputs }

type Result = Either.Either<Float32Array, PhraseEmbedderError>

/** Runs of phrases that fit into one request each. */
export const requests = (
  phrases: ReadonlyArray<string>,
  most = mostInputs,
): ReadonlyArray<ReadonlyArray<string>> => {
  const runs: Array<Array<string>> = []
  let tokens = 0
  for (const phrase of phrases) {
    const size = Buffer.byteLength(phrase)
    const run = runs.at(-1)
    if (run === undefined || run.length === most || tokens + size > mostTokens) {
      runs.push([phrase])
      tokens = size
    } else {
      run.push(phrase)
      tokens += size
    }
  }
  return runs
}

/**
 * The vector as it came: base64 of little-endian float32, which is asked for; or numbers, by services that know nothing
 * else. The client would decode base64 itself, but number by number into an array: eight times as slow.
 */
const decoded = (embedding: unknown): Float32Array | undefined => {
  if (Array.isArray(embedding)) return Float32Array.from(embedding)
  if (typeof embedding !== "string") return undefined
  const bytes = Buffer.from(embedding, "base64")
  return bytes.length % Float32Array.BYTES_PER_ELEMENT === 0 ? Vector.fromBytes(bytes) : undefined
}

const checked = (embedding: unknown, dimensions: number): Result => {
  const vector = decoded(embedding)
  const problem =
    vector === undefined ? "is missing in the answer or no vector" : Vector.problem(vector, dimensions)
  return vector === undefined || problem !== undefined
    ? Either.left(new PhraseEmbedderError({ reason: "bad_vector", detail: `the vector ${problem}` }))
    : Either.right(Vector.normalise(vector))
}

/**
 * Lets as many through at once as the service bears (additive increase, multiplicative decrease, as TCP does): one
 * more after as many answers as run at once, half as many after a refusal for too many requests.
 */
const adaptive = (most: number) =>
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
  const throttled = yield* adaptive(requestsAtOnce)
  const { dimensions } = yield* EmbeddingConfig
  // Older models have one length only and refuse to be asked for it.
  const shortened = model.startsWith("text-embedding-3-") ? { dimensions } : {}

  const request = (phrases: ReadonlyArray<string>) =>
    call(async (client, options) => {
      const { data, usage } = await client.embeddings.create(
        { model, input: [...phrases], encoding_format: "base64", ...shortened },
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
      Effect.map(({ vectors }) => vectors.map((vector) => checked(vector, dimensions))),
      Effect.withSpan(`embeddings ${model}`, {
        kind: "client",
        captureStackTrace: false,
        attributes: {
          [attribute.genAiOperation]: "embeddings",
          [attribute.genAiProvider]: "openai",
          [attribute.genAiModel]: model,
        },
      }),
      throttled,
    )

  const isolating = (phrases: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Result>> =>
    Effect.catchAll(request(phrases), (error) => {
      if (error.reason !== "invalid_input" || phrases.length === 1)
        return Effect.succeed(phrases.map(() => Either.left(error)))
      const [left, right] = Arr.splitAt(phrases, phrases.length / 2)
      return Effect.zipWith(isolating(left), isolating(right), (a, b) => [...a, ...b])
    })

  return PhraseEmbedder.of({
    space: `openai:${model}:${dimensions}`,
    embed: (phrases) =>
      Effect.forEach(requests(phrases, phrasesPerRequest), isolating, { concurrency: requestsAtOnce }).pipe(
        Effect.map(Arr.flatten),
      ),
  })
})

export const layer = (limits: Partial<Limits> = {}) =>
  Layer.effect(PhraseEmbedder, make({ ...usualLimits, ...limits }))

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
