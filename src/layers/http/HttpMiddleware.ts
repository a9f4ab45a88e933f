/** What every request passes: its span, the token, and the problem documents. */
import { createHash, timingSafeEqual } from "node:crypto"
import {
  HttpApi,
  HttpApiBuilder,
  HttpApiError,
  type HttpApp,
  HttpRouter,
  HttpServerRequest,
  HttpServerResponse,
} from "@effect/platform"
import {
  Cause,
  Context,
  Effect,
  Either,
  Exit,
  Option,
  Predicate,
  Redacted,
  Schema,
  type Tracer,
} from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { UserId } from "../../services/model/Interaction.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { isVerbose } from "./HttpHealth.ts"
import * as HttpPage from "./HttpPage.ts"
import { problemResponse } from "./HttpProblems.ts"

interface Route {
  readonly method: string
  /** `path` with its parameters in braces: `http.route`. */
  readonly template: string
  /** Groups are the path's parameters. */
  readonly pattern: RegExp
}

const routes: ReadonlyArray<Route> = (() => {
  const found: Array<Route> = []
  const add = (method: string, path: string) =>
    found.push({
      method,
      template: path.replace(/:(\w+)/g, "{$1}"),
      pattern: new RegExp(`^${path.replace(/:(\w+)/g, "(?<$1>[^/]+)")}/?$`),
    })
  HttpApi.reflect(api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint }) => add(endpoint.method, endpoint.path),
  })
  add("GET", "/docs")
  add("GET", "/openapi.json")
  for (const path of HttpPage.paths) add("GET", path)
  return found
})()

/** As these routes match: exactly, and ids of any length, to be refused by name. */
export const routerConfig = HttpRouter.setRouterConfig({
  caseSensitive: true,
  ignoreDuplicateSlashes: false,
  maxParamLength: 16_384,
})

const pathOf = (url: string) => url.split("?", 1)[0] ?? url
const open = new Set<string>(["/livez", "/readyz", "/docs", "/openapi.json", ...HttpPage.paths])
/** Versions are for those who have a token. */
const isOpen = (url: string): boolean => open.has(pathOf(url)) && !isVerbose(url)
const untraced = new Set(["/livez", "/readyz", "/metrics"])

/**
 * The server span `{METHOD} {route}`, continued from a valid `traceparent` and told in the answer's. It names the route
 * but not the path, which has user ids in it. The tracer of the platform would take any text in a `b3` header for a
 * trace id, and records every header.
 */
const traced = <E, R>(request: HttpServerRequest.HttpServerRequest, app: HttpApp.Default<E, R>) =>
  Effect.gen(function* () {
    const path = pathOf(request.url)
    if (untraced.has(path)) return yield* Telemetry.untraced(app)
    const route = routes.find(({ pattern }) => pattern.test(path))?.template
    const { traceparent, tracestate = null } = request.headers
    const parent = traceparent === undefined ? undefined : Telemetry.externalSpan({ traceparent, tracestate })
    const clock = yield* Effect.clock
    const started = clock.unsafeCurrentTimeNanos()
    const finished = (status: number) => {
      const ended = clock.unsafeCurrentTimeNanos()
      Telemetry.observe(
        Telemetry.httpDuration(request.method, route, status),
        Number(ended - started) / 1_000_000_000,
      )
      return ended
    }
    const answered = (span: Tracer.AnySpan) =>
      app.pipe(
        Effect.tap(({ status }) =>
          Effect.suspend(() => {
            const duration_ms = Number(clock.unsafeCurrentTimeNanos() - started) / 1_000_000
            return Effect.annotateLogs(Effect.logDebug("http.answered"), {
              method: request.method,
              route,
              status,
              duration_ms,
            })
          }),
        ),
        Effect.withParentSpan(span),
        Effect.map(HttpServerResponse.setHeader("traceparent", Telemetry.traceparent(span))),
      )
    if (!(yield* Telemetry.isTracing)) {
      const response = yield* answered(parent ?? Telemetry.newTrace())
      finished(response.status)
      return response
    }
    const tracer = yield* Effect.tracer
    const span = tracer.span(
      route === undefined ? request.method : `${request.method} ${route}`,
      Option.fromNullable(parent),
      Context.empty(),
      [],
      started,
      "server",
    )
    return yield* Effect.onExit(answered(span), (exit) =>
      Effect.sync(() => {
        const status = Exit.isSuccess(exit) ? exit.value.status : 499
        // At the end, because the router has written its own form of the route.
        Telemetry.endServerSpan(span, { method: request.method, route, status }, finished(status))
      }),
    )
  })

