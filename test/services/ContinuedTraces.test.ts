/** A drain of the outbox and a replay publish messages in the traces that are stored with the rows. */
import { expect } from "bun:test"
import { resourceFromAttributes } from "@opentelemetry/resources"
import type { ReadableSpan } from "@opentelemetry/sdk-trace-base"
import { Effect, Layer } from "effect"
import { make, samplerOf } from "../../src/layers/telemetry/OpenTelemetryTracer.ts"
import { Replayer, layer as replayer } from "../../src/services/operate/Replayer.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import { Ack, InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { OutboxRelay, layer as outboxRelay } from "../../src/services/record/OutboxRelay.ts"
import { randomHex } from "../../src/services/Telemetry.ts"
import { layerSuite } from "../support/effect.ts"
import { search } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

/** Unpublished rows: two with a sampled trace, and one with an unsampled trace. */
const stored = (user: string) =>
  Effect.gen(function* () {
    const recordedAt = Date.now() - 60_000
    const rows = ["01", "01", "00"].map((flags, index) => ({
      interaction: search(user, `phrase ${index}`, new Date(recordedAt + index).toISOString()),
      idempotencyKey: null,
      occurredAtGiven: true,
      trace: { traceparent: `00-${randomHex(32)}-${randomHex(16)}-${flags}`, tracestate: null },
      recordedAt,
    }))
    yield* (yield* InteractionLog).append(rows)
    return rows
  })

/** The trace of each delivered message. */
const delivered = (count: number) =>
  Effect.gen(function* () {
    const consumer = yield* (yield* InteractionQueue).consume(10)
    const traces = new Map<string | null, string | undefined>()
    while (traces.size < count) {
      const deliveries = yield* consumer.take(10)
      for (const { messageId, trace } of deliveries) traces.set(messageId, trace?.traceparent)
      yield* consumer.settle(deliveries.map((delivery) => [delivery, Ack]))
    }
    return traces
  }).pipe(Effect.scoped)

const suite = (name: string, stack: ReturnType<typeof embedded> | ReturnType<typeof external>) =>
  layerSuite(name, Layer.merge(outboxRelay, replayer).pipe(Layer.provideMerge(stack)), (it) => {
    const publishers: Readonly<
      Record<string, (user: string) => Effect.Effect<unknown, unknown, OutboxRelay | Replayer>>
    > = {
      drain: () => Effect.flatMap(OutboxRelay, ({ drain }) => drain),
      replay: (user: string) => Effect.flatMap(Replayer, ({ replay }) => replay({ user })),
    }
    for (const [how, publish] of Object.entries(publishers))
      it(`the ${how} publishes each message in the trace of its row, and links it to the batch`, () =>
        Effect.gen(function* () {
          const rows = yield* stored(`u-${how}`)
          const spans: Array<ReadableSpan> = []
          const tracer = make(
            {
              resource: resourceFromAttributes({}),
              processor: { onEnd: (span) => spans.push(span) },
            },
            samplerOf("parentbased_always_on", 1),
          )
          yield* Effect.withTracer(publish(`u-${how}`), tracer)
          const traces = yield* delivered(rows.length)

          const batch = spans.find((span) => span.name === `${how} interactions`)
          const contexts = rows.slice(0, 2).map(({ trace }) => trace.traceparent.split("-"))
          expect(batch?.links.map(({ context }) => context.spanId).toSorted()).toEqual(
            contexts.map(([, , spanId]) => spanId!).toSorted(),
          )
          for (const { interaction, trace } of rows.slice(0, 2)) {
            const [, traceId = "", spanId] = trace.traceparent.split("-")
            const own = spans.filter((span) => span.spanContext().traceId === traceId)
            const published = own.find((span) => span.name.startsWith("publish user_events:"))
            expect(published?.parentSpanContext?.spanId).toBe(spanId)
            expect(traces.get(interaction.message_id)).toBe(
              `00-${traceId}-${published?.spanContext().spanId}-01`,
            )
            expect(own.map((span) => span.name)).toContain("UPDATE user_interactions")
          }
          const unsampled = rows[2]!
          expect(traces.get(unsampled.interaction.message_id)).toBe(unsampled.trace.traceparent)
          expect(
            spans.filter((span) => unsampled.trace.traceparent.includes(span.spanContext().traceId)),
          ).toEqual([])
        }))
  })

suite("on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () => {
  suite("continued traces", external())
  suite("continued traces in message batches", external({ EVENTS_PER_MESSAGE: "50" }))
})
