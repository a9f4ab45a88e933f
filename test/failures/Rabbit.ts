/** RabbitMQ is killed, or runs out of memory. */
import { expect } from "bun:test"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { type Answers, consuming, failures, inForm, long } from "./System.ts"

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

  scenario("out of memory", async (system) => {
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
    // On a busy machine the limit follows the latency without the alarm.
    expect(p99(answers)).toBeLessThan(long ? 200 : Math.max(200, 3 * before))
    await system.settled(60)
    await system.proof()
  })
})
