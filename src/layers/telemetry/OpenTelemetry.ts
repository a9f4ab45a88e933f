/** Traces and metrics are exported when an OTLP endpoint is named; else nothing is loaded or built. */
import { Effect, Layer, Option } from "effect"
import * as Settings from "../../services/Settings.ts"

/** Parts that serve have names of their own, so that a trace shows who did what. */
const nameOf = (command: string | undefined): string =>
  command === "api" || command === "worker" || command === "relay"
    ? `user-embeddings-${command}`
    : "user-embeddings"

/** `command` is the one that runs. */
export const layerConfig = (command: string | undefined) =>
  Layer.unwrapEffect(
    Effect.gen(function* () {
      const endpoint = yield* Settings.OTEL_EXPORTER_OTLP_ENDPOINT
      if (Option.isNone(endpoint)) return Layer.empty
      const { layer } = yield* Effect.promise(() => import("./OpenTelemetrySdk.ts"))
      return layer({
        serviceName: Option.getOrElse(yield* Settings.OTEL_SERVICE_NAME, () => nameOf(command)),
        protocol: yield* Settings.OTEL_EXPORTER_OTLP_PROTOCOL,
        sampler: yield* Settings.OTEL_TRACES_SAMPLER,
        share: Option.getOrElse(yield* Settings.OTEL_TRACES_SAMPLER_ARG, () => 1),
        maxQueueSize: yield* Settings.OTEL_BSP_MAX_QUEUE_SIZE,
        maxExportBatchSize: yield* Settings.OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
        metricInterval: yield* Settings.OTEL_METRIC_EXPORT_INTERVAL,
      })
    }),
  )
