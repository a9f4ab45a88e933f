/** The routes of the page, on a listening server and the embedded stack. */
import { describe, expect, test } from "bun:test"
import { HttpServer } from "@effect/platform"
import { Context, Duration, Effect, Exit, Layer, Scope } from "effect"
import { type Route, routes } from "../../../src/layers/http/HttpRoutes.ts"
import * as Api from "../../../src/programs/Api.ts"
import { effectTest, layerSuite } from "../../support/effect.ts"
import { eventually } from "../../support/pipeline.ts"
import { embedded } from "../../support/stacks.ts"

const api = (extra: Readonly<Record<string, string>> = {}) =>
  Api.layer.pipe(Layer.provideMerge(embedded({ API_PORT: "0", ...extra })))
const address = Effect.map(HttpServer.HttpServer, ({ address }) =>
  address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : "",
)
const call = (path: string, init: RequestInit = {}) =>
  Effect.flatMap(address, (base) =>
    Effect.promise(async () => {
      const response = await fetch(`${base}${path}`, init)
      return { status: response.status, headers: response.headers, text: await response.text() }
    }),
  )
const act = (what: "retry" | "remove", body: string) =>
  call(`/api/dead-letters/${what}`, {
    method: "POST",
    body,
    headers: { "content-type": "application/json", authorization: "Bearer t" },
  })
const events = (base: string) =>
  fetch(`${base}/api/system/events`, { headers: { authorization: "Bearer t" } })

layerSuite("operations over HTTP", api({ API_TOKENS: "t" }), (it) => {
  it("the page needs no token, but its figures do", () =>
    Effect.gen(function* () {
      const page = yield* call("/")
      expect([page.status, page.headers.get("content-type")]).toEqual([200, "text/html; charset=utf-8"])
      expect(page.headers.get("content-security-policy")).toContain("default-src 'none'")
      const etag = page.headers.get("etag") ?? ""
      expect((yield* call("/", { headers: { "if-none-match": etag } })).status).toBe(304)
      for (const [, path] of page.text.matchAll(/(?:src|href)="(\/page\/[^"]+)"/g))
        expect((yield* call(path!)).status).toBe(200)
      for (const path of [
        "/api/system",
        "/api/system/events",
        "/api/system/history",
        "/api/events",
        "/api/dead-letters",
        "/api/user/1/profile",
      ])
        expect((yield* call(path)).status).toBe(401)
      expect((yield* call("/page/other.js")).status).toBe(401)
      const document = yield* call("/page/docs/runbook.md")
      expect(document.text).toContain('<h2 id="noconsumers">NoConsumers</h2>')
      expect(document.headers.get("content-security-policy")).toContain("default-src 'none'")
      const problems = yield* call("/problems")
      expect([problems.status, problems.headers.get("content-type")]).toEqual([
        200,
        expect.stringContaining("text/html"),
      ])
      // The type of a problem leads to its section.
      const { type } = JSON.parse((yield* call("/api/system")).text)
      expect(problems.text).toContain(`<section id="${type.replace("/problems#", "")}">`)
    }))

  it("the history begins with the API, a sample a minute", () =>
    Effect.gen(function* () {
      const headers = { authorization: "Bearer t" }
      const { samples } = yield* eventually(
        Effect.map(call("/api/system/history?hours=1", { headers }), ({ text }) => {
          const history = JSON.parse(text)
          return history.samples.length > 0 ? history : undefined
        }),
      )
      expect(samples).toEqual([
        {
          at: expect.any(Number),
          waiting: 0,
          oldest_waiting_s: 0,
          retrying: 0,
          failed: 0,
          recorded: null,
          applied: null,
          p50: null,
          p95: null,
        },
      ])
      expect((yield* call("/api/system/history?hours=25", { headers })).status).toBe(422)
    }))

  it(
    "all clients receive the figures of the system as server-sent events",
    () =>
      Effect.gen(function* () {
        const base = yield* address
        const read = Effect.promise(async () => {
          const response = await events(base)
          expect(response.headers.get("content-type")).toBe("text/event-stream")
          const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
          let text = ""
          while (text.split("\n\n").length < 3) text += (await reader.read()).value ?? ""
          await reader.cancel()
          return text.split("\n\n").slice(0, 2)
        })
        for (const received of yield* Effect.all([read, read], { concurrency: 2 }))
          for (const event of received) {
            expect(event).toStartWith("data: ")
            expect(JSON.parse(event.slice(6))).toMatchObject({
              queues: { failed: 0, user_embedding_updates: { ready: 0 } },
              log: { total: 0 },
            })
          }
      }),
    20_000,
  )

  for (const body of [
    "{}",
    "[]",
    '{"ids": []}',
    '{"all": false}',
    '{"error": ""}',
    '{"ids": ["a b"]}',
    '{"all": true, "x": 1}',
  ])
    it(`the selection ${body} of dead letters is refused`, () =>
      Effect.gen(function* () {
        for (const what of ["retry", "remove"] as const) expect((yield* act(what, body)).status).toBe(422)
      }))

  it("an unknown user or dead letter is 404, and a selection without match acts on nothing", () =>
    Effect.gen(function* () {
      const headers = { authorization: "Bearer t" }
      expect((yield* call("/api/user/nobody/profile", { headers })).status).toBe(404)
      expect((yield* call("/api/dead-letters/none", { headers })).status).toBe(404)
      expect((yield* act("remove", '{"ids": ["none"]}')).status).toBe(404)
      expect((yield* act("remove", '{"all": true}')).text).toBe('{"removed":0}')
      expect((yield* act("retry", '{"error": "not_json"}')).text).toBe('{"picked":0,"retried":0}')
    }))

  it("the events recorded last are found by user, product and type", () =>
    Effect.gen(function* () {
      const headers = { authorization: "Bearer t" }
      yield* call("/api/user/u-1/product/p-1/view", { method: "POST", headers })
      yield* call("/api/user/u-2/product/p-1/click", { method: "POST", headers })
      const found = (query: string) =>
        Effect.map(call(`/api/events?${query}`, { headers }), ({ text }) =>
          JSON.parse(text).items.map((item: { user_id: string; reference: string; applied: boolean }) => [
            item.user_id,
            item.reference,
            item.applied,
          ]),
        )
      const [first, second] = [
        ["u-1", "p-1", false],
        ["u-2", "p-1", false],
      ]
      expect(yield* found("product=p-1")).toEqual([second, first])
      expect(yield* found("product=p-1&limit=1")).toEqual([second])
      expect(yield* found("user=u-1")).toEqual([first])
      expect(yield* found("type=product_click")).toEqual([second])
      expect(yield* found("user=u-1&type=product_click")).toEqual([])
      const body = JSON.stringify({ from: "u-1" })
      const json = { ...headers, "content-type": "application/json" }
      yield* call("/api/user/u-2/merge", { method: "POST", headers: json, body })
      for (const user of ["u-1", "u-2"])
        expect(yield* found(`user=${user}&product=p-1`)).toEqual([second, first])
    }))
})

