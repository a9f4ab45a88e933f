import { describe, expect, test } from "bun:test"
import { resourceFromAttributes } from "@opentelemetry/resources"
import type { ReadableSpan } from "@opentelemetry/sdk-trace-base"
import { Context, Effect, Exit, Option, Tracer } from "effect"
import { make, samplerOf } from "../../../src/layers/telemetry/OpenTelemetryTracer.ts"
import { BatchTraces } from "../../../src/services/MessageTraces.ts"
import { randomHex, traceparent } from "../../../src/services/Telemetry.ts"

const tracerWith = (...sampler: Parameters<typeof samplerOf>) => {
  const spans: Array<ReadableSpan> = []
  const processor = { onEnd: (span: ReadableSpan) => spans.push(span) }
  const tracer = make({ processor, resource: resourceFromAttributes({}) }, samplerOf(...sampler))
  const begin = (parent?: Tracer.AnySpan, links: Array<Tracer.AnySpan> = []) =>
    tracer.span(
      "one",
      Option.fromNullable(parent),
      Context.empty(),
      links.map((span) => ({ _tag: "SpanLink", span, attributes: {} })),
      1_500_000_000n,
      "client",
    )
  return { tracer, spans, begin }
}
const remote = (sampled: boolean) =>
  Tracer.externalSpan({ traceId: randomHex(32), spanId: randomHex(16), sampled })

describe("sampling", () => {
  test.each([
    ["always_on", true, true, true],
    ["always_off", false, false, false],
    ["parentbased_always_on", true, true, false],
    ["parentbased_always_off", false, true, false],
  ] as const)("%s", (name, begun, continued, left) => {
    const { begin } = tracerWith(name, 1)
    expect([begin().sampled, begin(remote(true)).sampled, begin(remote(false)).sampled]).toEqual([
      begun,
      continued,
      left,
    ])
  })

  test("a share of the traces, by their ids, so that every process decides the same", () => {
    const { begin } = tracerWith("parentbased_traceidratio", 0.1)
    const spans = Array.from({ length: 5_000 }, () => begin())
    const share = spans.filter(({ sampled }) => sampled).length / spans.length
    expect(share).toBeGreaterThan(0.07)
    expect(share).toBeLessThan(0.13)
    const other = samplerOf("traceidratio", 0.1)
    expect(spans.every(({ sampled, traceId }) => other(traceId, undefined) === sampled)).toBe(true)
  })

  test("a batch is sampled if one of its messages is", () => {
    const { begin } = tracerWith("parentbased_traceidratio", 0)
    expect(begin(undefined, [remote(false), remote(true)]).sampled).toBe(true)
    expect(begin(undefined, [remote(false)]).sampled).toBe(false)
  })
})

test("a span that is not sampled has ids and is not exported", () => {
  const { begin, spans } = tracerWith("parentbased_always_on", 1)
  const above = remote(false)
  const span = begin(above)
  span.attribute("a", 1)
  begin(span).end(2_000_000_000n, Exit.void)
  span.end(2_000_000_000n, Exit.void)
  expect(traceparent(span)).toBe(`00-${above.traceId}-${span.spanId}-00`)
  expect(span.attributes.size).toBe(0)
  expect(spans).toEqual([])
})

test("times, parents, attributes and failures are exported; error messages are not", () => {
  const { begin, spans } = tracerWith("always_on", 1)
  const span = begin()
  const child = begin(span)
  child.attribute("count", 3)
  child.end(1_750_000_001n, Exit.die(new RangeError("wireless headphones")))
  span.end(3_000_000_000n, Exit.void)
  const [failed, root] = spans
  expect(failed).toMatchObject({
    startTime: [1, 500_000_000],
    endTime: [1, 750_000_001],
    duration: [0, 250_000_001],
    attributes: { count: 3, "error.type": "RangeError" },
    status: { code: 2, message: "RangeError" },
    parentSpanContext: { traceId: span.traceId, spanId: span.spanId },
  })
  expect(root?.parentSpanContext).toBeUndefined()
  expect(root?.status).toEqual({ code: 0 })
})

test("the span of a batch is exported to the trace of each sampled message", async () => {
  const { spans, tracer } = tracerWith("parentbased_always_on", 1)
  const members = [remote(true), remote(false), remote(true)].map((span, index) => ({
    messageId: String(index),
    span,
  }))
  await Effect.runPromise(
    Effect.void.pipe(
      Effect.withSpan("write", { attributes: { rows: 3 } }),
      Effect.provideService(BatchTraces, members),
      Effect.withTracer(tracer),
    ),
  )
  const [own, ...copies] = spans
  expect(copies.map((copy) => [copy.spanContext().traceId, copy.parentSpanContext?.spanId])).toEqual(
    [members[0], members[2]].map((member) => [member?.span.traceId, member?.span.spanId]),
  )
  expect(new Set(spans.map((span) => span.spanContext().spanId)).size).toBe(3)
  for (const copy of copies) {
    expect([copy.name, copy.attributes, copy.duration]).toEqual(["write", { rows: 3 }, own!.duration])
    expect(copy.links).toEqual([{ context: own!.spanContext() }])
  }
})
