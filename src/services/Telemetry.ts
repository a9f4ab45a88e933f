/** Span names, attribute keys, metrics, and trace context as data: it is stored with the row and sent in headers. */
import { randomBytes } from "node:crypto"
import {
  Context,
  Data,
  DefaultServices,
  Effect,
  Exit,
  FiberRef,
  Metric,
  MetricBoundaries,
  MetricKey,
  MetricKeyType,
  MetricLabel,
  type MetricPair,
  MetricState,
  Option,
  Predicate,
  Tracer,
} from "effect"

// ---------------------------------------------------------------------------------------------------------
// Trace context

/** W3C trace context, as it stands in headers and in the log. */
export interface TraceContext {
  readonly traceparent: string
  readonly tracestate: string | null
}

/** The `tracestate` that came with a remote span. */
export class TraceState extends Context.Tag("user-embeddings/TraceState")<TraceState, string>() {}

const traceparentPattern = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/

/** The span as `traceparent` header. */
export const traceparent = (span: Tracer.AnySpan): string =>
  `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`

/** The `tracestate` of the remote span that a span descends from. */
const tracestateOf = (span: Tracer.AnySpan): string | null => {
  let ancestor = span
  while (ancestor._tag === "Span") {
    if (Option.isNone(ancestor.parent)) return null
    ancestor = ancestor.parent.value
  }
  return Option.getOrNull(Context.getOption(ancestor.context, TraceState))
}

/** The trace context that descendants of the span in other processes continue. */
export const traceOf = (span: Tracer.AnySpan): TraceContext => ({
  traceparent: traceparent(span),
  tracestate: tracestateOf(span),
})

/** The trace context of the current span, if there is one. */
export const currentTrace: Effect.Effect<TraceContext | null> = Effect.map(
  Effect.option(Effect.currentParentSpan),
  Option.match({ onNone: () => null, onSome: traceOf }),
)

/** Whether the trace is recorded, by its flags alone. */
export const isSampled = ({ traceparent }: TraceContext): boolean =>
  (Number.parseInt(traceparent.slice(-1), 16) & 1) === 1

/** The stored trace context as a parent for new spans; `undefined` when it is malformed or absent. */
export const externalSpan = (trace: TraceContext | null): Tracer.ExternalSpan | undefined => {
  const match = trace && traceparentPattern.exec(trace.traceparent)
  if (!match || /^0+$/.test(match[1]!) || /^0+$/.test(match[2]!)) return undefined
  return Tracer.externalSpan({
    traceId: match[1]!,
    spanId: match[2]!,
    sampled: (Number.parseInt(match[3]!, 16) & 1) === 1,
    ...(trace.tracestate === null ? {} : { context: Context.make(TraceState, trace.tracestate) }),
  })
}

let digits = ""
let used = 0
/** So many random hexadecimal digits, at most 32; drawn in bulk. */
export const randomHex = (count: number): string => {
  if (used + count > digits.length) {
    digits = randomBytes(2048).toString("hex")
    used = 0
  }
  used += count
  return digits.slice(used - count, used)
}

/** A trace that nobody records: it only tells what belongs together. */
export const newTrace = (): Tracer.ExternalSpan =>
  Tracer.externalSpan({
    traceId: randomHex(32),
    spanId: randomHex(16),
    sampled: false,
  })

/** Whether somebody asked for spans: without that the default tracer makes them for nobody. */
export const isTracing: Effect.Effect<boolean> = Effect.zipWith(
  Effect.tracer,
  FiberRef.get(FiberRef.currentTracerEnabled),
  (tracer, enabled) => enabled && tracer !== Context.get(DefaultServices.liveServices, Tracer.Tracer),
)

/** Runs what is asked again and again without telling: no spans. */
export const untraced = Effect.withTracerEnabled(false)

