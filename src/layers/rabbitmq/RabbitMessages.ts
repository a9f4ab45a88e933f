/**
 * Update messages on the wire: one interaction each, or packs, in which every line of the body is one interaction. A
 * pack holds one type of interaction, so that routing keys mean the same; what fails leaves it as a message of its own.
 */
import type { ConsumeMessage, MessageProperties } from "amqplib"
import { Option } from "effect"
import type { EventType } from "../../services/model/Interaction.ts"
import {
  type Confirmation,
  exchange,
  type Message,
  routingKey,
} from "../../services/ports/InteractionQueue.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import type { Outgoing } from "./RabbitPublisher.ts"

const singleContentType = "application/json"
const batchContentType = "application/x-ndjson"
const newline = 0x0a

/** Body and headers of a pack; a client refuses to write headers of 64 KiB. */
const mostBytes = 128 * 1024
const mostTraceBytes = 32 * 1024

export type Headers = Readonly<Record<string, unknown>>

export const text = (value: unknown): string | null => (typeof value === "string" ? value : null)
export const instant = (value: unknown): number | null =>
  typeof value === "number" && Number.isFinite(value) ? value : null

/** One message to publish, and the places of its interactions among those that were handed over. */
export interface MessageBatch {
  readonly outgoing: Outgoing
  readonly indices: ReadonlyArray<number>
}

const traceHeaders = (trace: TraceContext | null) => ({
  ...(trace === null ? {} : { traceparent: trace.traceparent }),
  ...(trace?.tracestate ? { tracestate: trace.tracestate } : {}),
})

/** `traceparent` and, after a blank, `tracestate`; nothing without a trace. */
const toTraceLine = (trace: TraceContext | null): string =>
  trace === null ? "" : trace.tracestate ? `${trace.traceparent} ${trace.tracestate}` : trace.traceparent

const fromTraceLine = (line: string | undefined): TraceContext | null => {
  if (!line) return null
  const blank = line.indexOf(" ")
  return blank < 0
    ? { traceparent: line, tracestate: null }
    : { traceparent: line.slice(0, blank), tracestate: line.slice(blank + 1) }
}

const outgoing = (
  { eventType }: Message,
  now: number,
  body: Uint8Array,
  properties: { readonly contentType: string; readonly messageId?: string; readonly headers: Headers },
): Outgoing => ({
  exchange,
  routingKey: routingKey(eventType),
  body,
  options: {
    ...properties,
    deliveryMode: 2,
    timestamp: Math.floor(now / 1000),
    appId: "user-embeddings",
    type: eventType,
    headers: { ...properties.headers, "x-retry-count": 0, "x-published-at": now },
  },
})

const toSingle = (message: Message, trace: TraceContext | null, now: number): Outgoing =>
  outgoing(message, now, message.body, {
    contentType: singleContentType,
    messageId: message.messageId,
    headers: { ...traceHeaders(trace), "x-recorded-at": message.recordedAt },
  })

const toBatch = (
  first: Message,
  messages: ReadonlyArray<Message>,
  traces: ReadonlyArray<TraceContext | null>,
  now: number,
): Outgoing =>
  outgoing(
    first,
    now,
    Buffer.concat(messages.flatMap(({ body }, index) => (index === 0 ? [body] : [Buffer.of(newline), body]))),
    {
      contentType: batchContentType,
      headers: {
        "x-recorded-at": messages.map(({ recordedAt }) => recordedAt).join("\n"),
        ...(traces.some((trace) => trace !== null) && { "x-traces": traces.map(toTraceLine).join("\n") }),
      },
    },
  )

/**
 * Messages for interactions, at `now` in Unix ms: at most `most` in each. Bytes that hold a line break go by themselves.
 */
