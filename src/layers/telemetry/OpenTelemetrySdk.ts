/**
 * Exports traces and metrics; loaded only with an OTLP endpoint. The SDK provides the exporter, its batches,
 * its shutdown and the tracer of the OpenTelemetry API. Effect's spans go to its processor when they end.
 */
import * as Metrics from "@effect/opentelemetry/Metrics"
import { Resource } from "@effect/opentelemetry/Resource"
import { context, trace } from "@opentelemetry/api"
import {
  defaultResource,
  detectResources,
  envDetector,
  hostDetector,
  resourceFromAttributes,
} from "@opentelemetry/resources"
import { PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics"
import { NodeSDK } from "@opentelemetry/sdk-node"
import { BatchSpanProcessor } from "@opentelemetry/sdk-trace-base"
import { Duration, Effect, Layer } from "effect"
import manifest from "../../../package.json" with { type: "json" }
import type { OtlpProtocol, TracesSampler } from "../../services/Settings.ts"
import { make, samplerOf } from "./OpenTelemetryTracer.ts"

/** For the last export of a process that stops. */
const shutdownTimeout = Duration.seconds(3)

/** Only the packages of the protocol are loaded. The exporters read the other variables of OpenTelemetry themselves. */
const exporters = {
  "http/json": {
    traces: () => import("@opentelemetry/exporter-trace-otlp-http"),
    metrics: () => import("@opentelemetry/exporter-metrics-otlp-http"),
  },
  "http/protobuf": {
    traces: () => import("@opentelemetry/exporter-trace-otlp-proto"),
    metrics: () => import("@opentelemetry/exporter-metrics-otlp-proto"),
  },
  grpc: {
    traces: () => import("@opentelemetry/exporter-trace-otlp-grpc"),
    metrics: () => import("@opentelemetry/exporter-metrics-otlp-grpc"),
  },
} as const satisfies Readonly<Record<OtlpProtocol, unknown>>

export interface Options {
  readonly serviceName: string
  /** How traces are sent; `undefined`: they are not. */
  readonly traces: OtlpProtocol | undefined
  readonly metrics: OtlpProtocol | undefined
  readonly sampler: TracesSampler
  /** Share of traces that are sampled, from 0 to 1. */
  readonly share: number
  readonly maxQueueSize: number
  readonly maxExportBatchSize: number
  readonly metricInterval: Duration.Duration
}

/** The processor reads the other variables of OpenTelemetry itself. */
const tracing = (protocol: OtlpProtocol, { maxExportBatchSize, maxQueueSize, sampler, share }: Options) =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const resource = yield* Resource
      const { OTLPTraceExporter } = yield* Effect.promise(() => exporters[protocol].traces())
      const processor = new BatchSpanProcessor(new OTLPTraceExporter(), { maxQueueSize, maxExportBatchSize })
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          const sdk = new NodeSDK({
            resource,
            autoDetectResources: false,
            spanProcessors: [processor],
            textMapPropagator: null,
            // Effect's metrics have their own reader, and logs go to stderr.
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
      )
      return Layer.setTracer(make({ processor, resource }, samplerOf(sampler, share)))
    }),
  )

const metrics = (protocol: OtlpProtocol, { metricInterval }: Options) => {
  const interval = Duration.toMillis(metricInterval)
  return Layer.unwrapEffect(
    Effect.map(
      Effect.promise(() => exporters[protocol].metrics()),
      ({ OTLPMetricExporter }) =>
        Metrics.layer(
          () =>
            new PeriodicExportingMetricReader({
              exporter: new OTLPMetricExporter(),
              exportIntervalMillis: interval,
              exportTimeoutMillis: Math.min(interval, 10_000),
            }),
          { shutdownTimeout },
        ),
    ),
  )
}

/** Describes this process, with the attributes of OTEL_RESOURCE_ATTRIBUTES. */
const resource = ({ serviceName }: Options) =>
  defaultResource()
    .merge(detectResources({ detectors: [hostDetector, envDetector] }))
    .merge(resourceFromAttributes({ "service.name": serviceName, "service.version": manifest.version }))

export const layer = (options: Options) =>
  Layer.merge(
    options.traces === undefined ? Layer.empty : tracing(options.traces, options),
    options.metrics === undefined ? Layer.empty : metrics(options.metrics, options),
  ).pipe(Layer.provide(Layer.sync(Resource, () => resource(options))))
