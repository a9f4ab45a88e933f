/**
 * Effect's tracer with little between it and the exporter: an Effect span is what is exported, one that isn't sampled
 * is its ids and no more, and what is done for several messages at once is told in the trace of each by records that
 * share all but their ids. (With the SDK's own spans below Effect's an event cost several times as much.)
 */
import {
  type Attributes,
  type AttributeValue,
  createTraceState,
  type HrTime,
  type Link,
  ROOT_CONTEXT,
  type SpanContext,
  SpanKind,
  type SpanStatus,
  SpanStatusCode,
  TraceFlags,
} from "@opentelemetry/api"
import type { Resource } from "@opentelemetry/resources"
import {
  type ReadableSpan,
  SamplingDecision,
  type SpanProcessor,
  TraceIdRatioBasedSampler,
} from "@opentelemetry/sdk-trace-base"
import { Cause, Context, Exit, Fiber, FiberRef, Option, Tracer } from "effect"
import manifest from "../../../package.json" with { type: "json" }
import { type BatchTrace, BatchTraces } from "../../services/MessageTraces.ts"
import type { TracesSampler } from "../../services/Settings.ts"
import { attribute, errorType, randomHex, TraceState } from "../../services/Telemetry.ts"

/** Whether a trace is recorded that begins here, or has come from elsewhere with such a flag. */
export type Sampler = (traceId: string, remote: boolean | undefined) => boolean

/** As `OTEL_TRACES_SAMPLER` and `_ARG` say. */
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

/** What spans have in common that tell the same. */
interface Told
  extends Pick<
    ReadableSpan,
    "name" | "kind" | "startTime" | "endTime" | "duration" | "status" | "attributes" | "links"
  > {}

/** Where finished spans go, and what they say of this process. */
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
  told: Told,
) =>
  processor.onEnd({
    name: told.name,
    kind: told.kind,
    spanContext: () => own,
    ...(parentSpanContext && { parentSpanContext }),
    startTime: told.startTime,
    endTime: told.endTime,
    duration: told.duration,
    status: told.status,
    attributes: told.attributes,
    links: told.links,
    events: none,
    ended: true,
    resource,
    instrumentationScope: scope,
    ...zero,
  })

const newSpanId = () => randomHex(16)

/** A span as others refer to it. */
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

/** A span below `parent`, which is of the same trace. */
const below = ({ traceId, traceState }: SpanContext): SpanContext => ({
  traceId,
  spanId: newSpanId(),
  traceFlags: TraceFlags.SAMPLED,
  ...(traceState && { traceState }),
})

const linkTo = ({ span }: Tracer.SpanLink): Link => ({ context: contextOf(span) })

/** What a failed span tells: a kind of failure, not its text. */
const failureOf = (exit: Exit.Exit<unknown, unknown>): string | undefined =>
  Exit.isSuccess(exit) || Cause.isInterruptedOnly(exit.cause)
    ? undefined
    : errorType(Cause.squash(exit.cause))

class Span implements Tracer.Span {
  readonly _tag = "Span"
  readonly name: string
  readonly parent: Option.Option<Tracer.AnySpan>
  readonly context: Context.Context<never>
  readonly kind: Tracer.SpanKind
  readonly own: SpanContext
  readonly members: ReadonlyArray<BatchTrace>
  links: ReadonlyArray<Tracer.SpanLink>
  status: Tracer.SpanStatus
  private readonly destination: Destination
  private readonly told: Attributes = {}

  constructor(
    destination: Destination,
    [name, parent, context, links, startTime, kind]: Parameters<Tracer.Tracer["span"]>,
    own: SpanContext,
    members: ReadonlyArray<BatchTrace>,
  ) {
    this.destination = destination
    this.name = name
    this.parent = parent
    this.context = context
    this.links = links
    this.kind = kind
    this.own = own
    this.members = members
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
    return new Map(Object.entries(this.told))
  }

  attribute(key: string, value: unknown) {
    if (this.sampled) this.told[key] = valueOf(value)
  }

  addLinks(links: ReadonlyArray<Tracer.SpanLink>) {
    if (this.sampled) this.links = this.links.concat(links)
  }

  /** Log lines would be events, with the texts in them: they go to the log, and name the trace there. */
  event() {}

  end(endTime: bigint, exit: Exit.Exit<unknown, unknown>) {
    const { startTime } = this.status
    this.status = { _tag: "Ended", startTime, endTime, exit }
    if (!this.sampled) return
    const failure = failureOf(exit)
    if (failure !== undefined) this.told[attribute.errorType] = failure
    const told: Told = {
      name: this.name,
      kind: kinds[this.kind],
      startTime: hrTime(startTime),
      endTime: hrTime(endTime),
      duration: hrTime(endTime - startTime),
      status: failure === undefined ? unset : { code: SpanStatusCode.ERROR, message: failure },
      attributes: this.told,
      links: this.links.length === 0 ? none : this.links.map(linkTo),
    }
    const parent = Option.isSome(this.parent) ? contextOf(this.parent.value) : undefined
    finish(this.destination, this.own, parent, told)
    if (this.members.length === 0) return
    const repeated = { ...told, links: [{ context: this.own }] }
    for (const { span } of this.members) {
      if (!span.sampled) continue
      const member = contextOf(span)
      finish(this.destination, below(member), member, repeated)
    }
  }
}

/** The messages on whose behalf the current fiber runs. */
const currentMembers = (): ReadonlyArray<BatchTrace> => {
  const fiber = Option.getOrUndefined(Fiber.getCurrentFiber())
  return fiber === undefined ? none : Context.get(fiber.getFiberRef(FiberRef.currentContext), BatchTraces)
}

export const make = (destination: Destination, sampler: Sampler): Tracer.Tracer => {
  /** A trace is decided upon once in a process; a batch is recorded for any of its messages. */
  const isSampled = (
    traceId: string,
    parent: Tracer.AnySpan | undefined,
    links: ReadonlyArray<Tracer.SpanLink>,
  ) => {
    if (parent?._tag === "Span") return parent.sampled
    if (parent === undefined && links.length > 0) return links.some(({ span }) => span.sampled)
    return sampler(traceId, parent?.sampled)
  }
  return Tracer.make({
    span: (...asked) => {
      const [, parent, , links, , kind] = asked
      const above = Option.isSome(parent) ? contextOf(parent.value) : undefined
      const traceId = above?.traceId ?? randomHex(32)
      const sampled = isSampled(traceId, Option.getOrUndefined(parent), links)
      const own: SpanContext = {
        traceId,
        spanId: newSpanId(),
        traceFlags: sampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
        ...(above?.traceState && { traceState: above.traceState }),
      }
      const members = !sampled || kind === "producer" || kind === "consumer" ? none : currentMembers()
      return new Span(destination, asked, own, members)
    },
    context: (execution) => execution(),
  })
}
