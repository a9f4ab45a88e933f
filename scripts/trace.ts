#!/usr/bin/env bun
/** `bun run trace MESSAGE_ID|TRACE_ID`: reads a trace from Jaeger and prints it as a tree with times; see `--help`. */
import { parseArgs } from "node:util"
import { messageOf } from "./services/command.ts"

const help = `Usage: bun run trace MESSAGE_ID|TRACE_ID [--json]

Prints a trace as a tree: each step, its service, its start and its duration. MESSAGE_ID has 64 hex digits, as in the
answers of the API; TRACE_ID has 32, the second part of a traceparent. If a message was handled more than once, by a
retry, a sweep or a replay, its trace contains every attempt.

  JAEGER_URL   address of Jaeger's query API; default http://127.0.0.1:16686
  --json       print the spans as JSON`

class BadUsage extends Error {}

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

interface Span {
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

interface Trace {
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

/** A span whose parent is not in the trace, for example a client's span, is a root. */
const inTree = ({ duration_ms, spans, trace_id }: Trace): string => {
  const known = new Set(spans.map(({ span_id }) => span_id))
  const children = Map.groupBy(spans, ({ parent_id }) =>
    parent_id !== null && known.has(parent_id) ? parent_id : null,
  )
  const rows: Array<readonly [string, string, string, string, string, string]> = []
  const draw = (span: Span, before: string, branch: string) => {
    const attempt = Number(span.attributes["user_embeddings.attempt"] ?? 1)
    const notes = [
      attempt > 1 ? `attempt ${attempt}` : "",
      span.error === null ? "" : `failed: ${span.error}`,
    ]
    rows.push([
      `${before}${branch}${span.name}`,
      span.service,
      span.kind,
      `+${span.start_ms.toFixed(1)}`,
      span.duration_ms.toFixed(1),
      notes.filter((note) => note !== "").join(", "),
    ])
    const own = children.get(span.span_id) ?? []
    const below = before + (branch === "" ? "" : branch === "├─ " ? "│  " : "   ")
    for (const [index, child] of own.entries()) draw(child, below, index === own.length - 1 ? "└─ " : "├─ ")
  }
  for (const root of children.get(null) ?? []) draw(root, "", "")
  const head = ["SPAN", "SERVICE", "KIND", "START ms", "TOOK ms", ""] as const
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column]!.length)))
  const line = (row: ReadonlyArray<string>) =>
    row
      .map((cell, column) =>
        column === 3 || column === 4 ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!),
      )
      .join("  ")
      .trimEnd()
  return [
    `trace ${trace_id}: ${spans.length} spans, ${duration_ms.toFixed(1)} ms`,
    [head, ...rows].map(line).join("\n"),
  ].join("\n")
}

const jaeger = (process.env.JAEGER_URL || "http://127.0.0.1:16686").replace(/\/+$/, "")

const ask = async <A>(path: string): Promise<ReadonlyArray<A>> => {
  const response = await fetch(`${jaeger}${path}`, { signal: AbortSignal.timeout(10_000) }).catch((error) => {
    throw new Error(`Jaeger is not reachable at ${jaeger}: ${messageOf(error)}. Check JAEGER_URL.`)
  })
  if (response.status === 404) return []
  if (!response.ok) throw new Error(`Jaeger answered ${response.status}: ${await response.text()}`)
  const { data } = (await response.json()) as { readonly data: ReadonlyArray<A> | null }
  return data ?? []
}

const byTraceId = (id: string) => ask<JaegerTrace>(`/api/traces/${id}`)

const days = 24 * 3_600_000_000
/** Asks every service, because any of them may have handled the message, and merges equal traces. */
const byMessageId = async (id: string): Promise<ReadonlyArray<JaegerTrace>> => {
  const tags = encodeURIComponent(JSON.stringify({ "messaging.message.id": id }))
  const now = Date.now() * 1_000
  const services = await ask<string>("/api/services")
  const found = await Promise.all(
    services.map((service) =>
      ask<JaegerTrace>(
        `/api/traces?service=${encodeURIComponent(service)}&tags=${tags}&start=${now - 30 * days}&end=${now + days}&limit=20`,
      ),
    ),
  )
  return [...new Map(found.flat().map((trace) => [trace.traceID, trace])).values()]
}

const main = async (): Promise<number> => {
  const { positionals, values } = (() => {
    try {
      return parseArgs({
        allowPositionals: true,
        options: {
          json: { type: "boolean", default: false },
          help: { type: "boolean", short: "h", default: false },
        },
      })
    } catch (error) {
      throw new BadUsage(messageOf(error))
    }
  })()
  if (values.help) {
    console.log(help)
    return 0
  }
  const [id = "", ...others] = positionals
  const find = { 32: byTraceId, 64: byMessageId }[id.length]
  if (find === undefined || others.length > 0 || !/^[0-9a-f]+$/i.test(id))
    throw new BadUsage("give one message id (64 hex digits) or one trace id (32 hex digits)")
  const traces = (await find(id.toLowerCase())).map(toTrace)
  if (traces.length === 0) throw new Error(`Jaeger at ${jaeger} knows no trace of ${id}`)
  console.log(values.json ? JSON.stringify(traces, null, 2) : traces.map(inTree).join("\n\n"))
  return 0
}

try {
  process.exit(await main())
} catch (error) {
  console.error(error instanceof BadUsage ? `${error.message}\n\n${help}` : messageOf(error))
  process.exit(error instanceof BadUsage ? 2 : 1)
}
