/**
 * Update messages on the wire. A message holds one interaction, or a batch with one interaction per line of the body.
 * All interactions of a batch have the same type, so its routing key is right for each. An interaction that is not
 * acknowledged is republished as a message of its own.
 */
import type { ConsumeMessage, MessageProperties } from "amqplib"
import { Option } from "effect"
import type { Confirmation, Message } from "../../services/ports/InteractionQueue.ts"
import { exchange, routingKey } from "../../services/ports/InteractionQueue.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import type { Outgoing } from "./RabbitPublisher.ts"

const singleContentType = "application/json"
const batchContentType = "application/x-ndjson"
const newline = 0x0a

/**
 * The header by which messages are spread over partitions. Single messages have the user's id. A batch holds users of one
 * group, and with batches every message has the name of its user's group, so that a user stays in one partition.
 */
const userHeader = "user-id"
const userGroups = 64
const userGroup = (userId: string): string => `group-${Bun.hash.crc32(userId) % userGroups}`
/** The value of that header; `undefined` without partitions. */
type Spread = ((message: Message) => string | undefined) | undefined
export const spreadOf = (partitions: number, eventsPerMessage: number): Spread => {
  if (partitions === 1) return undefined
  return ({ userId = "" }) => (eventsPerMessage === 1 ? userId : userGroup(userId))
}
const spreadHeader = (value: string | undefined) => (value === undefined ? {} : { [userHeader]: value })

/** Limits of a message batch. amqplib refuses to write headers of 64 KiB. */
const mostBytes = 128 * 1024
const mostTraceBytes = 32 * 1024

export type Headers = Readonly<Record<string, unknown>>

export const text = (value: unknown): string | null => (typeof value === "string" ? value : null)
export const instant = (value: unknown): number | null =>
  typeof value === "number" && Number.isFinite(value) ? value : null

/** A message to publish, and the indices of its interactions in the list that was batched. */
export interface MessageBatch {
  readonly outgoing: Outgoing
  readonly indices: ReadonlyArray<number>
}

const traceHeaders = (trace: TraceContext | null) => ({
  ...(trace === null ? {} : { traceparent: trace.traceparent }),
  ...(trace?.tracestate ? { tracestate: trace.tracestate } : {}),
})

/** `traceparent`, a space, `tracestate`. Empty without a trace. */
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

const toSingle = (
  message: Message,
  user: string | undefined,
  trace: TraceContext | null,
  now: number,
): Outgoing =>
  outgoing(message, now, message.body, {
    contentType: singleContentType,
    messageId: message.messageId,
    headers: {
      ...traceHeaders(trace),
      "x-recorded-at": message.recordedAt,
      ...spreadHeader(user),
      ...(message.logId !== undefined && { "x-log-id": message.logId }),
    },
  })

const toBatch = (
  first: Message,
  messages: ReadonlyArray<Message>,
  user: string | undefined,
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
        "x-log-id": messages.map(({ logId }) => logId ?? "").join("\n"),
        ...(traces.some((trace) => trace !== null) && { "x-traces": traces.map(toTraceLine).join("\n") }),
        ...spreadHeader(user),
      },
    },
  )

/**
 * Messages of at most `most` interactions each, published at `now` (Unix ms). A body that contains a line break is never
 * batched.
 */
export const batchMessages = (
  messages: ReadonlyArray<Message>,
  traces: ReadonlyArray<TraceContext | null>,
  most: number,
  now: number,
  spread?: Spread,
): ReadonlyArray<MessageBatch> => {
  interface Batch {
    readonly indices: Array<number>
    bytes: number
    traceBytes: number
  }
  const batches: Array<Batch> = []
  const open = new Map<string, Batch>()
  for (const [index, one] of messages.entries()) {
    const { body, eventType } = one
    const key = spread === undefined ? eventType : `${eventType} ${spread(one)}`
    const trace = traces[index]
    const traceBytes = trace ? trace.traceparent.length + (trace.tracestate?.length ?? 0) : 0
    const alone = most === 1 || body.includes(newline)
    let batch = alone ? undefined : open.get(key)
    if (
      batch === undefined ||
      batch.indices.length === most ||
      batch.bytes + body.length > mostBytes ||
      batch.traceBytes + traceBytes > mostTraceBytes
    ) {
      batch = { indices: [], bytes: 0, traceBytes: 0 }
      batches.push(batch)
      if (!alone) open.set(key, batch)
    }
    batch.indices.push(index)
    batch.bytes += body.length + 1
    batch.traceBytes += traceBytes
  }
  const message = (index: number) => messages[index]!
  const trace = (index: number) => traces[index] ?? null
  return batches.map(({ indices }) => {
    const [index = 0] = indices
    const user = spread?.(message(index))
    return {
      indices,
      outgoing:
        indices.length === 1
          ? toSingle(message(index), user, trace(index), now)
          : toBatch(message(index), indices.map(message), user, indices.map(trace), now),
    }
  })
}

