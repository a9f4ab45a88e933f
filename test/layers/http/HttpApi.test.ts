/** The HTTP API on a listening server and the embedded stack. */
import { expect, spyOn } from "bun:test"
import { connect } from "node:net"
import { HttpServer } from "@effect/platform"
import { Deferred, Effect, Exit, Fiber, Layer, Schedule, Scope } from "effect"
import manifest from "../../../package.json" with { type: "json" }
import * as Api from "../../../src/programs/Api.ts"
import * as Worker from "../../../src/programs/Worker.ts"
import type { ItemProblem } from "../../../src/services/model/Problem.ts"
import { InteractionLog, InteractionLogError } from "../../../src/services/ports/InteractionLog.ts"
import { UserEmbeddings, type UserRecord } from "../../../src/services/ports/UserEmbeddings.ts"
import { effectTest, layerSuite } from "../../support/effect.ts"
import { eventually } from "../../support/pipeline.ts"
import { parsePrometheus } from "../../support/prometheus.ts"
import { embedded } from "../../support/stacks.ts"

const api = (extra: Readonly<Record<string, string>> = {}) =>
  Api.layer.pipe(Layer.provideMerge(embedded({ API_PORT: "0", ...extra })))

interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  readonly body: Record<string, unknown>
}

const call = (
  method: string,
  path: string,
  body?: string | Buffer<ArrayBuffer>,
  headers: Record<string, string> = {},
) =>
  Effect.gen(function* () {
    const { address } = yield* HttpServer.HttpServer
    const port = address._tag === "TcpAddress" ? address.port : 0
    return yield* Effect.promise(async (): Promise<Answer> => {
      const response = await fetch(`http://127.0.0.1:${port}${path}`, {
        method,
        headers,
        ...(body === undefined ? {} : { body }),
      })
      const text = await response.text()
      return {
        status: response.status,
        headers: response.headers,
        text,
        body: text.startsWith("{") ? JSON.parse(text) : {},
      }
    })
  })
/** Sends raw bytes and returns the response, when the server closes the connection. */
const exchange = (request: string) =>
  Effect.gen(function* () {
    const { address } = yield* HttpServer.HttpServer
    const port = address._tag === "TcpAddress" ? address.port : 0
    return yield* Effect.async<string>((resume) => {
      let received = ""
      const socket = connect(port, "127.0.0.1", () => socket.write(request))
      socket.on("data", (bytes) => {
        received += bytes
      })
      socket.on("error", () => {})
      socket.on("close", () => resume(Effect.succeed(received)))
      return Effect.sync(() => socket.destroy())
    }).pipe(Effect.timeout("5 seconds"))
  })
const json = { "content-type": "application/json" }
const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
  call("POST", path, JSON.stringify(body), { ...json, ...headers })
const total = Effect.flatMap(InteractionLog, ({ backlog }) => Effect.map(backlog, ({ total }) => total))

const at = "2026-02-10T12:34:56.789Z"
const future = new Date(Date.now() + 120_000).toISOString()
const search = "/api/user/u-42/search"
const view = "/api/user/u-42/product/456/view"
const bulk = "/api/interactions"
const vector = "/api/product/456/embedding"

/** Method, path, body, headers → status and a field that the problem names. */
const bad: ReadonlyArray<
  readonly [string, string, string | Uint8Array | undefined, Record<string, string>, number, string?]
