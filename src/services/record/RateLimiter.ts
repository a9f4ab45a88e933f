/** A token bucket per user, in memory. It holds `rate` tokens and gains `rate` tokens a second. */
import type { Clock } from "effect"

interface Bucket {
  tokens: number
  /** Seconds of the monotonic clock. */
  at: number
}

/** The most buckets kept. The least recently used is dropped first. Its user gets a full one later. */
const mostUsers = 100_000

/** Takes a token of the user, if there is one. `rate` 0: no limit. */
export const make = (rate: number, clock: Clock.Clock) => {
  const buckets = new Map<string, Bucket>()
  const take = (user: string): boolean => {
    // Unlike the wall clock, this clock is never set back. Setting it back would block users for as long.
    const now = Number(clock.unsafeCurrentTimeNanos()) / 1e9
    const { at, tokens } = buckets.get(user) ?? { tokens: rate, at: now }
    const filled = Math.min(rate, tokens + (now - at) * rate)
    buckets.delete(user)
    buckets.set(user, { tokens: filled >= 1 ? filled - 1 : filled, at: now })
    for (const oldest of buckets.keys()) {
      if (buckets.size <= mostUsers) break
      buckets.delete(oldest)
    }
    return filled >= 1
  }
  return (user: string): boolean => rate === 0 || take(user)
}