describe("operations over HTTP", () => {
  const destroying = [
    ["DELETE", "/api/user/u-1", undefined, 204],
    ["DELETE", "/api/product/p-1", undefined, 204],
    ["POST", "/api/dead-letters/retry", '{"all": true}', 200],
    ["POST", "/api/dead-letters/remove", '{"all": true}', 200],
  ] as const
  const headers = { "content-type": "application/json" }
  for (const [host, who, isAllowed] of [
    ["127.0.0.1", "a person on this machine", true],
    ["0.0.0.0", "nobody", false],
  ] as const)
    effectTest(`without API_TOKENS ${who} may destroy data on an API that listens on ${host}`, () =>
      Effect.gen(function* () {
        for (const [method, path, body, status] of destroying) {
          const answer = yield* call(path, { method, headers, ...(body === undefined ? {} : { body }) })
          expect([path, answer.status]).toEqual([path, isAllowed ? status : 403])
          if (!isAllowed) expect(JSON.parse(answer.text).detail).toContain("set API_TOKENS")
        }
        // Everything else is open.
        const view = "/api/user/u-1/product/p-1/view"
        expect((yield* call(view, { method: "POST", body: "{}", headers })).status).toBe(201)
        expect((yield* call("/api/dead-letters", {})).status).toBe(200)
      }).pipe(Effect.provide(api({ API_HOST: host }))),
    )

  test("every route that removes something is one of them", () => {
    const byName = ({ destroys, method, path }: Route) =>
      destroys || method === "DELETE" || /\/(retry|remove)$/.test(path)
    expect(routes.filter(byName).map(({ destroys, method, path }) => [method, path, destroys])).toEqual([
      ["DELETE", "/api/user/:userId", true],
      ["DELETE", "/api/product/:productId", true],
      ["POST", "/api/dead-letters/retry", true],
      ["POST", "/api/dead-letters/remove", true],
    ])
  })

  effectTest(
    "without API_TOKENS no web page of another origin can act, and none reads by DNS rebinding",
    () =>
      Effect.gen(function* () {
        const base = yield* address
        const { host } = new URL(base)
        const view = "/api/user/u-1/product/p-1/view"
        const attempts: ReadonlyArray<readonly [string, string, Readonly<Record<string, string>>, number]> = [
          ["POST", view, {}, 201],
          ["POST", view, { origin: base, "sec-fetch-site": "same-origin" }, 201],
          ["POST", view, { host: `localhost:${new URL(base).port}` }, 201],
          ["POST", view, { origin: "https://evil.example" }, 403],
          ["POST", view, { origin: "null" }, 403],
          ["POST", view, { origin: `http://${host}`.replace(/\d$/, "0x") }, 403],
          ["POST", view, { "sec-fetch-site": "cross-site" }, 403],
          ["POST", view, { "sec-fetch-site": "same-site" }, 403],
          ["POST", view, { host: "evil.example", origin: "http://evil.example" }, 403],
          ["DELETE", "/api/user/u-1", { origin: "https://evil.example" }, 403],
          ["DELETE", "/api/user/u-1", {}, 204],
          ["POST", "/api/dead-letters/remove", { "sec-fetch-site": "cross-site" }, 403],
          ["GET", "/api/user/u-1/recommendations", { "sec-fetch-site": "cross-site" }, 200],
          ["GET", "/api/user/u-1/recommendations", { host: "evil.example" }, 403],
          ["GET", "/livez", { host: "10.1.2.3" }, 200],
        ]
        for (const [method, path, headers, status] of attempts) {
          const answer = yield* call(path, { method, headers })
          expect([method, path, headers, answer.status]).toEqual([method, path, headers, status])
        }
      }).pipe(Effect.provide(api())),
  )

  effectTest("a client that reads the events does not delay the close of the server", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(api({ API_TOKENS: "t" }), scope)
      const base = yield* Effect.provide(address, Context.pick(HttpServer.HttpServer)(context))
      const response = yield* Effect.promise(() => events(base))
      const reader = response.body!.getReader()
      yield* Effect.promise(() => reader.read())
      const [took] = yield* Effect.timed(Scope.close(scope, Exit.void))
      expect(Duration.toSeconds(took)).toBeLessThan(5)
    }),
  )
})
