/**
 * The traces of messages that are handled together. A message alone is handled in its own trace. Of a batch there is a
 * span with links to its messages, and each sampled message is told in its own trace what the batch did meanwhile: the
 * tracer repeats the batch's spans there (OpenTelemetry.ts). Unsampled messages cost a glance at their flags, and
 * without an exporter nothing of this runs.
 */
import { Array as Arr, Clock, Context, Effect, Exit, Option, type Tracer } from "effect"
import { exchange, type Message, queue, routingKey } from "./ports/InteractionQueue.ts"
import {
  attribute,
  count,
  externalSpan,
  failed,
  isSampled,
  isTracing,
  sentMessages,
  type TraceContext,
  traceOf,
  untraced,
} from "./Telemetry.ts"

/** A message as these functions see it. */
export interface Traced {
  readonly messageId: string | null
  readonly trace: TraceContext | null
}

/** An interaction of the log as such a message. */
export const traced = ({
  interaction,
  trace,
}: {
  readonly interaction: { readonly message_id: string }
  readonly trace: TraceContext | null
}): Traced => ({ messageId: interaction.message_id, trace })

/** A message in whose trace the batch's spans are repeated, under `span`. */
export interface BatchTrace {
  readonly messageId: string | null
  readonly span: Tracer.AnySpan
}

/** The messages on whose behalf the current effect runs, when they are several. */
export class BatchTraces extends Context.Reference<BatchTraces>()("user-embeddings/Members", {
  defaultValue: (): ReadonlyArray<BatchTrace> => [],
}) {}

