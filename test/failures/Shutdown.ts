/** Workers get SIGTERM while they hold as many messages as they may. */
import { expect } from "bun:test"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { failures, heavy, repetitions } from "./System.ts"

failures("SIGTERM", "programs", (scenario) => {
  heavy(scenario)(
    "under full prefetch: ends within 30 s, and nothing is lost or counted twice",
    async (system) => {
      const rounds = repetitions(2, 10)
      await system.api()
      for (let round = 1; round <= rounds; round++) {
        const items = happenings(400, 8, `round-${round}`)
        const before = await system.applied()
        await system.post(items)
        await until("published", 60, async () => (await system.unpublished()) === 0 || undefined)
        const worker = system.worker({ WORKER_PREFETCH: "4000" })
        await until("at work", 60, async () => (await system.applied()) > before || undefined)
        const signalled = Date.now()
        await system.stopWorkers()
        const left = (await system.depths()).main
        system.say(`ended in ${Date.now() - signalled} ms with ${left} left, ${round} of ${rounds}`)
        expect(worker.running).toBe(false)
        if (left > 0) expect((await system.applied()) - before + left).toBeGreaterThanOrEqual(items.length)
      }
      system.worker()
      await system.proof()
    },
  )

  heavy(scenario)("twice: ends at once, and the result is still exact", async (system) => {
    const rounds = repetitions(2, 10)
    await system.api()
    const mongo = await system.proxy("MONGODB_URL")
    for (let round = 1; round <= rounds; round++) {
      const before = await system.applied()
      await system.post(happenings(400, 8, `round-${round}`))
      const worker = system.worker({ WORKER_PREFETCH: "4000", MONGODB_URL: mongo.url })
      await until("at work", 60, async () => (await system.applied()) > before || undefined)
      // After the first signal the worker waits for its write, which cannot end.
      mongo.freeze()
      worker.signal("SIGTERM")
      await Bun.sleep(300)
      const signalled = Date.now()
      worker.signal("SIGTERM")
      const code = await worker.ended()
      expect(Date.now() - signalled).toBeLessThan(2000)
      system.say(`ended with ${code}, ${round} of ${rounds}`)
      mongo.cut()
      mongo.restore()
    }
    system.worker()
    await system.proof()
  })
})