export const batchMessages = (
  messages: ReadonlyArray<Message>,
  traces: ReadonlyArray<TraceContext | null>,
  most: number,
  now: number,
): ReadonlyArray<MessageBatch> => {
  interface Open {
    readonly indices: Array<number>
    bytes: number
    traceBytes: number
  }
  const all: Array<Open> = []
  const open = new Map<EventType, Open>()
  for (const [index, { body, eventType }] of messages.entries()) {
    const trace = traces[index]
    const traceBytes = trace ? trace.traceparent.length + (trace.tracestate?.length ?? 0) : 0
    const alone = most === 1 || body.includes(newline)
    let place = alone ? undefined : open.get(eventType)
    if (
      place === undefined ||
      place.indices.length === most ||
      place.bytes + body.length > mostBytes ||
      place.traceBytes + traceBytes > mostTraceBytes
    ) {
      place = { indices: [], bytes: 0, traceBytes: 0 }
      all.push(place)
      if (!alone) open.set(eventType, place)
    }
    place.indices.push(index)
    place.bytes += body.length + 1
    place.traceBytes += traceBytes
  }
  const message = (index: number) => messages[index]!
  const trace = (index: number) => traces[index] ?? null
  return all.map(({ indices }) => {
    const [index = 0] = indices
    return {
      indices,
      outgoing:
        indices.length === 1
          ? toSingle(message(index), trace(index), now)
          : toBatch(message(index), indices.map(message), indices.map(trace), now),
    }
  })
}

/** What the broker answered to each interaction. */
export const answers = (
  packs: ReadonlyArray<MessageBatch>,
  confirmations: ReadonlyArray<Confirmation>,
): ReadonlyArray<Confirmation> => {
  const all: Array<Confirmation> = []
  for (const [place, { indices }] of packs.entries())
    for (const index of indices) all[index] = confirmations[place] ?? "nacked"
  return all
}

/** One interaction of a message. */
export interface BatchEntry {
  readonly body: Uint8Array
  readonly trace: TraceContext | null
  readonly recordedAt: number | null
}

const traceIn = ({ traceparent, tracestate }: Headers): TraceContext | null =>
  typeof traceparent === "string" ? { traceparent, tracestate: text(tracestate) } : null

const isBatch = ({ properties }: Pick<ConsumeMessage, "properties">): boolean =>
  properties.contentType === batchContentType

/** The interactions of a message: at least one, so that whatever came is settled. */
export const entriesOf = (message: ConsumeMessage): ReadonlyArray<BatchEntry> => {
  const { content, properties } = message
  const headers: Headers = properties.headers ?? {}
  if (!isBatch(message))
    return [{ body: content, trace: traceIn(headers), recordedAt: instant(headers["x-recorded-at"]) }]
  const recordedAt = text(headers["x-recorded-at"])?.split("\n") ?? []
  const traces = text(headers["x-traces"])?.split("\n") ?? []
  const lines: Array<BatchEntry> = []
  for (let start = 0; start < content.length || lines.length === 0; ) {
    const place = content.indexOf(newline, start)
    const end = place < 0 ? content.length : place
    const index = lines.length
    lines.push({
      body: content.subarray(start, end),
      trace: fromTraceLine(traces[index]),
      recordedAt: recordedAt[index] ? instant(Number(recordedAt[index])) : null,
    })
    start = end + 1
  }
  return lines
}

const parse = Option.liftThrowable((body: Uint8Array): unknown => JSON.parse(new TextDecoder().decode(body)))

/** The id of an interaction: the property of its message, or what its line says. */
export const messageIdOf = (message: ConsumeMessage, { body }: Pick<BatchEntry, "body">): string | null => {
  if (!isBatch(message)) return text(message.properties.messageId)
  const { message_id }: { message_id?: unknown } = Object(Option.getOrNull(parse(body)))
  return text(message_id)
}

/** The properties of an interaction as a message of its own. */
export const propertiesOf = (message: ConsumeMessage, line: BatchEntry): MessageProperties => {
  const { properties } = message
  if (!isBatch(message)) return properties
  const { "x-recorded-at": _, "x-traces": __, ...headers }: Headers = properties.headers ?? {}
  return {
    ...properties,
    contentType: singleContentType,
    messageId: messageIdOf(message, line) ?? undefined,
    headers: {
      ...headers,
      ...traceHeaders(line.trace),
      ...(line.recordedAt !== null && { "x-recorded-at": line.recordedAt }),
    },
  }
}
