/** For every request of the router: the span, the check of the token (HttpHandlers.ts checks its scope), and the problem of a failure. */
import {
  HttpApiBuilder,
  HttpApiError,
  type HttpApp,
  HttpRouter,
  HttpServerRequest,
  HttpServerResponse,
} from "@effect/platform"
import { Cause, Effect, Either, Exit, Option, Predicate, Schema } from "effect"
import { UserId } from "../../services/model/Interaction.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { authorisation, CurrentCaller, inLogs, missingScope } from "./HttpAuthorisation.ts"
import { isVerbose } from "./HttpHealth.ts"
import { failureResponse, problemResponse } from "./HttpProblems.ts"
import { isOpenPath, type Route, routes } from "./HttpRoutes.ts"
import * as HttpServerSpan from "./HttpServerSpan.ts"

/** The router matches exactly, and ids of any length: a handler refuses a wrong id by its name. */
export const routerConfig = HttpRouter.setRouterConfig({
  caseSensitive: true,
  ignoreDuplicateSlashes: false,
  maxParamLength: 16_384,
})

const pathOf = (url: string) => url.split("?", 1)[0] ?? url
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
    return problemResponse(Problem.of("no-such-route", `there is nothing at ${path}`))
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
        Problem.of(
          "method-not-allowed",
          `${request.method} is not possible here, ${methods.join(", ")} are`,
          { headers },
        ),
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

const make = Effect.gen(function* () {
  const accessOf = yield* authorisation
  const beginSpan = yield* HttpServerSpan.begin
  if (Option.isNone(yield* Settings.API_TOKENS))
    yield* Effect.logWarning("api.open").pipe(
      Effect.annotateLogs({ detail: "API_TOKENS is unset: everyone who can reach this port has access" }),
    )

  const answered = (app: HttpApp.Default, request: HttpServerRequest.HttpServerRequest) => {
    const { headers, method, url } = request
    const handled = Effect.catchAllCause(app, (cause) =>
      Cause.isInterruptedOnly(cause) ? Effect.failCause(cause) : answerTo(cause, request),
    )
    const isOpen = isOpenPath(pathOf(url))
    if (isOpen && !isVerbose(url)) return handled
    const access = accessOf({ method, url, header: (name) => headers[name] })
    if (Either.isLeft(access)) return Effect.succeed(problemResponse(access.left))
    // The route decides on the scope (HttpHandlers.ts), but the open routes have no versions for everybody.
    const refused = isOpen ? missingScope(access.right, ["operate"]) : undefined
    if (refused !== undefined) return Effect.succeed(problemResponse(refused))
    return handled.pipe(
      Effect.provideService(CurrentCaller, access.right),
      Effect.annotateLogs(inLogs(access.right)),
    )
  }

  return (app: HttpApp.Default): HttpApp.Default =>
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      traced(beginSpan, request, answered(app, request)),
    )
})

export const layer = HttpApiBuilder.middleware(make)
