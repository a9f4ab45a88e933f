import { expect, test } from "bun:test"
import { Arena } from "../../scripts/bench/arena.ts"
import { sequence } from "../../scripts/bench/pipeline.ts"
import { sqliteFloors } from "../../scripts/bench/sqliteFloors.ts"

test("the benchmark's stages of the embedded stack fit its tables", async () => {
  const arena = new Arena({})
  try {
    for (const { name, run } of await sqliteFloors(arena, sequence())) {
      const { eventsPerSecond } = await run(100)
      expect(eventsPerSecond, name).toBeGreaterThan(0)
    }
  } finally {
    await arena.close()
  }
})