/** Runs the effect on behalf of some of the current messages only. */
export const forMessages =
  (messages: ReadonlyArray<{ readonly message_id: string }>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(BatchTraces, (members) => {
      if (members.length === 0) return effect
      const ids = new Set<string | null>(messages.map(({ message_id }) => message_id))
      return Effect.provideService(
        effect,
        BatchTraces,
        members.filter(({ messageId }) => ids.has(messageId)),
      )
    })

/** The SDK keeps no more of them. */
const mostLinks = 128
const linksTo = (spans: ReadonlyArray<Tracer.AnySpan>): ReadonlyArray<Tracer.SpanLink> =>
  spans.slice(0, mostLinks).map((span) => ({ _tag: "SpanLink", span, attributes: {} }))

/** The span that the message came with, if its trace is sampled. */
const sampledSpan = ({ trace }: Traced): Tracer.ExternalSpan | undefined => {
  return trace !== null && isSampled(trace) ? externalSpan(trace) : undefined
}

/** Whether any of them wants to be told of. */
const anySampled = (messages: ReadonlyArray<Traced>): boolean =>
  messages.some(({ trace }) => trace !== null && isSampled(trace))

/** All came from one request, or it is one message. */
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

/** The span of a batch, linked with those of its messages. */
const asBatch =
  (name: string, { attributes, count, kind }: BatchOptions, spans: ReadonlyArray<Tracer.AnySpan>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.withSpan(effect, name, {
      root: true,
      kind,
      captureStackTrace: false,
      links: linksTo(spans),
      attributes: { ...attributes, [attribute.messagingBatchCount]: count },
    })

/** The same, with what the batch does repeated for each member. */
const asBatchOf =
  (name: string, options: BatchOptions, members: ReadonlyArray<BatchTrace>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.provideService(effect, BatchTraces, members).pipe(
      asBatch(
        name,
        options,
        members.map(({ span }) => span),
      ),
    )

/** Runs what is done for messages: in their trace if they share one, else in a span `name` of the batch. */
export const withBatchSpan =
  (name: string, messages: ReadonlyArray<Traced>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(isTracing, (tracing) => {
      if (!tracing) return effect
      if (!anySampled(messages)) return untraced(effect)
      const shared = sharedTrace(messages)
      if (shared !== undefined) {
        const parent = externalSpan(shared)
        return parent === undefined ? effect : Effect.withParentSpan(effect, parent)
      }
      const members = messages.flatMap((message): ReadonlyArray<BatchTrace> => {
        const span = sampledSpan(message)
        return span === undefined ? [] : [{ messageId: message.messageId, span }]
      })
      return asBatchOf(name, { kind: "internal", attributes: {}, count: messages.length }, members)(effect)
    })

/** A message on its way out. */
export interface Outgoing extends Traced {
  /** The span that it is published in, when that isn't the one it came with. */
  readonly parent?: Tracer.AnySpan | undefined
  /** `{exchange}:{routing key}`, or the queue when the exchange is the default one. */
  readonly destination: string
  readonly routingKey: string
}

/** An update message on its way to the exchange. */
export const update = ({ eventType, messageId, trace }: Message): Outgoing => ({
  messageId,
  trace,
  destination: `${exchange}:${routingKey(eventType)}`,
  routingKey: routingKey(eventType),
})

/** Counts what was published, by destination and outcome. */
const countSent = (messages: ReadonlyArray<Outgoing>, exit: Exit.Exit<ReadonlyArray<string>, unknown>) => {
  const byDestination = Map.groupBy(messages.keys(), (index) => messages[index]?.destination ?? "")
  for (const [destination, indices] of byDestination) {
    const outcomes = Map.groupBy(indices, (index) =>
      Exit.isSuccess(exit) ? (exit.value[index] ?? "nacked") : "failed",
    )
    for (const [outcome, { length }] of outcomes) count(sentMessages(destination, outcome), length)
  }
}

/**
 * Publishes messages. Each sampled one goes out with the context of a PRODUCER span of its own, which ends when the
 * broker has confirmed it; the others with the context they have.
 */
export const publishing = <A extends string, E, R>(
  system: string,
  messages: ReadonlyArray<Outgoing>,
  publish: (traces: ReadonlyArray<TraceContext | null>) => Effect.Effect<ReadonlyArray<A>, E, R>,
): Effect.Effect<ReadonlyArray<A>, E, R> =>
  Effect.gen(function* () {
    const send = (traces: ReadonlyArray<TraceContext | null>) =>
      Effect.onExit(publish(traces), (exit) => Effect.sync(() => countSent(messages, exit)))
    const told = messages.some(({ parent }) => parent?.sampled) || anySampled(messages)
    if (!told || !(yield* isTracing)) return yield* send(messages.map(({ trace }) => trace))
    const tracer = yield* Effect.tracer
    const clock = yield* Effect.clock
    const started = clock.unsafeCurrentTimeNanos()
    const spans = messages.map((message): Tracer.Span | undefined => {
      const parent = message.parent?.sampled ? message.parent : sampledSpan(message)
      if (parent === undefined) return undefined
      const span = tracer.span(
        `publish ${message.destination}`,
        Option.some(parent),
        Context.empty(),
        message.parent === undefined
          ? []
          : linksTo(Option.toArray(Option.fromNullable(sampledSpan(message)))),
        started,
        "producer",
      )
      span.attribute(attribute.messagingSystem, system)
      span.attribute(attribute.messagingOperation, "publish")
      span.attribute(attribute.messagingOperationType, "send")
      span.attribute(attribute.messagingDestination, message.destination)
      span.attribute(attribute.messagingRoutingKey, message.routingKey)
      if (message.messageId !== null) span.attribute(attribute.messagingMessageId, message.messageId)
      return span
    })
    const traces = messages.map(({ trace }, index) => {
      const span = spans[index]
      return span === undefined ? trace : traceOf(span)
    })
    const sampled = Arr.filterMap(spans, Option.fromNullable)
    const inSpan =
      sampled.length < 2
        ? send(traces)
        : asBatch(
            "publish",
            { kind: "producer", attributes: { [attribute.messagingSystem]: system }, count: messages.length },
            sampled,
          )(send(traces))
    return yield* Effect.onExit(inSpan, (exit) =>
      Effect.map(Clock.currentTimeNanos, (ended) => {
        for (const [index, span] of spans.entries()) {
          if (span === undefined) continue
          if (Exit.isFailure(exit)) span.end(ended, exit)
          else {
            const outcome = exit.value[index] ?? "nacked"
            span.end(ended, outcome === "confirmed" ? Exit.void : failed(outcome))
          }
        }
      }),
    )
  })

/** Runs what concerns one delivery in its span: its log lines tell the trace. */
export const inMessageSpan =
  (delivery: Traced) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
    const span = spanOf(delivery) ?? externalSpan(delivery.trace)
    return span === undefined ? effect : Effect.withParentSpan(effect, span)
  }

/** A delivery to be processed. */
export interface Incoming extends Traced {
  readonly routingKey: string
  readonly retryCount: number
}

/** What became of a delivery, for its span. */
export interface MessageOutcome {
  readonly settlement: string
  /** The tag of the error that it failed with. */
  readonly error?: string
}

/** The CONSUMER spans of deliveries that are in process. */
const inProcess = new WeakMap<object, Tracer.Span>()

/** The span in which a delivery is processed; copies of it continue that. */
export const spanOf = (delivery: object): Tracer.Span | undefined => inProcess.get(delivery)

/**
 * Processes deliveries: `process …` in the trace of each sampled message, as child of the span that published it and
 * linked to it. `judge` tells from the result how a delivery fared.
 */
export const processing = <A, E, R>(
  system: string,
  deliveries: ReadonlyArray<Incoming>,
  outcomeOf: (result: A, index: number) => MessageOutcome,
  process: Effect.Effect<A, E, R>,
): Effect.Effect<A, E, R> =>
  Effect.gen(function* () {
    if (!(yield* isTracing)) return yield* process
    if (!anySampled(deliveries)) return yield* untraced(process)
    const tracer = yield* Effect.tracer
    const clock = yield* Effect.clock
    const started = clock.unsafeCurrentTimeNanos()
    const spans = deliveries.map((delivery) => {
      const parent = sampledSpan(delivery)
      if (parent === undefined) return undefined
      const name = `${exchange}:${delivery.routingKey}:${queue}`
      const span = tracer.span(
        `process ${name}`,
        Option.some(parent),
        Context.empty(),
        linksTo([parent]),
        started,
        "consumer",
      )
      span.attribute(attribute.messagingSystem, system)
      span.attribute(attribute.messagingOperation, "process")
      span.attribute(attribute.messagingOperationType, "process")
      span.attribute(attribute.messagingDestination, name)
      span.attribute(attribute.messagingRoutingKey, delivery.routingKey)
      if (delivery.messageId !== null) span.attribute(attribute.messagingMessageId, delivery.messageId)
      span.attribute(attribute.attempt, delivery.retryCount + 1)
      inProcess.set(delivery, span)
      return span
    })
    const [only] = spans
    const members = deliveries.flatMap(({ messageId }, index): ReadonlyArray<BatchTrace> => {
      const span = spans[index]
      return span?.sampled ? [{ messageId, span }] : []
    })
    const inSpan =
      deliveries.length === 1
        ? only === undefined
          ? process
          : Effect.withParentSpan(process, only)
        : asBatchOf(
            `process ${queue}`,
            {
              kind: "consumer",
              attributes: {
                [attribute.messagingSystem]: system,
                [attribute.messagingOperation]: "process",
                [attribute.messagingOperationType]: "process",
                [attribute.messagingDestination]: queue,
              },
              count: deliveries.length,
            },
            members,
          )(process)
    return yield* Effect.onExit(inSpan, (exit) =>
      Effect.map(Clock.currentTimeNanos, (ended) => {
        for (const [index, span] of spans.entries()) {
          if (span === undefined) continue
          if (Exit.isFailure(exit)) {
            span.end(ended, exit)
            continue
          }
          const verdict = outcomeOf(exit.value, index)
          span.attribute(attribute.settlement, verdict.settlement)
          span.end(ended, verdict.error === undefined ? Exit.void : failed(verdict.error))
        }
      }),
    )
  })

/** Acknowledges deliveries. */
export const acknowledging =
  (system: string, deliveries: ReadonlyArray<Traced>) =>
  <A, E, R>(acknowledge: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(isTracing, (tracing) =>
      tracing && deliveries.length > 0
        ? Effect.withSpan(acknowledge, `ack ${queue}`, {
            kind: "client",
            captureStackTrace: false,
            attributes: {
              [attribute.messagingSystem]: system,
              [attribute.messagingOperation]: "ack",
              [attribute.messagingOperationType]: "settle",
              [attribute.messagingDestination]: queue,
              ...(deliveries.length > 1 && { [attribute.messagingBatchCount]: deliveries.length }),
            },
          }).pipe(
            forMessages(
              deliveries.flatMap(({ messageId }) => (messageId === null ? [] : { message_id: messageId })),
            ),
          )
        : acknowledge,
    )