const decodeId = Schema.decodeUnknownEither(UserId)

const digest = (text: string) => createHash("sha256").update(text).digest()

/** Compares in constant time, whatever the lengths. */
const holds = (tokens: ReadonlyArray<Buffer>, header: string | undefined): boolean => {
  const given = digest(/^Bearer (.+)$/i.exec(header ?? "")?.[1] ?? "")
  return tokens.reduce((found, token) => timingSafeEqual(token, given) || found, false)
}

/** Methods of a path; who answers GET answers HEAD. */
const methodsOf = (matching: ReadonlyArray<Route>): ReadonlyArray<string> =>
  matching.flatMap(({ method }) => (method === "GET" ? ["GET", "HEAD"] : [method])).concat("OPTIONS")

/** Nothing routes this request: an unknown path, another method, or a path parameter that can't be decoded. */
const unrouted = (request: HttpServerRequest.HttpServerRequest): HttpServerResponse.HttpServerResponse => {
  const path = pathOf(request.url)
  const matching = routes.filter(({ pattern }) => pattern.test(path))
  if (matching.length === 0)
    return problemResponse(new Problem({ status: 404, detail: `there is nothing at ${path}` }))
  const route = matching.find(({ method }) => method === request.method)
  if (route !== undefined)
    return problemResponse(
      unprocessable(
        Object.entries(route.pattern.exec(path)?.groups ?? {})
          .filter(([, id]) => Either.isLeft(decodeId(id)))
          .map(([field]) => ({ field, detail: "is not a valid id" })),
      ),
    )
  const methods = methodsOf(matching)
  const headers = { allow: methods.join(", ") }
  return request.method === "OPTIONS"
    ? HttpServerResponse.empty({ status: 204, headers })
    : problemResponse(
        new Problem({
          status: 405,
          detail: `${request.method} is not possible here, ${methods.join(", ")} are`,
          headers,
        }),
      )
}

/** The answer to a failure that no handler worded. */
const answerTo = (cause: Cause.Cause<unknown>, request: HttpServerRequest.HttpServerRequest) => {
  const error = Option.getOrUndefined(Cause.failureOption(cause))
  if (Predicate.isTagged(error, "RouteNotFound")) return Effect.succeed(unrouted(request))
  if (error instanceof HttpApiError.HttpApiDecodeError)
    return Effect.succeed(
      problemResponse(
        unprocessable(
          error.issues
            .filter(({ message }) => !message.startsWith("Expected undefined"))
            .map(({ message, path }) => ({ field: path.join("."), detail: message })),
        ),
      ),
    )
  return Effect.as(
    Effect.logError("http.failed", cause),
    problemResponse(new Problem({ status: 500, detail: "an unexpected error; the log says more" })),
  )
}

const unauthorised = problemResponse(
  new Problem({
    status: 401,
    detail: "send a valid token: Authorization: Bearer …",
    headers: { "www-authenticate": "Bearer" },
  }),
)

const tokensOf = (list: Redacted.Redacted) =>
  Redacted.value(list)
    .split(",")
    .map((token) => token.trim())
    .filter((token) => token !== "")
    .map(digest)

/** Whether a header `Authorization` opens the API; everything does where there are no tokens. */
export const authorisation = Effect.map(Settings.API_TOKENS, (list) => {
  const tokens = Option.map(list, tokensOf)
  return (header: string | undefined): boolean => Option.isNone(tokens) || holds(tokens.value, header)
})

const make = Effect.gen(function* () {
  const authorised = yield* authorisation
  if (Option.isNone(yield* Settings.API_TOKENS))
    yield* Effect.logWarning("api.open").pipe(
      Effect.annotateLogs({ detail: "API_TOKENS is unset: everybody who reaches this port may use it" }),
    )
  const passes = ({ headers, url }: HttpServerRequest.HttpServerRequest) =>
    isOpen(url) || authorised(headers.authorization)

  return (app: HttpApp.Default): HttpApp.Default =>
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      traced(
        request,
        passes(request)
          ? Effect.catchAllCause(app, (cause) =>
              Cause.isInterruptedOnly(cause) ? Effect.failCause(cause) : answerTo(cause, request),
            )
          : Effect.succeed(unauthorised),
      ),
    )
})

export const layer = HttpApiBuilder.middleware(make)
