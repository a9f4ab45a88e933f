/**
 * Keeps data in memory fresh, on demand. A caller waits for the first load. Then a caller waits for a refresh that is
 * due, but only briefly: a slow refresh finishes in the background. Without callers nothing runs except the first load.
 */
import { Cause, Clock, Duration, Effect, Exit, Fiber } from "effect"
import { unlessReported } from "../Outages.ts"

/** How long a caller waits. */
const refreshTimeout = Duration.millis(250)
const firstLoadTimeout = Duration.seconds(10)

/**
 * `refresh` brings the data up to date. It never runs twice at the same time, and callers do not interrupt it. `current`
 * completes when the data may be read; it fails only before the first load, with `stillLoading` if that takes too long.
 */
export const make = Effect.fnUntraced(function* <E, R>(options: {
  readonly name: string
  /** How old the data may be when it is read. */
  readonly freshFor: Duration.Duration
  readonly refresh: Effect.Effect<unknown, E, R>
  readonly stillLoading: () => E
}) {
  const scope = yield* Effect.scope
  const context = yield* Effect.context<R>()
  let freshUntil = Number.NEGATIVE_INFINITY
  let loaded = false
  /** Set by `invalidate` until a refresh begins. */
  let invalidated = false
  let running: Fiber.Fiber<unknown, E> | undefined

  const finished = Effect.fnUntraced(function* (exit: Exit.Exit<unknown, E>) {
    running = undefined
    // After a failure too, so that not every caller queries a failing store.
    const now = yield* Clock.currentTimeMillis
    // What changed during the first load, which takes long, is read by the next refresh.
    freshUntil = invalidated || !loaded ? now : now + Duration.toMillis(options.freshFor)
    if (Exit.isSuccess(exit)) loaded = true
    else if (!Exit.isInterrupted(exit))
      yield* unlessReported(
        Cause.squash(exit.cause),
        Effect.logWarning("cache.refresh_failed", exit.cause).pipe(
          Effect.annotateLogs({ cache: options.name }),
        ),
      )
  })
  const start = Effect.suspend(() => {
    if (running !== undefined) return Effect.succeed(running)
    invalidated = false
    return options.refresh.pipe(
      Effect.onExit(finished),
      Effect.interruptible,
      Effect.forkIn(scope),
      Effect.tap((fiber) =>
        Effect.sync(() => {
          running = fiber
        }),
      ),
    )
  }).pipe(Effect.provide(context), Effect.uninterruptible)

  yield* start
  const current = Effect.gen(function* () {
    if (!loaded)
      yield* Effect.timeoutFail(Fiber.join(yield* start), {
        duration: firstLoadTimeout,
        onTimeout: options.stillLoading,
      })
    if (freshUntil > (yield* Clock.currentTimeMillis)) return
    // A refresh that began before `invalidate` may have read the old data.
    if (invalidated && running !== undefined)
      yield* Effect.timeoutOption(Fiber.await(running), refreshTimeout)
    yield* Effect.ignore(Effect.timeoutOption(Fiber.join(yield* start), refreshTimeout))
  })
  const invalidate = Effect.sync(() => {
    invalidated = true
    freshUntil = Number.NEGATIVE_INFINITY
  })
  return { current, invalidate }
})
