/**
 * An HTTP server on Bun. On close it refuses new connections and waits for open requests; the server of
 * platform-bun answers them with 503. The server has no limit on bodies, so that HttpBody.ts can name the
 * limit in a problem.
 */
import { HttpApp, HttpServer, HttpServerError } from "@effect/platform"
import { Context, Deferred, Duration, Effect, Layer, Option, Schedule } from "effect"
import { withCors } from "./HttpCors.ts"

/** Ends when the server begins to close. A response without an end must end with it. */
export class Closing extends Context.Tag("user-embeddings/Closing")<Closing, Effect.Effect<void>>() {}

export interface Options {
  readonly hostname: string
  /** 0: any free port. */
  readonly port: number
  /** Idle connections are closed after this time. */
  readonly idle: Duration.Duration
}

/** For open requests on close. */
const drainTimeout = Duration.seconds(10)
/** Answers some requests before the router; `undefined`: the request goes to the router. */
export class DirectHandler extends Context.Tag("user-embeddings/DirectHandler")<
  DirectHandler,
  (request: Request) => Promise<Response> | undefined
>() {}

const notServing = () => new Response(null, { status: 503, headers: { "retry-after": "1" } })

export const make = ({ hostname, idle, port }: Options) =>
  Effect.gen(function* () {
    const closing = yield* Deferred.make<void>()
    const cors = yield* withCors
    const server = yield* Effect.acquireRelease(
      Effect.try({
        try: () =>
          Bun.serve({
            hostname,
            port,
            idleTimeout: Duration.toSeconds(idle),
            maxRequestBodySize: Number.MAX_SAFE_INTEGER,
            fetch: notServing,
          }),
        catch: (cause) => new HttpServerError.ServeError({ cause }),
      }),
      (server) => Effect.promise(() => server.stop(true)),
    )
    // `stop` would also wait for idle connections.
    const drain = Effect.suspend(() => {
      Deferred.unsafeDone(closing, Effect.void)
      void server.stop()
      return Effect.repeat(Effect.void, {
        schedule: Schedule.spaced("10 millis"),
        until: () => server.pendingRequests === 0,
      })
    }).pipe(Effect.interruptible, Effect.timeoutOption(drainTimeout), Effect.asVoid)

    const http = HttpServer.make({
      address: { _tag: "TcpAddress", hostname: server.hostname ?? hostname, port: server.port ?? port },
      serve: (app, middleware) =>
        Effect.gen(function* () {
          const direct = Option.getOrElse(yield* Effect.serviceOption(DirectHandler), () => () => undefined)
          const handle = HttpApp.toWebHandlerRuntime(yield* Effect.runtime<never>())(app, middleware)
          yield* Effect.acquireRelease(
            Effect.sync(() =>
              server.reload({ fetch: cors((request) => direct(request) ?? handle(request)) }),
            ),
            () => drain,
          )
        }),
    })
    return Context.make(HttpServer.HttpServer, http).pipe(Context.add(Closing, Deferred.await(closing)))
  })

export const layer = (options: Options) => Layer.scopedContext(make(options))
