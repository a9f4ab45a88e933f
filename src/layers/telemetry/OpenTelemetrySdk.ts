/**
 * Exports traces and metrics; loaded only with an OTLP endpoint. The SDK provides the exporter, its batches,
 * its shutdown and the tracer of the OpenTelemetry API. Effect's spans go to its processor when they end.
 */
import * as Metrics from "@effect/opentelemetry/Metrics"
import { Resource } from "@effect/opentelemetry/Resource"
import { context, trace } from "@opentelemetry/api"
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http"
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

const exporterOf = async (protocol: OtlpProtocol) => {
  const { OTLPTraceExporter } =
    protocol === "http/json"
      ? await import("@opentelemetry/exporter-trace-otlp-http")
      : await import("@opentelemetry/exporter-trace-otlp-proto")
  return new OTLPTraceExporter()
}

export interface Options {
  readonly serviceName: string
  readonly protocol: OtlpProtocol
  readonly sampler: TracesSampler
  /** Share of traces that are sampled, from 0 to 1. */
  readonly share: number
  readonly maxQueueSize: number
  readonly maxExportBatchSize: number
  readonly metricInterval: Duration.Duration
}

/** Exporter and processor read the other variables of OpenTelemetry themselves. */
const tracing = ({ maxExportBatchSize, maxQueueSize, protocol, sampler, share }: Options) =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const resource = yield* Resource
      const exporter = yield* Effect.promise(() => exporterOf(protocol))
      const processor = new BatchSpanProcessor(exporter, { maxQueueSize, maxExportBatchSize })
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

const metrics = ({ metricInterval }: Options) => {
  const interval = Duration.toMillis(metricInterval)
  return Metrics.layer(
    () =>
      new PeriodicExportingMetricReader({
        exporter: new OTLPMetricExporter(),
        exportIntervalMillis: interval,
        exportTimeoutMillis: Math.min(interval, 10_000),
      }),
    { shutdownTimeout },
  )
}

/** Describes this process, with the attributes of OTEL_RESOURCE_ATTRIBUTES. */
const resource = ({ serviceName }: Options) =>
  defaultResource()
    .merge(detectResources({ detectors: [hostDetector, envDetector] }))
    .merge(resourceFromAttributes({ "service.name": serviceName, "service.version": manifest.version }))

export const layer = (options: Options) =>
  Layer.merge(tracing(options), metrics(options)).pipe(
    Layer.provide(Layer.sync(Resource, () => resource(options))),
  )
