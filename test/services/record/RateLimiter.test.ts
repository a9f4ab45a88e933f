import { expect, test } from "bun:test"
import { Clock } from "effect"
import * as RateLimiter from "../../../src/services/record/RateLimiter.ts"

/** A wall clock and a monotonic clock that the test sets, in seconds. */
const clocks = () => {
  const time = { wall: 1_770_000_000, monotonic: 50 }
  const clock: Clock.Clock = Object.assign(Clock.make(), {
    unsafeCurrentTimeMillis: () => time.wall * 1_000,
    unsafeCurrentTimeNanos: () => BigInt(time.monotonic * 1_000_000_000),
  })
  return { time, clock }
}
const taken = (take: (user: string) => boolean, user: string, times: number) =>
  Array.from({ length: times }, () => take(user)).filter(Boolean).length

test("a user gets as many tokens as the rate at once, and that many more each second", () => {
  const { clock, time } = clocks()
  const take = RateLimiter.make(10, clock)
  expect(taken(take, "u", 15)).toBe(10)
  expect(taken(take, "other", 15)).toBe(10)
  time.monotonic += 0.5
  expect(taken(take, "u", 15)).toBe(5)
  time.monotonic += 3_600
  expect(taken(take, "u", 15)).toBe(10)
})

test("a wall clock that is set back or forward changes nothing", () => {
  const { clock, time } = clocks()
  const take = RateLimiter.make(10, clock)
  expect(taken(take, "u", 10)).toBe(10)
  time.wall -= 3_600
  time.monotonic += 1
  expect(taken(take, "u", 15)).toBe(10)
  time.wall += 7_200
  expect(taken(take, "u", 15)).toBe(0)
})

test("a rate of 0 is no limit", () => {
  expect(taken(RateLimiter.make(0, clocks().clock), "u", 1_000)).toBe(1_000)
})
