/** Trace context, and metrics in the text format of Prometheus. */
import { describe, expect, test } from "bun:test"
import { Effect, Metric, MetricBoundaries, Tracer } from "effect"
import * as Telemetry from "../../src/services/Telemetry.ts"
import { effectTest } from "../support/effect.ts"

const traceId = "0af7651916cd43dd8448eb211c80319c"
const spanId = "b7ad6b7169203331"

describe("trace context", () => {
  test("of a span is a W3C traceparent with its sampled flag", () => {
    const span = (sampled: boolean) => Tracer.externalSpan({ traceId, spanId, sampled })
    expect(Telemetry.traceparent(span(true))).toBe(`00-${traceId}-${spanId}-01`)
    expect(Telemetry.traceparent(span(false))).toBe(`00-${traceId}-${spanId}-00`)
  })

  effectTest("is that of the current span, and null outside spans", () =>
    Effect.gen(function* () {
      expect(yield* Telemetry.currentTrace).toBeNull()
      const [span, trace] = yield* Effect.all([Effect.currentSpan, Telemetry.currentTrace]).pipe(
        Effect.withSpan("test"),
      )
      expect(trace).toEqual({ traceparent: Telemetry.traceparent(span), tracestate: null })
      expect(trace?.traceparent).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/)
    }),
  )

  effectTest("that was stored becomes the parent of later spans, in the same trace", () =>
    Effect.gen(function* () {
      const stored = { traceparent: `00-${traceId}-${spanId}-01`, tracestate: null }
      const parent = Telemetry.externalSpan(stored)
      const restored = yield* Telemetry.currentTrace.pipe(Effect.withSpan("consumer", { parent }))
      expect(restored?.traceparent).toStartWith(`00-${traceId}-`)
      expect(restored?.traceparent).not.toBe(stored.traceparent)
      expect(
        yield* Telemetry.currentTrace.pipe(Effect.withParentSpan(parent ?? expect.unreachable())),
      ).toEqual(stored)
    }),
  )

  test("keeps the sampled flag, whatever the other flags are", () => {
    const sampled = (flags: string) =>
      Telemetry.externalSpan({ traceparent: `00-${traceId}-${spanId}-${flags}`, tracestate: null })?.sampled
    expect(["00", "01", "02", "03", "ff"].map(sampled)).toEqual([false, true, false, true, true])
  })

  test("that is absent or malformed gives no parent", () => {
    expect(Telemetry.externalSpan(null)).toBeUndefined()
    const bad = [
      "",
      "garbage",
      `00-${traceId}-${spanId}`,
      `00-${traceId}-${spanId}-1`,
      `00-${traceId}-${spanId}-01-more`,
      `00-${traceId.toUpperCase()}-${spanId}-01`,
      `00-${traceId.slice(1)}-${spanId}-01`,
      `00-${traceId}-${spanId}0-01`,
      `00-${"0".repeat(32)}-${spanId}-01`,
      `00-${traceId}-${"0".repeat(16)}-01`,
      ` 00-${traceId}-${spanId}-01`,
    ]
    for (const traceparent of bad)
      expect([traceparent, Telemetry.externalSpan({ traceparent, tracestate: null })]).toEqual([
        traceparent,
        undefined,
      ])
  })
})

describe("metrics", () => {
  const linesOf = (name: string) =>
    Effect.map(Telemetry.prometheus, (text) => {
      expect(text.endsWith("\n")).toBe(true)
      return text.split("\n").filter((line) => line.startsWith(name))
    })

  effectTest("counters end in _total, and count from synchronous code", () =>
    Effect.gen(function* () {
      const counter = Metric.counter("test.telemetry.counter", { incremental: true })
      Telemetry.count(counter)
      Telemetry.count(counter, 3)
      expect(yield* linesOf("test_telemetry_counter")).toEqual(["test_telemetry_counter_total 4"])
    }),
  )

  effectTest("histograms have cumulative buckets up to +Inf, a sum, a count, and the unit in the name", () =>
    Effect.gen(function* () {
      const histogram = Metric.histogram(
        "test.telemetry.histogram",
        MetricBoundaries.fromIterable([0.1, 1]),
      ).pipe(Metric.tagged("unit", "s"))
      for (const seconds of [0.05, 0.5, 0.5, 7]) Telemetry.observe(histogram, seconds)
      expect(yield* linesOf("test_telemetry_histogram")).toEqual([
        'test_telemetry_histogram_seconds_bucket{le="0.1"} 1',
        'test_telemetry_histogram_seconds_bucket{le="1"} 3',
        'test_telemetry_histogram_seconds_bucket{le="+Inf"} 4',
        "test_telemetry_histogram_seconds_sum 8.05",
        "test_telemetry_histogram_seconds_count 4",
      ])
    }),
  )

  effectTest("gauges have no suffix; labels are escaped", () =>
    Effect.gen(function* () {
      const gauge = Metric.gauge("test.telemetry-gauge").pipe(Metric.tagged("of", 'a "b" \\ c\nd'))
      yield* Metric.set(gauge, 2.5)
      expect(yield* linesOf("test_telemetry_gauge")).toEqual([
        'test_telemetry_gauge{of="a \\"b\\" \\\\ c\\nd"} 2.5',
      ])
    }),
  )

  effectTest("that Prometheus has no kind for are left out", () =>
    Effect.gen(function* () {
      yield* Metric.update(Metric.frequency("test.telemetry.frequency"), "a")
      expect(yield* linesOf("test_telemetry_frequency")).toEqual([])
    }),
  )

  effectTest("of phrase look-ups have the source as a label", () =>
    Effect.gen(function* () {
      for (const counter of Object.values(Telemetry.phrasesFrom)) Telemetry.count(counter)
      const lines = yield* linesOf("user_embeddings_phrase_lookups_total")
      expect(lines.map((line) => line.replace(/ \d+$/, "")).toSorted()).toEqual([
        'user_embeddings_phrase_lookups_total{source="embedder"}',
        'user_embeddings_phrase_lookups_total{source="memory"}',
        'user_embeddings_phrase_lookups_total{source="store"}',
      ])
    }),
  )
})
