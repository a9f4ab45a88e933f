/** RabbitMQ dies, runs out of memory, or has no room for what failed. */
import { expect } from "bun:test"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { failedQueue, retryQueue } from "../../src/services/InteractionQueue.ts"
import { openAiStandIn } from "../support/openAiStandIn.ts"
import { until } from "./Program.ts"
import { happenings, searches } from "./Shop.ts"
import { type Answers, consuming, failures, inForm, long, type System } from "./System.ts"

const allCreated = ({ statuses, times }: Answers) => expect(statuses).toEqual(new Map([[201, times.length]]))

const poison = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ body: Buffer.from(`no JSON, ${i}`) }))

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
    const usual = system.load(happenings(100, 10_000, "before"), perSecond)
    await Bun.sleep(inForm(2000, 10_000))
    const before = p99(await usual.stop())
    const posting = system.load(happenings(100, 10_000), perSecond)
    try {
      await watermark(0.000_01)
      await until(
        "publishing stands still",
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
    // On a machine that does much else, what it took without the alarm says what can be asked for.
    expect(p99(answers)).toBeLessThan(long ? 200 : Math.max(200, 3 * before))
    await system.settled(60)
    await system.proof()
  })
})

failures("no room in RabbitMQ", "programs", (scenario) => {
  const withoutRoom = async (
    system: System,
    refuse: () => Promise<unknown>,
    mend: () => Promise<unknown>,
  ) => {
    const bad = poison(20)
    await system.api()
    const worker = system.worker()
    await consuming(worker)
    await refuse()
    // A quorum queue finds out that it is full only with the next messages.
    for (const half of [bad.slice(0, 10), bad.slice(10)]) {
      const before = worker.count("message.parked")
      await system.publish(half)
      await until("ten given up", 60, () => worker.count("message.parked") === before + 10 || undefined)
    }
    await system.post(happenings(20, 10))
    const { count } = await worker.saw("copies.stuck")
    expect(count).toBeGreaterThan(0)
    // The others go on meanwhile.
    await until("the good ones applied", 60, async () =>
      (await system.applied()) === 200 ? true : undefined,
    )
    await mend()
    await worker.saw("copies.passed", 30)
    const letters = await until("all in failed", 60, async () => {
      const letters = await system.letters()
      return letters.length >= bad.length ? letters : undefined
    })
    const text = (all: ReadonlyArray<{ body: Buffer }>) => all.map(({ body }) => body.toString()).sort()
    expect(text(letters)).toEqual(text(bad))
    await system.proof()
  }

  scenario("for dead letters: the binding of failed is gone", (system) =>
    withoutRoom(
      system,
      () => system.manage("bindings", `/e/${failedQueue}/q/${failedQueue}/${failedQueue}`, "DELETE"),
      () =>
        system.manage("bindings", `/e/${failedQueue}/q/${failedQueue}`, "POST", {
          routing_key: failedQueue,
        }),
    ),
  )

  scenario("for dead letters: the greatest length of failed is reached", (system) =>
    withoutRoom(
      system,
      () =>
        system.manage("policies", "/full", "PUT", {
          pattern: `^${failedQueue}$`,
          definition: { "max-length": 1, overflow: "reject-publish" },
          "apply-to": "queues",
        }),
      () => system.manage("policies", "/full", "DELETE"),
    ),
  )

  const openAi = openAiStandIn()
  const env = { OPENAI_API_KEY: "sk-stand-in", OPENAI_BASE_URL: openAi.url }
  scenario(
    "for retries: the queue of the first rung is gone",
    async (system) => {
      openAi.mend()
      openAi.fault = { status: 500 }
      await system.api()
      const worker = system.worker()
      await consuming(worker)
      await system.manage("queues", `/${retryQueue(200)}`, "DELETE")
      await system.post(searches(Array.from({ length: 20 }, (_, i) => `wish ${i}`)))
      await until("all failed once", 60, () => worker.count("message.retried") === 20 || undefined)
      await worker.saw("copies.stuck")
      openAi.mend()
      // They wait for the rung, not for luck.
      await Bun.sleep(1000)
      expect(await system.applied()).toBe(0)
      expect((await system.command("setup")).code).toBe(0)
      await worker.saw("copies.passed", 30)
      await system.proof()
    },
    env,
  )
})