export const confirmationsOf = (
  batches: ReadonlyArray<MessageBatch>,
  confirmations: ReadonlyArray<Confirmation>,
): ReadonlyArray<Confirmation> => {
  const all: Array<Confirmation> = []
  for (const [batch, { indices }] of batches.entries())
    for (const index of indices) all[index] = confirmations[batch] ?? "nacked"
  return all
}

export interface BatchEntry {
  readonly body: Uint8Array
  readonly trace: TraceContext | null
  readonly logId: number | null
  readonly recordedAt: number | null
}

const traceIn = ({ traceparent, tracestate }: Headers): TraceContext | null =>
  typeof traceparent === "string" ? { traceparent, tracestate: text(tracestate) } : null

const isBatch = ({ properties }: Pick<ConsumeMessage, "properties">): boolean =>
  properties.contentType === batchContentType

/** The interactions of a message: at least one, so that an empty batch is settled too. */
export const entriesOf = (message: ConsumeMessage): ReadonlyArray<BatchEntry> => {
  const { content, properties } = message
  const headers: Headers = properties.headers ?? {}
  if (!isBatch(message))
    return [
      {
        body: content,
        trace: traceIn(headers),
        logId: instant(headers["x-log-id"]),
        recordedAt: instant(headers["x-recorded-at"]),
      },
    ]
  const logIds = text(headers["x-log-id"])?.split("\n") ?? []
  const recordedAt = text(headers["x-recorded-at"])?.split("\n") ?? []
  const traces = text(headers["x-traces"])?.split("\n") ?? []
  const entries: Array<BatchEntry> = []
  for (let start = 0; start < content.length || entries.length === 0; ) {
    const found = content.indexOf(newline, start)
    const end = found < 0 ? content.length : found
    const index = entries.length
    entries.push({
      body: content.subarray(start, end),
      trace: fromTraceLine(traces[index]),
      logId: logIds[index] ? instant(Number(logIds[index])) : null,
      recordedAt: recordedAt[index] ? instant(Number(recordedAt[index])) : null,
    })
    start = end + 1
  }
  return entries
}

const parse = Option.liftThrowable((body: Uint8Array): unknown => JSON.parse(new TextDecoder().decode(body)))

/** The id of an interaction: a property of a single message, or a field of the body in a batch. */
export const messageIdOf = (message: ConsumeMessage, { body }: Pick<BatchEntry, "body">): string | null => {
  if (!isBatch(message)) return text(message.properties.messageId)
  const { message_id }: { message_id?: unknown } = Object(Option.getOrNull(parse(body)))
  return text(message_id)
}

/** The properties of an interaction as a message of its own. */
export const propertiesOf = (message: ConsumeMessage, entry: BatchEntry): MessageProperties => {
  const { properties } = message
  if (!isBatch(message)) return properties
  const {
    "x-recorded-at": _,
    "x-log-id": __,
    "x-traces": ___,
    ...headers
  }: Headers = properties.headers ?? {}
  return {
    ...properties,
    contentType: singleContentType,
    messageId: messageIdOf(message, entry) ?? undefined,
    headers: {
      ...headers,
      ...traceHeaders(entry.trace),
      ...(entry.logId !== null && { "x-log-id": entry.logId }),
      ...(entry.recordedAt !== null && { "x-recorded-at": entry.recordedAt }),
    },
  }
}
