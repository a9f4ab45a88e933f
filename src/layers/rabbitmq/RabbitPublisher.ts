/**
 * Publishing with publisher confirms. All fibers share one channel and its window of messages in flight. Messages are
 * `mandatory` unless their options say otherwise: a message that matches no queue is returned before it is confirmed.
 */
import type { ChannelModel, ConfirmChannel, Message, Options } from "amqplib"
import { Duration, Effect, type Tracer } from "effect"
import * as MessageTraces from "../../services/MessageTraces.ts"
import type { Confirmation } from "../../services/ports/InteractionQueue.ts"
import { within } from "../Deadline.ts"
import { confirmChannel, failed, type Lost, Rabbit, RabbitError } from "./Rabbit.ts"
import { text } from "./RabbitMessages.ts"

export interface Outgoing {
  readonly exchange: string
  readonly routingKey: string
  readonly body: Uint8Array
  readonly options: Options.Publish
}

export interface Publisher {
  /**
   * Confirmations in the order of the messages. A message without an answer is `nacked`, because it was late or the
   * channel was lost; the broker may have stored it. Fails when no message was answered.
   */
  readonly publish: (
    messages: ReadonlyArray<Outgoing>,
  ) => Effect.Effect<ReadonlyArray<Confirmation>, RabbitError>
}

/** Messages in flight. A larger window is no faster (measured: 5,000 has 0.9 times the rate of 1,000). */
const windowSize = 1_000
const confirmDeadline = Duration.seconds(10)

/** Messages of one call. */
interface Batch {
  readonly messages: ReadonlyArray<Outgoing>
  readonly confirmations: Array<Confirmation>
  next: number
  /** Messages that are neither answered nor given up. */
  left: number
  answered: number
  done: () => void
}

interface Sent {
  readonly batch: Batch
  readonly index: number
  readonly message: Outgoing
  returned: boolean
}

const toBuffer = (body: Uint8Array): Buffer => Buffer.from(body.buffer, body.byteOffset, body.byteLength)

/** The window of one channel. It is synchronous, because an effect per message would be slow. */
class ConfirmWindow {
  /** Why nothing can be published now: the broker blocks the connection, or the channel is closed. */
  refusal: unknown
  /** In the order of publishing. */
  private readonly inFlight = new Set<Sent>()
  private readonly waiting: Array<Batch> = []
  private full = false
  /** The broker has refused a message. */
  private nacked = false

  constructor(
    connection: ChannelModel,
    private readonly channel: ConfirmChannel,
    private readonly lost: Lost,
  ) {
    connection.on("blocked", (reason) => this.refuse(new Error(`blocked by the broker: ${reason}`)))
    connection.on("unblocked", () => {
      this.refusal = undefined
    })
    channel.on("error", (cause) => this.refuse(cause))
    // Before the listener of amqplib, which calls back for every message in flight.
    channel.prependListener("close", () => this.refuse(this.refusal ?? new Error("the connection was lost")))
    channel.on("return", (message: Message) => this.onReturn(message))
    channel.on("drain", () => {
      this.full = false
      this.flush()
    })
  }

  add(batch: Batch): void {
    this.waiting.push(batch)
    this.flush()
  }

  /** The rest of the batch is not sent. */
  withdraw(batch: Batch): void {
    const index = this.waiting.indexOf(batch)
    if (index >= 0) this.waiting.splice(index, 1)
  }

  private flush(): void {
    while (!this.full && this.inFlight.size < windowSize) {
      const [batch] = this.waiting
      if (batch === undefined) return
      this.send(batch, batch.next++)
      if (batch.next === batch.messages.length) this.withdraw(batch)
    }
  }

  private send(batch: Batch, index: number): void {
    const message = batch.messages[index]
    if (message === undefined) return
    const sent: Sent = { batch, index, message, returned: false }
    const { body, exchange, options, routingKey } = message
    const onConfirm = (error: unknown) => this.onConfirm(sent, error)
    try {
      this.full = !this.channel.publish(
        exchange,
        routingKey,
        toBuffer(body),
        { mandatory: true, ...options },
        onConfirm,
      )
      this.inFlight.add(sent)
    } catch {
      // amqplib cannot encode the message, for example its headers of 64 KiB: as if the broker had refused it.
      batch.answered += 1
      this.finish(batch)
    }
  }

  private onConfirm(sent: Sent, error: unknown): void {
    this.inFlight.delete(sent)
    const { batch, index, returned } = sent
    if (!error) batch.confirmations[index] = returned ? "returned" : "confirmed"
    else if (this.refusal === undefined) this.nacked = true
    if (this.refusal === undefined || !error) batch.answered += 1
    this.finish(batch)
    this.flush()
    // A channel that met a full quorum queue refuses for good, even when there is room again. A new channel does not.
    if (this.nacked && this.inFlight.size === 0) this.lost(new Error("the broker refuses messages"))
  }

