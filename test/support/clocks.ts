/** Clocks other than the real one. */
import { Clock, Duration, Effect } from "effect"

/** Runs the effect with a clock that is ahead by so many milliseconds, and that sleeps in another way. */
export const withClock =
  (
    ahead: () => number,
    sleep: (duration: Duration.Duration, clock: Clock.Clock) => Effect.Effect<void> = (duration, clock) =>
      clock.sleep(duration),
  ) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.clockWith((clock) => {
      const millis = () => clock.unsafeCurrentTimeMillis() + ahead()
      const nanos = () => clock.unsafeCurrentTimeNanos() + BigInt(ahead()) * 1_000_000n
      return Effect.withClock(effect, {
        [Clock.ClockTypeId]: Clock.ClockTypeId,
        unsafeCurrentTimeMillis: millis,
        unsafeCurrentTimeNanos: nanos,
        currentTimeMillis: Effect.sync(millis),
        currentTimeNanos: Effect.sync(nanos),
        sleep: (duration) => sleep(duration, clock),
      })
    })

/** Runs the effect with a clock that is ahead by this duration. */
export const later = (by: Duration.DurationInput) => withClock(() => Duration.toMillis(by))
