import { expect, test } from "bun:test"
import { ScoreBands } from "../../../src/services/recommend/ScoreBands.ts"

test("bands have each row once, greatest score first as finely as the tolerance, used again too", () => {
  const count = 5_000
  const bands = new ScoreBands(count)
  for (const [greatest, least] of [
    [1.3, -1.1],
    [0.7, -0.5],
  ] as const) {
    const tolerance = bands.begin(greatest, least)
    // Scores above and below the range too, and of rows that do not match.
    for (let row = 0; row < count; row++)
      bands.scores[row] = row % 10 === 3 ? -1e9 : Math.sin(row * row) * 1.5
    bands.count(0, 3_000)
    bands.count(3_000, count)
    const order: Array<number> = []
    const sizes: Array<number> = []
    for (let size = 100; ; size *= 4) {
      const rows = bands.beginBand(size)
      if (rows === 0) break
      bands.sort(0, 1_000)
      bands.sort(1_000, count)
      order.push(...bands.sorted(rows))
      expect(rows >= size || order.length === count).toBe(true)
      sizes.push(rows)
    }
    expect(sizes.length).toBeGreaterThan(2)
    expect(order.toSorted((a, b) => a - b)).toEqual(Array.from({ length: count }, (_, row) => row))
    const within = order.map((row) => Math.max(least, Math.min(greatest, bands.scores[row]!)))
    const steps = within.slice(1).map((score, place) => score - within[place]!)
    expect(Math.max(...steps)).toBeLessThan(1.01 * tolerance)
  }
})