> = [
  ["POST", search, '{"query": "a"', json, 400],
  ["POST", search, "plain words", json, 400],
  ["POST", search, Uint8Array.of(0x22, 0xff, 0x22), json, 400],
  ["POST", search, '{"query": "a"}', { "content-type": "text/plain" }, 415],
  ["POST", search, '{"query": "a"}', { "content-type": "application/x-www-form-urlencoded" }, 415],
  ["POST", view, "x=1", { "content-type": "text/plain" }, 415],
  ["POST", search, '{"query": "a"}', { "content-type": "application/json; charset=iso-8859-1" }, 415],
  ["POST", search, '{"query": "a"}', { ...json, "content-encoding": "br" }, 415],
  ["POST", search, undefined, {}, 422, "query"],
  ["POST", search, "{}", json, 422, "query"],
  ["POST", search, "[]", json, 422, ""],
  ["POST", search, "null", json, 422],
  ["POST", search, '"words"', json, 422, ""],
  ["POST", search, '{"query": 5}', json, 422, "query"],
  ["POST", search, '{"query": null}', json, 422, "query"],
  ["POST", search, '{"query": ""}', json, 422, "query"],
  ["POST", search, '{"query": "   "}', json, 422, "query"],
  ["POST", search, `{"query": "${"x".repeat(256)}"}`, json, 422, "query"],
  ["POST", search, '{"query": "a\\u0000b"}', json, 422, "query"],
  ["POST", search, '{"query": "a\\u0085b"}', json, 422, "query"],
  ["POST", search, '{"query": "a\\ud800"}', json, 422, "query"],
  ["POST", search, '{"query": "a", "occurred_at": "yesterday"}', json, 422, "occurred_at"],
  ["POST", search, '{"query": "a", "occurred_at": "2026-02-10T12:00:00"}', json, 422, "occurred_at"],
  ["POST", search, '{"query": "a", "occurred_at": "2026-02-30T12:00:00Z"}', json, 422, "occurred_at"],
  ["POST", search, '{"query": "a", "occurred_at": 1770000000}', json, 422, "occurred_at"],
  ["POST", search, `{"query": "a", "occurred_at": "${future}"}`, json, 422, "occurred_at"],
  ["POST", search, '{"query": "a", "device": {"os": "ios"}}', json, 422, "device"],
  ["POST", search, '{"query": "a", "tags": ["x"]}', json, 422, "tags"],
  ["POST", search, `{"query": "a", "note": "${"x".repeat(4096)}"}`, json, 422],
  ["POST", search, `{"query": "a", "note": "${"x".repeat(70_000)}"}`, json, 413],
  ["POST", search, '{"query": "a"}', { ...json, "idempotency-key": "x".repeat(256) }, 422, "Idempotency-Key"],
  ["POST", search, '{"query": "a"}', { ...json, "idempotency-key": "schlüssel" }, 422, "Idempotency-Key"],
  ["POST", "/api/user/two%20words/search", '{"query": "a"}', json, 422, "userId"],
  ["POST", `/api/user/${"x".repeat(65)}/search`, '{"query": "a"}', json, 422, "userId"],
  ["POST", `/api/user/${"x".repeat(1_000)}/search`, '{"query": "a"}', json, 422, "userId"],
  ["POST", "/api/user/a%zz/search", '{"query": "a"}', json, 422, "userId"],
  ["POST", "/api/user/a;b/search", '{"query": "a"}', json, 422, "userId"],
  ["POST", "/api/user//search", '{"query": "a"}', json, 422, "userId"],
  ["POST", search, '{"query": "a", "k\\ud800": 1}', json, 422, "metadata"],
  ["POST", "/api/user/%E2%82%AC/search", '{"query": "a"}', json, 422, "userId"],
  ["POST", "/api/user/u/product/a%2Fb/view", undefined, {}, 422, "productId"],
  ["POST", "/api/user/u/product/a+b/purchase", undefined, {}, 422, "productId"],
  ["POST", view, '{"occurred_at": "never"}', json, 422, "occurred_at"],
  ["POST", view, "[1]", json, 422, ""],
  ["POST", "/api/user/u/product/456/wish", undefined, {}, 422],
  ["GET", "/api/nothing", undefined, {}, 404],
  ["GET", search, undefined, {}, 405],
  ["DELETE", bulk, undefined, {}, 405],
  ["PUT", view, undefined, {}, 405],
  ["GET", "/api/user/nobody/embedding", undefined, {}, 404],
  ["GET", "/api/user/nobody/embedding?vector=maybe", undefined, {}, 422, "vector"],
  ["POST", bulk, undefined, {}, 422, ""],
  ["POST", bulk, "{}", json, 422, ""],
  ["POST", bulk, "[]", json, 422, ""],
  ["POST", bulk, JSON.stringify(Array.from({ length: 1_001 }, () => ({}))), json, 422, ""],
  ["POST", bulk, `["${"x".repeat(1_100_000)}"]`, json, 413],
  ["PUT", vector, "{}", json, 422],
  ["PUT", vector, '{"text": "a", "vector": [1]}', json, 422],
  ["PUT", vector, '{"vector": [1, 2]}', json, 422, "vector"],
  ["PUT", vector, `{"vector": [${Array.from({ length: 1536 }, () => 0)}]}`, json, 422, "vector"],
  ["PUT", vector, '{"vector": ["x"]}', json, 422, "vector.0"],
  ["PUT", vector, '{"text": "  "}', json, 422, "text"],
  ["PUT", vector, '{"text": "a", "colour": "red"}', json, 422, "colour"],
  ["PUT", vector, '{"text": "a\\ud800"}', json, 422, "text"],
  ["PUT", vector, '{"text": "a", "category": "a\\ud800"}', json, 422, "category"],
  ["PUT", vector, "[1]", json, 422, ""],
]

