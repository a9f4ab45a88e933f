/** Every schedule, by name, and which failure is tried again, gives up, or means that a service is out. */
import { Chunk, Duration, Effect, Schedule } from "effect"

/** Greatest delay of a rung, and the longest Retry-After that is waited for on the ladder. */
export const longestDelay = Duration.seconds(60)

/** The retry ladder: exponential, ×2 from `first`, capped at 60 s, `retries` rungs. */
export const ladderSchedule = (first: Duration.Duration, retries: number) =>
  Schedule.exponential(first, 2).pipe(
    Schedule.modifyDelay((_, delay) => Duration.min(delay, longestDelay)),
    Schedule.intersect(Schedule.recurs(retries)),
  )

/** The delays of the ladder in ms, in the order of attempts; the rungs are its distinct values. */
export const ladderDelays = (first: Duration.Duration, retries: number): ReadonlyArray<number> =>
  Effect.runSync(
    Schedule.run(
      Schedule.delays(ladderSchedule(first, retries)),
      0,
      Array.from({ length: retries }, () => undefined),
    ),
  ).pipe(Chunk.toReadonlyArray, (delays) => delays.map(Duration.toMillis))

/** Reconnecting: 200 ms doubling to 5 s, for ever, with jitter so that workers don't come back in step. */
export const reconnectRetry = Schedule.exponential("200 millis", 2).pipe(
  Schedule.union(Schedule.spaced("5 seconds")),
  Schedule.jittered,
)

/** Another reading after a lost compare-and-swap: at once, with a little jitter, not counted as an attempt. */
export const conflictRetry = Schedule.exponential("2 millis", 2).pipe(
  Schedule.union(Schedule.spaced("100 millis")),
  Schedule.jittered,
  Schedule.intersect(Schedule.recurs(20)),
)

/** Sweeping the outbox for rows that were not published right after their commit. */
export const sweepInterval = Schedule.spaced("1 second")
/** How long a row is left to the process that committed it. */
export const sweepGrace = Duration.seconds(2)
