/** Exports traces and metrics to an OTLP endpoint. Without an endpoint nothing is loaded. */
import { Effect, Layer, Option } from "effect"
import * as Settings from "../../services/Settings.ts"

/** Servers have a name each, so that a trace shows which one made a span. */
const nameOf = (command: string | undefined): string =>
  command === "api" || command === "worker" || command === "relay"
    ? `user-embeddings-${command}`
    : "user-embeddings"

const protocolOf = (exporter: "otlp" | "none", protocol: Settings.OtlpProtocol) =>
  exporter === "none" ? undefined : protocol

/** `command`: the command of the command line that runs. */
export const layerConfig = (command: string | undefined) =>
  Layer.unwrapEffect(
    Effect.gen(function* () {
      const endpoint = yield* Settings.OTEL_EXPORTER_OTLP_ENDPOINT
      if (Option.isNone(endpoint) || (yield* Settings.OTEL_SDK_DISABLED)) return Layer.empty
      const protocol = yield* Settings.OTEL_EXPORTER_OTLP_PROTOCOL
      const { layer } = yield* Effect.promise(() => import("./OpenTelemetrySdk.ts"))
      return layer({
        serviceName: Option.getOrElse(yield* Settings.OTEL_SERVICE_NAME, () => nameOf(command)),
        traces: protocolOf(
          yield* Settings.OTEL_TRACES_EXPORTER,
          Option.getOrElse(yield* Settings.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, () => protocol),
        ),
        metrics: protocolOf(
          yield* Settings.OTEL_METRICS_EXPORTER,
          Option.getOrElse(yield* Settings.OTEL_EXPORTER_OTLP_METRICS_PROTOCOL, () => protocol),
        ),
        sampler: yield* Settings.OTEL_TRACES_SAMPLER,
        share: Option.getOrElse(yield* Settings.OTEL_TRACES_SAMPLER_ARG, () => 1),
        maxQueueSize: yield* Settings.OTEL_BSP_MAX_QUEUE_SIZE,
        maxExportBatchSize: yield* Settings.OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
        metricInterval: yield* Settings.OTEL_METRIC_EXPORT_INTERVAL,
      })
    }),
  )
