/** Who may send a request to the API, and in which forms: tokens and scopes, pages of other origins, compressed bodies. */
import { describe, expect, test } from "bun:test"
import { deflateSync, gzipSync } from "node:zlib"
import { HttpApi, HttpServer } from "@effect/platform"
import { Cause, Context, Effect, Exit, HashMap, Layer, Logger, LogLevel, Option } from "effect"
import * as Api from "../../../src/programs/Api.ts"
import { RouteScopes, type Scope, scopes } from "../../../src/services/AccessTokens.ts"
import { Authorisation, SegmentAuthorisation } from "../../../src/services/api/ApiProblems.ts"
import { api } from "../../../src/services/api/InteractionApi.ts"
import { effectTest, layerSuite } from "../../support/effect.ts"
import { embedded } from "../../support/stacks.ts"

const system = (extra: Readonly<Record<string, string>>) =>
  Api.layer.pipe(Layer.provideMerge(embedded({ API_PORT: "0", API_HOST: "127.0.0.1", ...extra })))

const call = (method: string, path: string, init: RequestInit = {}) =>
  Effect.flatMap(HttpServer.HttpServer, ({ address }) =>
    Effect.promise(async () => {
      const port = address._tag === "TcpAddress" ? address.port : 0
      const response = await fetch(`http://127.0.0.1:${port}${path}`, { method, ...init })
      const text = await response.text()
      const body: Record<string, unknown> = text.startsWith("{") ? JSON.parse(text) : {}
      return { status: response.status, headers: response.headers, body }
    }),
  )
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const json = { "content-type": "application/json" }
const shop = "https://shop.example"

interface Endpoint {
  readonly method: string
  readonly path: string
  readonly scopes: Option.Option<ReadonlyArray<Scope>>
  readonly isChecked: boolean
}
const endpoints: Array<Endpoint> = []
HttpApi.reflect(api, {
  onGroup: () => {},
  onEndpoint: ({ endpoint: { method, path }, mergedAnnotations, middleware }) =>
    endpoints.push({
      method,
      path,
      scopes: Context.getOption(mergedAnnotations, RouteScopes),
      isChecked: [...middleware].some(
        ({ key }) => key === Authorisation.key || key === SegmentAuthorisation.key,
      ),
    }),
})

describe("the scopes of routes", () => {
  test("what concerns a person or destroys needs more than the scope write", () => {
    const scopesAt = (path: string) =>
      endpoints.filter((one) => one.path === path).map(({ scopes }) => Option.getOrThrow(scopes))
    for (const what of ["retractions", "merge"])
      expect([what, scopesAt(`/api/user/:userId/${what}`)]).toEqual([what, [["person"]]])
    expect(scopesAt("/api/user/:userId")).toEqual([["operate"]])
  })

  test("every route has a scope, and only the probes are open", () => {
    expect(endpoints.filter(({ scopes }) => Option.isNone(scopes))).toEqual([])
    const open = endpoints.filter(({ scopes }) => Option.getOrThrow(scopes).length === 0)
    expect(open.map(({ path }) => path)).toEqual(["/livez", "/readyz"])
    expect(endpoints.filter(({ isChecked }) => !isChecked)).toEqual(open)
  })
})

/** One token for each scope, by its name; `all`, whose secret looks like a scope; and two that rotate. */
const API_TOKENS = `${scopes.map((scope) => `${scope}=${scope}-secret`).join()},reed=all==,read+write=old,read+write=new`

