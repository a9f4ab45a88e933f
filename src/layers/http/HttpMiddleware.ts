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
import { Cause, Effect, Either, Exit, Option, Predicate, Redacted, Schema } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { UserId } from "../../services/model/Interaction.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { isVerbose } from "./HttpHealth.ts"
import * as HttpPage from "./HttpPage.ts"
import { failureResponse, problemResponse } from "./HttpProblems.ts"
import * as HttpServerSpan from "./HttpServerSpan.ts"

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
/** The status of a request whose client did not wait for the response. */
const clientClosedRequest = 499
const untraced = new Set(["/livez", "/readyz", "/metrics"])

type BeginSpan = Effect.Effect.Success<typeof HttpServerSpan.begin>

/** Runs the application in a server span. The response names the span in `traceparent`. */
const traced = <E, R>(
  beginSpan: BeginSpan,
  request: HttpServerRequest.HttpServerRequest,
  app: HttpApp.Default<E, R>,
) => {
  const { headers, method, url } = request
  const path = pathOf(url)
  if (untraced.has(path)) return Telemetry.untraced(app)
  return Effect.suspend(() => {
    const route = routes.find(({ pattern }) => pattern.test(path))?.template
    const { end, span } = beginSpan(method, route, {
      traceparent: headers.traceparent,
      tracestate: headers.tracestate,
    })
    return Effect.map(app, HttpServerResponse.setHeader("traceparent", Telemetry.traceparent(span))).pipe(
      Effect.onExit((exit) =>
        Effect.suspend(() => {
          const status = Exit.isSuccess(exit) ? exit.value.status : clientClosedRequest
          const duration_ms = end(status) * 1_000
          return Effect.annotateLogs(Effect.logDebug("http.answered"), { method, route, status, duration_ms })
        }),
      ),
      Effect.withParentSpan(span),
    )
  })
}

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
  return failureResponse(cause)
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
  const beginSpan = yield* HttpServerSpan.begin
  if (Option.isNone(yield* Settings.API_TOKENS))
    yield* Effect.logWarning("api.open").pipe(
      Effect.annotateLogs({ detail: "API_TOKENS is unset: everybody who reaches this port may use it" }),
    )
  const passes = ({ headers, url }: HttpServerRequest.HttpServerRequest) =>
    isOpen(url) || authorised(headers.authorization)

  return (app: HttpApp.Default): HttpApp.Default =>
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      traced(
        beginSpan,
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
