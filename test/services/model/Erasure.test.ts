/** What an erasure covers, decided by row ids where they are known. */
import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { type Erasure, isErased, isLater, maxClockDifference } from "../../../src/services/model/Erasure.ts"

const at = 1_770_000_000_000
const never: Erasure = { erased_at: 0, erased_to: null }
const erased: Erasure = { erased_at: at, erased_to: 100 }
const clock = fc.integer({ min: -maxClockDifference, max: maxClockDifference }).map((skew) => at + skew)

describe("an erasure", () => {
  test("covers rows up to an id, whatever the clocks say", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 200 }), clock, (logId, recordedAt) => {
        expect(isErased(erased, { logId, recordedAt })).toBe(logId <= 100)
      }),
    )
  })

  test("covers no row of a log whose ids began again", () => {
    expect(isErased(erased, { logId: 1, recordedAt: at + maxClockDifference + 1 })).toBe(false)
  })

  test("is compared by time for messages without a row, and if release 0.1.0 erased the user", () => {
    const old: Erasure = { erased_at: at, erased_to: null }
    for (const [erasure, logId] of [
      [erased, null],
      [old, null],
      [old, 7],
    ] as const) {
      expect(isErased(erasure, { logId, recordedAt: at })).toBe(true)
      expect(isErased(erasure, { logId, recordedAt: at + 1 })).toBe(false)
    }
  })

  test("never happened to most users", () => {
    for (const logId of [null, 0, 1]) expect(isErased(never, { logId, recordedAt: 0 })).toBe(false)
  })
})

test("of two copies with row ids the one with the greater id is the later one", () => {
  expect(isLater({ logId: 2, recordedAt: 1 }, { logId: 1, recordedAt: 9 })).toBe(true)
  expect(isLater({ logId: 1, recordedAt: 9 }, { logId: 2, recordedAt: 1 })).toBe(false)
  expect(isLater({ logId: null, recordedAt: 9 }, { logId: 2, recordedAt: 1 })).toBe(true)
})
