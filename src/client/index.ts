/**
 * The package `user-embeddings-client`, and `user-embeddings/client`: a client of the HTTP API on `fetch`, without
 * dependencies, for Node 20, Bun, Deno and browsers. Its types are those of docs/contracts/openapi.json.
 */
import type { components, operations } from "../../docs/contracts/openapi.d.ts"

type Schemas = components["schemas"]
type Json<Operation extends keyof operations, Status extends number> = operations[Operation] extends {
  responses: Record<Status, { content: { "application/json": infer Answer } }>
}
  ? Answer
  : never
type Query<Operation extends keyof operations> = NonNullable<operations[Operation]["parameters"]["query"]>
type Body<Operation extends keyof operations> = operations[Operation] extends {
  requestBody: { content: { "application/json": infer Given } }
}
  ? Given
  : never

export type Recorded = Json<"interactions.search", 201>
export type BulkItem = Schemas["BulkItem"]
export type BulkReport = Json<"interactions.bulk", 200>
export type ProductItem = Schemas["ProductItem"]
export type ProductsReport = Json<"products.changeMany", 200>
export type Product = Schemas["Product"]
export type UserEmbedding = Schemas["UserEmbedding"]
export type Recommendations = Schemas["Recommendations"]
/** Why one of many items is rejected. */
export type ItemProblem = Schemas["ItemProblem"]
export type FieldIssue = NonNullable<Schemas["ProblemDocument"]["errors"]>[number]

export interface Options {
  /** Where the API is, for example `https://events.shop.example`. */
  readonly url: string
  /** One of the API_TOKENS of the API. */
  readonly token?: string
  /** For how long one attempt may take, in milliseconds; default 10,000. */
  readonly timeout?: number
  /** How often a request is repeated after 429, 503 or no answer; default 3. Nothing is recorded twice by that. */
  readonly retries?: number
  /** Default: the global one. */
  readonly fetch?: typeof globalThis.fetch
}

/** The API refused a request (RFC 9457). */
export class Problem extends Error {
  override readonly name = "Problem"
  constructor(
    readonly status: number,
    readonly detail: string,
    /** What is wrong with each field. */
    readonly errors: ReadonlyArray<FieldIssue> = [],
    /** The kind of the problem: a URI relative to the API, such as `/problems#invalid-input`. */
    readonly type: string = "about:blank",
  ) {
    super(`${status}: ${detail}`)
  }
}

interface Call {
  readonly body?: unknown
  readonly query?: object
  readonly key?: string
  readonly accept?: string
}

const mostItems = 1_000
const longestWait = 30_000
const canTryAgain = (status: number) => status === 429 || status === 503
const sleep = (millis: number) => new Promise((done) => setTimeout(done, millis))
const part = encodeURIComponent

const problemOf = async (response: Response): Promise<Problem> => {
  const text = await response.text()
  try {
    const { detail, errors, type }: Schemas["ProblemDocument"] = JSON.parse(text)
    return new Problem(response.status, detail, errors, type)
  } catch {
    return new Problem(response.status, text.slice(0, 300) || response.statusText)
  }
}

/** Sends requests, again if need be: after what Retry-After says, else after 0.5, 1, 2 … s. */
const makeSend = ({ fetch = globalThis.fetch, retries = 3, timeout = 10_000, token, url }: Options) => {
  const base = url.replace(/\/+$/, "")
  return async (
    method: string,
    path: string,
    { accept, body, key, query = {} }: Call = {},
  ): Promise<Response> => {
    const address = new URL(base + path)
    for (const [name, value] of Object.entries(query))
      if (value !== undefined) address.searchParams.set(name, String(value))
    const headers: Record<string, string> = { accept: accept ?? "application/json" }
    if (token !== undefined) headers.authorization = `Bearer ${token}`
    if (body !== undefined) headers["content-type"] = "application/json"
    if (key !== undefined) headers["idempotency-key"] = key
    const request = { method, headers, ...(body === undefined ? {} : { body: JSON.stringify(body) }) }
    for (let attempt = 0; ; attempt++) {
      const isLast = attempt >= retries
      let wait = 500 * 2 ** attempt
      try {
        const response = await fetch(address, { ...request, signal: AbortSignal.timeout(timeout) })
        if (response.ok) return response
        if (isLast || !canTryAgain(response.status)) throw await problemOf(response)
        const seconds = Number(response.headers.get("retry-after") ?? Number.NaN)
        if (seconds > 0) wait = seconds * 1000
        await response.body?.cancel()
      } catch (error) {
        if (isLast || error instanceof Problem) throw error
      }
      await sleep(Math.min(longestWait, wait * (0.75 + Math.random() / 2)))
    }
  }
}

