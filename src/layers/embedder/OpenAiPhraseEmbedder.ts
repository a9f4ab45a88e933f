/**
 * Embeds phrases with the OpenAI API, many per request. The number of concurrent requests adapts to the service's rate
 * limit.
 */
import { createHash } from "node:crypto"
import { Config, Effect, Either, Layer, Option } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import {
  harmlessText,
  PhraseEmbedder,
  PhraseEmbedderError,
  type TextKind,
} from "../../services/ports/PhraseEmbedder.ts"
import * as Settings from "../../services/Settings.ts"
import { attribute, embeddingsDuration, embeddingTokens, observe, timed } from "../../services/Telemetry.ts"
import { inOrder, toVector } from "./EmbeddingsResponse.ts"
import { embedApart, type Request } from "./FaultyPhrases.ts"
import { type CallFailure, OpenAi } from "./OpenAi.ts"

/** The service's limits for one request. A token has at least one byte, so bytes are an upper bound of tokens. */
const maxInputs = 2048
const maxTokens = 300_000

export interface EmbedderOptions {
  /** A maximum: fewer after the service has reported too many requests. */
  readonly requestsAtOnce: number
  readonly phrasesPerRequest: number
  readonly prefixes: Readonly<Record<TextKind, string>>
  /** Whether a request asks for the number of dimensions; `undefined`: if the model is known to take the parameter. */
  readonly sendDimensions: boolean | undefined
}
const defaults: EmbedderOptions = {
  requestsAtOnce: 4,
  phrasesPerRequest: maxInputs,
  prefixes: { query: "", document: "" },
  sendDimensions: undefined,
}

/**
 * Vectors with a prefix are not comparable with vectors without it, so the name of the space contains a hash of both
 * prefixes. A stored vector of a phrase is then never used after a prefix has changed.
 */
const spaceOf = (model: string, dimensions: number, { document, query }: EmbedderOptions["prefixes"]) => {
  const space = `openai:${model}:${dimensions}`
  if (query === "" && document === "") return space
  const hash = createHash("sha256")
    .update(JSON.stringify([query, document]))
    .digest("hex")
  return `${space}:${hash.slice(0, 8)}`
}

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

/** `gen_ai.provider.name`, whatever service speaks OpenAI's protocol. */
const provider = "openai"

const make = Effect.fnUntraced(function* (options: EmbedderOptions) {
  const { phrasesPerRequest, prefixes, requestsAtOnce } = options
  const { call, model } = yield* OpenAi
  const limited = yield* adaptiveLimit(requestsAtOnce)
  const { dimensions } = yield* EmbeddingConfig
  // Older models have a fixed number of dimensions and reject the parameter.
  const sendDimensions = options.sendDimensions ?? model.startsWith("text-embedding-3-")
  const dimensionsParameter = sendDimensions ? { dimensions } : {}

  const duration = embeddingsDuration(provider, model)
  const tokenUsage = embeddingTokens(provider, model)

  const request: Request = (phrases, within) =>
    call(async (client, options) => {
      const { data, usage } = await client.embeddings.create(
        { model, input: [...phrases], encoding_format: "base64", ...dimensionsParameter },
        options,
      )
      return { tokens: usage?.prompt_tokens ?? 0, embeddings: inOrder(data, phrases.length) }
    }, within).pipe(
      timed(duration),
      Effect.tap(({ tokens }) => {
        if (tokens > 0) observe(tokenUsage, tokens)
        return Effect.annotateCurrentSpan(attribute.genAiInputTokens, tokens)
      }),
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
          [attribute.genAiProvider]: provider,
          [attribute.genAiModel]: model,
          [attribute.genAiDimensions]: dimensions,
        },
      }),
      limited,
    )

  return PhraseEmbedder.of({
    space: spaceOf(model, dimensions, prefixes),
    embed: (phrases, kind = "query") => {
      const prefixed = phrases.map((phrase) => prefixes[kind] + phrase)
      const apart = requests(prefixed, phrasesPerRequest)
      return embedApart(request, apart, requestsAtOnce, prefixes[kind] + harmlessText)
    },
  })
})

export const layer = (options: Partial<EmbedderOptions> = {}) =>
  Layer.effect(PhraseEmbedder, make({ ...defaults, ...options }))

const textOf = (setting: Config.Config<Option.Option<string>>) =>
  Config.map(
    setting,
    Option.getOrElse(() => ""),
  )

/** From the variables OPENAI_*. */
export const layerConfig = Layer.effect(
  PhraseEmbedder,
  Effect.flatMap(
    Config.all({
      requestsAtOnce: Settings.OPENAI_REQUESTS_AT_ONCE,
      phrasesPerRequest: Settings.OPENAI_PHRASES_PER_REQUEST,
      prefixes: Config.all({
        query: textOf(Settings.OPENAI_QUERY_PREFIX),
        document: textOf(Settings.OPENAI_DOCUMENT_PREFIX),
      }),
      sendDimensions: Config.map(Settings.OPENAI_SEND_DIMENSIONS, Option.getOrUndefined),
    }),
    make,
  ),
)
