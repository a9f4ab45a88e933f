/** The snippets of docs/sources.md: in a browser, on a page of another origin, and with Segment's library. */
import { expect } from "bun:test"
import { readFileSync } from "node:fs"
import { join, resolve } from "node:path"
import { HttpServer } from "@effect/platform"
import { Chunk, Context, Effect, Layer, Stream } from "effect"
import type { Browser, Page } from "playwright-core"
import * as Api from "../../src/programs/Api.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import { launch, withBrowser } from "../support/browser.ts"
import { layerSuite } from "../support/effect.ts"
import { eventually } from "../support/pipeline.ts"
import { embedded } from "../support/stacks.ts"

const root = resolve(import.meta.dir, "../..")
const document = readFileSync(join(root, "docs/sources.md"), "utf8")
const snippets = [...document.matchAll(/^```js\n(.*?)^```/gms)].map(([, code = ""]) => code)
const [beacon = "", fetched = "", guest = "", login = "", segment = ""] = snippets

/** A shop: an empty page, from an origin of its own. */
const shop = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  fetch: () =>
    new Response("<!doctype html><title>Shop</title>", { headers: { "content-type": "text/html" } }),
})
const system = Api.layer.pipe(
  Layer.provideMerge(
    embedded({
      API_PORT: "0",
      API_HOST: "127.0.0.1",
      API_CORS_ORIGINS: shop.url.origin,
      API_TOKENS: "write=public-token,write+person=write-key-of-segment,secret-of-your-servers",
    }),
  ),
)
const address = Effect.map(HttpServer.HttpServer, ({ address }) =>
  address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : "",
)
const adapted = (code: string) =>
  Effect.map(address, (base) => code.replaceAll("https://events.shop.example", base))
const subjects = Effect.flatMap(InteractionLog, (log) =>
  Effect.map(Stream.runCollect(log.stream({ user: "123" })), (rows) =>
    Chunk.toReadonlyArray(rows)
      .map(
        ({ interaction: { event_type, product_id, reference, search_phrase } }) =>
          `${event_type} ${product_id ?? search_phrase ?? reference}`,
      )
      .toSorted(),
  ),
)

class Chromium extends Context.Tag("test/Chromium")<Chromium, Browser>() {}
const chromium = Layer.scoped(
  Chromium,
  Effect.acquireRelease(Effect.promise(launch), (browser) => Effect.promise(() => browser.close())),
)
const open = (host: string) =>
  Effect.flatMap(Chromium, (browser) =>
    Effect.promise(async () => {
      const page = await browser.newPage()
      await page.goto(shop.url.href.replace("127.0.0.1", host))
      return page
    }),
  )
const evaluate = (page: Page, code: string) =>
  Effect.promise(() => page.evaluate<unknown>(`(async () => {${code}})()`))

withBrowser("a page of another origin", () =>
  layerSuite("records", Layer.merge(system, chromium), (it) => {
    it(
      "by beacons and by fetch, as docs/sources.md shows",
      () =>
        Effect.gen(function* () {
          expect(snippets.length).toBe(5)
          expect(beacon.trim().split("\n").length).toBe(5)
          const page = yield* open("127.0.0.1")
          yield* evaluate(page, yield* adapted(beacon))
          yield* eventually(Effect.map(subjects, (all) => (all.length === 2 ? all : undefined)))
          expect(yield* subjects).toEqual(["product_view 456", "search wireless headphones"])
          const answer = yield* evaluate(
            page,
            `${yield* adapted(fetched)}; return [answer.status, (await answer.json()).event_type, answer.headers.get("traceparent")]`,
          )
          expect(answer).toEqual([201, "product_click", expect.any(String)])
        }),
      30_000,
    )

    it("a guest keeps an id, until the page forgets it", () =>
      Effect.gen(function* () {
        const page = yield* open("127.0.0.1")
        const user = evaluate(page, `${guest}; return user`)
        const first = yield* user
        expect(first).toMatch(/^guest-[0-9a-f-]{36}$/)
        expect(yield* user).toBe(first)
        yield* evaluate(page, "delete localStorage.guest")
        expect(yield* user).not.toBe(first)
        yield* evaluate(page, "document.body.dataset.customer = 'anna'")
        expect(yield* user).toBe("anna")
      }))

    it(
      "but not from an origin that is not allowed, and reads nothing with its token",
      () =>
        Effect.gen(function* () {
          const before = yield* subjects
          const foreign = yield* open("localhost")
          const blocked = `try { ${yield* adapted(fetched)}; return answer.status } catch (error) { return error.name }`
          expect(yield* evaluate(foreign, blocked)).toBe("TypeError")
          yield* evaluate(foreign, yield* adapted(beacon))
          const page = yield* open("127.0.0.1")
          const reading = `return (await fetch("${yield* address}/api/user/123/embedding", { headers: { authorization: "Bearer public-token" } })).status`
          expect(yield* evaluate(page, reading)).toBe(403)
          expect(yield* subjects).toEqual(before)
        }),
      30_000,
    )
  }),
)

layerSuite("a shop's server", system, (it) =>
  it("merges a guest at a login, as docs/sources.md shows", () =>
    Effect.gen(function* () {
      const run = new Function(`${yield* adapted(login)}; return login("124", "guest-9")`)
      const merged = Effect.map(
        Effect.promise(() => run() as Promise<Response>),
        ({ status }) => status,
      )
      expect([yield* merged, yield* merged]).toEqual([201, 200])
    })),
)

layerSuite("Segment's library", system, (it) =>
  it("sends what docs/sources.md shows", () =>
    Effect.gen(function* () {
      const code = yield* adapted(segment)
      const { exitCode, stderr } = yield* Effect.promise(async () => {
        const child = Bun.spawn([process.execPath, "-e", code], {
          cwd: root,
          stdout: "ignore",
          stderr: "pipe",
        })
        return { exitCode: await child.exited, stderr: await new Response(child.stderr).text() }
      })
      expect([exitCode, stderr]).toEqual([0, ""])
      expect(yield* subjects).toEqual(["merge guest-1", "product_purchase 456", "search tent"])
    })),
)
