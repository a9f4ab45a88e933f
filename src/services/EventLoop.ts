import { Effect } from "effect"

/** The fibers that wait for a turn, the first one first. */
const waiting = new Set<() => void>()

const turn = () => {
  const [next] = waiting
  if (next === undefined) return
  waiting.delete(next)
  if (waiting.size > 0) setImmediate(turn)
  next()
}

/**
 * Lets requests, timers and other fibers run. In each turn of the event loop one of the fibers that wait here goes on. So a
 * request waits for one piece of long work, and not for a piece of each.
 */
export const yieldToEventLoop = Effect.async<void>((resume) => {
  const next = () => resume(Effect.void)
  if (waiting.size === 0) setImmediate(turn)
  waiting.add(next)
  return Effect.sync(() => waiting.delete(next))
})
