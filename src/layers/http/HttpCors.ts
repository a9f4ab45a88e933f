/** API_CORS_ORIGINS: the web pages of other origins that may call the API. */
import { ConfigError, Effect, Option } from "effect"
import * as Settings from "../../services/Settings.ts"

/** Whether pages of an origin may call the API. */
export const allowedOrigins = Effect.gen(function* () {
  const origins = Option.getOrElse(yield* Settings.API_CORS_ORIGINS, (): ReadonlyArray<string> => [])
  const isEvery = origins.includes("*")
  if (isEvery && Option.isNone(yield* Settings.API_TOKENS))
    return yield* Effect.fail(
      ConfigError.InvalidData(
        ["API_CORS_ORIGINS"],
        "API_CORS_ORIGINS=* needs API_TOKENS: without them every web page could read and erase. Example: API_CORS_ORIGINS=https://shop.example",
      ),
    )
  return (origin: string): boolean => origin !== "" && (isEvery || origins.includes(origin))
})

const preflight = {
  "access-control-allow-methods": "GET, POST, PUT, DELETE",
  "access-control-allow-headers":
    "accept, authorization, content-encoding, content-type, idempotency-key, if-none-match, traceparent, tracestate",
  // Chrome keeps an answer for two hours at most.
  "access-control-max-age": "7200",
}

type Respond = (request: Request) => Promise<Response>

/**
 * Adds the headers of CORS, and answers preflights. Credentials are never allowed: a browser then sends neither cookies
 * nor a client certificate, so a page of another origin has no more rights than its token.
 */
export const withCors = Effect.gen(function* () {
  if (Option.isNone(yield* Settings.API_CORS_ORIGINS)) return (respond: Respond): Respond => respond
  const isAllowed = yield* allowedOrigins
  return (respond: Respond): Respond =>
    async (request) => {
      const origin = request.headers.get("origin") ?? ""
      const isPreflight = request.method === "OPTIONS" && request.headers.has("access-control-request-method")
      const response =
        isPreflight && isAllowed(origin)
          ? new Response(null, { status: 204, headers: preflight })
          : await respond(request)
      response.headers.append("vary", "Origin")
      if (isAllowed(origin)) {
        response.headers.set("access-control-allow-origin", origin)
        response.headers.set(
          "access-control-expose-headers",
          "etag, retry-after, traceparent, x-space, x-version",
        )
      }
      return response
    }
})
