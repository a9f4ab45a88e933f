/**
 * The client of the OpenAI API or of a compatible service. A call is one attempt with a deadline, because retry queues
 * repeat failed messages. Errors never contain the API key.
 */
import { Config, ConfigError, Context, Duration, Effect, Either, Layer, Redacted } from "effect"
import OpenAI, { APIConnectionError, APIConnectionTimeoutError, APIError } from "openai"
import { ServerOutage, serverName } from "../../services/Outages.ts"
import { type Dependency, DependencyDown } from "../../services/ports/Dependencies.ts"
import { harmlessText, PhraseEmbedder, PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import * as Settings from "../../services/Settings.ts"

export interface OpenAiOptions {
  readonly apiKey: Redacted.Redacted
  readonly baseUrl: string
  readonly model: string
}

/** A failed call, and what it may come from. */
export interface CallFailure {
  readonly error: PhraseEmbedderError
  /**
   * `service`: no request succeeds at the moment. `phrase`: the service names the input as the cause. `unclear`: the
   * answer does not tell, so that another request must show it.
   */
  readonly cause: "service" | "phrase" | "unclear"
}

export class OpenAi extends Context.Tag("user-embeddings/OpenAi")<
  OpenAi,
  {
    readonly model: string
    /** One call. An interruption or an exceeded deadline aborts the request by the signal. */
    readonly call: <A>(
      run: (client: OpenAI, options: { readonly signal: AbortSignal }) => PromiseLike<A>,
      within?: Duration.Duration,
    ) => Effect.Effect<A, CallFailure>
  }
>() {}

const deadline = Duration.seconds(15)
const pingDeadline = Duration.seconds(5)

/** Invalid parameters that come from the configuration, so that every phrase would fail. */
const configuredParameters = new Set<unknown>(["model", "dimensions", "encoding_format"])

const reasonOf = (error: unknown): PhraseEmbedderError["reason"] => {
  if (error instanceof APIConnectionTimeoutError) return "timeout"
  if (error instanceof APIConnectionError) return "unreachable"
  // The response could not be parsed.
  if (!(error instanceof APIError) || error.status === undefined) return "server_error"
  switch (error.status) {
    case 401:
    case 403:
    // 404 means an unknown model or URL, so no phrase succeeds before the configuration is corrected.
    case 404:
      return "unauthorized"
    case 402:
      return "quota_exhausted"
    case 429:
      return [error.code, error.type].includes("insufficient_quota") ? "quota_exhausted" : "rate_limited"
    case 408:
      return "timeout"
    case 409:
      return "server_error"
  }
  if (error.status >= 500) return "server_error"
  return configuredParameters.has(error.param) ? "unauthorized" : "invalid_input"
}

/**
 * A firewall in front of the service may answer 403 because of a phrase. Only a proxy that knows the real parameters
 * names the wrong one, so a refusal without a known parameter is unclear.
 */
const causeOf = (error: unknown, reason: PhraseEmbedderError["reason"]): CallFailure["cause"] => {
  const { param, status } = error instanceof APIError ? error : { param: undefined, status: undefined }
  if (reason === "rate_limited" || reason === "quota_exhausted") return "service"
  if (reason === "unauthorized") return status === 403 ? "unclear" : "service"
  return reason === "invalid_input" && /^\$?\.?input\b/.test(param ?? "") ? "phrase" : "unclear"
}

/** `retry-after-ms`, or `retry-after` in seconds or as an HTTP date. */
const retryAfterOf = (headers: Headers, now: number): Duration.Duration | undefined => {
  const milliseconds = Number.parseFloat(headers.get("retry-after-ms") ?? "")
  if (milliseconds >= 0) return Duration.millis(milliseconds)
  const text = headers.get("retry-after")?.trim() ?? ""
  const wait = /^\d+(\.\d+)?$/.test(text) ? Number(text) * 1000 : Date.parse(text) - now
  return Number.isNaN(wait) ? undefined : Duration.millis(Math.max(0, wait))
}

const maxDetailLength = 300

/** With these, all requests fail. A server error may concern one text. */
const outageReasons: ReadonlyArray<PhraseEmbedderError["reason"]> = [
  "unreachable",
  "timeout",
  "unauthorized",
  "quota_exhausted",
]

const make = ({ apiKey, baseUrl, model }: OpenAiOptions): Context.Tag.Service<OpenAi> => {
  const outage = new ServerOutage(
    serverName("embedding service", baseUrl, baseUrl.startsWith("https") ? 443 : 80),
  )
  const client = new OpenAI({
    apiKey: Redacted.value(apiKey),
    adminAPIKey: null,
    organization: null,
    project: null,
    webhookSecret: null,
    baseURL: baseUrl,
    maxRetries: 0,
    timeout: Duration.toMillis(deadline),
    // Overrides OPENAI_LOG, because the level `debug` would print phrases.
    logLevel: "warn",
  })

  const failureOf = (error: unknown, now: number): CallFailure => {
    const reason = reasonOf(error)
    const text = error instanceof Error ? error.message : String(error)
    const headers = error instanceof APIError ? error.headers : undefined
    const retryAfter = headers && retryAfterOf(headers, now)
    return {
      // A service that says when it can be asked again is busy, whatever the phrases are.
      cause: retryAfter === undefined ? causeOf(error, reason) : "service",
      error: new PhraseEmbedderError({
        reason,
        detail: text.replaceAll(Redacted.value(apiKey), "<redacted>").slice(0, maxDetailLength),
        ...(retryAfter && { retryAfter }),
        // The cause of an HTTP error is left out, because the response body may contain the key.
        ...(headers === undefined && { cause: error }),
      }),
    }
  }

  return {
    model,
    call: (run, within = deadline) => {
      const answer = Effect.flatMap(Effect.clock, (clock) =>
        Effect.tryPromise({
          try: (signal) => run(client, { signal }),
          catch: (error) => failureOf(error, clock.unsafeCurrentTimeMillis()),
        }),
      ).pipe(
        Effect.timeoutFail({
          duration: within,
          onTimeout: (): CallFailure => ({
            cause: "unclear",
            error: new PhraseEmbedderError({
              reason: "timeout",
              detail: `no answer in ${Duration.format(within)}`,
            }),
          }),
        }),
      )
      return outage.watch("call", answer, ({ cause, error }) =>
        outageReasons.includes(error.reason) && (cause === "service" || error.reason !== "unauthorized")
          ? error.message
          : undefined,
      )
    },
  }
}

export const layer = (options: OpenAiOptions): Layer.Layer<OpenAi> => Layer.sync(OpenAi, () => make(options))

/** From OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_EMBEDDING_MODEL. */
export const layerConfig: Layer.Layer<OpenAi, ConfigError.ConfigError> = Layer.effect(
  OpenAi,
  Config.all({
    apiKey: Config.mapOrFail(
      Settings.OPENAI_API_KEY,
      Either.fromOption(() => ConfigError.MissingData(["OPENAI_API_KEY"], "OPENAI_API_KEY is not set")),
    ),
    baseUrl: Settings.OPENAI_BASE_URL,
    model: Settings.OPENAI_EMBEDDING_MODEL,
  }).pipe(Config.map(make)),
)

const remedies: Record<PhraseEmbedderError["reason"], string> = {
  unreachable: "check OPENAI_BASE_URL and the network",
  timeout: "check OPENAI_BASE_URL and the network",
  unauthorized: "correct OPENAI_API_KEY, OPENAI_EMBEDDING_MODEL or OPENAI_BASE_URL",
  quota_exhausted: "raise the account's spending limit or pay its bill",
  rate_limited: "wait, or raise the account's rate limits",
  server_error: "wait until the service works again",
  invalid_input: "correct OPENAI_EMBEDDING_MODEL",
  bad_vector: "correct EMBEDDING_DIMENSIONS",
  no_embedder: "set OPENAI_API_KEY",
  misconfigured:
    "correct OPENAI_EMBEDDING_MODEL, EMBEDDING_DIMENSIONS, OPENAI_BASE_URL or OPENAI_SEND_DIMENSIONS",
}

/** How long the answer to a request for an embedding counts, because health checks ping every second. */
const embeddingAnswerTtl = Duration.seconds(30)

/**
 * The service and its model as a dependency of `doctor` and the health checks. The ping is free of charge if the
 * service describes its models. Many compatible services do not: then an embedding shows whether the service works.
 */
export const dependency: Effect.Effect<Dependency, never, OpenAi | PhraseEmbedder> = Effect.gen(function* () {
  const { call, model } = yield* OpenAi
  const { embed } = yield* PhraseEmbedder
  const down = ({ message, reason }: PhraseEmbedderError) =>
    new DependencyDown({ dependency: "openai", detail: message, remedy: remedies[reason] })
  const embedding = Effect.flatMap(embed([harmlessText]), ([result]) =>
    result && Either.isLeft(result) ? Effect.fail(down(result.left)) : Effect.succeed(model),
  )
  const recentEmbedding = yield* Effect.cachedWithTTL(embedding, embeddingAnswerTtl)
  return {
    name: "openai",
    // Workers wait and report it while the service is unavailable.
    essentialFor: [],
    lookEvery: Duration.seconds(10),
    ping: call((client, options) => client.models.retrieve(model, options), pingDeadline).pipe(
      Effect.matchEffect({
        onSuccess: ({ id }) => (typeof id === "string" ? Effect.succeed(id) : recentEmbedding),
        onFailure: ({ error }) =>
          error.reason === "timeout" || error.reason === "unreachable"
            ? Effect.fail(down(error))
            : recentEmbedding,
      }),
    ),
    missing: Effect.succeed([]),
    inspect: Effect.match(embedding, {
      onSuccess: () => [],
      onFailure: ({ detail, remedy }) => [{ problem: detail, remedy }],
    }),
    setup: Effect.succeed([]),
  }
})
