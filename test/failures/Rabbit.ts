/** RabbitMQ is killed, or runs out of memory; nodes of a cluster are killed, stopped and restarted. */
import { expect } from "bun:test"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { queue } from "../../src/services/ports/InteractionQueue.ts"
import * as cluster from "../support/cluster.ts"
import { virtualHostIn } from "../support/servers.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { type Answers, consuming, failures, heavy, inForm, long, type System } from "./System.ts"

const allCreated = ({ statuses, times }: Answers) => expect(statuses).toEqual(new Map([[201, times.length]]))

failures("RabbitMQ", "servers", (scenario) => {
  scenario("killed under load", async (system) => {
    const [kills, perSecond] = inForm([1, 150], [10, 300])
    await system.api()
    await Promise.all(system.workers(2).map(consuming))
    for (let kill = 1; kill <= kills!; kill++) {
      const posting = system.load(happenings(200, 10_000, `kill-${kill}`), perSecond!)
      await Bun.sleep(1000 + Math.random() * 1000)
      await sacrificial.kill("rabbitmq")
      await Bun.sleep(inForm(500, 5000))
      await sacrificial.start("rabbitmq")
      await Bun.sleep(inForm(500, 5000))
      allCreated(await posting.stop())
      await system.settled(60)
      system.say(`killed RabbitMQ, ${kill} of ${kills}; ${system.accepted.size} accepted so far`)
    }
    await system.proof()
  })

  heavy(scenario)("out of memory", async (system) => {
    const watermark = (share: number) =>
      sacrificial.exec("rabbitmq", "rabbitmqctl", "-q", "set_vm_memory_high_watermark", String(share))
    await system.api()
    await consuming(system.worker())
    const p99 = ({ times }: Answers) => times[Math.floor(times.length * 0.99)] ?? 0
    const perSecond = inForm(60, 300)
    const normal = system.load(happenings(100, 10_000, "before"), perSecond)
    await Bun.sleep(inForm(2000, 10_000))
    const before = p99(await normal.stop())
    const posting = system.load(happenings(100, 10_000), perSecond)
    try {
      await watermark(0.000_01)
      await until(
        "no row is published",
        20,
        async () => (await system.unpublished()) > perSecond || undefined,
      )
      await Bun.sleep(inForm(3000, 30_000))
      expect(await system.unpublished()).toBeGreaterThan(perSecond * inForm(3, 20))
    } finally {
      await watermark(0.4)
    }
    const answers = await posting.stop()
    allCreated(answers)
    system.say(
      `p99 ${p99(answers).toFixed(1)} ms of ${answers.times.length} requests, before ${before.toFixed(1)} ms`,
    )
    // The short form shares its processors with other tests.
    if (long) expect(p99(answers)).toBeLessThan(200)
    await system.settled(60)
    await system.proof()
  })
})

/** Seconds from the loss or the return of a node until all that was recorded is applied. */
const longestRecovery = 30

failures(
  "a cluster of RabbitMQ",
  "servers",
  (scenario) => {
    const nodes = cluster.nodes("rabbitmq")
    const begin = async (system: System) => {
      await system.api()
      await Promise.all(system.workers(3).map(consuming))
    }
    const load = (system: System, name: string) => system.load(happenings(200, 150, name), inForm(150, 300))
    /** Stops the load, expects that no request failed, and measures the recovery since `from`. */
    const recovered = async (
      system: System,
      posting: ReturnType<System["load"]>,
      from: number,
      what: string,
    ) => {
      allCreated(await posting.stop())
      await system.settled(60)
      const seconds = (performance.now() - from) / 1000
      system.say(`${what}: recovered in ${seconds.toFixed(1)} s; ${system.accepted.size} accepted so far`)
      expect(seconds).toBeLessThan(longestRecovery)
    }

    scenario("the leader of the main queue killed", async (system) => {
      const kills = inForm(2, 5)
      await begin(system)
      for (let kill = 1; kill <= kills; kill++) {
        const leader = await cluster.queueLeader(virtualHostIn(system.env.RABBITMQ_DSN!), queue)
        const posting = load(system, `kill-${kill}`)
        await Bun.sleep(3000)
        await leader.kill()
        const killed = performance.now()
        await Bun.sleep(5000)
        await recovered(system, posting, killed, `killed ${leader.name}, ${kill} of ${kills}`)
        await leader.start()
      }
      await system.proof()
    })

    scenario("the node named first is gone for good", async (system) => {
      const [first] = nodes
      await first!.kill()
      try {
        await begin(system)
        const posting = load(system, "first")
        const begun = performance.now()
        await Bun.sleep(10_000)
        await recovered(system, posting, begun + 10_000, "without the first node")
        expect((await system.command("doctor")).code).toBe(0)
        await system.proof()
      } finally {
        await first!.start()
      }
    })

    scenario("two of three nodes stopped", async (system) => {
      await begin(system)
      const posting = load(system, "two")
      await Bun.sleep(3000)
      const two = nodes.slice(0, 2)
      await Promise.all(two.map((node) => node.stop()))
      await Bun.sleep(inForm(10_000, 30_000))
      await Promise.all(two.map((node) => node.start()))
      const back = performance.now()
      await Bun.sleep(3000)
      await recovered(system, posting, back, "two nodes are back")
      await system.proof()
    })

    scenario("a rolling restart", async (system) => {
      await begin(system)
      const posting = load(system, "rolling")
      let last = 0
      for (const node of nodes) {
        await Bun.sleep(3000)
        await node.stop()
        last = performance.now()
        await node.start()
      }
      await Bun.sleep(3000)
      await recovered(system, posting, last, "all nodes restarted")
      await system.proof()
    })
  },
  { rabbitmq: 3 },
)
