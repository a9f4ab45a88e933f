/** The OpenTelemetry SDK underneath Effect's tracer. Loaded only when something is to be exported. */
import * as Metrics from "@effect/opentelemetry/Metrics"
import * as Resource from "@effect/opentelemetry/Resource"
import * as OtelTracer from "@effect/opentelemetry/Tracer"
import { context, trace } from "@opentelemetry/api"
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http"
import { PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics"
import { NodeSDK } from "@opentelemetry/sdk-node"
import { Cause, Context, Duration, Effect, Exit, Fiber, FiberRef, Layer, Option, Tracer } from "effect"
import manifest from "../../package.json" with { type: "json" }
import { Members } from "../services/MessageTraces.ts"
import { attribute, errorType, SpanFailure, TraceState } from "../services/Telemetry.ts"

/** A remote span as the SDK wants it: with the decision to sample and the `tracestate`. */
const remote = (span: Tracer.AnySpan): Tracer.AnySpan => {
  if (span._tag === "Span") return span
  const told = OtelTracer.makeExternalSpan({
    traceId: span.traceId,
    spanId: span.spanId,
    traceFlags: span.sampled ? 1 : 0,
    ...Option.match(Context.getOption(span.context, TraceState), {
      onNone: () => ({}),
      onSome: (traceState) => ({ traceState }),
    }),
  })
  return { ...told, context: Context.merge(span.context, told.context) }
}

/** The messages on whose behalf the current fiber runs. */
const currentMembers = () =>
  Option.match(Fiber.getCurrentFiber(), {
    onNone: () => [],
    onSome: (fiber) => Context.get(fiber.getFiberRef(FiberRef.currentContext), Members),
  })

/** How a span ends: a failure is named, not quoted. */
const named = (span: Tracer.Span, exit: Exit.Exit<unknown, unknown>): Exit.Exit<unknown, unknown> => {
  if (Exit.isSuccess(exit) || Cause.isInterruptedOnly(exit.cause)) return exit
  const type = errorType(Cause.squash(exit.cause))
  span.attribute(attribute.errorType, type)
  return Exit.fail(new SpanFailure({ type }))
}

/**
 * Effect's tracer over the SDK's, but that failures are named without their texts, and that what is done for several
 * messages at once is repeated in the trace of each.
 */
const over = (sdk: Tracer.Tracer): Tracer.Tracer => {
  const make: Tracer.Tracer["span"] = (name, parent, context, links, started, kind, options) => {
    const linked = links.map((link) => ({ ...link, span: remote(link.span) }))
    const span = sdk.span(name, Option.map(parent, remote), context, linked, started, kind, options)
    const end = span.end.bind(span)
    span.end = (ended, exit) => end(ended, named(span, exit))
    return span
  }
  return Tracer.make({
    span: (name, parent, context, links, started, kind, options) => {
      const span = make(name, parent, context, links, started, kind, options)
      const members = kind === "producer" || kind === "consumer" ? [] : currentMembers()
      if (members.length === 0) return span
      const end = span.end.bind(span)
      span.end = (ended, exit) => {
        end(ended, exit)
        for (const member of members) {
          const link: Tracer.SpanLink = { _tag: "SpanLink", span, attributes: {} }
          const copy = make(name, Option.some(member.span), Context.empty(), [link], started, kind)
          for (const [key, value] of span.attributes) copy.attribute(key, value)
          copy.end(ended, exit)
        }
      }
      return span
    },
    // Nobody asks the SDK for the active span: all spans are Effect's.
    context: (execution) => execution(),
  })
}

const tracing = Layer.unwrapEffect(
  Effect.map(OtelTracer.make, (tracer) => Layer.setTracer(over(tracer))),
).pipe(Layer.provide(OtelTracer.layerGlobalTracer))

/** How long a stopping process may go on exporting. */
const shutdownTimeout = Duration.seconds(3)

const sdk = (serviceName: string) =>
  Layer.scopedDiscard(
    Effect.acquireRelease(
      Effect.sync(() => {
        const sdk = new NodeSDK({
          serviceName,
          textMapPropagator: null,
          // Effect's metrics have a reader of their own, and logs go to stderr.
          metricReaders: [],
          logRecordProcessors: [],
        })
        sdk.start()
        return sdk
      }),
      (sdk) =>
        Effect.promise(() => sdk.shutdown()).pipe(
          Effect.catchAllCause((cause) => Effect.logWarning("telemetry.not_flushed", cause)),
          Effect.interruptible,
          Effect.timeoutOption(shutdownTimeout),
          Effect.zipRight(Effect.sync(() => [trace.disable(), context.disable()])),
        ),
    ),
  )

/** Exporter, protocol, headers, sampling, limits and batching follow the standard OTEL_* variables. */
export const layer = (options: {
  readonly serviceName: string
  readonly metricInterval: Duration.Duration
}) => {
  const interval = Duration.toMillis(options.metricInterval)
  const metrics = Metrics.layer(
    () =>
      new PeriodicExportingMetricReader({
        exporter: new OTLPMetricExporter(),
        exportIntervalMillis: interval,
        exportTimeoutMillis: Math.min(interval, 10_000),
      }),
    { shutdownTimeout },
  )
  return Layer.merge(Layer.provide(tracing, sdk(options.serviceName)), metrics).pipe(
    Layer.provide(Resource.layer({ serviceName: options.serviceName, serviceVersion: manifest.version })),
  )
}