layerSuite(
  "scoped tokens",
  system({ API_TOKENS, API_CORS_ORIGINS: `${shop}, https://app.example` }),
  (it) => {
    for (const { method, path, scopes: needed } of endpoints.filter(({ isChecked }) => isChecked))
      it(`${method} ${path} needs a token with a scope of the route`, () =>
        Effect.gen(function* () {
          const url = path.replace(":type", "view").replace(":call", "page").replaceAll(/:\w+/g, "1")
          const allowed = Option.getOrThrow(needed)
          for (const scope of scopes) {
            // Read to its end it would never end.
            if (path === "/api/system/events" && allowed.includes(scope)) continue
            const { body, status } = yield* call(method, url, { headers: bearer(`${scope}-secret`) })
            const expected = allowed.includes(scope) ? [] : [403]
            expect([scope, ...(status === 403 ? [status] : [])]).toEqual([scope, ...expected])
            if (status === 403) expect(body.detail).toBe(`the token needs the scope ${allowed.join(" or ")}`)
          }
          expect((yield* call(method, url, { headers: bearer("reed") })).status).toBe(401)
        }))

    it("a path that is escaped needs the same scope", () =>
      Effect.gen(function* () {
        const headers = bearer("write-secret")
        for (const path of ["/api/%64ead-letters", "/api/dead%2Dletters/groups", "/%61pi/system"])
          expect([path, [403, 404].includes((yield* call("GET", path, { headers })).status)]).toEqual([
            path,
            true,
          ])
        for (const path of ["/%6detrics", "/metrics/", "/metrics"])
          expect([path, [403, 404].includes((yield* call("GET", path, { headers })).status)]).toEqual([
            path,
            true,
          ])
      }))

    it("a secret may contain `=`, and two tokens may differ in nothing but their secret", () =>
      Effect.gen(function* () {
        for (const [token, status] of [
          ["reed=all==", 200],
          ["old", 403],
          ["new", 403],
          ["operate-secret", 200],
          ["operate=operate-secret", 401],
        ] as const)
          expect([token, (yield* call("GET", "/metrics", { headers: bearer(token) })).status]).toEqual([
            token,
            status,
          ])
        for (const token of ["old", "new"])
          expect((yield* call("GET", "/api/user/1/embedding", { headers: bearer(token) })).status).toBe(404)
      }))

    it("a route that answers GET answers HEAD for the same scope", () =>
      Effect.gen(function* () {
        const head = (token: string) => call("HEAD", "/api/user/1/embedding", { headers: bearer(token) })
        expect([(yield* head("read-secret")).status, (yield* head("write-secret")).status]).toEqual([
          404, 403,
        ])
      }))

    it("versions of servers need the scope operate", () =>
      Effect.gen(function* () {
        const verbose = (token: string) => call("GET", "/readyz?verbose", { headers: bearer(token) })
        expect((yield* verbose("read-secret")).status).toBe(403)
        expect((yield* verbose("operate-secret")).status).toBe(200)
      }))

    it("an unknown query parameter is named, under /api only", () =>
      Effect.gen(function* () {
        const unknown = yield* call("GET", "/api/user/1/recommendations?exlude=purchased&limit=3", {
          headers: bearer("reed=all=="),
        })
        expect([unknown.status, unknown.body.errors]).toEqual([
          422,
          [
            {
              field: "exlude",
              detail: "is not a known query parameter: known are limit, exclude, category, fallback",
            },
          ],
        ])
        const headers = bearer("reed=all==")
        for (const [method, path, status] of [
          ["POST", "/api/user/1/product/2/view?x=1", 422],
          ["POST", "/api/interactions?", 422],
          ["DELETE", "/api/user/1?force=true", 422],
          ["GET", "/api/system?_=1", 422],
          ["GET", "/readyz?x=1", 200],
          ["GET", "/metrics?x=1", 200],
          ["GET", "/?utm_source=x", 200],
        ] as const)
          expect([path, (yield* call(method, path, { headers })).status]).toEqual([path, status])
      }))

    it("a preflight of an allowed origin is answered, of another one not, and credentials are never allowed", () =>
      Effect.gen(function* () {
        const ask = (origin: string, path = "/api/user/1/search") =>
          call("OPTIONS", path, {
            headers: {
              origin,
              "access-control-request-method": "POST",
              "access-control-request-headers": "authorization",
            },
          })
        for (const origin of [shop, "https://app.example"]) {
          const { headers, status } = yield* ask(origin)
          expect([status, headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([
            204,
            origin,
            "Origin",
          ])
          expect(headers.get("access-control-allow-headers")).toContain("authorization")
          expect(headers.has("access-control-allow-credentials")).toBe(false)
        }
        for (const origin of [
          "https://evil.example",
          "https://shop.example.evil.example",
          "http://shop.example",
          "null",
        ]) {
          const { headers } = yield* ask(origin)
          expect([origin, headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([
            origin,
            null,
            "Origin",
          ])
        }
      }))

    it("answers to an allowed origin name it, also those of the router and of problems", () =>
      Effect.gen(function* () {
        const ask = (method: string, path: string, token: string) =>
          call(method, path, {
            headers: { ...bearer(token), origin: shop },
            ...(method === "GET" ? {} : { body: "{}" }),
          })
        for (const [answer, status] of [
          [yield* ask("POST", "/api/user/1/product/2/view", "write-secret"), 415],
          [yield* ask("GET", "/api/user/1/embedding", "read-secret"), 404],
          [yield* ask("GET", "/api/user/1/embedding", "no-token"), 401],
        ] as const)
          expect([
            answer.status,
            answer.headers.get("access-control-allow-origin"),
            answer.headers.get("vary"),
          ]).toEqual([status, shop, "Origin"])
      }))

    /** Token in the URL, origin, content type, and whatever else → status. */
    const beacons: ReadonlyArray<readonly [string, string, string | undefined, string, number]> = [
      ["search", "write-secret", shop, "text/plain;charset=UTF-8", 201],
      ["search", "write-secret", shop, "application/json", 201],
      ["search", "write-secret", shop, "application/x-www-form-urlencoded", 415],
      ["search", "write-secret", "https://evil.example", "text/plain", 403],
      ["search", "write-secret", undefined, "text/plain", 403],
      ["search", "old", shop, "text/plain", 403],
      ["search", "reed=all==", shop, "text/plain", 403],
      ["search", "read-secret", shop, "text/plain", 403],
      ["search", "no-token", shop, "text/plain", 401],
      ["embedding", "write-secret", shop, "text/plain", 403],
    ]
    for (const [route, token, origin, type, status] of beacons)
      it(`a beacon to ${route} from ${origin} with ${token} as ${type} → ${status}`, () =>
        Effect.gen(function* () {
          const answer = yield* call(
            route === "search" ? "POST" : "GET",
            `/api/user/b-1/${route}?access_token=${encodeURIComponent(token)}`,
            {
              headers: { "content-type": type, ...(origin && { origin }) },
              ...(route === "search" && { body: JSON.stringify({ query: `${token} ${type}` }) }),
            },
          )
          expect(answer.status).toBe(status)
        }))

    it("a bulk request may be text/plain from an allowed origin, a product may not", () =>
      Effect.gen(function* () {
        const text = { "content-type": "text/plain", origin: shop }
        const body = JSON.stringify([{ user_id: "b-2", event_type: "product_view", product_id: "1" }])
        const bulk = yield* call("POST", "/api/interactions?access_token=write-secret", {
          body,
          headers: text,
        })
        expect([bulk.status, bulk.body.accepted]).toEqual([200, 1])
        const foreign = { ...text, ...bearer("write-secret"), origin: "https://evil.example" }
        expect((yield* call("POST", "/api/interactions", { body, headers: foreign })).status).toBe(415)
        const headers = { ...text, ...bearer("catalogue-secret") }
        const put = yield* call("PUT", "/api/product/1/embedding", { body: '{"text":"a"}', headers })
        expect(put.status).toBe(415)
      }))

    it("a bulk request takes nothing back without the scope person", () =>
      Effect.gen(function* () {
        const viewed = { user_id: "b-3", event_type: "product_view", product_id: "1" }
        const bulk = (token: string, items: ReadonlyArray<object>) =>
          call("POST", "/api/interactions", {
            body: JSON.stringify(items),
            headers: { ...json, ...bearer(token) },
          })
        const first = yield* bulk("write-secret", [viewed])
        const [{ message_id }] = first.body.results as [{ readonly message_id: string }]
        const items = [
          { user_id: "b-3", event_type: "retraction", reference: message_id },
          { user_id: "b-3", event_type: "merge", reference: "guest" },
          viewed,
        ]
        const refused = yield* bulk("write-secret", items)
        expect([refused.status, refused.body.results]).toMatchObject([
          207,
          [{ status: 403 }, { status: 403, error: { type: "/problems#missing-scope" } }, { status: 201 }],
        ])
        const taken = yield* bulk("reed=all==", items.slice(0, 1))
        expect(taken.body).toMatchObject({ accepted: 1 })
      }))

    const search = (body: Uint8Array<ArrayBuffer>, encoding: string) =>
      call("POST", "/api/user/z-1/search", {
        body,
        headers: { ...json, ...bearer("write-secret"), "content-encoding": encoding },
      })
    it("bodies may be compressed with gzip or deflate", () =>
      Effect.gen(function* () {
        expect((yield* search(gzipSync('{"query":"tent"}'), "gzip")).status).toBe(201)
        expect((yield* search(deflateSync('{"query":"stove"}'), "deflate")).status).toBe(201)
        expect((yield* search(gzipSync('{"query":"lamp"}'), "GZIP")).status).toBe(201)
        expect((yield* search(gzipSync('{"query":'), "gzip")).status).toBe(400)
        expect((yield* search(Buffer.from('{"query":"tent"}'), "gzip")).status).toBe(400)
        expect(
          (yield* search(gzipSync(`{"query":"${"x".repeat(200)}"}`).subarray(0, 30), "gzip")).status,
        ).toBe(400)
        expect((yield* search(Buffer.from("{}"), "br")).status).toBe(415)
      }))

    it("a small body that becomes a very large one is refused while it is inflated", () =>
      Effect.gen(function* () {
        const bomb = gzipSync(Buffer.alloc(40_000_000, " "))
        expect(bomb.byteLength).toBeLessThan(64 * 1024)
        const before = process.memoryUsage.rss()
        expect((yield* search(bomb, "gzip")).status).toBe(413)
        expect(process.memoryUsage.rss() - before).toBeLessThan(30_000_000)
      }))
  },
)

layerSuite("without API_TOKENS, with API_CORS_ORIGINS", system({ API_CORS_ORIGINS: shop }), (it) => {
  it("pages of these origins may record and act, pages of others may not", () =>
    Effect.gen(function* () {
      for (const [origin, type, status] of [
        [shop, "text/plain", 201],
        ["https://evil.example", "text/plain", 403],
        ["https://evil.example", "application/json", 403],
      ] as const) {
        const { status: answered } = yield* call("POST", "/api/user/1/search", {
          headers: { origin, "content-type": type, "sec-fetch-site": "cross-site" },
          body: '{"query":"tent"}',
        })
        expect([origin, answered]).toEqual([origin, status])
      }
    }))
})

effectTest("API_CORS_ORIGINS=* without API_TOKENS stops the start", () =>
  Effect.gen(function* () {
    const exit = yield* Effect.exit(Layer.build(system({ API_CORS_ORIGINS: "*" })))
    expect(Exit.isFailure(exit) && Cause.pretty(exit.cause)).toContain("API_CORS_ORIGINS=* needs API_TOKENS")
  }),
)

effectTest("erasures and actions on dead letters are logged with the token's position and scope", () => {
  const logged: Array<Readonly<Record<string, unknown>>> = []
  const recording = Logger.replace(
    Logger.defaultLogger,
    Logger.make(({ annotations, message }) =>
      logged.push({ event: String(message), ...Object.fromEntries(HashMap.toEntries(annotations)) }),
    ),
  )
  return Effect.gen(function* () {
    const tokens = ["operate-token", "token-of-all"]
    const layer = Api.layer.pipe(
      Layer.provide(Layer.merge(recording, Logger.minimumLogLevel(LogLevel.Info))),
      Layer.provideMerge(
        embedded({ API_PORT: "0", API_TOKENS: `write=w,operate=${tokens[0]},${tokens[1]}` }),
      ),
    )
    yield* Effect.gen(function* () {
      yield* call("DELETE", "/api/user/u-1", { headers: bearer(tokens[0]!) })
      for (const what of ["retry", "remove"])
        yield* call("POST", `/api/dead-letters/${what}`, {
          headers: { ...json, ...bearer(tokens[1]!) },
          body: '{"all":true}',
        })
    }).pipe(Effect.provide(layer))
    expect(logged.filter(({ token }) => token !== undefined)).toEqual([
      { event: "erasure.done", user_id: "u-1", token: 2, scope: "operate" },
      { event: "dead_letters.retried", picked: 0, retried: 0, token: 3, scope: "all" },
      { event: "dead_letters.removed", removed: 0, token: 3, scope: "all" },
    ])
    for (const token of tokens) expect(JSON.stringify(logged)).not.toContain(token)
  })
})
