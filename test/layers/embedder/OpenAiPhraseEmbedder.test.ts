/** The real client with a stand-in for the OpenAI API that can be made to fail. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test"
import {
  ConfigProvider,
  Duration,
  Effect,
  Either,
  Fiber,
  Layer,
  Redacted,
  TestClock,
  TestContext,
  Tracer,
} from "effect"
import * as OpenAi from "../../../src/layers/embedder/OpenAi.ts"
import * as OpenAiPhraseEmbedder from "../../../src/layers/embedder/OpenAiPhraseEmbedder.ts"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import { PhraseEmbedder, type PhraseEmbedderError } from "../../../src/services/ports/PhraseEmbedder.ts"
import { suite } from "../../contracts/PhraseEmbedderContract.ts"
import { effectTest } from "../../support/effect.ts"
import { type Fault, openAiStandIn, vectorOf } from "../../support/openAiStandIn.ts"

const dimensions = 64
const key = "sk-test-secret"
const model = "text-embedding-3-small"
const server = openAiStandIn({ apiKey: key })
beforeEach(() => server.mend())
afterAll(() => server.stop())

const client = (options: Partial<OpenAi.OpenAiOptions> = {}) =>
  OpenAi.layer({ apiKey: Redacted.make(key), baseUrl: server.url, model, ...options })
const layerOf = (options: Partial<OpenAi.OpenAiOptions> = {}, length = dimensions) =>
  OpenAiPhraseEmbedder.layer().pipe(
    Layer.provide(client(options)),
    Layer.provide(EmbeddingConfig.layer({ dimensions: length })),
  )

suite("OpenAI", layerOf(), { dimensions, space: `openai:${model}:${dimensions}` })

const embed = (phrases: ReadonlyArray<string>, layer = layerOf()) =>
  Effect.flatMap(PhraseEmbedder, (embedder) => embedder.embed(phrases)).pipe(Effect.provide(layer))
const failureOf = (results: ReadonlyArray<Either.Either<Float32Array, PhraseEmbedderError>>) =>
  Effect.flip(results[0]!)
const reasons = (results: ReadonlyArray<Either.Either<Float32Array, PhraseEmbedderError>>) =>
  results.map(Either.match({ onLeft: ({ reason }) => reason, onRight: () => "ok" as const }))
/** Waits in real time for a condition, also under a test clock. */
const until = (happened: () => boolean) =>
  Effect.promise(async () => {
    const end = performance.now() + 5000
    while (!happened()) {
      if (performance.now() > end) throw new Error("the condition was not met within 5 s")
      await Bun.sleep(2)
    }
  })

describe("concurrent requests", () => {
  const limited = OpenAiPhraseEmbedder.layer({ requestsAtOnce: 8, phrasesPerRequest: 2 }).pipe(
    Layer.provide(client()),
    Layer.provide(EmbeddingConfig.layer({ dimensions })),
  )
  const phrases = Array.from({ length: 32 }, (_, i) => `phrase ${i}`)

  effectTest(
    "to a service that does not answer end together: the phrases that are left are not requested",
    () =>
      Effect.gen(function* () {
        server.fault = "hang"
        const many = Array.from({ length: 200 }, (_, i) => `phrase ${i}`)
        const waiting = yield* Effect.fork(embed(many, limited))
        yield* until(() => server.concurrent === 8)
        yield* TestClock.adjust("15 seconds")
        // The harmless text, with a shorter deadline.
        yield* until(() => server.received.length === 9 && server.concurrent === 1)
        yield* TestClock.adjust("5 seconds")
        expect(new Set(reasons(yield* Fiber.join(waiting)))).toEqual(new Set(["timeout"]))
        expect(server.received.length).toBe(9)
      }).pipe(Effect.provide(TestContext.TestContext)),
  )

  effectTest("are halved by 429 responses, and increase again with successes", () =>
    Effect.gen(function* () {
      const embedder = yield* PhraseEmbedder
      const embedAll = (fault: Fault | undefined) =>
        Effect.gen(function* () {
          server.mend()
          server.fault = fault
          server.latencyMs = 5
          const results = yield* embedder.embed(phrases)
          return { most: server.mostConcurrent, reasons: new Set(reasons(results)) }
        })
      expect(yield* embedAll(undefined)).toEqual({ most: 8, reasons: new Set(["ok"]) })
      expect(yield* embedAll({ status: 429 })).toMatchObject({ reasons: new Set(["rate_limited"]) })
      // The 429 responses reduced the limit to 1, and 16 successes increase it to less than 8.
      const recovering = yield* embedAll(undefined)
      expect(recovering.most).toBeLessThan(8)
      expect(recovering.reasons).toEqual(new Set(["ok"]))
      for (let i = 0; i < 4; i++) yield* embedAll(undefined)
      expect((yield* embedAll(undefined)).most).toBe(8)
      expect(server.received.every(({ input }) => input.length <= 2)).toBe(true)
    }).pipe(Effect.provide(limited)),
  )
})

