/**
 * Keeps a copy in memory fresh at the moment it is asked for: who asks waits for the first load, later for a refresh
 * that is due, but not for a slow one. Nothing runs while nobody asks, but for the first load.
 */
import { Clock, Duration, Effect, Exit, Fiber } from "effect"

/** How long a caller waits for a refresh, and for the first load. */
const refreshTimeout = Duration.millis(250)
const firstLoadTimeout = Duration.seconds(10)

/**
 * `refresh` brings the copy up to date; it is never run twice at a time and not interrupted by callers. `current`
 * fails only while there is no copy yet; `stillLoading` is its error when that takes too long.
 */
export const make = Effect.fnUntraced(function* <E, R>(options: {
  readonly name: string
  /** How old the copy may be when it is used. */
  readonly freshFor: Duration.Duration
  readonly refresh: Effect.Effect<unknown, E, R>
  readonly stillLoading: () => E
}) {
  const scope = yield* Effect.scope
  const context = yield* Effect.context<R>()
  let freshUntil = Number.NEGATIVE_INFINITY
  let loaded = false
  /** Set by `outdate`, until a refresh begins. */
  let outdated = false
  let running: Fiber.Fiber<unknown, E> | undefined

  const finished = Effect.fnUntraced(function* (exit: Exit.Exit<unknown, E>) {
    running = undefined
    // After a failure too: the store is asked again later, not by every caller.
    const now = yield* Clock.currentTimeMillis
    freshUntil = outdated ? now : now + Duration.toMillis(options.freshFor)
    if (Exit.isSuccess(exit)) loaded = true
    else if (!Exit.isInterrupted(exit))
      yield* Effect.logWarning("copy.refresh_failed", exit.cause).pipe(
        Effect.annotateLogs({ copy: options.name }),
      )
  })
  const start = Effect.suspend(() => {
    if (running !== undefined) return Effect.succeed(running)
    outdated = false
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
    if (loaded && freshUntil > (yield* Clock.currentTimeMillis)) return
    // One that began before the copy was outdated doesn't count.
    if (outdated && running !== undefined) yield* Effect.timeoutOption(Fiber.await(running), refreshTimeout)
    const refreshed = Fiber.join(yield* start)
    if (loaded) return yield* Effect.ignore(Effect.timeoutOption(refreshed, refreshTimeout))
    yield* Effect.timeoutFail(refreshed, { duration: firstLoadTimeout, onTimeout: options.stillLoading })
  })
  const invalidate = Effect.sync(() => {
    outdated = true
    freshUntil = Number.NEGATIVE_INFINITY
  })
  return { current, invalidate }
})
