/** Which messages go to quarantine, and when they are given up. */
import { describe, expect, test } from "bun:test"
import { isPoisonCandidate, quarantineSettlement } from "../../../src/services/update/Quarantine.ts"

describe("quarantine", () => {
  const message = (quarantined: boolean, quarantineAttempts: number, redeliveries: number) => ({
    quarantined,
    quarantineAttempts,
    redeliveries,
  })

  test("takes messages that were redelivered three times, were in quarantine before, or were redelivered there", () => {
    const harmless = [message(false, 0, 0), message(false, 0, 2), message(true, 1, 0), message(true, 10, 0)]
    const candidates = [
      message(false, 0, 3),
      message(false, 4, 0),
      message(true, 1, 1),
      message(true, 9, 2),
      message(true, 10, 1),
    ]
    expect(harmless.filter(isPoisonCandidate)).toEqual([])
    expect(candidates.filter(isPoisonCandidate)).toEqual(candidates)
  })

  test("gives a message up when its worker has died ten times while handling only that message", () => {
    for (const again of [
      message(false, 0, 3),
      message(false, 4, 0),
      message(false, 10, 0),
      message(true, 1, 1),
      message(true, 9, 2),
    ])
      expect(quarantineSettlement(again)).toEqual({ _tag: "Quarantine" })
    expect(quarantineSettlement(message(true, 10, 1))).toMatchObject({
      _tag: "DeadLetter",
      failure: { error: "crash_loop" },
    })
  })
})
