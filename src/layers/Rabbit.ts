/**
 * Connections to RabbitMQ. Each opens with its first use and again after it was lost; nothing fails because the
 * broker is down but the calls made meanwhile. Publishing and consuming have connections of their own, since a
 * broker that runs out of memory freezes those that publish.
 */
import amqp, { type ChannelModel, type ConfirmChannel, type Message, type Options } from "amqplib"
import { ConfigError, Context, Duration, Effect, Layer, Option, Redacted, Schema } from "effect"
import type { Confirmation } from "../services/InteractionQueue.ts"
import * as Settings from "../services/Settings.ts"

export class RabbitError extends Schema.TaggedError<RabbitError>()("RabbitError", {
  reason: Schema.Literal("unavailable", "timeout", "not_set_up", "rejected"),
  operation: Schema.String,
  cause: Schema.Defect,
}) {}

/** A message to be sent with confirmation. */
export interface Outgoing {
  readonly exchange: string
  readonly routingKey: string
  readonly body: Uint8Array
  readonly options: Options.Publish
}

/** A connection and the channel on it that confirms; both end together. */
export interface Session {
  readonly connection: ChannelModel
  readonly channel: ConfirmChannel
  readonly version: string
}

/** One supervised connection. */
export interface Link {
  /** The open session, or a new one. */
  readonly session: Effect.Effect<Session, RabbitError>
  /** Sends in order and answers in order, once each is confirmed, returned or refused. */
  readonly send: (
    messages: ReadonlyArray<Outgoing>,
  ) => Effect.Effect<ReadonlyArray<Confirmation>, RabbitError>
}

export class Rabbit extends Context.Tag("user-embeddings/Rabbit")<
  Rabbit,
  {
    readonly publishing: Link
    /** Copies on their way to the ladder or to `failed`: apart, so that returns are told apart too. */
    readonly parking: Link
    readonly consuming: Link
  }
>() {}

const connectDeadline = Duration.seconds(5)
/** How long the broker may take to confirm; then the outcome is open and the message may be sent again. */
const confirmDeadline = Duration.seconds(10)
const heartbeatSeconds = 10

/** A failed call, without the DSN: amqplib's messages carry host and port only. */
export const failure = (operation: string) => (cause: unknown) => {
  const code = typeof cause === "object" && cause !== null && "code" in cause ? cause.code : undefined
  const reason = code === 404 ? "not_set_up" : typeof code === "number" ? "rejected" : "unavailable"
  return new RabbitError({ reason, operation, cause })
}

/** A promise of the driver with a deadline. */
export const call = <A>(operation: string, run: () => Promise<A>, within = connectDeadline) =>
  // Interruptible also in finalizers: there a deadline could not end the wait otherwise.
  Effect.interruptible(Effect.tryPromise({ try: run, catch: failure(operation) })).pipe(
    Effect.timeoutFail({
      duration: within,
      onTimeout: () =>
        new RabbitError({ reason: "timeout", operation, cause: new Error("no answer in time") }),
    }),
  )

/** A channel of its own, closed with the scope; a failure on it harms no other. */
export const openChannel = ({ connection }: Session) =>
  Effect.acquireRelease(
    Effect.tap(
      call("open channel", () => connection.createChannel()),
      (channel) => Effect.sync(() => channel.on("error", () => {})),
    ),
    (channel) => Effect.ignore(call("close channel", () => channel.close())),
  )

const versionOf = (connection: ChannelModel): string => {
  const { serverProperties } = connection.connection
  return String(serverProperties?.version ?? "")
}

const makeLink = (dsn: Redacted.Redacted, name: string) =>
  Effect.gen(function* () {
    const opening = yield* Effect.makeSemaphore(1)
    let open: Session | undefined
    let blocked: string | undefined
    /** Message ids that the broker has returned; it does so before it confirms them. */
    const returned = new Set<string>()

    const connect = call(`connect ${name}`, async () => {
      const connection = await amqp.connect(`${Redacted.value(dsn)}${heartbeat(dsn)}`, {
        noDelay: true,
        timeout: Duration.toMillis(connectDeadline),
        clientProperties: { connection_name: `user-embeddings ${name}` },
      })
      const channel = await connection.createConfirmChannel()
      const session: Session = { connection, channel, version: versionOf(connection) }
      const lost = () => {
        if (open === session) open = undefined
        blocked = undefined
      }
      // Errors are followed by close; without a listener they would end the process.
      connection.on("error", () => {})
      channel.on("error", () => {})
      connection.on("close", lost)
      channel.on("close", () => {
        lost()
        connection.close().catch(() => {})
      })
      connection.on("blocked", (reason: unknown) => {
        blocked = String(reason)
      })
      connection.on("unblocked", () => {
        blocked = undefined
      })
      channel.on("return", (message: Message) => returned.add(String(message.properties.messageId)))
      open = session
      return session
    })

    const session = Effect.suspend(() =>
      open
        ? Effect.succeed(open)
        : opening.withPermits(1)(Effect.suspend(() => (open ? Effect.succeed(open) : connect))),
    )
    yield* Effect.addFinalizer(() =>
      Effect.ignore(
        Effect.suspend(() =>
          open ? call("close", () => open?.connection.close() ?? Promise.resolve()) : Effect.void,
        ),
      ),
    )

    const send = (messages: ReadonlyArray<Outgoing>) =>
      Effect.gen(function* () {
        const { channel } = yield* session
        if (blocked !== undefined)
          return yield* new RabbitError({
            reason: "unavailable",
            operation: "publish",
            cause: new Error(`blocked: ${blocked}`),
          })
        const confirmations: Array<Confirmation> = messages.map(() => "nacked")
        const all = Effect.async<void, RabbitError>((resume) => {
          let waiting = messages.length
          if (waiting === 0) resume(Effect.void)
          try {
            for (const [index, { body, exchange, options, routingKey }] of messages.entries())
              channel.publish(
                exchange,
                routingKey,
                Buffer.from(body.buffer, body.byteOffset, body.byteLength),
                { ...options, mandatory: true },
                (error: unknown) => {
                  if (!error)
                    confirmations[index] = returned.has(String(options.messageId)) ? "returned" : "confirmed"
                  waiting -= 1
                  if (waiting === 0) resume(Effect.void)
                },
              )
          } catch (cause) {
            resume(Effect.fail(failure("publish")(cause)))
          }
        })
        yield* Effect.timeoutOption(all, confirmDeadline)
        returned.clear()
        return confirmations
      })

    // One batch at a time, so that what is returned belongs to it.
    const sending = yield* Effect.makeSemaphore(1)
    const link: Link = { session, send: (messages) => sending.withPermits(1)(send(messages)) }
    return link
  })

const heartbeat = (dsn: Redacted.Redacted): string =>
  `${Redacted.value(dsn).includes("?") ? "&" : "?"}heartbeat=${heartbeatSeconds}`

const make = (dsn: Redacted.Redacted) =>
  Effect.all({
    publishing: makeLink(dsn, "publisher"),
    parking: makeLink(dsn, "parking"),
    consuming: makeLink(dsn, "consumer"),
  })

export const layer = (options: { readonly dsn: Redacted.Redacted }) => Layer.scoped(Rabbit, make(options.dsn))

/** The broker of RABBITMQ_DSN. */
export const layerConfig = Layer.unwrapEffect(
  Effect.flatMap(
    Settings.RABBITMQ_DSN,
    Option.match({
      onNone: () => Effect.fail(ConfigError.MissingData(["RABBITMQ_DSN"], "RABBITMQ_DSN is not set")),
      onSome: (dsn) => Effect.succeed(layer({ dsn })),
    }),
  ),
)
