/** A replica set of MongoDB loses its primary in every way under load. No write that was reported is rolled back. */
import { expect } from "bun:test"
import { MongoClient } from "mongodb"
import { type Node, nodes, primary } from "../support/cluster.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, inForm, type System } from "./System.ts"

/** After a failover it takes a while until the nodes agree on the new primary. */
const currentPrimary = () => until("a primary", 60, () => primary().catch(() => undefined))

const stepDown = async () => {
  const { env } = await currentPrimary()
  const client = new MongoClient(env.MONGODB_URL ?? "")
  try {
    await client.db("admin").command({ replSetStepDown: 20, secondaryCatchUpPeriodSecs: 10 })
  } finally {
    await client.close()
  }
}

const restarted = async (node: Node) => {
  await node.kill()
  await Bun.sleep(inForm(3_000, 15_000))
  await node.start()
}

failures(
  "a replica set of MongoDB",
  "servers",
  (scenario) => {
    const times = inForm(1, 5)
    let slowest = 0

    /** Posts while a node is disturbed. Every answer is 201, and all is applied within 30 s after the disturbance. */
    const underLoad = async (system: System, name: string, disturb: () => Promise<unknown>) => {
      const posting = system.load(happenings(100, 10_000, name), inForm(60, 150))
      await Bun.sleep(inForm(1_000, 5_000))
      await disturb()
      const over = performance.now()
      await Bun.sleep(inForm(1_000, 5_000))
      const { statuses, times } = await posting.stop()
      expect(statuses).toEqual(new Map([[201, times.length]]))
      await system.settled(30)
      slowest = Math.max(slowest, performance.now() - over)
      expect((await system.depths()).failed).toBe(0)
    }

    const all = async (system: System) => {
      slowest = 0
      await system.api()
      await Promise.all(system.workers(2).map(consuming))
      for (let n = 1; n <= times; n++) await underLoad(system, `step-down-${n}`, stepDown)
      system.report("slowest recovery after step-downs", `${(slowest / 1000).toFixed(1)} s`)
      slowest = 0
      for (let n = 1; n <= times; n++)
        await underLoad(system, `killed-${n}`, async () => restarted(await currentPrimary()))
      system.report("slowest recovery after kills of the primary", `${(slowest / 1000).toFixed(1)} s`)
      slowest = 0
      await underLoad(system, "frozen", async () => {
        const node = await currentPrimary()
        await node.pause()
        await Bun.sleep(inForm(12_000, 20_000))
        await node.resume()
      })
      await underLoad(system, "secondary", async () => {
        const { name } = await currentPrimary()
        await restarted(nodes("mongodb").find((node) => node.name !== name)!)
      })
      system.report(
        "slowest recovery, frozen primary and killed secondary",
        `${(slowest / 1000).toFixed(1)} s`,
      )
      await system.proof()
      system.report("events", system.accepted.size)
    }
    scenario("step-downs, the primary killed and frozen, a secondary killed", all)
  },
  { mongodb: 3 },
)
