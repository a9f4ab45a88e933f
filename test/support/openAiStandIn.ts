/**
 * A server with the protocol and the limits of the OpenAI embeddings API, which can be made to fail. A vector depends on
 * a hash of the text, so it is the same in every run.
 */

/** An error response of the API. */
export interface Refusal {
  readonly status: number
  readonly code?: string
  readonly type?: string
  readonly param?: string
  readonly message?: string
  readonly headers?: Readonly<Record<string, string>>
}

/** A failure of a whole request: an error response, no response, a broken connection or an invalid response. */
export type RequestFault =
  | Refusal
  | "hang"
  | "drop"
  | "truncated"
  | "not_json"
  | "no_data"
  | "shuffled"
  | "floats"
  | "garbled"
  | IndexFault
/** `index` is left out, left out where it is 0, 0 everywhere, or counted from 1. */
export type IndexFault = "no_index" | "no_zero_index" | "same_index" | "index_from_one"
/** A failure of one vector in a response. */
export type VectorFault =
  | "wrong_dimension"
  | "zero"
  | "not_finite"
  | "missing"
  | "nulls"
  | "strings"
  | "damaged_base64"
export type Fault = RequestFault | VectorFault

export interface StandInOptions {
  /** 0 = any free port. */
  readonly port?: number
  /** The only accepted key. Without it, any bearer token is accepted. */
  readonly apiKey?: string
  readonly models?: ReadonlyArray<string>
  readonly latencyMs?: number
}

export interface Received {
  readonly input: ReadonlyArray<string>
  readonly model: string
  readonly dimensions: number | undefined
  readonly encoding: string | undefined
}

const native = 1536
const longestInput = 8192
const tokensOf = (text: string): number => Math.ceil(Buffer.byteLength(text) / 4)

/** A vector of nearly unit length, like those of the API. */
export const vectorOf = (text: string, dimensions: number): Float32Array => {
  let state = Number(BigInt.asUintN(32, BigInt(Bun.hash(text))))
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return (mixed ^ (mixed >>> 14)) / 2 ** 31
  }
  const vector = Float32Array.from({ length: dimensions }, next)
  const length = Math.hypot(...vector)
  return vector.map((x) => (x / length) * 1.001)
}

const corrupt = (vector: Float32Array, fault: Fault | undefined): Float32Array =>
  fault === "wrong_dimension"
    ? vector.subarray(1)
    : fault === "zero"
      ? vector.map(() => 0)
      : fault === "not_finite"
        ? vector.map((x, i) => (i === 1 ? Number.NaN : x))
        : vector

const refuse = ({ status, code, type, param, message, headers }: Refusal): Response =>
  Response.json(
    {
      error: {
        message: message ?? `rejected with ${status}`,
        type: type ?? "invalid_request_error",
        param: param ?? null,
        code: code ?? null,
      },
    },
    { status, ...(headers && { headers }) },
  )

/** The failures of a whole request that one phrase may cause. */
const failsRequest = (fault: Fault | undefined): boolean =>
  typeof fault === "object" || fault === "hang" || fault === "drop" || fault === "truncated"

/** Every second element is no number. */
const withoutNumbers = (vector: Float32Array, fault: "nulls" | "strings") =>
  Array.from(vector, (x, i) => (i % 2 === 0 ? x : fault === "nulls" ? null : String(x)))

const indexOf = (index: number, fault: Fault | undefined): { readonly index?: number } => {
  if (fault === "no_index" || (fault === "no_zero_index" && index === 0)) return {}
  return { index: fault === "same_index" ? 0 : fault === "index_from_one" ? index + 1 : index }
}

const makeState = (latencyMs: number) => ({
  /** The fault of every request. */
  fault: undefined as Fault | undefined,
  /** By phrase: the fault of every request with the phrase, or of the phrase's vector. */
  faults: new Map<string, Fault>(),
  /** Whether the server has the route for models. */
  describesModels: true,
  latencyMs,
  /** Requests for embeddings, in order of arrival. */
  received: [] as Array<Received>,
  concurrent: 0,
  mostConcurrent: 0,
  /** Requests that the client aborted. */
  aborted: 0,
})
type State = ReturnType<typeof makeState>

/** The error response of the real API to an invalid request. */
const validate = (
  models: ReadonlySet<string>,
  { dimensions, input, model }: Received,
): Refusal | undefined => {
  if (!models.has(model)) return unknownModel(model)
  if (dimensions !== undefined && !model.startsWith("text-embedding-3-"))
    return {
      status: 400,
      param: "dimensions",
      message: "This model does not support specifying dimensions.",
    }
  if (input.length === 0 || input.length > 2048)
    return { status: 400, param: "input", message: `${input.length} inputs, from 1 to 2048 are accepted` }
  const invalid = input.findIndex((text) => text === "" || tokensOf(text) > longestInput)
  if (invalid >= 0) return { status: 400, message: `'$.input[${invalid}]' is empty or too long` }
  const tokens = input.reduce((sum, text) => sum + tokensOf(text), 0)
  return tokens > 300_000
    ? { status: 400, message: `Requested ${tokens} tokens, max 300000 tokens per request` }
    : undefined
}
const unknownModel = (model: string): Refusal => ({
  status: 404,
  code: "model_not_found",
  message: `The model '${model}' does not exist`,
})

const receive = async (request: Request): Promise<Received> => {
  const body: {
    readonly input: string | ReadonlyArray<string>
    readonly model: string
    readonly dimensions?: number
    readonly encoding_format?: string
  } = JSON.parse(await request.text())
  return {
    input: [body.input].flat(),
    model: body.model,
    dimensions: body.dimensions,
    encoding: body.encoding_format,
  }
}

