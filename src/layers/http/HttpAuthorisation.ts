/** API_TOKENS: who may use the API. */
import { createHash, timingSafeEqual } from "node:crypto"
import { Effect, Option, Redacted } from "effect"
import * as Settings from "../../services/Settings.ts"

const digest = (text: string) => createHash("sha256").update(text).digest()

const tokensOf = (list: Redacted.Redacted) =>
  Redacted.value(list)
    .split(",")
    .map((token) => token.trim())
    .filter((token) => token !== "")
    .map(digest)

/** Whether the header holds one of the tokens; takes the same time for every header. */
const hasToken = (tokens: ReadonlyArray<Buffer>, header: string | undefined): boolean => {
  const given = digest(/^Bearer (.+)$/i.exec(header ?? "")?.[1] ?? "")
  return tokens.reduce((found, token) => timingSafeEqual(token, given) || found, false)
}

/** Of a request: its method, and its headers by lower-case name. */
interface Asked {
  readonly method: string
  readonly header: (name: string) => string | null | undefined
}
export type Access = "granted" | "no token" | "foreign page"

const loopback = /^(localhost|.+\.localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/i
const isLoopback = (address: string): boolean =>
  loopback.test(address.includes(":") && !address.startsWith("[") ? `[${address}]` : address)

/**
 * Whether a web page of another origin sent the request: without tokens, any page that is open in a browser could act.
 * Browsers name the page in `Origin` and `Sec-Fetch-Site`. Reading is left to their same-origin policy. A page whose own
 * name resolves to this machine (DNS rebinding) has another `Host`, which is known while only this machine is served.
 */
const isForeign = ({ header, method }: Asked, onLoopback: boolean): boolean => {
  const host = header("host") ?? ""
  if (onLoopback && !loopback.test(host)) return true
  if (method === "GET" || method === "HEAD") return false
  const origin = header("origin")
  const site = header("sec-fetch-site") ?? "none"
  const isSameOrigin = origin == null || (URL.canParse(origin) && new URL(origin).host === host)
  return !isSameOrigin || (site !== "none" && site !== "same-origin")
}

/** What a request may do. Without API_TOKENS every client has access, except pages of other origins. */
export const authorisation = Effect.gen(function* () {
  const tokens = Option.map(yield* Settings.API_TOKENS, tokensOf)
  const onLoopback = isLoopback(Option.getOrElse(yield* Settings.API_HOST, () => "127.0.0.1"))
  return (asked: Asked): Access => {
    if (Option.isSome(tokens))
      return hasToken(tokens.value, asked.header("authorization") ?? undefined) ? "granted" : "no token"
    return isForeign(asked, onLoopback) ? "foreign page" : "granted"
  }
})
