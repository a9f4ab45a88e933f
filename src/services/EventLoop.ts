import { Effect } from "effect"

/** Lets requests, timers and other fibers run. */
export const yieldToEventLoop = Effect.async<void>((resume) => {
  const turn = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(turn))
})
