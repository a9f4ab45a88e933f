/**
 * Sessions with RabbitMQ. A session is one connection with its channels and consumers. amqplib restores none of them,
 * so when any part is lost, the whole session is closed and opened again, for ever. While the broker is down, only
 * calls fail. Publishers and consumers have sessions of their own, because a broker that is short of memory or disk
 * blocks every connection that publishes. A session may use any node of a cluster.
 */
import amqp, { type Channel, type ChannelModel, type ConfirmChannel } from "amqplib"
import {
  ConfigError,
  Context,
  Deferred,
  Duration,
  Effect,
  Either,
  Exit,
  FiberId,
  Layer,
  Option,
  Random,
  Redacted,
  Schedule,
  Schema,
  type Scope,
} from "effect"
import { nodeUrls } from "../../services/NodeUrls.ts"
import { ServerOutage, serverName } from "../../services/Outages.ts"
import { describeFailure, portFailure, textOf } from "../../services/ports/PortFailure.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import * as Settings from "../../services/Settings.ts"

/** A failed call. It contains no password: the messages of amqplib name only host and port. */
export class RabbitError extends Schema.TaggedError<RabbitError>()("RabbitError", portFailure) {
  override get message() {
    return describeFailure("rabbitmq", this)
  }
}

export type Lost = (cause?: unknown) => void

export interface Session<A> {
  /** The open session. Waits for a running attempt to connect; fails at once when the last attempt failed. */
  readonly current: Effect.Effect<A, RabbitError>
}

export class Rabbit extends Context.Tag("user-embeddings/Rabbit")<
  Rabbit,
  {
    /** Keeps a session open until the scope closes. The broker shows `name` as the name of its connection. */
    readonly supervise: <A>(
      name: string,
      open: (connection: ChannelModel, lost: Lost) => Effect.Effect<A, RabbitError, Scope.Scope>,
    ) => Effect.Effect<Session<A>, never, Scope.Scope>
    /** For checks and declarations, each on a channel of its own. Nothing is published on this connection. */
    readonly adminConnection: Session<ChannelModel>
  }
>() {}

const callDeadline = Duration.seconds(5)
const closeDeadline = Duration.seconds(2)
const heartbeatSeconds = 10

/** The broker answers 404 when something is missing, and other 4xx codes when it refuses something. */
const reasonOf = (cause: unknown): RabbitError["reason"] => {
  const code = typeof cause === "object" && cause !== null && "code" in cause ? cause.code : undefined
  if (code === 404) return "not_set_up"
  return typeof code === "number" && code >= 400 && code < 500 ? "rejected" : "unavailable"
}
export const failed =
  (operation: string, server?: string) =>
  (cause: unknown): RabbitError =>
    new RabbitError({ reason: reasonOf(cause), operation, cause, server })

/** A call of the driver with a deadline. It stays interruptible in finalizers. */
export const call = <A>(
  operation: string,
  run: () => Promise<A>,
  deadline = callDeadline,
): Effect.Effect<A, RabbitError> =>
  Effect.interruptible(Effect.tryPromise({ try: run, catch: failed(operation) })).pipe(
    Effect.timeoutFail({
      duration: deadline,
      onTimeout: () =>
        new RabbitError({
          reason: "timeout",
          operation,
          cause: new Error(`no answer within ${Duration.format(deadline)}`),
        }),
    }),
  )

/** A resource that is closed with the scope, even if it opens after the deadline. */
const opened = <A extends { readonly close: () => Promise<void> }>(
  operation: string,
  open: () => Promise<A>,
): Effect.Effect<A, RabbitError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => ({ opening: open() })),
    ({ opening }) => Effect.ignore(call("close", () => opening.then((open) => open.close()), closeDeadline)),
  ).pipe(Effect.flatMap(({ opening }) => call(operation, () => opening)))

/** Without a listener, an `error` event would end the process. */
const listening =
  (lost: Lost) =>
  <A extends Channel | ChannelModel>(emitter: A): A => {
    emitter.on("error", lost)
    emitter.on("close", lost)
    return emitter
  }

export const channel = (connection: ChannelModel, lost: Lost = () => {}) =>
  opened<Channel>("open channel", () => connection.createChannel().then(listening(lost)))

export const confirmChannel = (connection: ChannelModel, lost: Lost) =>
  opened<ConfirmChannel>("open channel", () => connection.createConfirmChannel().then(listening(lost)))

