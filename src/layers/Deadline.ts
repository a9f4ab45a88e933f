/** Calls with a callback that must come in time. */
import { Duration, Effect } from "effect"
import { constVoid } from "effect/Function"

/**
 * What a callback is given, or the failure `late`. The deadline is a plain timer: the fibers of `Effect.timeout` would
 * cost as much as a call to a database. `giveUp` runs when nobody waits any more.
 */
export const within = <A, E>(
  deadline: Duration.Duration,
  late: () => E,
  ask: (resume: (answer: Effect.Effect<A, E>) => void) => void,
  giveUp: () => void = constVoid,
): Effect.Effect<A, E> =>
  Effect.async<A, E>((resume) => {
    const timer = setTimeout(() => {
      resume(Effect.fail(late()))
      giveUp()
    }, Duration.toMillis(deadline))
    ask((answer) => {
      clearTimeout(timer)
      resume(answer)
    })
    return Effect.sync(() => {
      clearTimeout(timer)
      giveUp()
    })
  })
