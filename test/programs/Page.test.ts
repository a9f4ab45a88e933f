/** The page in a real browser, on the embedded stack. SCREENSHOTS=1 writes its screenshots to docs/. */
import { expect } from "bun:test"
import { mkdtempSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { HttpServer } from "@effect/platform"
import { BunContext } from "@effect/platform-bun"
import axe from "axe-core"
import { Context, Effect, Layer } from "effect"
import type { Browser, Page } from "playwright-core"
import { workerName } from "../../src/layers/RecordedFailure.ts"
import * as Api from "../../src/programs/Api.ts"
import { importProducts } from "../../src/programs/tasks/ImportProducts.ts"
import * as Worker from "../../src/programs/Worker.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import { InteractionQueue, type Message } from "../../src/services/ports/InteractionQueue.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import { launch, withBrowser } from "../support/browser.ts"
import { layerSuite } from "../support/effect.ts"
import { eventually } from "../support/pipeline.ts"
import { embedded } from "../support/stacks.ts"

const catalogue = fileURLToPath(new URL("../../samples/catalogue.jsonl", import.meta.url))
const screenshots = process.env.SCREENSHOTS
  ? fileURLToPath(new URL("../../docs/screenshots", import.meta.url))
  : mkdtempSync(join(tmpdir(), "screenshots-"))

class Chromium extends Context.Tag("test/Chromium")<Chromium, Browser>() {}
const chromium = Layer.scoped(
  Chromium,
  Effect.acquireRelease(Effect.promise(launch), (browser) => Effect.promise(() => browser.close())),
)

const system = (extra: Readonly<Record<string, string>>) =>
  Layer.mergeAll(Api.layer, Worker.layer, chromium).pipe(
    Layer.provideMerge(eventVectors),
    Layer.provideMerge(BunContext.layer),
    Layer.provideMerge(embedded({ API_PORT: "0", WORKER_PORT: "0", RATE_LIMIT_PER_USER: "0", ...extra })),
  )

const withoutWorker = Layer.merge(Api.layer, chromium).pipe(
  Layer.provideMerge(embedded({ API_PORT: "0", RATE_LIMIT_PER_USER: "0" })),
)

const address = Effect.map(HttpServer.HttpServer, ({ address }) =>
  address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : "",
)

interface Opened {
  readonly page: Page
  /** The URL of every request. */
  readonly urls: ReadonlyArray<string>
  /** Errors in the console. */
  readonly errors: ReadonlyArray<string>
}
/** Opens the page in a new browser context, which closes with the test. */
const open = (path = "/", options: { width?: number; dark?: boolean } = {}) =>
  Effect.gen(function* () {
    const browser = yield* Chromium
    const base = yield* address
    const context = yield* Effect.acquireRelease(
      Effect.promise(() =>
        browser.newContext({
          viewport: { width: options.width ?? 1280, height: 900 },
          colorScheme: options.dark ? "dark" : "light",
          deviceScaleFactor: process.env.SCREENSHOTS ? 1.5 : 1,
        }),
      ),
      (context) => Effect.promise(() => context.close()),
    )
    const page = yield* Effect.promise(() => context.newPage())
    page.setDefaultTimeout(8_000)
    const urls: Array<string> = []
    const errors: Array<string> = []
    page.on("request", (request) => urls.push(request.url()))
    page.on("pageerror", (error) => errors.push(String(error)))
    page.on("console", (message) => {
      if (message.type() === "error") errors.push(message.text())
    })
    yield* Effect.promise(() => page.goto(`${base}${path}`))
    const opened: Opened = { page, urls, errors }
    return opened
  })

const step = <A>(run: () => Promise<A>) => Effect.promise(run)
const sees = (page: Page, selector: string, text: string | RegExp) =>
  step(() => page.locator(selector).filter({ hasText: text }).first().waitFor())

const violations = (page: Page) =>
  step(async () => {
    await page.evaluate(`${axe.source};0`)
    const found = (await page.evaluate("axe.run()")) as axe.AxeResults
    return found.violations.map(
      ({ help, id, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(" ")}`,
    )
  })

/** A screenshot for eyes, if somebody wants to look. */
const look = (page: Page, name: string) =>
  step(() =>
    page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true, animations: "disabled" }),
  )

const post = (items: ReadonlyArray<object>) =>
  Effect.flatMap(address, (base) =>
    step(async () => {
      const response = await fetch(`${base}/api/interactions`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: "Bearer page-token" },
        body: JSON.stringify(items),
      })
      expect(response.status).toBe(200)
    }),
  )

const daysAgo = (days: number) => new Date(Date.now() - days * 86_400_000).toISOString()
const product = (user_id: string, event_type: string, product_id: string, days: number) => ({
  user_id,
  event_type,
  product_id,
  occurred_at: daysAgo(days),
})
/** A user who likes coffee and, recently, headphones. */
const history = [
  product("123", "product_purchase", "103", 41),
  product("123", "product_view", "102", 40),
  product("123", "product_click", "112", 26),
  { user_id: "123", event_type: "search", search_phrase: "pour over coffee", occurred_at: daysAgo(25.5) },
  product("123", "product_view", "101", 12),
  product("123", "product_view", "103", 11.9),
  product("123", "product_purchase", "112", 11),
  { user_id: "123", event_type: "search", search_phrase: "recording at home", occurred_at: daysAgo(6) },
  product("123", "product_view", "452", 5.9),
  product("123", "product_click", "449", 3),
  { user_id: "123", event_type: "search", search_phrase: "wireless headphones", occurred_at: daysAgo(0.4) },
  product("123", "product_view", "456", 0.39),
]
const others = ["201", "tea-lover", "u-8817", "anna", "77"].flatMap((user, n) =>
  [0, 1, 2, 3].map((i) =>
    product(
      user,
      i % 2 === 0 ? "product_view" : "product_click",
      String(101 + ((n * 3 + i * 2) % 12)),
      i + n,
    ),
  ),
)

/** Its body is not JSON. */
const unreadable: Message = {
  messageId: "0".repeat(64),
  eventType: "product_view",
  body: new TextEncoder().encode('{"user_id": "123", "version": "1.0"'),
  trace: null,
  recordedAt: Date.now(),
}
const broken = { product_id: "broken", product_name: "Broken", category: null, text: null }
const failing = [product("anna", "product_view", "broken", 1), product("77", "product_click", "broken", 2)]

const deadLetterCount = Effect.flatMap(DeadLetters, ({ count }) => count)

/** Products, six users with events, and three messages that become dead letters. */
const prepare = Effect.gen(function* () {
  yield* importProducts(catalogue, { strict: true, progress: () => Effect.void })
  const products = yield* ProductEmbeddings
  const space = "local:minilm-words:1536"
  yield* products.upsert([{ ...broken, space, embedding: new Float32Array(1536) }])
  yield* post([...history, ...others, ...failing])
  const queue = yield* InteractionQueue
  yield* queue.publish([unreadable])
  const users = yield* UserEmbeddings
  yield* eventually(
    Effect.gen(function* () {
      const record = (yield* users.load(["123"])).get("123")
      return record?.embedding?.event_count === history.length && (yield* deadLetterCount) === 3
        ? record
        : undefined
    }),
  )
})

withBrowser("the page", () => {
  layerSuite(
    "with API_TOKENS",
    system({ API_TOKENS: "page-token,read=reader", TRACES_URL: "http://127.0.0.1:16686/" }),
    (it) => {
      const signIn = (page: Page, token = "page-token") =>
        step(async () => {
          await page.getByLabel("One of API_TOKENS").fill(token)
          await page.getByRole("button", { name: "Use it" }).click()
        })

      it(
        "the page asks for a token, then shows live figures, and loads nothing from another server",
        () =>
          Effect.gen(function* () {
            yield* prepare
            const { errors, page, urls } = yield* open()
            yield* sees(page, "#dialog", "This API needs a token")
            yield* signIn(page, "reader")
            yield* sees(page, "#dialog", "the token needs the scope operate")
            yield* signIn(page)
            yield* sees(page, "#connection", "live")
            const written = page.locator("#funnel li").filter({ hasText: "Written" }).locator("b")
            // One of the three dead letters was never in the log.
            const before = history.length + others.length
            yield* step(() => written.filter({ hasText: String(before) }).waitFor())
            yield* post([product("123", "product_view", "110", 0)])
            yield* step(() => written.filter({ hasText: String(before + 1) }).waitFor())
            yield* post([product("123", "product_view", "unknown", 0)])
            yield* sees(page, "#dependencies li.up", "sqlite")
            yield* sees(page, "#depth .legend", /waiting 0/)
            yield* sees(page, "#lag .legend", /p50 \d/)
            yield* sees(page, "#workers tbody tr", workerName)
            yield* step(() => page.getByRole("button", { name: "24 h" }).click())
            yield* sees(page, "#history-note", "history begins with the API")
            yield* sees(page, "#updated", /^updated \d\d:\d\d:\d\d$/)
            yield* sees(page, "#time-zone", "Times are local")
            // The two dead letters of the log want a decision; nothing else does.
            expect(yield* step(() => page.locator("#attention p").allTextContents())).toEqual([
              "3 dead letters wait for a decision: retry or removeWhat to do",
            ])
            yield* step(() => page.locator("#events-form").getByLabel("Product").fill("110"))
            yield* step(() => page.locator("#events-form").getByRole("button").click())
            yield* sees(page, "#events tbody tr", /product_view 110.*applied/)
            const base = yield* address
            expect(urls.filter((url) => !url.startsWith(base))).toEqual([])
            // The browser logs the 401 and 403 that made the page ask for a token.
            expect(errors.filter((text) => !/40[13]/.test(text))).toEqual([])
          }),
        30_000,
      )

      it(
        "dead letters are grouped, shown, retried and removed",
        () =>
          Effect.gen(function* () {
            const { page } = yield* open()
            yield* signIn(page)
            yield* sees(page, "#dead-letters-title", "3")
            yield* sees(page, "#dead-letters .group", "unusable_vector")
            const disclose = page.getByRole("button", { name: "unusable_vector", exact: true })
            yield* step(() => disclose.focus())
            yield* step(() => page.keyboard.press("Enter"))
            yield* step(() => page.locator("#dead-letters [aria-expanded=true]:focus").waitFor())
            yield* step(() =>
              page
                .getByRole("button", { name: /^Show the dead letter/ })
                .first()
                .click(),
            )
            yield* sees(page, "#dialog pre", '"product_id": "broken"')
            yield* step(() => page.getByRole("button", { name: "Close" }).click())

            yield* step(() => page.locator("#dead-letters-form").getByLabel("User").fill("anna"))
            yield* step(() => page.keyboard.press("Enter"))
            yield* sees(page, "#dead-letters-title", /1$/)
            // It would act on all of the group.
            expect(yield* step(() => page.getByRole("button", { name: "Remove all of" }).count())).toBe(0)
            yield* step(() => page.locator("#dead-letters-form").getByLabel("User").fill(""))
            yield* step(() => page.keyboard.press("Enter"))
            yield* sees(page, "#dead-letters-title", /3$/)

            // Its retry can never succeed, and no replay has it.
            const retry = (error: string) => page.getByRole("button", { name: `Retry all of ${error}` })
            expect(yield* step(() => retry("not_json").count())).toBe(0)
            yield* step(() => page.getByRole("button", { name: "Remove all of not_json" }).click())
            yield* sees(
              page,
              "#dialog",
              "1 dead letter of not_json will be deleted. The log has no event for it",
            )
            yield* step(() => page.getByRole("button", { name: "Keep" }).click())
            yield* step(() => retry("unusable_vector").click())
            yield* sees(page, "#notices", "2 published again")
            // The worker rejects them again.
            yield* sees(page, "#dead-letters .group", "unusable_vector")

            yield* step(() => page.getByRole("button", { name: "Remove all of unusable_vector" }).click())
            yield* sees(page, "#dialog", "stays in the log, and a replay can still apply it")
            yield* step(() => page.getByRole("button", { name: "Keep" }).click())
            expect(yield* deadLetterCount).toBe(3)
            yield* step(() => page.getByRole("button", { name: "Remove all of unusable_vector" }).click())
            yield* step(() => page.getByRole("button", { name: "Remove", exact: true }).last().click())
            yield* sees(page, "#notices", "2 removed")
            expect(yield* deadLetterCount).toBe(1)
          }),
        30_000,
      )

      it(
        "the keyboard opens a user with events, shares, products and similar users",
        () =>
          Effect.gen(function* () {
            const { page } = yield* open()
            yield* signIn(page)
            yield* sees(page, "#connection", "live")
            yield* step(async () => {
              await page.keyboard.press("/")
              await page.keyboard.type("123")
              await page.keyboard.press("Enter")
            })
            yield* sees(page, "#profile .facts", "local:minilm-words:1536")
            yield* sees(page, "#profile .facts", "1.000000")
            expect(page.url()).toEndWith("#user=123")
            yield* sees(page, "#profile .events .share", "not counted")
            const shares = yield* step(() => page.locator("#profile td.share b").allTextContents())
            // The event of an unknown product has no share.
            expect(shares).toHaveLength(history.length + 1)
            expect(shares.reduce((sum, text) => sum + Number.parseFloat(text), 0)).toBeCloseTo(100, -0.5)
            expect(yield* step(() => page.locator("#profile .products > li").count())).toBe(10)
            expect(yield* step(() => page.locator("#profile .products .reasons li").count())).toBeGreaterThan(
              8,
            )
            yield* step(() => page.locator("#profile .similar-users button").first().click())
            yield* step(() => page.waitForURL(/#user=(?!123)/))
            yield* step(() => page.goto(`${page.url().split("#")[0]}#user=nobody`))
            yield* sees(page, "#profile", "user nobody is unknown")
          }),
        30_000,
      )
    },
  )

  layerSuite("without a worker", withoutWorker, (it) => {
    it(
      "a fresh system shows the first step, and events that wait without a worker a red banner",
      () =>
        Effect.gen(function* () {
          const { errors, page } = yield* open("/", { width: 390 })
          yield* sees(page, "#first-command", "/api/user/123/search")
          expect(yield* step(() => page.locator("#attention p").count())).toBe(0)
          yield* look(page, "fresh-390")
          const recorder = yield* InteractionLog
          const waiting = Interaction.make({
            ...{ user_id: "1", event_type: "search", search_phrase: "tent" },
            ...{ occurred_at: daysAgo(0), metadata: {} },
          })
          const recordedAt = Date.now() - 125_000
          yield* recorder.append([
            { interaction: waiting, idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt },
          ])
          yield* sees(
            page,
            "#attention .critical",
            "No worker is running: 1 event waits, the oldest for 2 min",
          )
          yield* step(() => page.locator("#first-step").waitFor({ state: "hidden" }))
          yield* look(page, "no-worker-390")
          expect(yield* violations(page)).toEqual([])
          expect(errors).toEqual([])
        }),
      30_000,
    )
  })

  layerSuite("without API_TOKENS, open to other machines", system({ API_HOST: "0.0.0.0" }), (it) => {
    it(
      "everything can be read, and no button is shown that could not work",
      () =>
        Effect.gen(function* () {
          yield* prepare
          const { errors, page } = yield* open()
          yield* sees(page, "#dead-letters .group", "unusable_vector")
          yield* sees(page, "#dead-letters .note", "set API_TOKENS")
          expect(yield* step(() => page.getByRole("button", { name: /^(Retry|Remove)/ }).count())).toBe(0)
          expect(yield* step(() => page.locator("#token").isHidden())).toBe(true)
          yield* step(() => page.locator("#attention a").click())
          yield* sees(page, "h2:target", "Dead letters")
          expect(errors).toEqual([])
        }),
      30_000,
    )

    it(
      "the theme follows the operating system until the user chooses one, which is kept",
      () =>
        Effect.gen(function* () {
          const { page } = yield* open("/", { dark: true })
          const background = () => page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
          yield* sees(page, "#connection", "live")
          const dark = yield* step(background)
          yield* step(() => page.keyboard.press("t"))
          const light = yield* step(background)
          expect(light).not.toBe(dark)
          yield* step(() => page.reload())
          yield* sees(page, "#connection", "live")
          expect(yield* step(background)).toBe(light)
        }),
      30_000,
    )

    for (const width of [1280, 390])
      for (const dark of [false, true]) {
        // Each width and each theme once. The screenshots need all four.
        if (dark !== (width === 390) && process.env.SCREENSHOTS === undefined) continue
        const name = `${dark ? "dark" : "light"}-${width}`
        it(
          `the page has no accessibility violation and fits its width: ${name}`,
          () =>
            Effect.gen(function* () {
              const { page } = yield* open("/#user=123", { width, dark })
              yield* sees(page, "#connection", "live")
              yield* sees(page, "#profile .products", /\d/)
              yield* step(() => page.getByRole("button", { name: "unusable_vector", exact: true }).click())
              yield* step(() =>
                page.locator("#dead-letters tr:not(.group) .actions button").first().waitFor(),
              )
              if (process.env.SCREENSHOTS)
                yield* Effect.forEach(
                  Array.from({ length: 14 }, (_, i) => i),
                  (i) =>
                    Effect.zipRight(
                      post(
                        others
                          .slice(0, 3 + ((i * 5) % 9))
                          .map((one, n) => ({ ...one, occurred_at: daysAgo((n + 1) / 1e4) })),
                      ),
                      Effect.sleep("1 second"),
                    ),
                )
              expect(yield* violations(page)).toEqual([])
              expect(
                yield* step(() => page.evaluate("document.documentElement.scrollWidth")),
              ).toBeLessThanOrEqual(width)
              yield* step(() => page.mouse.move(0, 0))
              const image = yield* step(() =>
                page.screenshot({
                  path: join(screenshots, `${name}.png`),
                  fullPage: true,
                  animations: "disabled",
                }),
              )
              expect(image.byteLength).toBeGreaterThan(20_000)
            }),
          60_000,
        )
      }
  })
})
