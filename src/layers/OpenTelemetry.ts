/** The OpenTelemetry SDK underneath Effect's tracer when an OTLP endpoint is named; else nothing is built. */
import * as NodeSdk from "@effect/opentelemetry/NodeSdk"
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http"
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http"
import { PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics"
import { BatchSpanProcessor } from "@opentelemetry/sdk-trace-base"
import { Effect, Layer, Option } from "effect"
import manifest from "../../package.json" with { type: "json" }
import * as Settings from "../services/Settings.ts"

const exporting = (serviceName: string) =>
  NodeSdk.layer(() => ({
    resource: { serviceName, serviceVersion: manifest.version },
    // Endpoint, headers, sampling and batching follow the standard OTEL_* variables.
    spanProcessor: new BatchSpanProcessor(new OTLPTraceExporter()),
    metricReader: new PeriodicExportingMetricReader({ exporter: new OTLPMetricExporter() }),
  }))

export const layerConfig = Layer.unwrapEffect(
  Effect.gen(function* () {
    const endpoint = yield* Settings.OTEL_EXPORTER_OTLP_ENDPOINT
    return Option.isNone(endpoint) ? Layer.empty : exporting(yield* Settings.OTEL_SERVICE_NAME)
  }),
)
