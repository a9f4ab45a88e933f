/**
 * Embeds phrases by the OpenAI service, many a request. A refused phrase is found by halving its batch, so that the
 * others succeed; every vector is checked before anybody sees it.
 */
import { Array as Arr, Duration, Effect, Either, Layer, Metric } from "effect"
import type { CreateEmbeddingResponse } from "openai/resources/embeddings"
import { EmbeddingConfig } from "../services/EmbeddingConfig.ts"
import { PhraseEmbedder, PhraseEmbedderError } from "../services/PhraseEmbedder.ts"
import { attribute, embeddingsDuration } from "../services/Telemetry.ts"
import * as Vector from "../services/Vector.ts"
import { OpenAi } from "./OpenAi.ts"

/** The service's limits of one request. A token is at least one byte, so bytes are a safe estimate. */
const mostInputs = 2048
const mostTokens = 300_000
const requestsAtOnce = 4

type Result = Either.Either<Float32Array, PhraseEmbedderError>

/** Runs of phrases that fit into one request each. */
export const requests = (phrases: ReadonlyArray<string>): ReadonlyArray<ReadonlyArray<string>> => {
  const runs: Array<Array<string>> = []
  let tokens = 0
  for (const phrase of phrases) {
    const size = Buffer.byteLength(phrase)
    const run = runs.at(-1)
    if (run === undefined || run.length === mostInputs || tokens + size > mostTokens) {
      runs.push([phrase])
      tokens = size
    } else {
      run.push(phrase)
      tokens += size
    }
  }
  return runs
}

const checked = (vector: ReadonlyArray<number> | undefined, dimensions: number): Result => {
  const problem = vector === undefined ? "is missing in the answer" : Vector.problem(vector, dimensions)
  return vector === undefined || problem !== undefined
    ? Either.left(new PhraseEmbedderError({ reason: "bad_vector", detail: `the vector ${problem}` }))
    : Either.right(Vector.normalise(Float32Array.from(vector)))
}

const make = Effect.gen(function* () {
  const { call, model } = yield* OpenAi
  const { dimensions } = yield* EmbeddingConfig
  // Older models have one length only and refuse to be asked for it.
  const shortened = model.startsWith("text-embedding-3-") ? { dimensions } : {}

  /** One request; the client asks for base64 and decodes it. */
  const request = (phrases: ReadonlyArray<string>) =>
    call(async (client, options) => {
      const { data, usage }: CreateEmbeddingResponse = await client.embeddings.create(
        { model, input: [...phrases], ...shortened },
        options,
      )
      const byIndex = new Map(data.map(({ embedding, index }) => [index, embedding]))
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
      Effect.forEach(requests(phrases), isolating, { concurrency: requestsAtOnce }).pipe(
        Effect.map(Arr.flatten),
      ),
  })
})

export const layer = Layer.effect(PhraseEmbedder, make)