/** The CLIENT span of a call to a database, if somebody asked for spans. */
export const databaseSpan =
  (system: string, operation: string, collection: string) =>
  <A, E, R>(call: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(isTracing, (tracing) =>
      tracing
        ? Effect.withSpan(call, `${operation} ${collection}`, {
            kind: "client",
            captureStackTrace: false,
            attributes: {
              [attribute.dbSystem]: system,
              [attribute.dbOperation]: operation,
              [attribute.dbCollection]: collection,
            },
          })
        : call,
    )

/** What a failed span tells: a kind of failure, never its text, which may quote what users sent. */
export class SpanFailure extends Data.Error<{ readonly type: string }> {
  override readonly name = "SpanFailure"
  override get message() {
    return this.type
  }
}

/** How a span ends that failed in such a way. */
export const failed = (type: string): Exit.Exit<never, SpanFailure> => Exit.fail(new SpanFailure({ type }))

/** `error.type`: the tag of an error with its reason, or the name of its class. */
export const errorType = (error: unknown): string => {
  if (error instanceof SpanFailure) return error.type
  if (!Predicate.hasProperty(error, "_tag")) return error instanceof Error ? error.name : "unknown"
  return Predicate.hasProperty(error, "reason") && typeof error.reason === "string"
    ? `${String(error._tag)}.${error.reason}`
    : String(error._tag)
}

/** An error in a log line: its kind, and the text for people. */
export const described = (error: { readonly message: string }) => ({
  error: errorType(error),
  detail: error.message,
})

/** Attribute keys of the OpenTelemetry semantic conventions, and ours. */
export const attribute = {
  errorType: "error.type",
  httpMethod: "http.request.method",
  httpRoute: "http.route",
  httpStatus: "http.response.status_code",
  messagingSystem: "messaging.system",
  messagingOperation: "messaging.operation.name",
  messagingOperationType: "messaging.operation.type",
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
  /** Which attempt at a message this is, from 1. */
  attempt: "user_embeddings.attempt",
  /** What became of a delivery: `ack`, `retry`, `dead_letter`, `isolate`. */
  settlement: "user_embeddings.settlement",
} as const

/** Ends the span of a request. */
export const endServerSpan = (
  span: Tracer.Span,
  {
    method,
    route,
    status,
  }: { readonly method: string; readonly route: string | undefined; readonly status: number },
  ended: bigint,
): void => {
  span.attribute(attribute.httpMethod, method)
  if (route !== undefined) span.attribute(attribute.httpRoute, route)
  span.attribute(attribute.httpStatus, status)
  span.end(ended, status < 500 ? Exit.void : failed(String(status)))
}

// ---------------------------------------------------------------------------------------------------------
// Metrics

/** Adds to a counter from synchronous code. */
export const count = (counter: Metric.Metric.Counter<number>, by = 1): void => counter.unsafeUpdate(by, [])
/** Takes a value into a histogram from synchronous code. */
export const observe = (histogram: Metric.Metric.Histogram<number>, value: number): void =>
  histogram.unsafeUpdate(value, [])

/** Sets a gauge from synchronous code. */
export const set = (gauge: Metric.Metric.Gauge<number>, value: number): void => gauge.unsafeUpdate(value, [])

// Tags are made part of the key: a metric that is tagged afterwards looks its state up with every value.
const inUnit = <Type extends MetricKeyType.MetricKeyType.Untyped>(
  key: MetricKey.MetricKey<Type>,
  unit: string | undefined,
) => (unit === undefined ? key : MetricKey.tagged(key, "unit", unit))
const counter = (name: string, description: string) =>
  MetricKey.counter(name, { description, incremental: true })
const gauge = (name: string, description: string, unit?: string) =>
  inUnit(MetricKey.gauge(name, { description }), unit)
const histogram = (name: string, description: string, buckets: ReadonlyArray<number>, unit?: string) =>
  inUnit(MetricKey.histogram(name, MetricBoundaries.fromIterable(buckets), description), unit)
const metric = Metric.fromMetricKey

/** The same metric for each value of its tags, made once. */
const tagged = <Type extends MetricKeyType.MetricKeyType.Untyped>(
  key: MetricKey.MetricKey<Type>,
  ...tags: ReadonlyArray<string>
) => {
  type Made = ReturnType<typeof Metric.fromMetricKey<Type>>
  const known = new Map<string, Made>()
  return (...values: ReadonlyArray<string>): Made => {
    const id = values.join("|")
    const found = known.get(id)
    if (found !== undefined) return found
    const labels = tags.map((tag, index) => MetricLabel.make(tag, values[index] ?? ""))
    const made = metric(MetricKey.taggedWithLabels(key, labels))
    known.set(id, made)
    return made
  }
}

const httpDurations = tagged(
  histogram(
    "http.server.request.duration",
    "Seconds until a request was answered",
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    "s",
  ),
  attribute.httpMethod,
  attribute.httpRoute,
  attribute.httpStatus,
)
const methods = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
/** Seconds until a request was answered; unknown routes and methods share a series, whatever strangers ask for. */
export const httpDuration = (method: string, route: string | undefined, status: number) =>
  httpDurations(methods.has(method) ? method : "_OTHER", route ?? "", String(status))

/** Messages that the broker has confirmed, or not, by destination. */
export const sentMessages = tagged(
  counter("messaging.client.sent.messages", "Messages published, by destination and whether confirmed"),
  attribute.messagingDestination,
  "outcome",
)
/** Messages taken from the main queue, by what became of them. */
export const consumedMessages = tagged(
  counter("messaging.client.consumed.messages", "Messages settled, by what became of them"),
  "outcome",
)
/** Seconds that a batch of messages took. */
export const processDuration = metric(
  histogram(
    "messaging.process.duration",
    "Seconds in which a worker processed and settled a batch",
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
    "s",
  ),
)
/** Messages of a batch. */
export const batchSize = metric(
  histogram(
    "user_embeddings.batch_size",
    "Messages that a worker processed together",
    [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000, 4_000],
  ),
)
/** The SLA: seconds from recording an interaction to its durable embedding. */
export const eventToEmbedding = metric(
  histogram(
    "user_embeddings.event_to_embedding",
    "Seconds from recording an interaction to its durable embedding",
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
    "s",
  ),
)
/** Interactions acknowledged without effect because their product has no embedding. */
export const skippedInteractions = metric(
  counter("user_embeddings.skipped", "Interactions skipped because their product has no embedding"),
)
/** Interactions that are older than the newest of their user's embedding. */
export const lateFolds = metric(
  counter("user_embeddings.late_folds", "Interactions folded after a newer one"),
)
/** Folds into an embedding that was last updated more than 90 days before. */
export const staleFolds = metric(
  counter("user_embeddings.stale_folds", "Folds into an embedding last updated more than 90 days before"),
)
/** Interactions whose write lost a compare-and-swap and was done again. */
export const lockConflicts = metric(
  counter("user_embeddings.lock_conflicts", "Interactions folded again because another worker wrote first"),
)
const phraseLookups = tagged(
  counter("user_embeddings.phrase_lookups", "Phrases whose vector was wanted, by where it was found"),
  "source",
)
/** Phrases whose vector was wanted, by where it was found; `embedder` is what costs. */
export const phrasesFrom = {
  memory: phraseLookups("memory"),
  store: phraseLookups("store"),
  embedder: phraseLookups("embedder"),
}
/** Requests to the embedding service that were answered. */
export const embeddingsDuration = metric(
  histogram(
    "gen_ai.client.embeddings.duration",
    "Seconds until the embedding service answered",
    [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15],
    "s",
  ),
)
/** Messages parked in `failed`, by error. */
export const deadLetters = tagged(
  counter("user_embeddings.dead_letters", "Messages parked in the queue of dead letters, by error"),
  attribute.errorType,
)
/** Messages sent up the retry ladder, by error. */
export const retries = tagged(
  counter("user_embeddings.retries", "Failed attempts that are tried again, by error"),
  attribute.errorType,
)

const queueMessages = tagged(gauge("user_embeddings.queue.messages", "Messages in a queue"), "queue", "state")
/** Messages in a queue by state: `ready` or `unacked`. */
export const queueDepth = (queue: string, state: "ready" | "unacked" = "ready") => queueMessages(queue, state)
export const queueConsumers = metric(gauge("user_embeddings.queue.consumers", "Consumers of the main queue"))
/** How long ago the oldest message that a worker is processing was published; 0 when the queue is empty. */
export const queueAge = metric(
  gauge("user_embeddings.queue.oldest_age", "Seconds since the oldest message in process was published", "s"),
)
export const outboxRows = metric(
  gauge("user_embeddings.outbox.unpublished", "Rows that wait to be published"),
)
export const outboxAge = metric(
  gauge("user_embeddings.outbox.oldest_age", "Seconds since the oldest unpublished row was recorded", "s"),
)
export const residentMemory = metric(gauge("process.memory.usage", "Resident memory of the process", "By"))
export const eventLoopDelay = metric(
  gauge("process.eventloop.delay", "Seconds by which a timer came late", "s"),
)

// Counters that alerts are made of exist from the start, so that the first event is an increase.
for (const one of [skippedInteractions, lateFolds, staleFolds, lockConflicts]) count(one, 0)

const label = (text: string) => text.replace(/[\\"\n]/g, (c) => (c === "\n" ? "\\n" : `\\${c}`))

const suffixes: Readonly<Record<string, string>> = { s: "_seconds", By: "_bytes" }
const nameIn = (key: MetricKey.MetricKey.Untyped, unit: string | undefined): string =>
  key.name.replace(/[^a-zA-Z0-9_]/g, "_") + (unit === undefined ? "" : (suffixes[unit] ?? ""))

const isIncremental = ({ keyType }: MetricKey.MetricKey.Untyped): boolean =>
  MetricKeyType.isCounterKey(keyType) && keyType.incremental

/** A series in the text format; kinds that Prometheus lacks have no lines. */
const series = ({ metricKey, metricState }: MetricPair.MetricPair.Untyped) => {
  const unit = [...metricKey.tags].find(({ key }) => key === "unit")?.value
  const tags = [...metricKey.tags]
    .filter(({ key }) => key !== "unit")
    .map(({ key, value }) => `${key.replace(/[^a-zA-Z0-9_]/g, "_")}="${label(value)}"`)
    .toSorted()
  const name = nameIn(metricKey, unit)
  const line = (suffix: string, value: number | bigint, ...more: ReadonlyArray<string>) => {
    const all = [...tags, ...more].join(",")
    return `${name}${suffix}${all === "" ? "" : `{${all}}`} ${value}`
  }
  const description = Option.getOrElse(metricKey.description, () => "")
  // What may also fall is no counter there.
  if (MetricState.isCounterState(metricState) && isIncremental(metricKey))
    return { name: `${name}_total`, type: "counter", description, lines: [line("_total", metricState.count)] }
  if (MetricState.isCounterState(metricState))
    return { name, type: "gauge", description, lines: [line("", metricState.count)] }
  if (MetricState.isGaugeState(metricState))
    return { name, type: "gauge", description, lines: [line("", metricState.value)] }
  if (MetricState.isHistogramState(metricState)) {
    const counts = [...metricState.buckets].map(([most, count]) =>
      line("_bucket", count, `le="${Number.isFinite(most) ? most : "+Inf"}"`),
    )
    const lines = [...counts, line("_sum", metricState.sum), line("_count", metricState.count)]
    return { name, type: "histogram", description, lines }
  }
  return undefined
}

/** All metrics in the text format of Prometheus, each name once with what it means. */
export const prometheus: Effect.Effect<string> = Effect.map(Metric.snapshot, (pairs) => {
  const families = Map.groupBy(
    pairs.flatMap((pair) => series(pair) ?? []),
    ({ name }) => name,
  )
  const text = [...families]
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .flatMap(([name, [first, ...others]]) => [
      ...(first === undefined || first.description === ""
        ? []
        : [`# HELP ${name} ${first.description.replace(/\\/g, "\\\\").replace(/\n/g, "\\n")}`]),
      `# TYPE ${name} ${first?.type}`,
      ...[first, ...others].flatMap((one) => one?.lines ?? []),
    ])
  return `${text.join("\n")}\n`
})
