/** The number of partitions changes while events arrive. Processes of both numbers run side by side meanwhile. */
import { expect } from "bun:test"
import { failedQueue } from "../../src/services/ports/InteractionQueue.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, long, type System } from "./System.ts"

const change = (eventsPerMessage: string) => async (system: System) => {
  const phase = 10_000
  const settings = (partitions: number) => ({
    RABBITMQ_PARTITIONS: String(partitions),
    EVENTS_PER_MESSAGE: eventsPerMessage,
  })
  const stop = async (programs: System["programs"]) => {
    for (const program of programs) program.signal("SIGTERM")
    for (const program of programs) expect(await program.ended()).toBe(0)
  }
  let old = [await system.api(settings(1)), ...system.workers(2, settings(1))]
  await Promise.all(old.slice(1).map(consuming))
  const posting = system.load(happenings(200, 100), 300)
  await Bun.sleep(phase)
  const each = Array.from({ length: 4 }, (_, index) =>
    system.worker({ ...settings(4), WORKER_PARTITIONS: String(index) }),
  )
  for (const [partitions, workers] of [
    [4, () => each],
    [2, () => [...system.workers(2, settings(2))]],
  ] as const) {
    const now = workers()
    await Promise.all(now.map(consuming))
    const api = await system.api(settings(partitions))
    await Bun.sleep(phase / 3)
    await stop(old)
    old = [api, ...now]
    await Bun.sleep(phase)
    if (partitions === 4)
      for (const worker of each) expect(worker.count("batch.processed")).toBeGreaterThan(0)
  }
  const { statuses } = await posting.stop()
  expect([...statuses.keys()]).toEqual([201])
  await system.settled(60)
  expect(await system.onChannel((channel) => channel.checkQueue(failedQueue))).toMatchObject({
    messageCount: 0,
  })
  await system.proof()
}

failures("partitions changed from 1 to 4 to 2 under load", "programs", (scenario) => {
  if (!long) return
  scenario("with single messages", change("1"), { RABBITMQ_PARTITIONS: "4" })
  scenario("with message batches", change("50"), { RABBITMQ_PARTITIONS: "4" })
})