describe("failures", () => {
  const inOneMinute = () => new Date(Date.now() + 60_000).toUTCString()
  type Row = readonly [
    what: string,
    fault: Fault,
    reason: PhraseEmbedderError["reason"],
    retryAfterMs?: readonly [least: number, most: number],
  ]
  const rejected = (status: number, more: object = {}): Fault => ({ status, ...more })
  const retryAfterHeader = (name: string, value: string, status = 429) =>
    rejected(status, { headers: { [name]: value } })
  const table: ReadonlyArray<Row> = [
    ["429", rejected(429, { code: "rate_limit_exceeded" }), "rate_limited"],
    ["429 with Retry-After in seconds", retryAfterHeader("retry-after", "7"), "rate_limited", [7000, 7000]],
    [
      "429 with Retry-After as a date",
      retryAfterHeader("retry-after", inOneMinute()),
      "rate_limited",
      [20_000, 60_000],
    ],
    [
      "429 with Retry-After in the past",
      retryAfterHeader("retry-after", new Date(0).toUTCString()),
      "rate_limited",
      [0, 0],
    ],
    ["429 with an invalid Retry-After", retryAfterHeader("retry-after", "soon"), "rate_limited"],
    ["429 with retry-after-ms", retryAfterHeader("retry-after-ms", "250"), "rate_limited", [250, 250]],
    ["503 with Retry-After", retryAfterHeader("retry-after", "120", 503), "server_error", [120_000, 120_000]],
    ["429 insufficient_quota", rejected(429, { code: "insufficient_quota" }), "quota_exhausted"],
    ["429 of type insufficient_quota", rejected(429, { type: "insufficient_quota" }), "quota_exhausted"],
    ["402", rejected(402), "quota_exhausted"],
    ["401", rejected(401, { code: "invalid_api_key" }), "unauthorized"],
    ["403", rejected(403), "unauthorized"],
    ["404", rejected(404, { code: "model_not_found" }), "unauthorized"],
    ["400 about the model", rejected(400, { param: "model" }), "unauthorized"],
    ["400 about the dimensions", rejected(400, { param: "dimensions" }), "unauthorized"],
    ["400", rejected(400, { param: "input" }), "invalid_input"],
    ["400 that names nothing", rejected(400), "misconfigured"],
    ["413", rejected(413), "misconfigured"],
    ["422", rejected(422), "misconfigured"],
    ["408", rejected(408), "timeout"],
    ["409", rejected(409), "server_error"],
    ["500", rejected(500), "server_error"],
    ["503", rejected(503), "server_error"],
    ["a response that is not JSON", "not_json", "server_error"],
    ["a response without data", "no_data", "server_error"],
    ["a truncated response", "truncated", "server_error"],
    ["a broken connection", "drop", "unreachable"],
    ["a vector of other dimensions", "wrong_dimension", "misconfigured"],
    ["a zero vector", "zero", "misconfigured"],
    ["a vector with NaN", "not_finite", "misconfigured"],
    ["a missing vector", "missing", "server_error"],
    ["a vector of which every second number is null", "nulls", "misconfigured"],
    ["a vector of which every second number is a string", "strings", "misconfigured"],
    ["a vector with characters that are not base64", "damaged_base64", "misconfigured"],
    ["an index that is not the phrase's", "index_from_one", "server_error"],
    ["bytes that are not floats", "garbled", "misconfigured"],
  ]
  for (const [what, fault, reason, retryAfter] of table)
    effectTest(`${what} is ${reason}${retryAfter ? ` after ${retryAfter[1]} ms` : ""}`, () =>
      Effect.gen(function* () {
        server.fault = fault
        const error = yield* Effect.flatMap(embed(["wireless headphones"]), failureOf)
        expect(error.reason).toBe(reason)
        const wait = error.retryAfter && Duration.toMillis(error.retryAfter)
        if (retryAfter === undefined) expect(wait).toBeUndefined()
        else {
          expect(wait).toBeGreaterThanOrEqual(retryAfter[0])
          expect(wait).toBeLessThanOrEqual(retryAfter[1])
        }
        // A refusal that may be about the phrase is checked by a harmless text.
        const checked = reason === "misconfigured" || what === "403"
        expect(server.received).toHaveLength(checked ? 2 : 1)
      }),
    )

  effectTest("a stopped server is unreachable, and calls succeed when it runs again", () =>
    Effect.gen(function* () {
      const stopped = openAiStandIn()
      const port = Number(new URL(stopped.url).port)
      yield* Effect.promise(stopped.stop)
      const embedder = yield* Effect.provide(PhraseEmbedder, layerOf({ baseUrl: stopped.url }))
      const error = yield* Effect.flatMap(embedder.embed(["a"]), failureOf)
      expect(error.reason).toBe("unreachable")
      expect(String(error.cause)).toContain("Connection error")
      const restarted = openAiStandIn({ port })
      expect(reasons(yield* embedder.embed(["a"]))).toEqual(["ok"])
      yield* Effect.promise(restarted.stop)
    }),
  )

  effectTest("a request without a response times out after 15 s and is aborted", () =>
    Effect.gen(function* () {
      server.fault = "hang"
      const waiting = yield* Effect.fork(Effect.flatMap(embed(["a"]), failureOf))
      yield* until(() => server.concurrent === 1)
      yield* TestClock.adjust("14 seconds")
      expect(yield* Fiber.poll(waiting)).toMatchObject({ _tag: "None" })
      yield* TestClock.adjust("1 second")
      expect((yield* waiting).reason).toBe("timeout")
      yield* until(() => server.aborted === 1)
    }).pipe(Effect.provide(TestContext.TestContext)),
  )

  effectTest("an interruption aborts the request", () =>
    Effect.gen(function* () {
      server.fault = "hang"
      const waiting = yield* Effect.fork(embed(["a"]))
      yield* until(() => server.concurrent === 1)
      yield* Fiber.interrupt(waiting)
      yield* until(() => server.aborted === 1)
    }),
  )

  effectTest("an error never contains the key, even if the response does", () =>
    Effect.gen(function* () {
      for (const fault of [
        rejected(401, { message: `Incorrect key ${key}` }),
        rejected(500, { code: key }),
        "drop" as const,
      ]) {
        server.fault = fault
        const error = yield* Effect.flatMap(embed(["a"]), failureOf)
        expect(Bun.inspect(error, { depth: 20 })).not.toContain(key)
      }
    }),
  )
})

