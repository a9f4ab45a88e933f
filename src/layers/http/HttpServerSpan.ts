/** The server span and the measured duration of a request, on both paths to a handler. */
import { Context, Effect, Exit, Option, type Tracer } from "effect"
import * as Telemetry from "../../services/Telemetry.ts"

export interface ServerSpan {
  /** Without a tracer: the trace that the client sent, or a new one that nobody records. */
  readonly span: Tracer.AnySpan
  /** Ends the span, measures the request and returns its duration in seconds. */
  readonly end: (status: number) => number
}

/** `url.path` without ids, and without what strangers ask for. */
const scrubbed = (route: string | undefined): string =>
  route === undefined ? "/REDACTED" : route.replace(/\{\w+\}/g, "REDACTED")

/**
 * Begins the span `{METHOD} {route}`, which continues a valid `traceparent`. It names the route instead of
 * the path, because the path contains user ids. The platform's tracer is not used: it takes any text in a
 * `b3` header for a trace id and records every header.
 */
export const begin = Effect.gen(function* () {
  const clock = yield* Effect.clock
  const tracer = yield* Telemetry.ifTracing(Effect.succeed<Tracer.Tracer | null>(null), () => Effect.tracer)
  return (
    method: string,
    route: string | undefined,
    traceparent: string | null | undefined,
    tracestate: string | null | undefined,
  ): ServerSpan => {
    const started = clock.unsafeCurrentTimeNanos()
    const parent = traceparent
      ? Telemetry.externalSpan({ traceparent, tracestate: tracestate ?? null })
      : undefined
    const known = Telemetry.knownMethod(method)
    const named = known === method ? method : "HTTP"
    const name = route === undefined ? named : `${named} ${route}`
    const span =
      tracer?.span(name, Option.fromNullable(parent), Context.empty(), [], started, "server") ??
      parent ??
      Telemetry.newTrace()
    const end = (status: number) => {
      const ended = clock.unsafeCurrentTimeNanos()
      const seconds = Number(ended - started) / 1_000_000_000
      Telemetry.observe(Telemetry.httpDuration(method, route, status), seconds)
      if (span._tag === "ExternalSpan") return seconds
      span.attribute(Telemetry.attribute.httpMethod, known)
      if (known !== method) span.attribute(Telemetry.attribute.httpMethodOriginal, method)
      span.attribute(Telemetry.attribute.urlScheme, Telemetry.urlScheme)
      span.attribute(Telemetry.attribute.urlPath, scrubbed(route))
      if (route !== undefined) span.attribute(Telemetry.attribute.httpRoute, route)
      span.attribute(Telemetry.attribute.httpStatus, status)
      span.end(ended, status < 500 ? Exit.void : Telemetry.failed(String(status)))
      return seconds
    }
    return { span, end }
  }
})
