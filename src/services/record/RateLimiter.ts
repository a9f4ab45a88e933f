/** A token bucket per user, in memory. It holds `rate` tokens and gains `rate` tokens a second. */
interface Bucket {
  tokens: number
  at: number
}

/** The most buckets kept. The least recently used goes first; its user gets a full one later. */
const mostUsers = 100_000

/** Takes a token of the user at `now` (Unix ms), if there is one. `rate` 0: no limit. */
export const make = (rate: number) => {
  const buckets = new Map<string, Bucket>()
  const take = (user: string, now: number): boolean => {
    const { at, tokens } = buckets.get(user) ?? { tokens: rate, at: now }
    const filled = Math.min(rate, tokens + ((now - at) / 1000) * rate)
    buckets.delete(user)
    buckets.set(user, { tokens: filled >= 1 ? filled - 1 : filled, at: now })
    for (const oldest of buckets.keys()) {
      if (buckets.size <= mostUsers) break
      buckets.delete(oldest)
    }
    return filled >= 1
  }
  return (user: string, now: number): boolean => rate === 0 || take(user, now)
}
