/** Clocks that are ahead of the real time. */
import { Clock, Duration, Effect } from "effect"

/** Runs the effect with a clock that is ahead by this duration. */
export const later =
  (by: Duration.DurationInput) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.clockWith((clock) => {
      const millis = () => clock.unsafeCurrentTimeMillis() + Duration.toMillis(by)
      const nanos = () => clock.unsafeCurrentTimeNanos() + BigInt(Duration.toMillis(by)) * 1_000_000n
      return Effect.withClock(effect, {
        [Clock.ClockTypeId]: Clock.ClockTypeId,
        unsafeCurrentTimeMillis: millis,
        unsafeCurrentTimeNanos: nanos,
        currentTimeMillis: Effect.sync(millis),
        currentTimeNanos: Effect.sync(nanos),
        sleep: (duration) => clock.sleep(duration),
      })
    })