/** Adds up the reports of several requests. */
const inParts = async <Item, Report extends { results: Array<{ index: number }> }>(
  items: ReadonlyArray<Item>,
  send: (items: ReadonlyArray<Item>) => Promise<Report>,
): Promise<Report> => {
  let sum: Report | undefined
  for (let from = 0; from < items.length || sum === undefined; from += mostItems) {
    const report = await send(items.slice(from, from + mostItems))
    for (const result of report.results) result.index += from
    sum = sum === undefined ? report : add(sum, report)
  }
  return sum
}
const add = <Report extends { results: Array<unknown> }>(a: Report, b: Report): Report => {
  const sums = Object.entries(b).flatMap(([name, value]) =>
    typeof value === "number" ? [[name, value + Number(Reflect.get(a, name))]] : [],
  )
  return { ...a, ...Object.fromEntries(sums), results: [...a.results, ...b.results] }
}

/** A client of a running API. All methods reject with a {@link Problem}, or with the error of `fetch`. */
export const createClient = (options: Options) => {
  const send = makeSend(options)
  const json = async <Answer>(method: string, path: string, call?: Call) =>
    (await send(method, path, call)).json() as Promise<Answer>
  const user = (id: string) => `/api/user/${part(id)}`
  const product = (id: string) => `/api/product/${part(id)}`
  /** The same key makes a repeated request the same interaction. */
  const record = (path: string, body: object, key: string = crypto.randomUUID()) =>
    json<Recorded>("POST", path, { body, key })

  return {
    /** `key`: an Idempotency-Key of your own, such as the id of an order. */
    search: (userId: string, body: Body<"interactions.search">, key?: string) =>
      record(`${user(userId)}/search`, body, key),
    /** `type`: view, click, purchase, or an event type of your own. */
    product: (
      userId: string,
      productId: string,
      type: string,
      body: Schemas["ProductBody"] = {},
      key?: string,
    ) => record(`${user(userId)}/product/${part(productId)}/${part(type)}`, body, key),
    /** Takes events back, as for a refund. */
    retract: (userId: string, body: Body<"interactions.retract">, key?: string) =>
      record(`${user(userId)}/retractions`, body, key),
    /** Makes the id `from` an alias of the user, as after a login. */
    merge: (userId: string, from: string, key?: string) => record(`${user(userId)}/merge`, { from }, key),
    /**
     * Any number of interactions. One without a time gets the present one, so that a repetition counts once. A
     * retraction has the time of what it takes back.
     */
    record: (items: ReadonlyArray<BulkItem>): Promise<BulkReport> => {
      const occurred_at = new Date().toISOString()
      return inParts(
        items.map((item) => (item.event_type === "retraction" ? item : { occurred_at, ...item })),
        (some) => json<BulkReport>("POST", "/api/interactions", { body: some }),
      )
    },
    /** Erases the user, under every id. */
    erase: async (userId: string): Promise<void> => void (await send("DELETE", user(userId))),

    embedding: (userId: string, query: Query<"embeddings.embedding"> = {}) =>
      json<UserEmbedding>("GET", `${user(userId)}/embedding`, { query }),
    /** Unit length. `taste`: the vector that recommendations use. */
    vector: async (userId: string, read: "stored" | "taste" = "taste"): Promise<Float32Array> => {
      const accept = "application/octet-stream"
      const response = await send("GET", `${user(userId)}/embedding`, { query: { read }, accept })
      return new Float32Array(await response.arrayBuffer())
    },
    embeddings: (body: Body<"embeddings.many">) =>
      json<Schemas["Embeddings"]>("POST", "/api/embeddings", { body }),

    recommendations: (userId: string, body: Schemas["RecommendationBody"] = {}) =>
      json<Recommendations>("POST", `${user(userId)}/recommendations`, { body }),
    buyAgain: (userId: string, query: Query<"recommendations.buyAgain"> = {}) =>
      json<Schemas["BuyAgain"]>("GET", `${user(userId)}/buy-again`, { query }),
    similarUsers: (userId: string, query: Query<"recommendations.similarUsers"> = {}) =>
      json<Schemas["SimilarUsers"]>("GET", `${user(userId)}/similar`, { query }),
    similarProducts: (productId: string, query: Query<"recommendations.similarProducts"> = {}) =>
      json<Schemas["SimilarProducts"]>("GET", `${product(productId)}/similar`, { query }),
    /** Products that match a phrase, sorted by a user's taste if one is named. */
    searchProducts: (body: Body<"recommendations.searchCatalogue">) =>
      json<Schemas["FoundProducts"]>("POST", "/api/search", { body }),

    getProduct: (productId: string) => json<Product>("GET", product(productId)),
    putProduct: (productId: string, body: Body<"products.change">) =>
      json<Product & { readonly created: boolean }>("PUT", product(productId), { body }),
    /** Any number of products. */
    putProducts: (items: ReadonlyArray<ProductItem>): Promise<ProductsReport> =>
      inParts(items, (some) => json<ProductsReport>("POST", "/api/products", { body: some })),
    removeProduct: async (productId: string): Promise<void> =>
      void (await send("DELETE", product(productId))),
  }
}

export type Client = ReturnType<typeof createClient>
