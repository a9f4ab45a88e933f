/**
 * Sessions with RabbitMQ. amqplib brings back neither channels nor consumers nor topology, so a session — one
 * connection and all that was opened on it — is supervised as a whole: when any part is lost, the rest is closed
 * and all of it is opened again, for ever. Nothing fails because the broker is down but the calls made meanwhile.
 * Publishers and consumers have sessions of their own: a broker short of memory or disk freezes every connection
 * that publishes.
 */
import amqp, { type Channel, type ChannelModel, type ConfirmChannel } from "amqplib"
import {
  ConfigError,
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  FiberId,
  Layer,
  Option,
  Redacted,
  Schedule,
  Schema,
  type Scope,
} from "effect"
import { describeFailure, portFailure } from "../../services/ports/PortFailure.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import * as Settings from "../../services/Settings.ts"
import { described } from "../../services/Telemetry.ts"

/** What a port's own error is made of; carries no DSN, amqplib's messages have host and port only. */
export class RabbitError extends Schema.TaggedError<RabbitError>()("RabbitError", portFailure) {
  override get message() {
    return describeFailure("rabbitmq", this)
  }
}

/** Tells that something of the session is gone, and why. */
export type Lost = (cause?: unknown) => void

export interface Session<A> {
  /** What is open; waits for an attempt under way and fails at once while the last one failed. */
  readonly current: Effect.Effect<A, RabbitError>
}

export class Rabbit extends Context.Tag("user-embeddings/Rabbit")<
  Rabbit,
  {
    /** Keeps a session open until the scope closes. `name` is what the broker calls its connection. */
    readonly supervise: <A>(
      name: string,
      open: (connection: ChannelModel, lost: Lost) => Effect.Effect<A, RabbitError, Scope.Scope>,
    ) => Effect.Effect<Session<A>, never, Scope.Scope>
    /** For looking and declaring on channels that live as long as one call; nothing is published on it. */
    readonly adminConnection: Session<ChannelModel>
  }
>() {}

const callDeadline = Duration.seconds(5)
const closeDeadline = Duration.seconds(2)
const heartbeatSeconds = 10

/** The broker answers what is missing with 404 and what it refuses with other 4xx. */
const reasonOf = (cause: unknown): RabbitError["reason"] => {
  const code = typeof cause === "object" && cause !== null && "code" in cause ? cause.code : undefined
  if (code === 404) return "not_set_up"
  return typeof code === "number" && code >= 400 && code < 500 ? "rejected" : "unavailable"
}
export const failed =
  (operation: string) =>
  (cause: unknown): RabbitError =>
    new RabbitError({ reason: reasonOf(cause), operation, cause })

/** A call of the driver with a deadline, also in finalizers. */
export const call = <A>(
  operation: string,
  run: () => Promise<A>,
  within = callDeadline,
): Effect.Effect<A, RabbitError> =>
  Effect.interruptible(Effect.tryPromise({ try: run, catch: failed(operation) })).pipe(
    Effect.timeoutFail({
      duration: within,
      onTimeout: () =>
        new RabbitError({
          reason: "timeout",
          operation,
          cause: new Error(`no answer within ${Duration.format(within)}`),
        }),
    }),
  )

/** Something that is closed with the scope, even when it opens only after it was given up. */
const opened = <A extends { readonly close: () => Promise<void> }>(
  operation: string,
  open: () => Promise<A>,
): Effect.Effect<A, RabbitError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => ({ opening: open() })),
    ({ opening }) => Effect.ignore(call("close", () => opening.then((open) => open.close()), closeDeadline)),
  ).pipe(Effect.flatMap(({ opening }) => call(operation, () => opening)))

/** Listens for the end; an `error` without a listener would end the process. */
const listening =
  (lost: Lost) =>
  <A extends Channel | ChannelModel>(emitter: A): A => {
    emitter.on("error", lost)
    emitter.on("close", lost)
    return emitter
  }

/** A channel that closes with the scope. Without `lost` its end is nobody's business. */
export const channel = (connection: ChannelModel, lost: Lost = () => {}) =>
  opened<Channel>("open channel", () => connection.createChannel().then(listening(lost)))

/** A channel that confirms what is published on it. */
export const confirmChannel = (connection: ChannelModel, lost: Lost) =>
  opened<ConfirmChannel>("open channel", () => connection.createConfirmChannel().then(listening(lost)))

/** The broker's version, as it introduced itself. */
export const version = ({ connection }: ChannelModel): string => String(connection.serverProperties.version)

const make = ({ dsn }: { readonly dsn: Redacted.Redacted }) =>
  Effect.gen(function* () {
    const connection = (name: string, lost: Lost) =>
      opened("connect", async () => {
        const url = new URL(Redacted.value(dsn))
        if (!url.searchParams.has("heartbeat")) url.searchParams.set("heartbeat", String(heartbeatSeconds))
        const connection = await amqp.connect(url.href, {
          noDelay: true,
          timeout: Duration.toMillis(callDeadline),
          clientProperties: { connection_name: `user-embeddings ${name}` },
        })
        return listening(lost)(connection)
      })

    const supervise = Effect.fnUntraced(function* <A>(
      name: string,
      open: (connection: ChannelModel, lost: Lost) => Effect.Effect<A, RabbitError, Scope.Scope>,
    ) {
      let attempt = Deferred.unsafeMake<A, RabbitError>(FiberId.none)
      let current: Effect.Effect<A, RabbitError> = Deferred.await(attempt)
      let up: boolean | undefined
      const answer = (exit: Exit.Exit<A, RabbitError>) => {
        Deferred.unsafeDone(attempt, exit)
        current = exit
      }
      /** Logs changes, not every attempt. */
      const turned = (now: boolean, log: Effect.Effect<void>) => {
        if (up === now) return Effect.void
        up = now
        return Effect.annotateLogs(log, { connection: name })
      }

      const once = Effect.gen(function* () {
        const gone = yield* Deferred.make<never, RabbitError>()
        const lost: Lost = (cause = new Error("closed by the broker")) =>
          Deferred.unsafeDone(gone, Effect.fail(failed("session")(cause)))
        yield* connection(name, lost).pipe(
          Effect.flatMap((connection) => open(connection, lost)),
          Effect.exit,
          Effect.tap((exit) => Effect.sync(() => answer(exit))),
          Effect.flatten,
        )
        yield* turned(true, Effect.logInfo("rabbitmq.connected"))
        return yield* Effect.ensuring(
          Deferred.await(gone),
          Effect.sync(() => {
            attempt = Deferred.unsafeMake(FiberId.none)
            current = Deferred.await(attempt)
          }),
        )
      })
      yield* Effect.scoped(once).pipe(
        Effect.tapError((error) =>
          turned(false, Effect.annotateLogs(Effect.logWarning("rabbitmq.waiting"), described(error))),
        ),
        Effect.retry(Schedule.resetAfter(RetryPolicies.reconnectRetry, "30 seconds")),
        Effect.ensuring(Effect.sync(() => answer(Exit.fail(failed("session")(new Error("stopped")))))),
        Effect.forkScoped,
      )
      return { current: Effect.suspend(() => current) } satisfies Session<A>
    })

    const inspection = yield* supervise("inspector", (connection) => Effect.succeed(connection))
    return Rabbit.of({ supervise, adminConnection: inspection })
  })

export const layer = (options: { readonly dsn: Redacted.Redacted }) => Layer.scoped(Rabbit, make(options))

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
