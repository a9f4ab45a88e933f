/** Limits how many costly requests run at once, so that recording always gets the processor. */
import { Effect } from "effect"
import { Problem } from "../../services/model/Problem.ts"

interface Limit {
  /** Requests that run at the same time. */
  readonly running: number
  /** Further requests that wait for one of them to end. More are refused. */
  readonly waiting: number
}

export const makeConcurrencyLimit = ({ running, waiting }: Limit) => {
  const permits = Effect.unsafeMakeSemaphore(running)
  let inside = 0
  const enter = Effect.suspend(() => {
    if (inside >= running + waiting)
      return Problem.of("busy", `${inside} such requests are being answered or wait`, {
        headers: { "retry-after": "1" },
      })
    inside += 1
    return Effect.void
  })
  const leave = () =>
    Effect.sync(() => {
      inside -= 1
    })
  // A store goes on with what a client no longer waits for, so a request that runs keeps its place until it ends.
  return <A, E, R>(request: Effect.Effect<A, E, R>): Effect.Effect<A, E | Problem, R> =>
    Effect.acquireUseRelease(enter, () => permits.withPermits(1)(Effect.uninterruptible(request)), leave)
}
