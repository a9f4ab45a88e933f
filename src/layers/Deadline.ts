/** A deadline for calls that answer by a callback. */
import { Duration, Effect } from "effect"
import { constVoid } from "effect/Function"

/**
 * The answer of a call, or the failure `late`. The deadline is a plain timer, because the fibers of `Effect.timeout` cost
 * as much as a call to a database. `giveUp` runs after the deadline or an interruption.
 */
export const within = <A, E>(
  deadline: Duration.Duration,
  late: () => E,
  start: (resume: (answer: Effect.Effect<A, E>) => void) => void,
  giveUp: () => void = constVoid,
): Effect.Effect<A, E> =>
  Effect.async<A, E>((resume) => {
    const timer = setTimeout(() => {
      resume(Effect.fail(late()))
      giveUp()
    }, Duration.toMillis(deadline))
    start((answer) => {
      clearTimeout(timer)
      resume(answer)
    })
    return Effect.sync(() => {
      clearTimeout(timer)
      giveUp()
    })
  })
