/** API_TOKENS and API_CORS_ORIGINS: who may send a request. */
import { createHash, timingSafeEqual } from "node:crypto"
import { Context, Effect, Either, Option, Redacted } from "effect"
import { parseTokens, type Scope, scopes, type Token } from "../../services/AccessTokens.ts"
import { Problem } from "../../services/model/Problem.ts"
import * as Settings from "../../services/Settings.ts"
import { allowedOrigins } from "./HttpCors.ts"

/** Who sent a request; `position` 0 without API_TOKENS. */
export interface Caller extends Pick<Token, "position" | "scopes"> {
  /** Whether the routes with `Destroys` are allowed. */
  readonly mayDestroy: boolean
}

export const needsToken = Problem.of(
  "token-needed-to-destroy",
  "this destroys data, and the API can be reached from other machines without a token: set API_TOKENS (API_TOKENS=a-long-random-secret) and start the API again, or use the command line",
)

/** The caller of the request that a fiber answers. */
export class CurrentCaller extends Context.Reference<CurrentCaller>()("user-embeddings/CurrentCaller", {
  defaultValue: (): Caller => ({ position: 0, scopes: [], mayDestroy: false }),
}) {}

/** A token appears in logs by its place and its scopes. */
export const inLogs = (caller: Caller): Readonly<Record<string, unknown>> =>
  caller.position === 0
    ? {}
    : {
        token: caller.position,
        scope: caller.scopes.length === scopes.length ? "all" : caller.scopes.join("+"),
      }

/** Why a caller has none of these scopes, if so. */
export const missingScope = (caller: Caller, needed: ReadonlyArray<Scope>): Problem | undefined =>
  needed.some((scope) => caller.scopes.includes(scope))
    ? undefined
    : Problem.of("missing-scope", `the token needs the scope ${needed.join(" or ")}`, {
        headers: { "www-authenticate": 'Bearer error="insufficient_scope"' },
      })

const digest = (text: string) => createHash("sha256").update(text).digest()

/** Finds a token by its secret; takes the same time for every secret. */
const finder = (tokens: ReadonlyArray<Token>) => {
  const digested = tokens.map((token) => [digest(token.secret), token] as const)
  return (secret: string): Token | undefined => {
    const given = digest(secret)
    return digested.reduce<Token | undefined>(
      (found, [of, token]) => (timingSafeEqual(of, given) ? token : found),
      undefined,
    )
  }
}

/** Of a request: its method, its URL, and its headers by lower-case name. */
interface Asked {
  readonly method: string
  readonly url: string
  readonly header: (name: string) => string | null | undefined
}

/** The token of the header. Clients of Segment's API send it as the user name of Basic. */
const secretOf = ({ header, url }: Asked): string => {
  const [, scheme = "", credentials = ""] =
    /^(Bearer|Basic) +(.+)$/i.exec(header("authorization") ?? "") ?? []
  if (scheme.toLowerCase() !== "basic") return credentials
  return /^(https?:\/\/[^/]*)?\/v1\//.test(url)
    ? Buffer.from(credentials, "base64").toString().replace(/:.*$/s, "")
    : ""
}

const refuse = (...problem: Parameters<typeof Problem.of>) => Either.left(Problem.of(...problem))

const loopback = /^(localhost|.+\.localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/i
const isLoopback = (address: string): boolean =>
  loopback.test(address.includes(":") && !address.startsWith("[") ? `[${address}]` : address)

/**
 * Whether a web page of another origin sent the request: without tokens, any page that is open in a browser could act.
 * Browsers name the page in `Origin` and `Sec-Fetch-Site`. Reading is left to their same-origin policy. A page whose own
 * name resolves to this machine (DNS rebinding) has another `Host`, which is known while only this machine is served.
 */
const isForeign = (
  { header, method }: Asked,
  onLoopback: boolean,
  isAllowed: (origin: string) => boolean,
): boolean => {
  const host = header("host") ?? ""
  if (onLoopback && !loopback.test(host)) return true
  if (method === "GET" || method === "HEAD") return false
  const origin = header("origin")
  if (origin != null && isAllowed(origin)) return false
  const site = header("sec-fetch-site") ?? "none"
  const isSameOrigin = origin == null || (URL.canParse(origin) && new URL(origin).host === host)
  return !isSameOrigin || (site !== "none" && site !== "same-origin")
}

const accessToken = (url: string) => new URLSearchParams(url.split("?", 2)[1]).get("access_token")

/** Whether only this machine reaches an API without API_TOKENS. */
export const listensOnLoopback = Effect.map(Settings.API_HOST, (host) =>
  isLoopback(Option.getOrElse(host, () => "127.0.0.1")),
)

/**
 * Who sent a request, or the problem that refuses it. Without API_TOKENS every client has access, except pages of other
 * origins, and except to what destroys, unless the API listens on a loopback address. A beacon of a browser has no headers of its own, so it may send the token in the URL. Logs of servers keep
 * URLs, so such a token must be of no other use than recording.
 */
export const authorisation = Effect.gen(function* () {
  const find = Option.map(yield* Settings.API_TOKENS, (list) =>
    finder(Either.getOrThrow(parseTokens(Redacted.value(list)))),
  )
  const onLoopback = yield* listensOnLoopback
  const isAllowed = yield* allowedOrigins
  const anybody: Caller = { position: 0, scopes, mayDestroy: onLoopback }

  return (asked: Asked): Either.Either<Caller, Problem> => {
    if (Option.isNone(find))
      return isForeign(asked, onLoopback, isAllowed)
        ? refuse(
            "foreign-origin",
            "without API_TOKENS this API takes no requests for other host names, or from web pages of origins that are not in API_CORS_ORIGINS",
          )
        : Either.right(anybody)
    const inUrl = asked.header("authorization") ? null : accessToken(asked.url)
    const token = find.value(inUrl ?? secretOf(asked))
    if (token === undefined)
      return refuse("unauthorized", "send a valid token: Authorization: Bearer …", {
        headers: { "www-authenticate": "Bearer" },
      })
    const isForBeacons = isAllowed(asked.header("origin") ?? "") && token.scopes.join() === "write"
    return inUrl === null || isForBeacons
      ? Either.right({ ...token, mayDestroy: true })
      : refuse(
          "token-in-url",
          "access_token in the URL is for pages of an origin in API_CORS_ORIGINS, with a token that has the scope write and no other",
        )
  }
})
