/** Span names, attribute keys and trace context as data: it is stored with the row and sent in headers. */
import { Effect, Option, Tracer } from "effect"

/** W3C trace context, as it stands in headers and in the log. */
export interface TraceContext {
  readonly traceparent: string
  readonly tracestate: string | null
}

const traceparentPattern = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/

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
