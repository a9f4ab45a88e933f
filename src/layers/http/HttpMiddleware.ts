/** For every request of the router: the span, the check of the token, and the problem of a failure. */
import {
  HttpApi,
  HttpApiBuilder,
  HttpApiError,
  type HttpApp,
  HttpRouter,
  HttpServerRequest,
  HttpServerResponse,
} from "@effect/platform"
import { Cause, Effect, Either, Exit, Option, Predicate, Schema } from "effect"
import { Authorisation } from "../../services/api/ApiProblems.ts"
import { api } from "../../services/api/InteractionApi.ts"
import { UserId } from "../../services/model/Interaction.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { authorisation } from "./HttpAuthorisation.ts"
import { isVerbose } from "./HttpHealth.ts"
import * as HttpPage from "./HttpPage.ts"
import { failureResponse, problemResponse } from "./HttpProblems.ts"
import * as HttpServerSpan from "./HttpServerSpan.ts"

interface Route {
  readonly method: string
  /** The path with its parameters in braces: `http.route`. */
  readonly template: string
  readonly pattern: RegExp
  readonly needsToken: boolean
}

const routeOf = (method: string, path: string, needsToken: boolean): Route => ({
  method,
  template: path.replace(/:(\w+)/g, "{$1}"),
  pattern: new RegExp(`^${path.replace(/:(\w+)/g, "(?<$1>[^/]+)")}/?$`),
  needsToken,
})

const routes: ReadonlyArray<Route> = (() => {
  const found = ["/docs", "/openapi.json", ...HttpPage.paths].map((path) => routeOf("GET", path, false))
  HttpApi.reflect(api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint: { method, path }, middleware }) =>
      found.push(
        routeOf(
          method,
          path,
          [...middleware].some(({ key }) => key === Authorisation.key),
        ),
      ),
  })
  return found
})()

/** The router matches exactly, and ids of any length: a handler refuses a wrong id by its name. */
export const routerConfig = HttpRouter.setRouterConfig({
  caseSensitive: true,
  ignoreDuplicateSlashes: false,
  maxParamLength: 16_384,
})

const pathOf = (url: string) => url.split("?", 1)[0] ?? url
const openPaths = new Set(routes.flatMap(({ needsToken, template }) => (needsToken ? [] : [template])))
/** The versions that `?verbose` shows need a token. */
const isOpen = (url: string): boolean => openPaths.has(pathOf(url)) && !isVerbose(url)
const untracedPaths = new Set(["/livez", "/readyz", "/metrics"])
/** The status of a request whose client did not wait for the response. */
const clientClosedRequest = 499

type BeginSpan = Effect.Effect.Success<typeof HttpServerSpan.begin>

/** Runs the application in a server span. The response names the span in `traceparent`. */
const traced = <E, R>(
  beginSpan: BeginSpan,
  { headers, method, url }: HttpServerRequest.HttpServerRequest,
  app: HttpApp.Default<E, R>,
) => {
  const path = pathOf(url)
  if (untracedPaths.has(path)) return Telemetry.untraced(app)
  return Effect.suspend(() => {
    const route = routes.find(({ pattern }) => pattern.test(path))?.template
    const { end, span } = beginSpan(method, route, headers.traceparent, headers.tracestate)
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

/** The methods of a path. A route that answers GET also answers HEAD. */
const methodsOf = (matching: ReadonlyArray<Route>): ReadonlyArray<string> =>
  matching.flatMap(({ method }) => (method === "GET" ? ["GET", "HEAD"] : [method])).concat("OPTIONS")

/** The request has an unknown path, another method, or a path parameter that cannot be decoded. */
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

/** HttpApi fails like this, too, when a response does not match its schema. */
const isOfResponse = ({ message }: HttpApiError.HttpApiDecodeError) =>
  message.startsWith("(<declaration schema> <-> ")

const answerTo = (cause: Cause.Cause<unknown>, request: HttpServerRequest.HttpServerRequest) => {
  const error = Option.getOrUndefined(Cause.failureOption(cause))
  if (Predicate.isTagged(error, "RouteNotFound")) return Effect.succeed(unrouted(request))
  if (!(error instanceof HttpApiError.HttpApiDecodeError) || isOfResponse(error))
    return failureResponse(cause)
  const issues = error.issues.filter(({ message }) => !message.startsWith("Expected undefined"))
  return Effect.succeed(
    problemResponse(
      unprocessable(issues.map(({ message, path }) => ({ field: path.join("."), detail: message }))),
    ),
  )
}

const unauthorised = problemResponse(
  new Problem({
    status: 401,
    detail: "send a valid token: Authorization: Bearer …",
    headers: { "www-authenticate": "Bearer" },
  }),
)

const foreign = problemResponse(
  new Problem({
    status: 403,
    detail:
      "without API_TOKENS this API takes no requests from web pages of other origins or for other host names",
  }),
)

const make = Effect.gen(function* () {
  const accessOf = yield* authorisation
  const beginSpan = yield* HttpServerSpan.begin
  if (Option.isNone(yield* Settings.API_TOKENS))
    yield* Effect.logWarning("api.open").pipe(
      Effect.annotateLogs({ detail: "API_TOKENS is unset: everyone who can reach this port has access" }),
    )

  const answered = (app: HttpApp.Default, request: HttpServerRequest.HttpServerRequest) => {
    const { headers, method, url } = request
    const access = isOpen(url) ? "granted" : accessOf({ method, header: (name) => headers[name] })
    if (access !== "granted") return Effect.succeed(access === "no token" ? unauthorised : foreign)
    return Effect.catchAllCause(app, (cause) =>
      Cause.isInterruptedOnly(cause) ? Effect.failCause(cause) : answerTo(cause, request),
    )
  }

  return (app: HttpApp.Default): HttpApp.Default =>
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      traced(beginSpan, request, answered(app, request)),
    )
})

export const layer = HttpApiBuilder.middleware(make)
