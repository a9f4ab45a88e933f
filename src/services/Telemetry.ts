/** Span names, attribute keys and trace context as data: it is stored with the row and sent in headers. */
import { Effect, Metric, MetricBoundaries, MetricState, Option, Tracer } from "effect"

/** W3C trace context, as it stands in headers and in the log. */
export interface TraceContext {
  readonly traceparent: string
  readonly tracestate: string | null
}

const traceparentPattern = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/

/** The span as `traceparent` header. */
export const traceparent = (span: Tracer.AnySpan): string =>
  `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`

/** The trace context of the current span, if there is one. */
export const currentTrace: Effect.Effect<TraceContext | null> = Effect.map(
  Effect.option(Effect.currentParentSpan),
  Option.match({
    onNone: () => null,
    onSome: (span) => ({ traceparent: traceparent(span), tracestate: null }),
  }),
)

/** The stored trace context as a parent for new spans; `undefined` when it is malformed or absent. */
export const externalSpan = (trace: TraceContext | null): Tracer.ExternalSpan | undefined => {
  const match = trace && traceparentPattern.exec(trace.traceparent)
  if (!match || /^0+$/.test(match[1]!) || /^0+$/.test(match[2]!)) return undefined
  return Tracer.externalSpan({
    traceId: match[1]!,
    spanId: match[2]!,
    sampled: (Number.parseInt(match[3]!, 16) & 1) === 1,
  })
}

/** Attribute keys of the OpenTelemetry semantic conventions. */
export const attribute = {
  messagingSystem: "messaging.system",
  messagingOperation: "messaging.operation.name",
  messagingDestination: "messaging.destination.name",
  messagingRoutingKey: "messaging.rabbitmq.destination.routing_key",
  messagingMessageId: "messaging.message.id",
  messagingBatchCount: "messaging.batch.message_count",
  dbSystem: "db.system.name",
  dbCollection: "db.collection.name",
  dbOperation: "db.operation.name",
  genAiOperation: "gen_ai.operation.name",
  genAiProvider: "gen_ai.provider.name",
  genAiModel: "gen_ai.request.model",
  genAiInputTokens: "gen_ai.usage.input_tokens",
} as const

/** Adds to a counter from synchronous code. */
export const count = (counter: Metric.Metric.Counter<number>, by = 1): void => counter.unsafeUpdate(by, [])
/** Takes a value into a histogram from synchronous code. */
export const observe = (histogram: Metric.Metric.Histogram<number>, value: number): void =>
  histogram.unsafeUpdate(value, [])

/** The SLA: seconds from recording an interaction to its durable embedding. */
export const eventToEmbedding = Metric.histogram(
  "user_embeddings.event_to_embedding",
  MetricBoundaries.fromIterable([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]),
  "Seconds from recording an interaction to its durable embedding",
).pipe(Metric.tagged("unit", "s"))
/** Interactions acknowledged without effect because their product has no embedding. */
export const skippedInteractions = Metric.counter("user_embeddings.skipped", { incremental: true })
/** Folds into an embedding that was last updated more than 90 days before. */
export const staleFolds = Metric.counter("user_embeddings.stale_folds", { incremental: true })
/** Interactions whose write lost a compare-and-swap and was done again. */
export const lockConflicts = Metric.counter("user_embeddings.lock_conflicts", { incremental: true })
const phraseLookups = Metric.counter("user_embeddings.phrase_lookups", { incremental: true })
/** Phrases whose vector was wanted, by where it was found; `embedder` is what costs. */
export const phrasesFrom = {
  memory: Metric.tagged(phraseLookups, "source", "memory"),
  store: Metric.tagged(phraseLookups, "source", "store"),
  embedder: Metric.tagged(phraseLookups, "source", "embedder"),
}
/** Requests to the embedding service that were answered. */
export const embeddingsDuration = Metric.histogram(
  "gen_ai.client.embeddings.duration",
  MetricBoundaries.fromIterable([0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15]),
  "Seconds until the embedding service answered",
).pipe(Metric.tagged("unit", "s"))
/** Messages parked in `failed`. */
export const deadLetters = Metric.counter("user_embeddings.dead_letters", { incremental: true })
/** Messages sent up the retry ladder. */
export const retries = Metric.counter("user_embeddings.retries", { incremental: true })

const label = (text: string) => text.replace(/[\\"\n]/g, (c) => (c === "\n" ? "\\n" : `\\${c}`))

/** All metrics in the text format of Prometheus. */
export const prometheus: Effect.Effect<string> = Effect.map(Metric.snapshot, (pairs) => {
  const lines: Array<string> = []
  for (const { metricKey, metricState } of pairs) {
    const name = metricKey.name.replace(/[^a-zA-Z0-9_]/g, "_")
    const tags = [...metricKey.tags].map(({ key, value }) => `${key}="${label(value)}"`)
    const line = (suffix: string, value: number | bigint, ...more: ReadonlyArray<string>) => {
      const all = [...tags, ...more].join(",")
      lines.push(`${name}${suffix}${all === "" ? "" : `{${all}}`} ${value}`)
    }
    if (MetricState.isCounterState(metricState)) line("_total", metricState.count)
    else if (MetricState.isGaugeState(metricState)) line("", metricState.value)
    else if (MetricState.isHistogramState(metricState)) {
      for (const [most, count] of metricState.buckets)
        line("_bucket", count, `le="${Number.isFinite(most) ? most : "+Inf"}"`)
      line("_sum", metricState.sum)
      line("_count", metricState.count)
    }
  }
  return `${lines.join("\n")}\n`
})
