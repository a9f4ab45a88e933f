/**
 * The traces of messages that are handled together. A single message is handled in its own trace. A batch has a trace
 * of its own, whose span links to the messages; the tracer repeats the spans of the batch in the trace of each sampled
 * message (OpenTelemetryTracer.ts). For unsampled messages only their flags are read. Without an exporter there are no
 * spans.
 */
import { Array as Arr, Clock, Context, Effect, Exit, Option, type Tracer } from "effect"
import type { LoggedInteraction } from "./ports/InteractionLog.ts"
import { exchange, type Message, queue, routingKey } from "./ports/InteractionQueue.ts"
import {
  attribute,
  count,
  externalSpan,
  failed,
  ifTracing,
  isSampled,
  sentMessages,
  type TraceContext,
  traceOf,
  untraced,
} from "./Telemetry.ts"

export interface Traced {
  readonly messageId: string | null
  readonly trace: TraceContext | null
}

export const traced = ({ interaction, trace }: Pick<LoggedInteraction, "interaction" | "trace">): Traced => ({
  messageId: interaction.message_id,
  trace,
})

/** A message in whose trace the spans of the batch are repeated, as children of `span`. */
export interface BatchTrace {
  readonly messageId: string | null
  readonly span: Tracer.AnySpan
}

/** The sampled messages of the batch that is being handled; empty outside a batch. */
export class BatchTraces extends Context.Reference<BatchTraces>()("user-embeddings/BatchTraces", {
  defaultValue: (): ReadonlyArray<BatchTrace> => [],
}) {}

