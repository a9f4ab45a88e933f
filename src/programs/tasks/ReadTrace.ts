/** `trace`: reads the traces of a message from Jaeger. */
import { Clock, Effect, Option, Schema } from "effect"
import * as Settings from "../../services/Settings.ts"
import { CommandFailed } from "./ProvisionServers.ts"

/** A trace in the format of Jaeger's query API; times in µs. */
interface JaegerTrace {
  readonly traceID: string
  readonly spans: ReadonlyArray<{
    readonly spanID: string
    readonly operationName: string
    readonly references?: ReadonlyArray<{
      readonly refType: string
      readonly traceID: string
      readonly spanID: string
    }>
    readonly startTime: number
    readonly duration: number
    readonly tags: ReadonlyArray<{ readonly key: string; readonly value: unknown }>
    readonly processID: string
  }>
  readonly processes: Readonly<Record<string, { readonly serviceName: string }>>
}

export interface Span {
  readonly span_id: string
  readonly parent_id: string | null
  readonly name: string
  readonly service: string
  readonly kind: string
  /** Time since the first span of the trace. */
  readonly start_ms: number
  readonly duration_ms: number
  readonly error: string | null
  readonly attributes: Readonly<Record<string, unknown>>
}

export interface Trace {
  readonly trace_id: string
  readonly duration_ms: number
  readonly spans: ReadonlyArray<Span>
}

const millis = (micros: number) => Math.round(micros) / 1_000

const toTrace = ({ processes, spans, traceID }: JaegerTrace): Trace => {
  const begin = Math.min(...spans.map(({ startTime }) => startTime))
  const end = Math.max(...spans.map(({ duration, startTime }) => startTime + duration))
  return {
    trace_id: traceID,
    duration_ms: millis(end - begin),
    spans: spans
      .toSorted((a, b) => a.startTime - b.startTime)
      .map(({ duration, operationName, processID, references = [], spanID, startTime, tags }) => {
        const attributes = Object.fromEntries(tags.map(({ key, value }) => [key, value]))
        // If a span also links to its parent, Jaeger returns only the link.
        const own = references.filter((reference) => reference.traceID === traceID)
        const parent = own.find(({ refType }) => refType === "CHILD_OF") ?? own[0]
        return {
          span_id: spanID,
          parent_id: parent?.spanID ?? null,
          name: operationName,
          service: processes[processID]?.serviceName ?? "?",
          kind: String(attributes["span.kind"] ?? "internal"),
          start_ms: millis(startTime - begin),
          duration_ms: millis(duration),
          error:
            attributes.error === true || attributes["otel.status_code"] === "ERROR"
              ? String(attributes["error.type"] ?? "error")
              : null,
          attributes,
        }
      }),
  }
}

class JaegerUnreachable extends Schema.TaggedError<JaegerUnreachable>()("JaegerUnreachable", {
  url: Schema.String,
  cause: Schema.Defect,
}) {
  override get message() {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `Jaeger is not reachable at ${this.url}: ${why}`
  }
}

const deadlineMillis = 10_000

const ask = <A>(url: string, path: string) =>
  Effect.tryPromise({
    try: (signal) =>
      fetch(`${url}${path}`, { signal: AbortSignal.any([signal, AbortSignal.timeout(deadlineMillis)]) }),
    catch: (cause) => new JaegerUnreachable({ url, cause }),
  }).pipe(
    Effect.flatMap((response) =>
      Effect.tryPromise({
        try: async () => {
          if (response.status === 404) return []
          if (!response.ok) throw new Error(`it answered ${response.status}: ${await response.text()}`)
          const { data } = (await response.json()) as { readonly data: ReadonlyArray<A> | null }
          return data ?? []
        },
        catch: (cause) => new JaegerUnreachable({ url, cause }),
      }),
    ),
  )

const days = 24 * 3_600_000_000
/** Asks every service, because any of them may have handled the message, and merges equal traces. */
const byMessageId = Effect.fnUntraced(function* (url: string, id: string) {
  const tags = encodeURIComponent(JSON.stringify({ "messaging.message.id": id }))
  const now = (yield* Clock.currentTimeMillis) * 1_000
  const found = yield* Effect.forEach(
    yield* ask<string>(url, "/api/services"),
    (service) =>
      ask<JaegerTrace>(
        url,
        `/api/traces?service=${encodeURIComponent(service)}&tags=${tags}&start=${now - 30 * days}&end=${now + days}&limit=20`,
      ),
    { concurrency: "unbounded" },
  )
  return [...new Map(found.flat().map((trace) => [trace.traceID, trace])).values()]
})

/** `id`: of a message, with 64 hex digits, or of a trace, with 32. */
export const readTraces = Effect.fnUntraced(function* (id: string) {
  const pages = yield* Settings.TRACES_URL
  const url = Option.getOrElse(
    Option.orElse(yield* Settings.JAEGER_URL, () => pages),
    () => "http://127.0.0.1:16686",
  )
  const found = yield* id.length === 64 ? byMessageId(url, id) : ask<JaegerTrace>(url, `/api/traces/${id}`)
  if (found.length === 0)
    return yield* new CommandFailed({ message: `Jaeger at ${url} knows no trace of ${id}` })
  return found.map(toTrace)
})
