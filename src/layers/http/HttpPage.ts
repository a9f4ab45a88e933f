/** The page at `/`: the files of `src/page` and the documents of `docs`, kept in memory. And the page of problems. */
import { createHash } from "node:crypto"
import { existsSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { HttpApiBuilder, HttpServerResponse } from "@effect/platform"
import { Effect, Option } from "effect"
import * as ProblemPage from "../../services/api/ProblemPage.ts"
import * as ProblemTypes from "../../services/model/ProblemTypes.ts"
import * as Settings from "../../services/Settings.ts"
import { documentPage } from "./DocumentPage.ts"
import { listensOnLoopback } from "./HttpAuthorisation.ts"
import { unlessMatched } from "./HttpRepresentation.ts"

const own = (name: string) => fileURLToPath(new URL(`../../page/${name}`, import.meta.url))

const html = "text/html; charset=utf-8"
/** Path → file and content type. */
const files = {
  "/": [own("index.html"), html],
  "/page/page.css": [own("page.css"), "text/css; charset=utf-8"],
  "/page/page.js": [own("page.js"), "text/javascript; charset=utf-8"],
  "/page/api.js": [own("api.js"), "text/javascript; charset=utf-8"],
  "/page/system.js": [own("system.js"), "text/javascript; charset=utf-8"],
  "/page/deadLetters.js": [own("deadLetters.js"), "text/javascript; charset=utf-8"],
  "/page/events.js": [own("events.js"), "text/javascript; charset=utf-8"],
  "/page/user.js": [own("user.js"), "text/javascript; charset=utf-8"],
  "/page/dom.js": [own("dom.js"), "text/javascript; charset=utf-8"],
  "/page/charts.js": [own("charts.js"), "text/javascript; charset=utf-8"],
  "/page/icon.svg": [own("icon.svg"), "image/svg+xml"],
} as const

/** The documents that the page refers to, where the program has them. */
const documentsFolder = fileURLToPath(new URL("../../../docs", import.meta.url))
const documents = existsSync(documentsFolder)
  ? readdirSync(documentsFolder).filter((name) => name.endsWith(".md"))
  : []
const isServed = (name: string) => documents.includes(name)
const documentPath = (name: string) => `/page/docs/${name}` as const

/** Settings that the page reads. */
const settingsPath = "/page/config.json"
export const paths: ReadonlyArray<string> = [
  ...Object.keys(files),
  ...documents.map(documentPath),
  settingsPath,
  ProblemTypes.pagePath,
]

const security = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
}

export const layer = HttpApiBuilder.Router.use((router) =>
  Effect.gen(function* () {
    const problems = HttpServerResponse.html(ProblemPage.html())
    yield* router.get(ProblemTypes.pagePath, HttpServerResponse.setHeaders(problems, security))
    const hasTokens = Option.isSome(yield* Settings.API_TOKENS)
    const settings = {
      traces: Option.getOrNull(yield* Settings.TRACES_URL),
      /** What retrying and removing dead letters takes. */
      actions: hasTokens ? "token" : (yield* listensOnLoopback) ? "open" : "never",
    }
    yield* router.get(settingsPath, HttpServerResponse.json(settings))
    /** Read when it is first asked for, so that a start reads nothing. */
    const serve = (path: `/${string}`, contentType: string, read: () => Promise<Uint8Array>) =>
      Effect.gen(function* () {
        const content = yield* Effect.cached(
          Effect.map(Effect.promise(read), (body) => {
            const etag = `"${createHash("sha256").update(body).digest("base64url")}"`
            return { body, headers: { ...security, etag, "cache-control": "no-cache" } }
          }),
        )
        yield* router.get(
          path,
          Effect.flatMap(content, ({ body, headers }) =>
            unlessMatched(headers, (headers) =>
              Effect.succeed(HttpServerResponse.uint8Array(body, { contentType, headers })),
            ),
          ),
        )
      })
    for (const [path, [file, contentType]] of Object.entries(files))
      yield* serve(path as keyof typeof files, contentType, () => Bun.file(file).bytes())
    for (const name of documents)
      yield* serve(documentPath(name), html, async () =>
        Buffer.from(documentPage(name, await Bun.file(join(documentsFolder, name)).text(), isServed)),
      )
  }),
)