export const version = ({ connection }: ChannelModel): string => String(connection.serverProperties.version)

/** The error of a connection that no node accepted. */
const allFailed = (nodes: ReadonlyArray<string>, errors: ReadonlyArray<RabbitError>): RabbitError => {
  const [error] = errors
  if (errors.length === 1 && error !== undefined) return error
  const told = errors.map(({ cause }, index) => `${new URL(nodes[index] ?? "").host}: ${textOf(cause)}`)
  return failed("connect")(new Error(told.join(", ")))
}

const make = ({ dsn }: { readonly dsn: Redacted.Redacted }) =>
  Effect.gen(function* () {
    const nodes = Either.getOrThrow(nodeUrls(Redacted.value(dsn), Settings.amqpProtocols))
    const outage = new ServerOutage(serverName("RabbitMQ", nodes, 5672))
    const connectTo = (node: string, name: string, lost: Lost) =>
      opened("connect", async () => {
        const url = new URL(node)
        if (!url.searchParams.has("heartbeat")) url.searchParams.set("heartbeat", String(heartbeatSeconds))
        const connection = await amqp.connect(url.href, {
          noDelay: true,
          timeout: Duration.toMillis(callDeadline),
          clientProperties: { connection_name: `user-embeddings ${name}` },
        })
        return listening(lost)(connection)
      })
    /** Tries the nodes in random order, so that connections are spread over them. */
    const connection = (name: string, lost: Lost) =>
      Effect.flatMap(Random.shuffle(nodes), (shuffled) =>
        Effect.mapError(
          Effect.validateFirst(shuffled, (node) => connectTo(node, name, lost)),
          (errors) => allFailed([...shuffled], errors),
        ),
      )

    const supervise = Effect.fnUntraced(function* <A>(
      name: string,
      open: (connection: ChannelModel, lost: Lost) => Effect.Effect<A, RabbitError, Scope.Scope>,
    ) {
      let attempt = Deferred.unsafeMake<A, RabbitError>(FiberId.none)
      let current: Effect.Effect<A, RabbitError> = Deferred.await(attempt)
      const finishAttempt = (exit: Exit.Exit<A, RabbitError>) => {
        Deferred.unsafeDone(attempt, exit)
        current = exit
      }
      const runSession = Effect.gen(function* () {
        const gone = yield* Deferred.make<never, RabbitError>()
        const lost: Lost = (cause = new Error("closed by the broker")) =>
          Deferred.unsafeDone(gone, Effect.fail(failed("session", outage.server)(cause)))
        yield* connection(name, lost).pipe(
          Effect.flatMap((connection) => open(connection, lost)),
          Effect.mapError(({ cause, operation, reason }) => {
            return new RabbitError({ cause, operation, reason, server: outage.server })
          }),
          Effect.exit,
          Effect.tap((exit) => Effect.sync(() => finishAttempt(exit))),
          Effect.flatten,
        )
        yield* Effect.annotateLogs(Effect.logInfo("rabbitmq.connected"), { connection: name })
        yield* outage.succeeded(name)
        return yield* Effect.ensuring(
          Deferred.await(gone),
          Effect.sync(() => {
            attempt = Deferred.unsafeMake(FiberId.none)
            current = Deferred.await(attempt)
          }),
        )
      })
      yield* Effect.scoped(runSession).pipe(
        Effect.tapError(({ cause, operation }) => outage.failed(name, `${operation}: ${textOf(cause)}`)),
        Effect.retry(Schedule.resetAfter(RetryPolicies.reconnectRetry, "30 seconds")),
        Effect.ensuring(Effect.sync(() => finishAttempt(Exit.fail(failed("session")(new Error("stopped")))))),
        Effect.forkScoped,
      )
      return { current: Effect.suspend(() => current) } satisfies Session<A>
    })

    const adminConnection = yield* supervise("admin", (connection) => Effect.succeed(connection))
    return Rabbit.of({ supervise, adminConnection })
  })

export const layer = (options: { readonly dsn: Redacted.Redacted }) => Layer.scoped(Rabbit, make(options))

export const layerConfig = Layer.unwrapEffect(
  Effect.flatMap(
    Settings.RABBITMQ_DSN,
    Option.match({
      onNone: () => Effect.fail(ConfigError.MissingData(["RABBITMQ_DSN"], "RABBITMQ_DSN is not set")),
      onSome: (dsn) => Effect.succeed(layer({ dsn })),
    }),
  ),
)
