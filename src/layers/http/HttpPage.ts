/** The page at `/`: the files of `src/page` and the chart library, kept in memory. And the page of problems. */
import { createHash } from "node:crypto"
import { fileURLToPath } from "node:url"
import { HttpApiBuilder, HttpServerResponse } from "@effect/platform"
import { Effect, Option } from "effect"
import * as ProblemPage from "../../services/api/ProblemPage.ts"
import * as ProblemTypes from "../../services/model/ProblemTypes.ts"
import * as Settings from "../../services/Settings.ts"
import { unlessMatched } from "./HttpRepresentation.ts"

const own = (name: string) => fileURLToPath(new URL(`../../page/${name}`, import.meta.url))
const library = (path: string) => Bun.resolveSync(path, import.meta.dir)

/** Path → file and content type. */
const files = {
  "/": [own("index.html"), "text/html; charset=utf-8"],
  "/page/page.css": [own("page.css"), "text/css; charset=utf-8"],
  "/page/page.js": [own("page.js"), "text/javascript; charset=utf-8"],
  "/page/api.js": [own("api.js"), "text/javascript; charset=utf-8"],
  "/page/system.js": [own("system.js"), "text/javascript; charset=utf-8"],
  "/page/deadLetters.js": [own("deadLetters.js"), "text/javascript; charset=utf-8"],
  "/page/user.js": [own("user.js"), "text/javascript; charset=utf-8"],
  "/page/dom.js": [own("dom.js"), "text/javascript; charset=utf-8"],
  "/page/charts.js": [own("charts.js"), "text/javascript; charset=utf-8"],
  "/page/icon.svg": [own("icon.svg"), "image/svg+xml"],
  "/page/uPlot.js": [library("uplot/dist/uPlot.esm.js"), "text/javascript; charset=utf-8"],
  "/page/uPlot.css": [library("uplot/dist/uPlot.min.css"), "text/css; charset=utf-8"],
} as const

/** Settings that the page reads. */
const settingsPath = "/page/config.json"
export const paths: ReadonlyArray<string> = [...Object.keys(files), settingsPath, ProblemTypes.pagePath]

const security = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
}

export const layer = HttpApiBuilder.Router.use((router) =>
  Effect.gen(function* () {
    const traces = Option.getOrNull(yield* Settings.TRACES_URL)
    const problems = HttpServerResponse.html(ProblemPage.html())
    yield* router.get(ProblemTypes.pagePath, HttpServerResponse.setHeaders(problems, security))
    yield* router.get(settingsPath, HttpServerResponse.json({ traces }))
    for (const [path, [file, contentType]] of Object.entries(files)) {
      const body = yield* Effect.promise(() => Bun.file(file).bytes())
      const etag = `"${createHash("sha256").update(body).digest("base64url")}"`
      const headers = { ...security, etag, "cache-control": "no-cache" }
      yield* router.get(
        path as keyof typeof files,
        unlessMatched(headers, (headers) =>
          Effect.succeed(HttpServerResponse.uint8Array(body, { contentType, headers })),
        ),
      )
    }
  }),
)
