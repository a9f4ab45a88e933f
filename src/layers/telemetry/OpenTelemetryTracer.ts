/**
 * A tracer for Effect that exports Effect's spans directly, because spans of the SDK below them cost several
 * times as much. A span that is not sampled has ids and nothing else. The span of a batch is exported once
 * more to the trace of each of its messages; these copies share everything but their ids.
 */
import type { Attributes, AttributeValue, HrTime, Link, SpanContext, SpanStatus } from "@opentelemetry/api"
import { createTraceState, ROOT_CONTEXT, SpanKind, SpanStatusCode, TraceFlags } from "@opentelemetry/api"
import type { Resource } from "@opentelemetry/resources"
import type { ReadableSpan, SpanProcessor } from "@opentelemetry/sdk-trace-base"
import { SamplingDecision, TraceIdRatioBasedSampler } from "@opentelemetry/sdk-trace-base"
import { Cause, Context, Exit, Fiber, FiberRef, Option, Tracer } from "effect"
import manifest from "../../../package.json" with { type: "json" }
import { type BatchTrace, BatchTraces } from "../../services/MessageTraces.ts"
import type { TracesSampler } from "../../services/Settings.ts"
import { attribute, errorType, randomHex, TraceState } from "../../services/Telemetry.ts"

/** Whether a trace is sampled. `remote`: the flag of another process; `undefined`: the trace begins here. */
export type Sampler = (traceId: string, remote: boolean | undefined) => boolean

/** The sampler of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. */
export const samplerOf = (name: TracesSampler, share: number): Sampler => {
  const ratio = new TraceIdRatioBasedSampler(share)
  const begins = (traceId: string): boolean =>
    name.endsWith("always_on") ||
    (name.endsWith("traceidratio") &&
      ratio.shouldSample(ROOT_CONTEXT, traceId).decision === SamplingDecision.RECORD_AND_SAMPLED)
  return name.startsWith("parentbased_")
    ? (traceId, remote) => remote ?? begins(traceId)
    : (traceId) => begins(traceId)
}

const kinds: Readonly<Record<Tracer.SpanKind, SpanKind>> = {
  internal: SpanKind.INTERNAL,
  server: SpanKind.SERVER,
  client: SpanKind.CLIENT,
  producer: SpanKind.PRODUCER,
  consumer: SpanKind.CONSUMER,
}
const scope = { name: manifest.name, version: manifest.version }

const hrTime = (nanos: bigint): HrTime => [Number(nanos / 1_000_000_000n), Number(nanos % 1_000_000_000n)]

const valueOf = (value: unknown): AttributeValue =>
  typeof value === "string" || typeof value === "number" || typeof value === "boolean" ? value : String(value)

/** The fields that the span of a batch shares with its copies. */
type SpanFields = Pick<
  ReadableSpan,
  "name" | "kind" | "startTime" | "endTime" | "duration" | "status" | "attributes" | "links"
>

/** Receives ended spans; `resource` describes this process. */
export interface Destination {
  readonly resource: Resource
  readonly processor: Pick<SpanProcessor, "onEnd">
}

const none: [] = []
const zero = { droppedAttributesCount: 0, droppedEventsCount: 0, droppedLinksCount: 0 }
const unset: SpanStatus = { code: SpanStatusCode.UNSET }

const finish = (
  { processor, resource }: Destination,
  own: SpanContext,
  parentSpanContext: SpanContext | undefined,
  fields: SpanFields,
) =>
  processor.onEnd({
    ...fields,
    spanContext: () => own,
    ...(parentSpanContext && { parentSpanContext }),
    events: none,
    ended: true,
    resource,
    instrumentationScope: scope,
    ...zero,
  })

/** How other spans refer to this one. */
const contextOf = (span: Tracer.AnySpan): SpanContext => {
  if (span instanceof Span) return span.own
  const state = Context.getOption(span.context, TraceState)
  const traceState = Option.isSome(state) ? createTraceState(state.value) : undefined
  return {
    traceId: span.traceId,
    spanId: span.spanId,
    traceFlags: span.sampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
    isRemote: true,
    ...(traceState && { traceState }),
  }
}

const childOf = ({ traceId, traceState }: SpanContext): SpanContext => ({
  traceId,
  spanId: randomHex(16),
  traceFlags: TraceFlags.SAMPLED,
  ...(traceState && { traceState }),
})

