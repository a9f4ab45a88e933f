/**
 * What every request passes: the token, the problem documents, the `traceparent` of the answer, and the count of
 * open requests that a stopping server waits for.
 */
import { createHash, timingSafeEqual } from "node:crypto"
import { HttpApi, type HttpApp, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Cause, Duration, Effect, Option, Redacted } from "effect"
import { api } from "../services/InteractionApi.ts"
import { Problem, unprocessable } from "../services/Problem.ts"
import * as Settings from "../services/Settings.ts"
import * as Telemetry from "../services/Telemetry.ts"
import { problemResponse } from "./HttpHandlers.ts"

interface Route {
  readonly method: string
  readonly path: string
  readonly pattern: RegExp
}

const routes: ReadonlyArray<Route> = (() => {
  const found: Array<Route> = []
  const add = (method: string, path: string) =>
    found.push({ method, path, pattern: new RegExp(`^${path.replace(/:\w+/g, "[^/]+")}/?$`) })
  HttpApi.reflect(api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint }) => add(endpoint.method, endpoint.path),
  })
  add("GET", "/docs")
  add("GET", "/openapi.json")
  return found
})()

const pathOf = (url: string) => url.split("?", 1)[0] ?? url
const open = new Set(["/livez", "/readyz", "/docs", "/openapi.json"])
const unspoken = new Set(["/livez", "/readyz", "/metrics"])

/** `{METHOD} {route}`, as the HTTP conventions of OpenTelemetry want it. */
const spanName = ({ method, url }: HttpServerRequest.HttpServerRequest): string => {
  const path = pathOf(url)
  return `${method} ${routes.find(({ pattern }) => pattern.test(path))?.path ?? "unknown route"}`
}

const digest = (text: string) => createHash("sha256").update(text).digest()

/** Compares in constant time, whatever the lengths. */
const authorised = (tokens: ReadonlyArray<Buffer>, header: string | undefined): boolean => {
  const given = digest(/^Bearer (.+)$/i.exec(header ?? "")?.[1] ?? "")
  return tokens.reduce((found, token) => timingSafeEqual(token, given) || found, false)
}

const notFound = (request: HttpServerRequest.HttpServerRequest): Problem => {
  const path = pathOf(request.url)
  const allowed = routes.filter(({ pattern }) => pattern.test(path)).map(({ method }) => method)
  return allowed.length === 0
    ? new Problem({ status: 404, detail: `there is nothing at ${path}` })
    : new Problem({
        status: 405,
        detail: `${request.method} is not possible here, ${allowed.join(" or ")} is`,
        headers: { allow: allowed.join(", ") },
      })
}

/** A failure that no handler worded. */
const toProblem = (cause: Cause.Cause<unknown>, request: HttpServerRequest.HttpServerRequest): Problem => {
  const error = Option.getOrUndefined(Cause.failureOption(cause))
  if (typeof error === "object" && error !== null && "_tag" in error) {
    if (error._tag === "RouteNotFound") return notFound(request)
    if (error._tag === "HttpApiDecodeError" && "issues" in error && Array.isArray(error.issues))
      return unprocessable(
        error.issues.map(({ message, path }) => ({ field: path.join("."), detail: String(message) })),
      )
  }
  return new Problem({ status: 500, detail: "an unexpected error; the log says more" })
}

/** Open requests, for draining. */
export interface Gate {
  readonly middleware: (app: HttpApp.Default) => HttpApp.Default
  /** New requests are refused from now on; waits for the open ones. */
  readonly drain: Effect.Effect<void>
}

const drainDeadline = Duration.seconds(10)

export const make: Effect.Effect<Gate, never> = Effect.gen(function* () {
  const given = yield* Effect.orElseSucceed(Settings.API_TOKENS, Option.none)
  const tokens = Option.match(given, {
    onNone: () => [],
    onSome: (list) =>
      Redacted.value(list)
        .split(",")
        .map((token) => token.trim())
        .filter((token) => token !== "")
        .map(digest),
  })
  if (tokens.length === 0)
    yield* Effect.logWarning("api.open").pipe(
      Effect.annotateLogs({ detail: "API_TOKENS is unset: everybody who reaches this port may use it" }),
    )
  let requests = 0
  let draining = false
  const idle = yield* Effect.makeLatch(true)

  const middleware = (app: HttpApp.Default): HttpApp.Default =>
    Effect.gen(function* () {
      const request = yield* HttpServerRequest.HttpServerRequest
      const path = pathOf(request.url)
      if (draining)
        return problemResponse(
          new Problem({
            status: 503,
            detail: "shutting down",
            headers: { "retry-after": "1", connection: "close" },
          }),
        )
      requests += 1
      idle.unsafeClose()
      const response =
        tokens.length > 0 && !open.has(path) && !authorised(tokens, request.headers.authorization)
          ? problemResponse(
              new Problem({
                status: 401,
                detail: "send a valid token: Authorization: Bearer …",
                headers: { "www-authenticate": "Bearer" },
              }),
            )
          : yield* Effect.catchAllCause(app, (cause) => {
              if (Cause.isInterruptedOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
              const problem = toProblem(cause, request)
              const answered = Effect.succeed(problemResponse(problem))
              return problem.status === 500
                ? Effect.zipRight(Effect.logError("http.failed", cause), answered)
                : answered
            })
      const span = yield* Effect.option(Effect.currentSpan)
      return Option.match(span, {
        onNone: () => response,
        onSome: (span) => HttpServerResponse.setHeader(response, "traceparent", Telemetry.traceparent(span)),
      })
    }).pipe(
      Effect.ensuring(
        Effect.sync(() => {
          requests = Math.max(0, requests - 1)
          if (requests === 0) idle.unsafeOpen()
        }),
      ),
    )

  const drain = Effect.suspend(() => {
    draining = true
    return requests === 0 ? Effect.void : idle.await
  }).pipe(Effect.timeoutOption(drainDeadline), Effect.asVoid)

  return { middleware, drain }
})

/** Names spans, and leaves probes out of the traces. */
export const tracing = {
  spanName,
  isUntraced: ({ url }: HttpServerRequest.HttpServerRequest) => unspoken.has(pathOf(url)),
}