  /** A returned message has no delivery tag, so it is found by its content. Which of two equal ones does not matter. */
  private onReturn({ content, fields, properties }: Message): void {
    for (const sent of this.inFlight) {
      const { body, exchange, options, routingKey } = sent.message
      if (sent.returned || options.messageId !== properties.messageId) continue
      if (exchange !== fields.exchange || routingKey !== fields.routingKey || !content.equals(body)) continue
      sent.returned = true
      return
    }
  }

  /** Callers need not wait for a timeout: nobody knows when messages in flight are confirmed. */
  private refuse(cause: unknown): void {
    this.refusal = cause
    for (const batch of this.waiting.splice(0)) batch.done()
    for (const { batch } of this.inFlight) batch.done()
  }

  private finish(batch: Batch): void {
    batch.left -= 1
    if (batch.left === 0) batch.done()
  }
}

const publishOn = (window: ConfirmWindow, messages: ReadonlyArray<Outgoing>) =>
  Effect.suspend(() => {
    if (window.refusal !== undefined) return Effect.fail(failed("publish")(window.refusal))
    const confirmations = messages.map((): Confirmation => "nacked")
    const left = messages.length
    const batch: Batch = { messages, confirmations, next: 0, left, answered: 0, done: () => {} }
    const published = within<void, RabbitError>(
      confirmDeadline,
      () => {
        const cause = new Error(`not confirmed within ${Duration.format(confirmDeadline)}`)
        return new RabbitError({ reason: "timeout", operation: "publish", cause })
      },
      (resume) => {
        const refused = () =>
          failed("publish")(window.refusal ?? new Error("the broker refused all messages"))
        batch.done = () => resume(batch.answered > 0 ? Effect.void : Effect.fail(refused()))
        window.add(batch)
      },
      () => window.withdraw(batch),
    )
    // A copy: a late confirmation must not change the answer.
    return Effect.matchEffect(published, {
      onSuccess: () => Effect.succeed(confirmations.slice()),
      onFailure: (error) => (batch.answered > 0 ? Effect.succeed(confirmations.slice()) : Effect.fail(error)),
    })
  })

/** A publisher with a session of its own. Each session begins with `prepare`. */
export const make = Effect.fnUntraced(function* (
  name: string,
  prepare: (connection: ChannelModel) => Effect.Effect<unknown, RabbitError>,
) {
  const rabbit = yield* Rabbit
  const session = yield* rabbit.supervise(name, (connection, lost) =>
    Effect.gen(function* () {
      yield* prepare(connection)
      return new ConfirmWindow(connection, yield* confirmChannel(connection, lost), lost)
    }),
  )
  return {
    publish: (messages) =>
      messages.length === 0
        ? Effect.succeed([])
        : Effect.flatMap(session.current, (window) => publishOn(window, messages)),
  } satisfies Publisher
})

export const system = "rabbitmq"

/** Publishes messages, each in the trace of its headers, as children of `parents`. */
export const publishTraced = (
  publisher: Publisher,
  messages: ReadonlyArray<Outgoing>,
  parents: ReadonlyArray<Tracer.AnySpan | undefined> = [],
) =>
  MessageTraces.publishing(
    system,
    messages.map(({ exchange, options, routingKey }, index) => {
      const traceparent = text(options.headers?.traceparent)
      return {
        messageId: text(options.messageId),
        trace: traceparent === null ? null : { traceparent, tracestate: text(options.headers?.tracestate) },
        parent: parents[index],
        destination: exchange === "" ? routingKey : `${exchange}:${routingKey}`,
        routingKey,
      }
    }),
    (traces) =>
      publisher.publish(
        messages.map((message, index) => {
          const trace = traces[index] ?? null
          if (trace === null) return message
          const headers = { ...message.options.headers, traceparent: trace.traceparent }
          return { ...message, options: { ...message.options, headers } }
        }),
      ),
  )

/** Headers that the broker sets or acts upon. */
const brokerHeaders = /^(x-death|x-first-death-.*|x-last-death-.*|x-delivery-count|x-acquired-count|CC|BCC)$/
/** Limit of the headers in bytes: amqplib refuses to write 64 KiB. */
const mostHeaderBytes = 48 * 1024

/**
 * Properties for republishing a message, with changed headers; `undefined` removes a header. Properties and headers that
 * the broker would act upon again are left out (expiration, user id, reply-to, CC), and so are headers that do not fit.
 */
export const republished = (
  { properties }: Pick<Message, "properties">,
  changes: Readonly<Record<string, string | number | undefined>>,
): Options.Publish => {
  const headers: Record<string, unknown> = {}
  let bytes = 0
  for (const [name, value] of Object.entries({ ...changes, ...properties.headers, ...changes })) {
    if (value === undefined || brokerHeaders.test(name)) continue
    const size = Buffer.byteLength(name) + Buffer.byteLength(JSON.stringify(value))
    if (bytes + size > mostHeaderBytes) continue
    bytes += size
    headers[name] = value
  }
  const { appId, contentEncoding, contentType, correlationId, messageId, priority, timestamp, type } =
    properties
  return {
    appId,
    contentEncoding,
    contentType,
    correlationId,
    messageId,
    priority,
    timestamp,
    type,
    deliveryMode: 2,
    headers,
  }
}
