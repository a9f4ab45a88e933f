/**
 * An HTTP server on Bun that finishes what it has begun: when it closes, new connections are refused and open
 * requests are waited for. (That of platform-bun answers open requests with 503.) It sets no limit on bodies,
 * so that whoever reads one can say what the limit is.
 */
import { HttpApp, HttpServer, HttpServerError } from "@effect/platform"
import { Context, Deferred, Duration, Effect, Layer, Option, Schedule } from "effect"

/** Ends when the server begins to close: answers without an end must end with it. */
export class Closing extends Context.Tag("user-embeddings/Closing")<Closing, Effect.Effect<void>>() {}

export interface Options {
  readonly hostname: string
  /** 0 = any free one. */
  readonly port: number
}

/** How long open requests are waited for. */
const drainDeadline = Duration.seconds(10)
/** How long a connection may be silent; longer than any step waits for its server. */
const idleSeconds = 60

/** Answers some requests before the application sees them; `undefined` = it shall. */
export class DirectHandler extends Context.Tag("user-embeddings/Shortcut")<
  DirectHandler,
  (request: Request) => Promise<Response> | undefined
>() {}

const notServing = () => new Response(null, { status: 503, headers: { "retry-after": "1" } })

export const make = ({ hostname, port }: Options) =>
  Effect.gen(function* () {
    const closing = yield* Deferred.make<void>()
    const server = yield* Effect.acquireRelease(
      Effect.try({
        try: () =>
          Bun.serve({
            hostname,
            port,
            idleTimeout: idleSeconds,
            maxRequestBodySize: Number.MAX_SAFE_INTEGER,
            fetch: notServing,
          }),
        catch: (cause) => new HttpServerError.ServeError({ cause }),
      }),
      (server) => Effect.promise(() => server.stop(true)),
    )
    // `stop` alone would also wait for connections on which nothing is asked.
    const drain = Effect.suspend(() => {
      Deferred.unsafeDone(closing, Effect.void)
      void server.stop()
      return Effect.repeat(Effect.void, {
        schedule: Schedule.spaced("10 millis"),
        until: () => server.pendingRequests === 0,
      })
    }).pipe(Effect.timeoutOption(drainDeadline), Effect.asVoid)

    const http = HttpServer.make({
      address: { _tag: "TcpAddress", hostname: server.hostname ?? hostname, port: server.port ?? port },
      serve: (app, middleware) =>
        Effect.gen(function* () {
          const shortcut = Option.getOrElse(yield* Effect.serviceOption(DirectHandler), () => () => undefined)
          const handle = HttpApp.toWebHandlerRuntime(yield* Effect.runtime<never>())(app, middleware)
          yield* Effect.acquireRelease(
            Effect.sync(() => server.reload({ fetch: (request) => shortcut(request) ?? handle(request) })),
            () => drain,
          )
        }),
    })
    return Context.make(HttpServer.HttpServer, http).pipe(Context.add(Closing, Deferred.await(closing)))
  })

export const layer = (options: Options) => Layer.scopedContext(make(options))