layerSuite("HTTP API", api(), (it) => {
  for (const [index, [method, path, body, headers, status, field]] of bad.entries())
    it(`bad request ${index}: ${method} ${path.slice(0, 60)} → ${status}${field ? ` ${field}` : ""}`, () =>
      Effect.gen(function* () {
        const before = yield* total
        const answer = yield* call(method, path, typeof body === "object" ? Buffer.from(body) : body, headers)
        expect([answer.status, answer.headers.get("content-type")]).toEqual([
          status,
          "application/problem+json",
        ])
        expect(answer.body).toMatchObject({ type: expect.stringMatching(/^\/problems#[a-z-]+$/), status })
        if (field !== undefined) {
          const errors = answer.body.errors as ReadonlyArray<{ readonly field: string }>
          expect(errors.map((error) => error.field)).toContain(field)
        }
        expect(yield* total).toBe(before)
      }))

  it("one problem names every wrong field once", () =>
    Effect.gen(function* () {
      const answer = yield* post(
        "/api/user/a%20b/search",
        { query: "", occurred_at: "x", device: {} },
        { "idempotency-key": "" },
      )
      const errors = answer.body.errors as ReadonlyArray<{ readonly field: string }>
      expect(errors.map(({ field }) => field).sort()).toEqual([
        "Idempotency-Key",
        "device",
        "occurred_at",
        "query",
        "userId",
      ])
    }))

  it("a body that is too large gets a problem, with and without Content-Length", () =>
    Effect.gen(function* () {
      const before = yield* total
      const head = `POST ${search} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n`
      const chunk = `11000\r\n${"y".repeat(0x11000)}\r\n`
      for (const request of [
        `${head}content-length: 200000000\r\n\r\n{`,
        `${head}transfer-encoding: chunked\r\n\r\n${chunk}`,
      ]) {
        const answer = yield* exchange(request)
        expect(answer).toStartWith("HTTP/1.1 413 ")
        expect(answer.toLowerCase()).toContain("content-type: application/problem+json")
      }
      expect(yield* total).toBe(before)
    }))

  it("only a valid traceparent sets the trace id", () =>
    Effect.gen(function* () {
      const zero = `00-${"0".repeat(32)}-${"0".repeat(16)}-01`
      for (const headers of [
        { traceparent: zero },
        { traceparent: "junk" },
        { b3: `${"x".repeat(300)}-y` },
      ]) {
        const answer = yield* post(search, { query: "traced" }, headers as Record<string, string>)
        expect(answer.status).toBe(201)
        expect(answer.headers.get("traceparent")).toMatch(/^00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-0[01]$/)
      }
    }))

  it("/metrics is well-formed for Prometheus, and counts requests by route, without ids and unknown paths", () =>
    Effect.gen(function* () {
      yield* post("/api/user/counted-user/search", { query: "counted" })
      yield* call("GET", "/api/nothing/at/all")
      const { headers, text } = yield* call("GET", "/metrics")
      expect(headers.get("content-type")).toStartWith("text/plain; version=0.0.4")
      const families = parsePrometheus(text)
      // Nothing but metrics of this program: those of Effect's runtime are left out.
      const ours = [...families].filter(([name]) => !name.startsWith("test_"))
      expect(ours.length).toBeGreaterThan(5)
      expect(ours.filter(([, { help }]) => help === undefined)).toEqual([])
      const named = /^(user_embeddings|messaging|http|process|db_client|gen_ai)_/
      expect(ours.filter(([name]) => !named.test(name)).map(([name]) => name)).toEqual([])
      expect(text).toContain(
        `user_embeddings_build_info{bun="${Bun.version}",version="${manifest.version}"} 1`,
      )
      expect(families.get("process_cpu_time_seconds_total")?.type).toBe("counter")
      const requests = families.get("http_server_request_duration_seconds")?.samples
      const series = `http_server_request_duration_seconds_count{http_request_method="POST",http_response_status_code="201",http_route="/api/user/{userId}/search",url_scheme="http"}`
      expect(requests?.get(series)).toBeGreaterThan(0)
      expect(text).not.toContain("counted-user")
      expect(text).not.toContain("/api/nothing")
    }))

  it("a response to another method lists the methods of the path", () =>
    Effect.gen(function* () {
      const put = yield* call("PUT", search)
      expect([put.status, put.headers.get("allow")]).toEqual([405, "POST, OPTIONS"])
      const options = yield* call("OPTIONS", "/api/user/u/embedding")
      expect([options.status, options.headers.get("allow")]).toEqual([204, "GET, HEAD, OPTIONS"])
      expect((yield* call("HEAD", "/livez")).status).toBe(200)
    }))

  it("null is the same as an absent field where the field is optional", () =>
    Effect.gen(function* () {
      expect((yield* post(search, { query: "null", occurred_at: null, device: null })).status).toBe(201)
      const item = { user_id: "u", event_type: "search", search_phrase: "null", product_id: null }
      const answer = yield* post(bulk, [
        { ...item, occurred_at: null, idempotency_key: null, metadata: null },
      ])
      expect(answer.body).toMatchObject({ accepted: 1 })
    }))

  it("a search is recorded once, with its message id, and continues the trace of the client", () =>
    Effect.gen(function* () {
      const body = {
        query: " wireless headphones ",
        occurred_at: "2026-02-10T13:34:56.7899+01:00",
        device: "ios",
      }
      const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
      const first = yield* post(search, body, { traceparent })
      expect(first.status).toBe(201)
      expect(first.body).toEqual({
        message_id: "0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4",
        user_id: "u-42",
        event_type: "search",
        occurred_at: at,
        duplicate: false,
      })
      expect(first.headers.get("traceparent")).toMatch(
        /^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01$/,
      )
      const second = yield* post(search, body)
      expect([second.status, second.body.duplicate]).toEqual([200, true])
    }))

  it("a product event needs no body", () =>
    Effect.gen(function* () {
      for (const event of ["view", "click", "purchase"]) {
        const answer = yield* call("POST", `/api/user/7/product/456/${event}`)
        expect([answer.status, answer.body.user_id, answer.body.event_type]).toEqual([
          201,
          "7",
          `product_${event}`,
        ])
      }
    }))

  it("an idempotency key returns the first result again, and 422 for another interaction", () =>
    Effect.gen(function* () {
      const key = { "idempotency-key": "k-1" }
      const first = yield* post("/api/user/keyed/search", { query: "tent" }, key)
      const again = yield* post("/api/user/keyed/search", { query: "tent" }, key)
      expect([again.status, again.body]).toEqual([200, { ...first.body, duplicate: true }])
      expect((yield* post("/api/user/keyed/search", { query: "stove" }, key)).status).toBe(422)
      expect((yield* post("/api/user/keyed/product/456/view", {}, key)).status).toBe(422)
      expect((yield* post("/api/user/other/search", { query: "tent" }, key)).status).toBe(201)
    }))

  it("the bulk route has a result for each item, and 207 when some are rejected", () =>
    Effect.gen(function* () {
      const good = { user_id: 9, event_type: "product_view", product_id: 456, occurred_at: at }
      const answer = yield* post(bulk, [
        good,
        good,
        { ...good, event_type: "search" },
        { ...good, colour: "red" },
        {
          user_id: 9,
          event_type: "search",
          search_phrase: "tent",
          idempotency_key: "b-1",
          metadata: { a: 1 },
        },
        { ...good, idempotency_key: "b-1" },
      ])
      expect(answer.status).toBe(207)
      expect(answer.body).toMatchObject({ accepted: 2, duplicates: 1, rejected: 3 })
      const results = answer.body.results as ReadonlyArray<{
        readonly status: number
        readonly error?: typeof ItemProblem.Type
      }>
      expect(results.map(({ status }) => status)).toEqual([201, 200, 422, 422, 201, 422])
      const types = results.map(({ error }) => error?.type)
      const alone = [
        yield* post("/api/user/9/search", { occurred_at: at }),
        yield* post("/api/user/9/product/456/view", {}, { "idempotency-key": "b-1" }),
      ]
      const [invalid, reused] = alone.map(({ body }) => body.type as string)
      expect(types).toEqual([undefined, undefined, invalid, invalid, undefined, reused])
      expect([invalid, reused]).toEqual(["/problems#invalid-input", "/problems#idempotency-key-reused"])
      expect(results[5]?.error?.errors).toEqual([
        { field: "idempotency_key", detail: "was used before for another interaction of this user" },
      ])
      expect((yield* post(bulk, [good])).status).toBe(200)
    }))

  it("a text stores a product, and a vector replaces it", () =>
    Effect.gen(function* () {
      const put = (body: unknown) => call("PUT", "/api/product/p-1/embedding", JSON.stringify(body), json)
      expect((yield* put({ text: "a garden hose", product_name: "Hose" })).status).toBe(201)
      expect((yield* put({ vector: Array.from({ length: 1536 }, (_, i) => i) })).status).toBe(200)
    }))

  it("a bulk item that is nested too deeply is rejected, and the other items are recorded", () =>
    Effect.gen(function* () {
      const deep = `${"[".repeat(29_000)}${"]".repeat(29_000)}`
      const item = (user: number, more: string) =>
        `{"user_id":"deep-${user}","event_type":"search","search_phrase":"shoes"${more}}`
      const good = Array.from({ length: 20 }, (_, user) => item(user, ""))
      const items = [item(99, `,"metadata":{"a":${deep}}`), item(98, `,"unknown":${deep}`), deep, ...good]
      const { body, status } = yield* call("POST", bulk, `[${items.join(",")}]`, json)
      expect(status).toBe(207)
      expect(body).toMatchObject({ accepted: 20, rejected: 3 })
      expect(body.results).toMatchObject(
        [
          { status: 422, error: { detail: "must be nested at most 64 levels deep" } },
          { status: 422, error: { detail: "must be nested at most 64 levels deep" } },
          { status: 422 },
        ].concat(good.map(() => ({ status: 201 }) as never)),
      )
      for (const [path, text] of [
        [search, `{"query":"shoes","a":${deep}}`],
        [view, `{"a":${deep}}`],
        [search, deep],
      ] as const)
        expect((yield* call("POST", path, text, json)).status).toBe(422)
      expect((yield* call("PUT", vector, `{"vector":${deep}}`, json)).status).toBe(422)
    }))

  it("a bulk request full of mistakes does not block other requests", () =>
    Effect.gen(function* () {
      const unknown = (count: number) =>
        Object.fromEntries(Array.from({ length: count }, (_, index) => [`key${index}`, 1]))
      const item = { user_id: "u", event_type: "search", search_phrase: "shoes" }
      const bodies = [
        [{ ...item, ...unknown(75_000) }],
        [{ ...item, metadata: unknown(75_000) }],
        Array.from({ length: 1_000 }, () => ({ ...item, ...unknown(75) })),
      ]
      for (const body of bodies) {
        // CPU time, because other processes may use the CPU meanwhile.
        const cpuMillis = () => process.cpuUsage().user / 1_000
        let longest = 0
        let answered = false
        const watch = Effect.promise(async () => {
          for (let before = cpuMillis(); !answered; before = cpuMillis()) {
            await new Promise((resume) => setImmediate(resume))
            longest = Math.max(longest, cpuMillis() - before)
          }
        })
        const request = Effect.ensuring(
          post(bulk, body),
          Effect.sync(() => {
            answered = true
          }),
        )
        const [answer] = yield* Effect.all([request, watch], { concurrency: 2 })
        expect(answer.body).toMatchObject({ rejected: body.length })
        expect(answer.text.length).toBeLessThan(2_000_000)
        expect(longest).toBeLessThan(200)
      }
    }))

  it("a user can be erased repeatedly and then records interactions again", () =>
    Effect.gen(function* () {
      const erased = { query: "erased", occurred_at: at }
      expect((yield* post("/api/user/u-erased/search", erased)).status).toBe(201)
      expect((yield* post("/api/user/u-erased/search", erased)).status).toBe(200)
      const before = yield* total
      const answer = yield* call("DELETE", "/api/user/u-erased")
      expect([answer.status, answer.body]).toEqual([204, {}])
      expect(yield* total).toBe(before - 1)
      expect((yield* call("DELETE", "/api/user/u-erased")).status).toBe(204)
      expect((yield* call("DELETE", "/api/user/u-erased/search")).status).toBe(405)
      expect((yield* call("DELETE", "/api/user/two%20words")).status).toBe(422)
      expect((yield* post("/api/user/u-erased/search", erased)).status).toBe(201)
      const { paths } = (yield* call("GET", "/openapi.json")).body as {
        readonly paths: Record<string, { readonly delete?: { readonly responses: object } }>
      }
      expect(Object.keys(paths["/api/user/{userId}"]?.delete?.responses ?? {}).toSorted()).toEqual([
        "204",
        "401",
        "403",
        "422",
        "500",
        "503",
      ])
    }))

  it("health and documents need no token", () =>
    Effect.gen(function* () {
      expect((yield* call("GET", "/livez")).body).toEqual({ status: "ok" })
      expect((yield* call("GET", "/readyz")).body).toMatchObject({
        status: "ok",
        dependencies: { sqlite: { status: "up" } },
      })
      const verbose = (yield* call("GET", "/readyz?verbose")).body as {
        readonly dependencies: { readonly sqlite: { readonly version: string; readonly latency_ms: number } }
      }
      expect(verbose.dependencies.sqlite.version).toMatch(/^3\.\d+/)
      expect(verbose.dependencies.sqlite.latency_ms).toBeGreaterThanOrEqual(0)
      expect((yield* call("GET", "/readyz?verbose=false")).body.dependencies).toMatchObject({
        sqlite: { status: "up" },
      })
      expect(JSON.stringify((yield* call("GET", "/readyz?verbose=false")).body)).not.toContain("version")
      expect((yield* call("GET", "/docs")).status).toBe(200)
      const { paths } = (yield* call("GET", "/openapi.json")).body as { readonly paths: object }
      expect(Object.keys(paths)).toContain("/api/user/{userId}/product/{productId}/purchase")
      expect(JSON.stringify(paths)).toContain("application/problem+json")
    }))

  it("every reference of the OpenAPI document has its schema", () =>
    Effect.gen(function* () {
      const { body } = yield* call("GET", "/openapi.json")
      const { schemas } = body.components as { readonly schemas: object }
      const references = [...JSON.stringify(body).matchAll(/#\/components\/schemas\/(\w+)/g)].map(
        ([, name]) => name,
      )
      expect(references.length).toBeGreaterThan(0)
      expect(references.filter((name) => !Object.keys(schemas).includes(name ?? ""))).toEqual([])
    }))
})

const failing = (reason: InteractionLogError["reason"]) =>
  Layer.effect(
    InteractionLog,
    Effect.map(InteractionLog, (log) => ({
      ...log,
      append: () => Effect.fail(new InteractionLogError({ reason, operation: "append", cause: "a secret" })),
    })),
  )

for (const [reason, retryAfter] of [
  ["unavailable", "1"],
  ["timeout", "1"],
  // It stays so until an operator has corrected it.
  ["rejected", null],
] as const)
  layerSuite(
    `HTTP API, interaction log ${reason}`,
    Api.layer.pipe(Layer.provide(failing(reason)), Layer.provideMerge(embedded({ API_PORT: "0" }))),
    (it) => {
      it("the response is 503, without the cause, and with Retry-After where that may help", () =>
        Effect.gen(function* () {
          for (const answer of [
            yield* post(search, { query: "a" }),
            yield* post(bulk, [{ user_id: "u", event_type: "product_view", product_id: "p" }]),
          ]) {
            expect([answer.status, answer.headers.get("retry-after")]).toEqual([503, retryAfter])
            expect(answer.body.type).toBe(
              `/problems#${retryAfter === null ? "operator-needed" : "unavailable"}`,
            )
            expect(JSON.stringify(answer.body)).not.toContain("a secret")
          }
        }))
    },
  )

const malformed = Layer.effect(
  UserEmbeddings,
  Effect.map(UserEmbeddings, (users) => ({
    ...users,
    load: (ids: ReadonlyArray<string>) =>
      Effect.map(users.load(ids), (records) => {
        const broken = ([id, record]: readonly [string, UserRecord]) =>
          [id, { ...record, embedding: { ...record.embedding!, last_event_id: "a secret" } }] as const
        return new Map([...records].map(broken))
      }),
  })),
)

effectTest("a response that does not match its schema becomes a 500 without its content", () =>
  Effect.gen(function* () {
    yield* post("/api/user/stored/search", { query: "a" })
    yield* eventually(
      Effect.map(
        Effect.flatMap(UserEmbeddings, (users) => users.load(["stored"])),
        (records) => records.get("stored"),
      ),
    )
    const answer = yield* call("GET", "/api/user/stored/embedding")
    expect([answer.status, answer.headers.get("content-type")]).toEqual([500, "application/problem+json"])
    expect(answer.text).not.toContain("a secret")
  }).pipe(
    Effect.provide(
      Layer.merge(Api.layer.pipe(Layer.provide(malformed)), Worker.layer).pipe(
        Layer.provideMerge(embedded({ API_PORT: "0" })),
      ),
    ),
  ),
)

/** Loading an embedding completes `begun` and then waits for `released`. */
const slow = (begun: Deferred.Deferred<void>, released: Deferred.Deferred<void>) =>
  Layer.effect(
    UserEmbeddings,
    Effect.map(UserEmbeddings, (users) => ({
      ...users,
      load: (ids: ReadonlyArray<string>) =>
        Deferred.succeed(begun, undefined).pipe(
          Effect.zipRight(Deferred.await(released)),
          Effect.zipRight(users.load(ids)),
        ),
    })),
  )

effectTest("a closing server finishes open requests and refuses new connections", () =>
  Effect.gen(function* () {
    const begun = yield* Deferred.make<void>()
    const released = yield* Deferred.make<void>()
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(
      Api.layer.pipe(Layer.provide(slow(begun, released)), Layer.provideMerge(embedded({ API_PORT: "0" }))),
      scope,
    )
    const get = (path: string) => Effect.provide(call("GET", path), context)
    const idle = yield* Effect.provide(exchange(""), context).pipe(Effect.fork)
    const open = yield* Effect.fork(get("/api/user/nobody/embedding"))
    yield* Deferred.await(begun)
    const closed = yield* Effect.fork(Scope.close(scope, Exit.void))
    const refused = get("/livez").pipe(Effect.sandbox, Effect.flip)
    yield* Effect.retry(refused, { schedule: Schedule.spaced("5 millis"), times: 1_000 })
    yield* Deferred.succeed(released, undefined)
    expect((yield* Fiber.join(open)).status).toBe(404)
    yield* Fiber.join(closed)
    yield* Fiber.interrupt(idle)
  }),
)

effectTest("the server closes an idle connection after API_IDLE_TIMEOUT", () =>
  Effect.gen(function* () {
    const serve = spyOn(Bun, "serve")
    yield* Effect.addFinalizer(() => Effect.sync(() => serve.mockRestore()))
    yield* Layer.build(Layer.provide(Api.layer, embedded({ API_PORT: "0", API_IDLE_TIMEOUT: "42" })))
    expect(serve.mock.calls.map(([options]) => Reflect.get(options, "idleTimeout"))).toEqual([42])
  }),
)

layerSuite(
  "HTTP API with tokens and a rate limit",
  api({ API_TOKENS: "one, two", RATE_LIMIT_PER_USER: "3", API_HOST: "127.0.0.1" }),
  (it) => {
    it("all paths but health need a token", () =>
      Effect.gen(function* () {
        const none = yield* post(search, { query: "a" })
        expect([none.status, none.headers.get("www-authenticate")]).toEqual([401, "Bearer"])
        expect((yield* post(search, { query: "a" }, { authorization: "Bearer three" })).status).toBe(401)
        expect((yield* call("DELETE", "/api/user/u-42")).status).toBe(401)
        expect((yield* post(search, { query: "a" }, { authorization: "Bearer two" })).status).toBe(201)
        expect((yield* call("GET", "/readyz")).status).toBe(200)
        expect((yield* call("GET", "/readyz?verbose")).status).toBe(401)
        expect((yield* call("GET", "/livez")).status).toBe(200)
        expect((yield* call("GET", "/metrics")).status).toBe(401)
      }))

    it("the rate limit counts the items of each user separately", () =>
      Effect.gen(function* () {
        const token = { authorization: "Bearer one" }
        const items = Array.from({ length: 5 }, (_, i) => ({
          user_id: "fast",
          event_type: "search",
          search_phrase: `q${i}`,
        }))
        const answer = yield* post(bulk, items, token)
        expect([answer.status, answer.body.accepted]).toEqual([207, 3])
        expect(answer.headers.get("retry-after")).toBe("1")
        const refused = yield* post("/api/user/fast/search", { query: "more" }, token)
        const { detail, type } = refused.body
        expect(answer.body.results).toMatchObject([{}, {}, {}, { error: { type, detail } }, { status: 429 }])
        expect(type).toBe("/problems#too-many-requests")
        expect([refused.status, refused.headers.get("retry-after")]).toEqual([429, "1"])
        expect((yield* post("/api/user/slow/search", { query: "more" }, token)).status).toBe(201)
      }))
  },
)
