/**
 * What exports traces and metrics. Loaded only when there is an endpoint. The SDK has exporter, batches and shutdown, and
 * serves whoever asks the OpenTelemetry API for a tracer; Effect's spans are handed to its processor finished.
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

/** How long a stopping process may go on exporting. */
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
  /** Of traces, from 0 to 1. */
  readonly share: number
  readonly maxQueueSize: number
  readonly maxExportBatchSize: number
  readonly metricInterval: Duration.Duration
}

/** Headers, certificates, timeouts, compression and delays are read from their variables by exporter and processor. */
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

/** Of this process, with what OTEL_RESOURCE_ATTRIBUTES adds. */
const resource = ({ serviceName }: Options) =>
  defaultResource()
    .merge(detectResources({ detectors: [hostDetector, envDetector] }))
    .merge(resourceFromAttributes({ "service.name": serviceName, "service.version": manifest.version }))

export const layer = (options: Options) =>
  Layer.merge(tracing(options), metrics(options)).pipe(
    Layer.provide(Layer.sync(Resource, () => resource(options))),
  )