const linkTo = ({ span }: Tracer.SpanLink): Link => ({ context: contextOf(span) })

/** The type of a failure. Its text is not exported. */
const failureOf = (exit: Exit.Exit<unknown, unknown>): string | undefined =>
  Exit.isSuccess(exit) || Cause.isInterruptedOnly(exit.cause)
    ? undefined
    : errorType(Cause.squash(exit.cause))

class Span implements Tracer.Span {
  readonly _tag = "Span"
  status: Tracer.SpanStatus
  private readonly ownAttributes: Attributes = {}

  constructor(
    private readonly destination: Destination,
    readonly own: SpanContext,
    readonly members: ReadonlyArray<BatchTrace>,
    readonly name: string,
    readonly parent: Option.Option<Tracer.AnySpan>,
    readonly context: Context.Context<never>,
    public links: ReadonlyArray<Tracer.SpanLink>,
    startTime: bigint,
    readonly kind: Tracer.SpanKind,
  ) {
    this.status = { _tag: "Started", startTime }
  }

  get traceId() {
    return this.own.traceId
  }
  get spanId() {
    return this.own.spanId
  }
  get sampled() {
    return this.own.traceFlags === TraceFlags.SAMPLED
  }
  get attributes(): ReadonlyMap<string, unknown> {
    return new Map(Object.entries(this.ownAttributes))
  }

  attribute(key: string, value: unknown) {
    if (this.sampled) this.ownAttributes[key] = valueOf(value)
  }

  addLinks(links: ReadonlyArray<Tracer.SpanLink>) {
    if (this.sampled) this.links = this.links.concat(links)
  }

  /** Log lines would be events. They are not exported, because they contain texts of users. */
  event() {}

  end(endTime: bigint, exit: Exit.Exit<unknown, unknown>) {
    const { startTime } = this.status
    this.status = { _tag: "Ended", startTime, endTime, exit }
    if (!this.sampled) return
    const failure = failureOf(exit)
    if (failure !== undefined) this.ownAttributes[attribute.errorType] = failure
    const fields: SpanFields = {
      name: this.name,
      kind: kinds[this.kind],
      startTime: hrTime(startTime),
      endTime: hrTime(endTime),
      duration: hrTime(endTime - startTime),
      status: failure === undefined ? unset : { code: SpanStatusCode.ERROR, message: failure },
      attributes: this.ownAttributes,
      links: this.links.length === 0 ? none : this.links.map(linkTo),
    }
    const parent = Option.isSome(this.parent) ? contextOf(this.parent.value) : undefined
    finish(this.destination, this.own, parent, fields)
    if (this.members.length === 0) return
    const repeated = { ...fields, links: [{ context: this.own }] }
    for (const { span } of this.members) {
      if (!span.sampled) continue
      const member = contextOf(span)
      finish(this.destination, childOf(member), member, repeated)
    }
  }
}

/** The messages that the current fiber processes. */
const currentMembers = (): ReadonlyArray<BatchTrace> => {
  const fiber = Option.getOrUndefined(Fiber.getCurrentFiber())
  return fiber === undefined ? none : Context.get(fiber.getFiberRef(FiberRef.currentContext), BatchTraces)
}

export const make = (destination: Destination, sampler: Sampler): Tracer.Tracer => {
  /** A process decides once for each trace. A batch is sampled if one of its messages is. */
  const isSampled = (
    traceId: string,
    parent?: Tracer.AnySpan,
    links: ReadonlyArray<Tracer.SpanLink> = [],
  ) => {
    if (parent?._tag === "Span") return parent.sampled
    if (parent === undefined && links.length > 0) return links.some(({ span }) => span.sampled)
    return sampler(traceId, parent?.sampled)
  }
  return Tracer.make({
    span: (name, parent, context, links, startTime, kind) => {
      const parentContext = Option.isSome(parent) ? contextOf(parent.value) : undefined
      const traceId = parentContext?.traceId ?? randomHex(32)
      const sampled = isSampled(traceId, Option.getOrUndefined(parent), links)
      const own: SpanContext = {
        traceId,
        spanId: randomHex(16),
        traceFlags: sampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
        ...(parentContext?.traceState && { traceState: parentContext.traceState }),
      }
      const members = !sampled || kind === "producer" || kind === "consumer" ? none : currentMembers()
      return new Span(destination, own, members, name, parent, context, links, startTime, kind)
    },
    context: (execution) => execution(),
  })
}
