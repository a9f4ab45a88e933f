/** Attribute keys, metrics, and trace context, which is stored with rows and sent in message headers. */
import { randomBytes } from "node:crypto"
import {
  Cause,
  Context,
  Data,
  DefaultServices,
  Effect,
  Exit,
  type Fiber,
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
import manifest from "../../package.json" with { type: "json" }

// ---------------------------------------------------------------------------------------------------------
// Trace context

/** W3C trace context, as in headers and in the log. */
export interface TraceContext {
  readonly traceparent: string
  readonly tracestate: string | null
}

/** The `tracestate` of a remote span. */
export class TraceState extends Context.Tag("user-embeddings/TraceState")<TraceState, string>() {}

const traceparentPattern = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/

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

/** The trace context with which another process continues the trace of the span. */
export const traceOf = (span: Tracer.AnySpan): TraceContext => ({
  traceparent: traceparent(span),
  tracestate: tracestateOf(span),
})

export const currentTrace: Effect.Effect<TraceContext | null> = Effect.map(
  Effect.option(Effect.currentParentSpan),
  Option.match({ onNone: () => null, onSome: traceOf }),
)

/** Whether the flags say that the trace is recorded. */
export const isSampled = ({ traceparent }: TraceContext): boolean =>
  (Number.parseInt(traceparent.slice(-1), 16) & 1) === 1

/** A stored trace context as the parent of new spans; `undefined` if it is malformed or absent. */
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
/** `count` random hexadecimal digits, at most 32. Random bytes are drawn in bulk, which is much cheaper. */
export const randomHex = (count: number): string => {
  if (used + count > digits.length) {
    digits = randomBytes(2048).toString("hex")
    used = 0
  }
  used += count
  return digits.slice(used - count, used)
}

/** An unsampled trace: its id only shows what belongs together. */
export const newTrace = (): Tracer.ExternalSpan =>
  Tracer.externalSpan({ traceId: randomHex(32), spanId: randomHex(16), sampled: false })

/** Whether spans are exported. Effect's default tracer makes spans that are not. */
const isTracing = (fiber: Fiber.RuntimeFiber<unknown, unknown>): boolean => {
  const services = fiber.getFiberRef(DefaultServices.currentServices)
  const isDefault =
    Context.get(services, Tracer.Tracer) === Context.get(DefaultServices.liveServices, Tracer.Tracer)
  return fiber.getFiberRef(FiberRef.currentTracerEnabled) && !isDefault
}

/** The effect, or what `traced` makes of it if spans are exported. */
export const ifTracing = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  traced: (effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>,
): Effect.Effect<A, E, R> => Effect.withFiberRuntime((fiber) => (isTracing(fiber) ? traced(effect) : effect))

/** Runs an effect without spans, such as a check that repeats all the time. */
export const untraced = Effect.withTracerEnabled(false)

/** Measures an effect in seconds, with the type of its failure. An interrupted one is not measured. */
export const timed =
  (histogramOf: (errorType: string | undefined) => Metric.Metric.Histogram<number>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => {
      const began = performance.now()
      const measure = (failure?: string) => observe(histogramOf(failure), (performance.now() - began) / 1000)
      return Effect.matchCauseEffect(effect, {
        onSuccess: (value) => {
          measure()
          return Effect.succeed(value)
        },
        onFailure: (cause) => {
          if (!Cause.isInterrupted(cause)) measure(errorType(Cause.squash(cause)))
          return Effect.failCause(cause)
        },
      })
    })

/** Measures a call to a database, and runs it in a CLIENT span if spans are exported. */
export const databaseSpan =
  (system: string, operation: string, collection: string) =>
  <A, E, R>(call: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    ifTracing(
      timed((failure) => databaseDurations(system, operation, collection, failure))(call),
      (measured) =>
        Effect.withSpan(measured, `${operation} ${collection}`, {
          kind: "client",
          captureStackTrace: false,
          attributes: {
            [attribute.dbSystem]: system,
            [attribute.dbOperation]: operation,
            [attribute.dbCollection]: collection,
          },
        }),
    )

/** The failure of a span: its kind, never its text, which may quote what users sent. */
export class SpanFailure extends Data.Error<{ readonly type: string }> {
  override readonly name = "SpanFailure"
  override get message() {
    return this.type
  }
}

export const failed = (type: string): Exit.Exit<never, SpanFailure> => Exit.fail(new SpanFailure({ type }))

/** `error.type`: the tag of an error with its reason, or the name of its class. */
export const errorType = (error: unknown): string => {
  if (error instanceof SpanFailure) return error.type
  if (!Predicate.hasProperty(error, "_tag")) {
    if (error instanceof Error) return error.name
    // A failed call, with what it may come from.
    return Predicate.hasProperty(error, "error") ? errorType(error.error) : "unknown"
  }
  return Predicate.hasProperty(error, "reason") && typeof error.reason === "string"
    ? `${String(error._tag)}.${error.reason}`
    : String(error._tag)
}

/** The fields of an error in a log line: its kind, and a text for people. */
export const described = (error: { readonly message: string }) => ({
  error: errorType(error),
  detail: error.message,
})

/** Attribute keys of the OpenTelemetry semantic conventions, and keys of our own. */
export const attribute = {
  errorType: "error.type",
  httpMethod: "http.request.method",
  httpMethodOriginal: "http.request.method_original",
  httpRoute: "http.route",
  httpStatus: "http.response.status_code",
  urlPath: "url.path",
  urlScheme: "url.scheme",
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
  genAiTokenType: "gen_ai.token.type",
  genAiDimensions: "gen_ai.embeddings.dimension.count",
  cpuMode: "cpu.mode",
  /** The number of the attempt, from 1. */
  attempt: "user_embeddings.attempt",
  /** `ack`, `retry`, `dead_letter`, `quarantine`, or `wait` for a dependency that is out. */
  settlement: "user_embeddings.settlement",
} as const

// ---------------------------------------------------------------------------------------------------------
// Metrics

/** Adds to a counter from synchronous code. */
export const count = (counter: Metric.Metric.Counter<number>, by = 1): void => counter.unsafeUpdate(by, [])
export const observe = (histogram: Metric.Metric.Histogram<number>, value: number): void =>
  histogram.unsafeUpdate(value, [])

export const set = (gauge: Metric.Metric.Gauge<number>, value: number): void => gauge.unsafeUpdate(value, [])

// Tags are part of the key, because a metric that is tagged later looks up its state with every value.
const inUnit = <Type extends MetricKeyType.MetricKeyType.Untyped>(
  key: MetricKey.MetricKey<Type>,
  unit: string | undefined,
) => (unit === undefined ? key : MetricKey.tagged(key, "unit", unit))
const counter = (name: string, description: string, unit?: string) =>
  inUnit(MetricKey.counter(name, { description, incremental: true }), unit)
const gauge = (name: string, description: string, unit?: string) =>
  inUnit(MetricKey.gauge(name, { description }), unit)
const histogram = (name: string, description: string, buckets: ReadonlyArray<number>, unit?: string) =>
  inUnit(MetricKey.histogram(name, MetricBoundaries.fromIterable(buckets), description), unit)
const metric = Metric.fromMetricKey

/** A metric with tags. The metric of each combination of values is made once. */
const tagged = <Type extends MetricKeyType.MetricKeyType.Untyped>(
  key: MetricKey.MetricKey<Type>,
  ...tags: ReadonlyArray<string>
) => {
  type TaggedMetric = ReturnType<typeof Metric.fromMetricKey<Type>>
  const metrics = new Map<string, TaggedMetric>()
  /** A tag without a value is left out. */
  return (...values: ReadonlyArray<string | undefined>): TaggedMetric => {
    const id = values.join("|")
    const existing = metrics.get(id)
    if (existing !== undefined) return existing
    const labels = tags.flatMap((tag, index) => {
      const value = values[index]
      return value === undefined ? [] : MetricLabel.make(tag, value)
    })
    const created = metric(MetricKey.taggedWithLabels(key, labels))
    metrics.set(id, created)
    return created
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
  attribute.urlScheme,
  attribute.httpRoute,
  attribute.httpStatus,
  attribute.errorType,
)
/** TLS ends in the proxy before the API. */
export const urlScheme = "http"
const methods = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
export const knownMethod = (method: string): string => (methods.has(method) ? method : "_OTHER")
/** Unknown routes and methods share a series, so that strangers can't create series without limit. */
export const httpDuration = (method: string, route: string | undefined, status: number) =>
  httpDurations(
    knownMethod(method),
    urlScheme,
    route,
    String(status),
    status < 500 ? undefined : String(status),
  )

const databaseDurations = tagged(
  histogram(
    "db.client.operation.duration",
    "Seconds of a call to a database",
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10],
    "s",
  ),
  attribute.dbSystem,
  attribute.dbOperation,
  attribute.dbCollection,
  attribute.errorType,
)

const sent = tagged(
  counter("messaging.client.sent.messages", "Messages published, by destination and whether confirmed"),
  attribute.messagingSystem,
  attribute.messagingOperation,
  attribute.messagingDestination,
  "outcome",
)
export const sentMessages = (system: string, destination: string, outcome: string) =>
  sent(system, "publish", destination, outcome)
const consumed = tagged(
  counter("messaging.client.consumed.messages", "Messages settled, by settlement"),
  attribute.messagingSystem,
  attribute.messagingOperation,
  "outcome",
)
export const consumedMessages = (system: string, outcome: string) => consumed(system, "process", outcome)
export const announcements = tagged(
  counter(
    "user_embeddings.announcements",
    "Changes of embeddings published on the feed, by whether confirmed",
  ),
  "outcome",
)
export const sinkChanges = tagged(
  counter("user_embeddings.sink_changes", "Users written to the sink, or removed from it"),
  "outcome",
)
export const segmentCalls = tagged(
  counter("user_embeddings.segment_calls", "What became of the calls of Segment's API"),
  "outcome",
)
const processDurations = tagged(
  histogram(
    "messaging.process.duration",
    "Seconds in which a worker processed and settled a batch",
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
    "s",
  ),
  attribute.messagingSystem,
  attribute.messagingOperation,
)
export const processDuration = (system: string) => processDurations(system, "process")
export const batchSize = metric(
  histogram(
    "user_embeddings.batch_size",
    "Messages that a worker processed together",
    [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000, 4_000],
  ),
)
export const eventToEmbedding = metric(
  histogram(
    "user_embeddings.event_to_embedding",
    "Seconds from recording an interaction to its durable embedding",
    [0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
    "s",
  ),
)
export const skippedInteractions = metric(
  counter("user_embeddings.skipped", "Interactions skipped because their product has no embedding"),
)
export const lateFolds = metric(
  counter("user_embeddings.late_folds", "Interactions folded after a newer one"),
)
export const staleFolds = metric(
  counter("user_embeddings.stale_folds", "Folds into an embedding last updated more than 90 days before"),
)
export const lockConflicts = metric(
  counter("user_embeddings.lock_conflicts", "Interactions folded again because another worker wrote first"),
)
const phraseLookups = tagged(
  counter("user_embeddings.phrase_lookups", "Look-ups of phrase vectors, by where the vector was found"),
  "source",
)
/** Only phrases from the `embedder` cost money. */
export const phrasesFrom = {
  memory: phraseLookups("memory"),
  store: phraseLookups("store"),
  embedder: phraseLookups("embedder"),
}
const genAi = [attribute.genAiOperation, attribute.genAiProvider, attribute.genAiModel] as const
const genAiDurations = tagged(
  histogram(
    "gen_ai.client.operation.duration",
    "Seconds until the embedding service answered",
    [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15],
    "s",
  ),
  ...genAi,
  attribute.errorType,
)
export const embeddingsDuration = (provider: string, model: string) => (failure: string | undefined) =>
  genAiDurations("embeddings", provider, model, failure)
const genAiTokens = tagged(
  histogram(
    "gen_ai.client.token.usage",
    "Tokens of a request to the embedding service; their sum is what is paid for",
    [1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144],
  ),
  ...genAi,
  attribute.genAiTokenType,
)
export const embeddingTokens = (provider: string, model: string) =>
  genAiTokens("embeddings", provider, model, "input")
/** Written by other programs. They are left out. */
export const unreadableDocuments = tagged(
  counter("user_embeddings.unreadable_documents", "Stored documents that could not be read, by collection"),
  attribute.dbCollection,
)
export const unusableProducts = metric(
  gauge("user_embeddings.products.unusable", "Products of the catalogue whose vector cannot be used"),
)
export const deadLetters = tagged(
  counter("user_embeddings.dead_letters", "Messages that became dead letters, by error"),
  attribute.errorType,
)
export const retries = tagged(
  counter("user_embeddings.retries", "Failed attempts that are tried again, by error"),
  attribute.errorType,
)

const queueMessages = tagged(gauge("user_embeddings.queue.messages", "Messages in a queue"), "queue", "state")
/** Messages in a queue by state: `ready` or `unacked`. */
export const queueDepth = (queue: string, state: "ready" | "unacked" = "ready") => queueMessages(queue, state)
export const queueConsumers = metric(gauge("user_embeddings.queue.consumers", "Consumers of the main queue"))
export const queueAge = metric(
  gauge("user_embeddings.queue.oldest_age", "Seconds since the oldest message in process was published", "s"),
)
export const outboxRows = metric(
  gauge("user_embeddings.outbox.unpublished", "Rows that are not published yet"),
)
export const outboxAge = metric(
  gauge("user_embeddings.outbox.oldest_age", "Seconds since the oldest unpublished row was recorded", "s"),
)
const cpuTime = tagged(counter("process.cpu.time", "CPU time of the process", "s"), attribute.cpuMode)
export const cpuTimes = { user: cpuTime("user"), system: cpuTime("system") }
const buildInfo = tagged(
  gauge("user_embeddings.build_info", "1, with the versions of the program and of Bun"),
  "version",
  "bun",
)
set(buildInfo(manifest.version, Bun.version), 1)
export const residentMemory = metric(gauge("process.memory.usage", "Resident memory of the process", "By"))
export const eventLoopDelay = metric(
  gauge("process.eventloop.delay", "Seconds by which a timer came late", "s"),
)

// Counters of alerts exist from the start, so that the first event is an increase.
for (const counter of [skippedInteractions, lateFolds, staleFolds, lockConflicts]) count(counter, 0)

const label = (text: string) => text.replace(/[\\"\n]/g, (c) => (c === "\n" ? "\\n" : `\\${c}`))

const suffixes: Readonly<Record<string, string>> = { s: "_seconds", By: "_bytes" }
const nameIn = (key: MetricKey.MetricKey.Untyped, unit: string | undefined): string =>
  key.name.replace(/[^a-zA-Z0-9_]/g, "_") + (unit === undefined ? "" : (suffixes[unit] ?? ""))

const isIncremental = ({ keyType }: MetricKey.MetricKey.Untyped): boolean =>
  MetricKeyType.isCounterKey(keyType) && keyType.incremental

/** A series in the text format; `undefined` for a kind of metric that Prometheus does not have. */
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
  // In Prometheus a counter never falls.
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

/** Metrics of Effect's runtime about its fibers. They say nothing about this program. */
const isForeign = ({ metricKey }: MetricPair.MetricPair.Untyped) => metricKey.name.startsWith("effect_")

/** All metrics in the text format of Prometheus, each name with its description. */
export const prometheus: Effect.Effect<string> = Effect.map(Metric.snapshot, (pairs) => {
  const families = Map.groupBy(
    pairs.flatMap((pair) => (isForeign(pair) ? [] : (series(pair) ?? []))),
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