describe("requests", () => {
  effectTest(
    "have many phrases, ask for base64 and the dimensions, and respect the limits of the service",
    () =>
      Effect.gen(function* () {
        const short = Array.from({ length: 3000 }, (_, i) => `phrase ${i}`)
        const long = Array.from({ length: 40 }, (_, i) => `${i} ${"long text ".repeat(2000)}`)
        expect(new Set(reasons(yield* embed([...short, ...long])))).toEqual(new Set(["ok"]))
        expect(server.received.flatMap(({ input }) => input)).toHaveLength(3040)
        expect(server.received.length).toBeLessThan(8)
        for (const { dimensions: asked, encoding } of server.received)
          expect([asked, encoding]).toEqual([dimensions, "base64"])
      }),
  )

  effectTest("have no dimensions for older models", () =>
    Effect.gen(function* () {
      const layer = layerOf({ model: "text-embedding-ada-002" }, 1536)
      expect(reasons(yield* embed(["a"], layer))).toEqual(["ok"])
      expect(server.received).toMatchObject([{ dimensions: undefined }])
    }),
  )

  const configured = (variables: Readonly<Record<string, string>>) =>
    OpenAiPhraseEmbedder.layerConfig.pipe(
      Layer.provide(client(variables.model === undefined ? {} : { model: variables.model })),
      Layer.provide(EmbeddingConfig.layer({ dimensions: 1536 })),
      Layer.provide(Layer.setConfigProvider(ConfigProvider.fromMap(new Map(Object.entries(variables))))),
    )

  effectTest("have the prefixes of the settings, which name a space of their own", () =>
    Effect.gen(function* () {
      const spaces = new Set<string>()
      for (const variables of [
        {},
        { OPENAI_QUERY_PREFIX: "query: " },
        { OPENAI_DOCUMENT_PREFIX: "query: " },
        { OPENAI_QUERY_PREFIX: "query: ", OPENAI_DOCUMENT_PREFIX: "passage: " },
        { OPENAI_QUERY_PREFIX: "query:" },
      ])
        spaces.add((yield* Effect.provide(PhraseEmbedder, configured(variables))).space)
      expect(spaces.size).toBe(5)
      expect([...spaces][0]).toBe(`openai:${model}:1536`)

      const embedder = yield* Effect.provide(
        PhraseEmbedder,
        configured({ OPENAI_QUERY_PREFIX: "query: ", OPENAI_DOCUMENT_PREFIX: "passage: " }),
      )
      yield* embedder.embed(["boots"])
      yield* embedder.embed(["boots"], "document")
      expect(server.received.map(({ input }) => input)).toEqual([["query: boots"], ["passage: boots"]])
    }),
  )

  effectTest("have the dimensions if OPENAI_SEND_DIMENSIONS says so, whatever the model", () =>
    Effect.gen(function* () {
      for (const [name, send, sent] of [
        [model, undefined, 1536],
        [model, "false", undefined],
        ["text-embedding-ada-002", "true", 1536],
      ] as const) {
        server.mend()
        const variables = { model: name, ...(send && { OPENAI_SEND_DIMENSIONS: send }) }
        const embedder = yield* Effect.provide(PhraseEmbedder, configured(variables))
        yield* embedder.embed(["a"])
        expect(server.received[0]?.dimensions).toBe(sent)
      }
    }),
  )

  effectTest(
    "vectors are matched by index, or by position without an index, and may be numbers instead of base64",
    () =>
      Effect.gen(function* () {
        const phrases = ["a", "b", "c"]
        for (const fault of ["shuffled", "floats", "no_index", "no_zero_index"] as const) {
          server.fault = fault
          const vectors = (yield* embed(phrases)).map(Either.getOrThrow)
          for (const [index, phrase] of phrases.entries()) {
            const expected = vectorOf(phrase, dimensions)
            expect(vectors[index]?.[0]).toBeCloseTo(expected[0]! / 1.001, 6)
          }
        }
      }),
  )

  effectTest("one rejected phrase does not affect the others", () =>
    Effect.gen(function* () {
      const phrases = Array.from({ length: 64 }, (_, i) => `phrase ${i}`)
      server.faults.set("phrase 17", { status: 400, message: "bad input" })
      server.faults.set("phrase 40", "zero")
      const found = reasons(yield* embed(phrases))
      expect(found.filter((reason) => reason === "ok")).toHaveLength(62)
      expect([found[17], found[40]]).toEqual(["invalid_input", "bad_vector"])
      // All phrases, the harmless text, and two parts for each of the six halvings.
      expect(server.received.length).toBeLessThanOrEqual(14)
    }),
  )

  const faulty: ReadonlyArray<readonly [what: string, fault: Fault, PhraseEmbedderError["reason"]]> = [
    ["is refused with 400", { status: 400 }, "invalid_input"],
    ["is refused with 400 and named", { status: 400, param: "input[3]" }, "invalid_input"],
    ["is refused with 403", { status: 403 }, "invalid_input"],
    ["is refused with 422", { status: 422 }, "invalid_input"],
    ["makes the service answer 500", { status: 500 }, "server_error"],
    ["closes the connection", "drop", "unreachable"],
    ["cuts the response off", "truncated", "server_error"],
    ["has no vector in the response", "missing", "server_error"],
    ["has a vector of other dimensions", "wrong_dimension", "bad_vector"],
    ["has a zero vector", "zero", "bad_vector"],
    ["has a vector with nulls", "nulls", "bad_vector"],
    ["has a vector of strings", "strings", "bad_vector"],
    ["has damaged base64", "damaged_base64", "bad_vector"],
  ]
  for (const [what, fault, reason] of faulty)
    effectTest(`fail only for the one phrase of seven that ${what}, and for that phrase alone`, () =>
      Effect.gen(function* () {
        const phrases = Array.from({ length: 7 }, (_, i) => `phrase ${i}`)
        server.faults.set("phrase 4", fault)
        const found = reasons(yield* embed(phrases))
        expect(found).toEqual(phrases.map((phrase) => (phrase === "phrase 4" ? reason : "ok")))
        expect(server.received.length).toBeLessThanOrEqual(8)
        expect(reasons(yield* embed(["phrase 4"]))).toEqual([reason])
      }),
    )

  effectTest("a phrase without a response fails alone, after a few deadlines", () =>
    Effect.gen(function* () {
      server.faults.set("phrase 1", "hang")
      const waiting = yield* Effect.fork(embed(["phrase 0", "phrase 1", "phrase 2"]))
      for (const requests of [1, 4]) {
        yield* until(() => server.received.length === requests && server.concurrent === 1)
        yield* TestClock.adjust("15 seconds")
      }
      yield* until(() => server.received.length === 6 && server.concurrent === 1)
      yield* TestClock.adjust("15 seconds")
      expect(reasons(yield* waiting)).toEqual(["ok", "timeout", "ok"])
    }).pipe(Effect.provide(TestContext.TestContext)),
  )

  for (const [status, reason] of [
    [400, "misconfigured"],
    [422, "misconfigured"],
    [403, "unauthorized"],
    [404, "unauthorized"],
    [500, "server_error"],
  ] as const)
    effectTest(`${status} for every text is a failure of the service, and costs two requests at most`, () =>
      Effect.gen(function* () {
        server.fault = { status }
        const found = reasons(yield* embed(Array.from({ length: 40 }, (_, i) => `phrase ${i}`)))
        expect(new Set(found)).toEqual(new Set([reason]))
        expect(server.received.length).toBeLessThanOrEqual(2)
      }),
    )

  effectTest("a service that only answers the harmless text gets few requests", () =>
    Effect.gen(function* () {
      const phrases = Array.from({ length: 512 }, (_, i) => `phrase ${i}`)
      for (const phrase of phrases) server.faults.set(phrase, { status: 500 })
      expect(new Set(reasons(yield* embed(phrases)))).toEqual(new Set(["server_error"]))
      expect(server.received.length).toBeLessThanOrEqual(40)
    }),
  )

  effectTest("an answer whose indexes name no phrase is not used, and smaller requests follow", () =>
    Effect.gen(function* () {
      const phrases = ["a", "b", "c"]
      server.fault = "index_from_one"
      expect(reasons(yield* embed(phrases))).toEqual(["server_error", "server_error", "server_error"])
      server.fault = "same_index"
      expect((yield* embed(phrases)).map(Either.getOrThrow)).toEqual(
        phrases.map((phrase) => Vector.normalise(vectorOf(phrase, dimensions))),
      )
      expect(server.received.at(-1)?.input).toHaveLength(1)
    }),
  )

  effectTest("a failure of the service costs one request for the whole batch", () =>
    Effect.gen(function* () {
      server.fault = { status: 401 }
      const found = reasons(yield* embed(["a", "b", "c"]))
      expect(found).toEqual(["unauthorized", "unauthorized", "unauthorized"])
      expect(server.received).toHaveLength(1)
    }),
  )

  test("are split at 2,048 inputs and 300,000 bytes, and a longer text is alone", () => {
    const sizes = (phrases: ReadonlyArray<string>) =>
      OpenAiPhraseEmbedder.requests(phrases).map(({ length }) => length)
    expect(sizes(Array.from({ length: 4097 }, () => "a"))).toEqual([2048, 2048, 1])
    expect(sizes(["a".repeat(150_000), "é".repeat(75_000), "b"])).toEqual([2, 1])
    expect(sizes(["a", "b".repeat(400_000), "c"])).toEqual([1, 1, 1])
    expect(sizes([])).toEqual([])
  })
})