const vectorsResponse = (
  received: Received,
  fault: Fault | undefined,
  faults: ReadonlyMap<string, Fault>,
): Response => {
  const data = received.input.flatMap((text, index) => {
    const vectorFault = faults.get(text) ?? fault
    if (vectorFault === "missing") return []
    const vector = corrupt(vectorOf(text, received.dimensions ?? native), vectorFault)
    const bytes = vector.byteLength - (vectorFault === "garbled" ? 1 : 0)
    const base64 = Buffer.from(vector.slice().buffer, 0, bytes).toString("base64")
    const embedding =
      vectorFault === "nulls" || vectorFault === "strings"
        ? withoutNumbers(vector, vectorFault)
        : received.encoding === "base64" && fault !== "floats"
          ? `${vectorFault === "damaged_base64" ? "!!!!" : ""}${base64}`
          : Array.from(vector)
    return [{ object: "embedding", ...indexOf(index, fault), embedding }]
  })
  const tokens = received.input.reduce((sum, text) => sum + tokensOf(text), 0)
  return Response.json({
    object: "list",
    data: fault === "shuffled" ? data.toReversed() : data,
    model: received.model,
    usage: { prompt_tokens: tokens, total_tokens: tokens },
  })
}

const respond = async (state: State, models: ReadonlySet<string>, received: Received): Promise<Response> => {
  const requestFault = received.input.map((text) => state.faults.get(text)).find(failsRequest)
  const fault = state.fault ?? requestFault
  const refusal = typeof fault === "object" ? fault : validate(models, received)
  if (state.latencyMs > 0) await Bun.sleep(state.latencyMs)
  if (refusal !== undefined) return refuse(refusal)
  if (fault === "hang") await new Promise(() => {})
  if (fault === "not_json") return new Response("<html></html>", { headers: { "content-type": "text/html" } })
  if (fault === "no_data") return Response.json({ object: "list" })
  if (fault === "truncated")
    return new Response('{"object":"list","data":[', { headers: { "content-type": "application/json" } })
  // An error in the stream closes the connection.
  if (fault === "drop") return new Response(new ReadableStream({ start: (stream) => stream.error() }))
  return vectorsResponse(received, fault, state.faults)
}

/** Checks the key, and counts concurrent and aborted requests. */
const guarded =
  (state: State, apiKey: string | undefined) =>
  (answer: (request: Request) => Response | Promise<Response>) =>
  async (request: Request) => {
    const [scheme, token] = (request.headers.get("authorization") ?? "").split(" ")
    if (scheme !== "Bearer" || token === undefined || (apiKey !== undefined && token !== apiKey))
      return refuse({ status: 401, code: "invalid_api_key", message: "Incorrect API key provided" })
    state.mostConcurrent = Math.max(state.mostConcurrent, ++state.concurrent)
    const aborted = new Promise<Response>((resolve) =>
      request.signal.addEventListener("abort", () => {
        state.aborted += 1
        resolve(new Response())
      }),
    )
    try {
      return await Promise.race([answer(request), aborted])
    } finally {
      state.concurrent -= 1
    }
  }

export type OpenAiStandIn = ReturnType<typeof openAiStandIn>

export const openAiStandIn = ({ apiKey, latencyMs = 0, models: names, port = 0 }: StandInOptions = {}) => {
  const models = new Set(
    names ?? ["text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"],
  )
  const state = makeState(latencyMs)
  const guard = guarded(state, apiKey)

  const server = Bun.serve({
    hostname: "127.0.0.1",
    port,
    idleTimeout: 0,
    routes: {
      "/v1/embeddings": {
        POST: guard(async (request) => {
          const received = await receive(request)
          state.received.push(received)
          return respond(state, models, received)
        }),
      },
      "/v1/models/:model": {
        GET: guard((request) => {
          const model = decodeURIComponent(new URL(request.url).pathname.slice("/v1/models/".length))
          if (!state.describesModels) return refuse({ status: 404, message: "unknown URL" })
          if (typeof state.fault === "object") return refuse(state.fault)
          if (state.fault === "hang") return new Promise<Response>(() => {})
          return models.has(model)
            ? Response.json({ id: model, object: "model", created: 0, owned_by: "stand-in" })
            : refuse(unknownModel(model))
        }),
      },
      /** For manual runs: `curl -X PUT …/fault -d '{"fault":{"status":429},"phrase":"…"}'`. DELETE removes all faults. */
      "/fault": {
        PUT: async (request) => {
          const { fault, phrase }: { fault: Fault; phrase?: string } = JSON.parse(await request.text())
          if (phrase === undefined) state.fault = fault
          else state.faults.set(phrase, fault)
          return new Response(null, { status: 204 })
        },
        DELETE: () => {
          mend()
          return new Response(null, { status: 204 })
        },
      },
    },
    fetch: () => refuse({ status: 404, message: "unknown URL" }),
  })

  /** Removes all faults and counters. */
  const mend = () => {
    state.fault = undefined
    state.faults.clear()
    state.describesModels = true
    state.latencyMs = latencyMs
    state.received.length = 0
    state.mostConcurrent = state.concurrent
    state.aborted = 0
  }

  return Object.assign(state, {
    url: `http://127.0.0.1:${server.port}/v1`,
    mend,
    /** Closes all connections and the port. */
    stop: () => server.stop(true),
  })
}
