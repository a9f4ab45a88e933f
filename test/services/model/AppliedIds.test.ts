/** The ids on the record, compared with a plain list of all ids ever added. */
import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import * as AppliedIds from "../../../src/services/model/AppliedIds.ts"

const id = (n: number) => new Bun.CryptoHasher("sha256").update(String(n)).digest("hex")
const ids = (from: number, count: number) => Array.from({ length: count }, (_, i) => id(from + i))
const prefixes = (given: ReadonlyArray<string>) => given.map(AppliedIds.prefix)
/** Ids on the record, in order. */
const listed = (kept: AppliedIds.AppliedIds) => [...AppliedIds.toSet(kept)]

describe("append", () => {
  test("keeps every id, in order, either on the record or in the overflow", () => {
    const anyBatches = fc.array(
      fc.oneof(fc.integer({ min: 0, max: 90 }), fc.constantFrom(1, 256, 257, 320, 321, 700)),
      { maxLength: 12 },
    )
    fc.assert(
      fc.property(anyBatches, (batches) => {
        let document = AppliedIds.none
        const archived: Array<string> = []
        const all: Array<string> = []
        for (const size of batches) {
          const added = ids(all.length, size)
          const onDocument = listed(document)
          const { archive, kept } = AppliedIds.append(document, added)
          // Only ids of earlier writes may move to the overflow.
          expect(archive).toEqual(onDocument.slice(0, archive.length))
          document = kept
          archived.push(...archive)
          all.push(...prefixes(added))
          expect([...archived, ...listed(document)]).toEqual(all)
          expect(AppliedIds.count(document)).toBe(all.length - archived.length)
          expect(AppliedIds.count(document)).toBeGreaterThanOrEqual(Math.min(256, all.length))
          expect(AppliedIds.count(document)).toBeLessThanOrEqual(Math.max(320, size))
        }
      }),
    )
  })

  test("moves nothing to the overflow up to 320 ids, then the oldest together, down to 256", () => {
    const { kept: most } = AppliedIds.append(AppliedIds.none, ids(0, 300))
    const { archive: early, kept: full } = AppliedIds.append(most, ids(300, 20))
    expect([early, AppliedIds.count(full)]).toEqual([[], 320])
    const { archive, kept } = AppliedIds.append(full, ids(320, 1))
    expect(archive).toEqual(prefixes(ids(0, 65)))
    expect(AppliedIds.count(kept)).toBe(256)
  })

  test("of more ids than fit keeps all of them, and moves only earlier ones to the overflow", () => {
    const { kept: before } = AppliedIds.append(AppliedIds.none, ids(0, 3))
    const { archive, kept } = AppliedIds.append(before, ids(3, 1000))
    expect(archive).toEqual(prefixes(ids(0, 3)))
    expect(listed(kept)).toEqual(prefixes(ids(3, 1000)))
    const next = AppliedIds.append(kept, ids(1003, 1))
    expect(next.archive).toEqual(prefixes(ids(3, 745)))
    expect(AppliedIds.count(next.kept)).toBe(256)
  })

  test("leaves the given bytes unchanged, and shares no memory with them", () => {
    const { kept: before } = AppliedIds.append(AppliedIds.none, ids(0, 2))
    const copy = before.slice()
    const { kept } = AppliedIds.append(before, ids(2, 1))
    kept.fill(0)
    expect(before).toEqual(copy)
  })

  test("of no ids changes nothing", () => {
    const { kept: before } = AppliedIds.append(AppliedIds.none, ids(0, 5))
    expect(AppliedIds.append(before, [])).toEqual({ kept: before, archive: [] })
    expect(AppliedIds.append(AppliedIds.none, [])).toEqual({ kept: AppliedIds.none, archive: [] })
  })
})

describe("the packed form", () => {
  test("is the first 16 bytes of each message id, concatenated", () => {
    const { kept } = AppliedIds.append(AppliedIds.none, ["0f".repeat(32), "a1".repeat(32)])
    expect(kept).toEqual(Uint8Array.from([...Array(16).fill(0x0f), ...Array(16).fill(0xa1)]))
    expect(listed(kept)).toEqual(["0f".repeat(16), "a1".repeat(16)])
  })

  test("is read from a view into a larger buffer, as database drivers return it", () => {
    const { kept } = AppliedIds.append(AppliedIds.none, ids(0, 3))
    const room = new Uint8Array(7 + kept.length + 5).fill(0xee)
    room.set(kept, 7)
    const view = room.subarray(7, 7 + kept.length)
    expect(listed(view)).toEqual(prefixes(ids(0, 3)))
    expect(listed(AppliedIds.append(view, ids(3, 1)).kept)).toEqual(prefixes(ids(0, 4)))
    expect(listed(Buffer.from(view))).toEqual(prefixes(ids(0, 3)))
  })

  test("finds the added ids and no others", () => {
    const set = AppliedIds.toSet(AppliedIds.append(AppliedIds.none, ids(0, 256)).kept)
    expect(ids(0, 256).every((one) => set.has(AppliedIds.prefix(one)))).toBe(true)
    expect(ids(256, 256).some((one) => set.has(AppliedIds.prefix(one)))).toBe(false)
    expect(AppliedIds.toSet(AppliedIds.none).size).toBe(0)
  })

  test("agrees with the set of all ids, also for bytes that lie across two ids", () => {
    const known = ids(0, 40)
    const { kept } = AppliedIds.append(AppliedIds.none, known)
    const hex = prefixes(known).join("")
    const across = Array.from({ length: 60 }, (_, i) => hex.slice(2 * i, 2 * i + 32).padEnd(64, "0"))
    for (const one of [...known, ...ids(40, 40), ...across])
      expect(AppliedIds.has(kept, one)).toBe(AppliedIds.toSet(kept).has(AppliedIds.prefix(one)))
    expect(across.filter((one) => AppliedIds.has(kept, one)).length).toBe(4)
    expect(AppliedIds.has(AppliedIds.none, id(0))).toBe(false)
  })
})