effectTest("a request has a client span by the semantic conventions, without the phrase", () =>
  Effect.gen(function* () {
    const spans: Array<Tracer.Span> = []
    const native = yield* Effect.tracer
    const recording = Tracer.make({
      context: native.context,
      span: (...of) => {
        const span = native.span(...of)
        spans.push(span)
        return span
      },
    })
    yield* embed(["my secret phrase"]).pipe(Effect.withTracer(recording))
    const [span] = spans
    expect(spans).toHaveLength(1)
    expect([span?.name, span?.kind]).toEqual([`embeddings ${model}`, "client"])
    expect(Object.fromEntries(span?.attributes ?? [])).toEqual({
      "gen_ai.operation.name": "embeddings",
      "gen_ai.provider.name": "openai",
      "gen_ai.request.model": model,
      "gen_ai.usage.input_tokens": 4,
      "gen_ai.embeddings.dimension.count": dimensions,
    })
  }),
)

describe("dependency", () => {
  const ping = (options: Partial<OpenAi.OpenAiOptions> = {}) =>
    Effect.flatMap(OpenAi.dependency, (dependency) => dependency.ping).pipe(
      Effect.provide(Layer.merge(client(options), Layer.orDie(layerOf(options)))),
    )

  effectTest("succeeds with the model, without requesting an embedding", () =>
    Effect.gen(function* () {
      expect(yield* ping()).toBe(model)
      expect(server.received).toHaveLength(0)
    }),
  )

  effectTest("fails with the problem and a remedy", () =>
    Effect.gen(function* () {
      const wrongKey = yield* Effect.flip(ping({ apiKey: Redacted.make("sk-wrong") }))
      expect(wrongKey.message).toBe("openai: unauthorized: 401 Incorrect API key provided")
      expect(wrongKey.remedy).toContain("OPENAI_API_KEY")
      const wrongModel = yield* Effect.flip(ping({ model: "text-embedding-9" }))
      expect(wrongModel.remedy).toContain("OPENAI_EMBEDDING_MODEL")
      const wrongAddress = yield* Effect.flip(ping({ baseUrl: "http://127.0.0.1:1/v1" }))
      expect(wrongAddress.remedy).toContain("OPENAI_BASE_URL")
    }),
  )

  effectTest("of a service that does not describe its models is up if it embeds a text", () =>
    Effect.gen(function* () {
      server.describesModels = false
      expect(yield* ping()).toBe(model)
      expect(server.received).toHaveLength(1)
      server.faults.set("shoes", { status: 400, message: "no such model" })
      const refused = yield* Effect.flip(ping())
      expect(refused.message).toContain("misconfigured")
      expect(refused.remedy).toContain("OPENAI_EMBEDDING_MODEL")
    }),
  )

  effectTest("requests one embedding in half a minute, however often it is pinged", () =>
    Effect.gen(function* () {
      server.describesModels = false
      const { ping } = yield* OpenAi.dependency
      for (let second = 0; second < 29; second++) {
        yield* ping
        yield* TestClock.adjust("1 second")
      }
      expect(server.received).toHaveLength(1)
      yield* TestClock.adjust("2 seconds")
      yield* ping
      expect(server.received).toHaveLength(2)
    }).pipe(Effect.provide(Layer.mergeAll(client(), layerOf(), TestContext.TestContext))),
  )

  effectTest("names unusable vectors when doctor inspects it", () =>
    Effect.gen(function* () {
      const { inspect } = yield* OpenAi.dependency
      expect(yield* inspect!).toEqual([])
      server.fault = "wrong_dimension"
      const [finding] = yield* inspect!
      expect(finding?.problem).toContain("63 dimensions instead of 64")
      expect(finding?.remedy).toContain("EMBEDDING_DIMENSIONS")
    }).pipe(Effect.provide(Layer.merge(client(), layerOf()))),
  )

  effectTest("times out after 5 s", () =>
    Effect.gen(function* () {
      server.fault = "hang"
      const waiting = yield* Effect.fork(Effect.flip(ping()))
      yield* until(() => server.concurrent === 1)
      yield* TestClock.adjust("5 seconds")
      expect((yield* waiting).detail).toContain("timeout")
    }).pipe(Effect.provide(TestContext.TestContext)),
  )
})
