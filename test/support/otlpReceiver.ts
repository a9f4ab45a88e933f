/** An OTLP/HTTP endpoint that keeps all spans and metrics that it receives as JSON. */

type Value = {
  readonly stringValue?: string
  readonly intValue?: number | string
  readonly doubleValue?: number
  readonly boolValue?: boolean
}
interface Attribute {
  readonly key: string
  readonly value: Value
}
interface Link {
  readonly traceId: string
  readonly spanId: string
}
interface WireSpan extends Link {
  readonly parentSpanId?: string
  readonly traceState?: string
  readonly name: string
  readonly kind: number
  readonly startTimeUnixNano: string
  readonly endTimeUnixNano: string
  readonly attributes?: ReadonlyArray<Attribute>
  readonly links?: ReadonlyArray<Link>
  readonly status: { readonly code?: number; readonly message?: string }
}
interface Resource {
  readonly attributes: ReadonlyArray<Attribute>
}

const kinds = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"] as const

export interface Span {
  readonly service: string
  readonly traceId: string
  readonly spanId: string
  readonly parent: string | undefined
  readonly traceState: string | undefined
  readonly name: string
  readonly kind: (typeof kinds)[number]
  /** Unix ms. */
  readonly start: number
  readonly end: number
  readonly attributes: Readonly<Record<string, string | number | boolean>>
  readonly links: ReadonlyArray<Link>
  readonly failed: boolean
}

export interface Metric {
  readonly service: string
  readonly name: string
  readonly unit: string
}

const valueOf = ({ boolValue, doubleValue, intValue, stringValue }: Value) =>
  stringValue ?? boolValue ?? doubleValue ?? Number(intValue)
const recordOf = (attributes: ReadonlyArray<Attribute> = []) =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, valueOf(value)]))
const serviceOf = (resource: Resource) => String(recordOf(resource.attributes)["service.name"])
const millis = (nanos: string) => Number(BigInt(nanos) / 1_000n) / 1_000

export const otlpReceiver = () => {
  const spans: Array<Span> = []
  const metrics: Array<Metric> = []
  let raw = ""
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    routes: {
      "/v1/traces": {
        POST: async (request) => {
          const text = await request.text()
          raw += text
          const {
            resourceSpans,
          }: {
            resourceSpans: ReadonlyArray<{
              resource: Resource
              scopeSpans: ReadonlyArray<{ spans: ReadonlyArray<WireSpan> }>
            }>
          } = JSON.parse(text)
          for (const { resource, scopeSpans } of resourceSpans)
            for (const span of scopeSpans.flatMap((scope) => scope.spans))
              spans.push({
                service: serviceOf(resource),
                traceId: span.traceId,
                spanId: span.spanId,
                parent: span.parentSpanId || undefined,
                traceState: span.traceState || undefined,
                name: span.name,
                kind: kinds[span.kind] ?? "UNSPECIFIED",
                start: millis(span.startTimeUnixNano),
                end: millis(span.endTimeUnixNano),
                attributes: recordOf(span.attributes),
                links: (span.links ?? []).map(({ spanId, traceId }) => ({ traceId, spanId })),
                failed: span.status.code === 2,
              })
          return Response.json({})
        },
      },
      "/v1/metrics": {
        POST: async (request) => {
          const text = await request.text()
          raw += text
          const {
            resourceMetrics,
          }: {
            resourceMetrics: ReadonlyArray<{
              resource: Resource
              scopeMetrics: ReadonlyArray<{ metrics: ReadonlyArray<Omit<Metric, "service">> }>
            }>
          } = JSON.parse(text)
          for (const { resource, scopeMetrics } of resourceMetrics)
            for (const { name, unit } of scopeMetrics.flatMap((scope) => scope.metrics))
              metrics.push({ service: serviceOf(resource), name, unit })
          return Response.json({})
        },
      },
    },
    fetch: () => new Response(null, { status: 404 }),
  })
  return {
    url: `http://127.0.0.1:${server.port}`,
    spans,
    metrics,
    /** The bodies of all requests. */
    raw: () => raw,
    trace: (traceId: string) => spans.filter((span) => span.traceId === traceId),
    stop: () => server.stop(true),
  }
}

/** A trace as lines such as `  worker CLIENT find x`. Children follow their parent in the order of their start. */
export const treeOf = (spans: ReadonlyArray<Span>): ReadonlyArray<string> => {
  const ids = new Set(spans.map(({ spanId }) => spanId))
  const below = (parent: string | undefined, depth: number): ReadonlyArray<string> =>
    spans
      .filter((span) => (parent === undefined ? !ids.has(span.parent ?? "") : span.parent === parent))
      .toSorted((a, b) => a.start - b.start)
      .flatMap((span) => [
        `${"  ".repeat(depth)}${span.service.replace("user-embeddings-", "")} ${span.kind} ${span.name}${span.failed ? " FAILED" : ""}`,
        ...below(span.spanId, depth + 1),
      ])
  return below(undefined, 0)
}