/** Repeats the spans of the effect only in the traces of these messages of the batch. */
export const forMessages =
  (messages: ReadonlyArray<{ readonly message_id: string }>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    ifTracing(effect, () =>
      Effect.flatMap(BatchTraces, (traces) => {
        if (traces.length === 0) return effect
        const ids = new Set<string | null>(messages.map(({ message_id }) => message_id))
        return Effect.provideService(
          effect,
          BatchTraces,
          traces.filter(({ messageId }) => ids.has(messageId)),
        )
      }),
    )

/** The greatest number of links that the SDK keeps. */
const maxLinks = 128
const linksTo = (spans: ReadonlyArray<Tracer.AnySpan>): ReadonlyArray<Tracer.SpanLink> =>
  spans.slice(0, maxLinks).map((span) => ({ _tag: "SpanLink", span, attributes: {} }))

/** The span that published the message, if its trace is sampled. */
const sampledSpan = ({ trace }: Traced): Tracer.ExternalSpan | undefined =>
  trace !== null && isSampled(trace) ? externalSpan(trace) : undefined

const anySampled = (messages: ReadonlyArray<Traced>): boolean =>
  messages.some(({ trace }) => trace !== null && isSampled(trace))

/** The trace of all messages, if they have the same: they came with one request, or there is only one. */
const sharedTrace = (messages: ReadonlyArray<Traced>): TraceContext | null | undefined => {
  const [first, ...others] = messages
  return others.every(({ trace }) => trace?.traceparent === first?.trace?.traceparent)
    ? first?.trace
    : undefined
}

interface BatchOptions {
  readonly kind: Tracer.SpanKind
  readonly attributes: Readonly<Record<string, unknown>>
  readonly count: number
}

/** Runs the effect in a span of the batch that links to the spans of its messages. */
const inLinkedSpan =
  (name: string, { attributes, count, kind }: BatchOptions, spans: ReadonlyArray<Tracer.AnySpan>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.withSpan(effect, name, {
      root: true,
      kind,
      captureStackTrace: false,
      links: linksTo(spans),
      attributes: { ...attributes, [attribute.messagingBatchCount]: count },
    })

/** Also repeats the spans of the batch in the traces of its messages. */
const inBatchSpan =
  (name: string, options: BatchOptions, traces: ReadonlyArray<BatchTrace>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.provideService(effect, BatchTraces, traces).pipe(
      inLinkedSpan(
        name,
        options,
        traces.map(({ span }) => span),
      ),
    )

/** Runs the effect in the trace that the messages share. If they share none, in a span `name` of the batch. */
export const withBatchSpan =
  (name: string, messages: ReadonlyArray<Traced>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    ifTracing(effect, () => {
      if (!anySampled(messages)) return untraced(effect)
      const shared = sharedTrace(messages)
      if (shared !== undefined) {
        const parent = externalSpan(shared)
        return parent === undefined ? effect : Effect.withParentSpan(effect, parent)
      }
      const traces = messages.flatMap((message): ReadonlyArray<BatchTrace> => {
        const span = sampledSpan(message)
        return span === undefined ? [] : [{ messageId: message.messageId, span }]
      })
      return inBatchSpan(name, { kind: "internal", attributes: {}, count: messages.length }, traces)(effect)
    })

export interface Outgoing extends Traced {
  /** The span in which the message is published, if that is not the span of `trace`. */
  readonly parent?: Tracer.AnySpan | undefined
  /** `{exchange}:{routing key}`, or the queue if the exchange is the default exchange. */
  readonly destination: string
  readonly routingKey: string
}

export const update = ({ eventType, messageId, trace }: Message): Outgoing => ({
  messageId,
  trace,
  destination: `${exchange}:${routingKey(eventType)}`,
  routingKey: routingKey(eventType),
})

const countSent = (
  system: string,
  messages: ReadonlyArray<Outgoing>,
  exit: Exit.Exit<ReadonlyArray<string>, unknown>,
) => {
  const byDestination = Map.groupBy(messages.keys(), (index) => messages[index]?.destination ?? "")
  for (const [destination, indices] of byDestination) {
    const outcomes = Map.groupBy(indices, (index) =>
      Exit.isSuccess(exit) ? (exit.value[index] ?? "nacked") : "failed",
    )
    for (const [outcome, { length }] of outcomes) count(sentMessages(system, destination, outcome), length)
  }
}

const messagingAttributes = (system: string, operation: string, type: string, destination: string) => ({
  [attribute.messagingSystem]: system,
  [attribute.messagingOperation]: operation,
  [attribute.messagingOperationType]: type,
  [attribute.messagingDestination]: destination,
})

const describeMessage = (
  span: Tracer.Span,
  attributes: ReturnType<typeof messagingAttributes>,
  { messageId, routingKey }: Pick<Outgoing, "messageId" | "routingKey">,
) => {
  for (const [key, value] of Object.entries(attributes)) span.attribute(key, value)
  span.attribute(attribute.messagingRoutingKey, routingKey)
  if (messageId !== null) span.attribute(attribute.messagingMessageId, messageId)
  return span
}

/** The PRODUCER span of a message; `undefined` if it is not sampled. */
const producerSpan = (tracer: Tracer.Tracer, system: string, message: Outgoing, started: bigint) => {
  const parent = message.parent?.sampled ? message.parent : sampledSpan(message)
  if (parent === undefined) return undefined
  const links =
    message.parent === undefined ? [] : linksTo(Option.toArray(Option.fromNullable(sampledSpan(message))))
  const name = `publish ${message.destination}`
  const span = tracer.span(name, Option.some(parent), Context.empty(), links, started, "producer")
  return describeMessage(span, messagingAttributes(system, "publish", "send", message.destination), message)
}

/** Ends spans after a call. `failureOf` tells how a message failed although the call succeeded. */
const endSpans =
  <A>(
    spans: ReadonlyArray<Tracer.Span | undefined>,
    failureOf: (result: A, index: number, span: Tracer.Span) => string | undefined,
  ) =>
  (exit: Exit.Exit<A, unknown>) =>
    Effect.map(Clock.currentTimeNanos, (ended) => {
      for (const [index, span] of spans.entries()) {
        if (span === undefined) continue
        const failure = Exit.isSuccess(exit) ? failureOf(exit.value, index, span) : undefined
        span.end(ended, failure === undefined ? Exit.asVoid(exit) : failed(failure))
      }
    })

/**
 * Publishes messages. A sampled message is sent with the context of its own PRODUCER span, which ends when the broker
 * has confirmed the message. Other messages are sent with the context that they have.
 */
export const publishing = <A extends string, E, R>(
  system: string,
  messages: ReadonlyArray<Outgoing>,
  publish: (traces: ReadonlyArray<TraceContext | null>) => Effect.Effect<ReadonlyArray<A>, E, R>,
): Effect.Effect<ReadonlyArray<A>, E, R> => {
  const send = (traces: ReadonlyArray<TraceContext | null>) =>
    Effect.flatMap(Effect.exit(publish(traces)), (exit) => {
      countSent(system, messages, exit)
      return exit
    })
  const plain = send(messages.map(({ trace }) => trace))
  const sampled = messages.some(({ parent }) => parent?.sampled) || anySampled(messages)
  if (!sampled) return plain
  const traced = Effect.gen(function* () {
    const tracer = yield* Effect.tracer
    const started = yield* Clock.currentTimeNanos
    const spans = messages.map((message) => producerSpan(tracer, system, message, started))
    const sending = send(
      messages.map(({ trace }, index) => {
        const span = spans[index]
        return span === undefined ? trace : traceOf(span)
      }),
    )
    const linked = Arr.filterMap(spans, Option.fromNullable)
    const attributes = {
      [attribute.messagingSystem]: system,
      [attribute.messagingOperation]: "publish",
      [attribute.messagingOperationType]: "send",
    }
    const options = { kind: "producer", attributes, count: messages.length } as const
    return yield* Effect.onExit(
      linked.length < 2 ? sending : inLinkedSpan("publish", options, linked)(sending),
      endSpans(spans, (confirmations, index) => {
        const confirmation = confirmations[index] ?? "nacked"
        return confirmation === "confirmed" ? undefined : confirmation
      }),
    )
  })
  return ifTracing(plain, () => traced)
}

/** Runs the effect in the span of a delivery: log lines name its trace. */
export const inMessageSpan =
  (delivery: Traced) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
    const span = spanOf(delivery) ?? externalSpan(delivery.trace)
    return span === undefined ? effect : Effect.withParentSpan(effect, span)
  }

export interface Incoming extends Traced {
  readonly routingKey: string
  readonly retryCount: number
}

export interface MessageOutcome {
  readonly settlement: string
  /** The kind of error that it failed with. */
  readonly error?: string
}

const inProcess = new WeakMap<object, Tracer.Span>()

/** The span in which a delivery is processed. Its retries and dead letters continue the trace there. */
export const spanOf = (delivery: object): Tracer.Span | undefined => inProcess.get(delivery)

/** The CONSUMER span of a delivery: child of the span that published it, and linked to it. */
const consumerSpan = (tracer: Tracer.Tracer, system: string, delivery: Incoming, started: bigint) => {
  const parent = sampledSpan(delivery)
  if (parent === undefined) return undefined
  const destination = `${exchange}:${delivery.routingKey}:${queue}`
  const name = `process ${destination}`
  const span = tracer.span(name, Option.some(parent), Context.empty(), linksTo([parent]), started, "consumer")
  describeMessage(span, messagingAttributes(system, "process", "process", destination), delivery)
  span.attribute(attribute.attempt, delivery.retryCount + 1)
  inProcess.set(delivery, span)
  return span
}

const inSpans = <A, E, R>(
  system: string,
  deliveries: ReadonlyArray<Incoming>,
  outcomeOf: (result: A, index: number) => MessageOutcome,
  process: Effect.Effect<A, E, R>,
): Effect.Effect<A, E, R> =>
  Effect.gen(function* () {
    const tracer = yield* Effect.tracer
    const started = yield* Clock.currentTimeNanos
    const spans = deliveries.map((delivery) => consumerSpan(tracer, system, delivery, started))
    const traces = deliveries.flatMap(({ messageId }, index): ReadonlyArray<BatchTrace> => {
      const span = spans[index]
      return span?.sampled ? [{ messageId, span }] : []
    })
    const inBatch = inBatchSpan(
      `process ${queue}`,
      {
        kind: "consumer",
        attributes: messagingAttributes(system, "process", "process", queue),
        count: deliveries.length,
      },
      traces,
    )
    const inMessage = spans[0] === undefined ? process : Effect.withParentSpan(process, spans[0])
    return yield* Effect.onExit(
      deliveries.length === 1 ? inMessage : inBatch(process),
      endSpans(spans, (result, index, span) => {
        const { error, settlement } = outcomeOf(result, index)
        span.attribute(attribute.settlement, settlement)
        return error
      }),
    )
  })

/**
 * Processes deliveries. Each sampled message has a span `process …` in its own trace, and several deliveries have a
 * batch span. `outcomeOf` tells from the result how a delivery was settled.
 */
export const processing = <A, E, R>(
  system: string,
  deliveries: ReadonlyArray<Incoming>,
  outcomeOf: (result: A, index: number) => MessageOutcome,
  process: Effect.Effect<A, E, R>,
): Effect.Effect<A, E, R> =>
  ifTracing(process, () =>
    anySampled(deliveries) ? inSpans(system, deliveries, outcomeOf, process) : untraced(process),
  )

export const acknowledging =
  (system: string, deliveries: ReadonlyArray<Traced>) =>
  <A, E, R>(acknowledge: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    ifTracing(acknowledge, () =>
      deliveries.length > 0
        ? Effect.withSpan(acknowledge, `ack ${queue}`, {
            kind: "client",
            captureStackTrace: false,
            attributes: {
              ...messagingAttributes(system, "ack", "settle", queue),
              ...(deliveries.length > 1 && { [attribute.messagingBatchCount]: deliveries.length }),
            },
          }).pipe(
            forMessages(
              deliveries.flatMap(({ messageId }) => (messageId === null ? [] : { message_id: messageId })),
            ),
          )
        : acknowledge,
    )
