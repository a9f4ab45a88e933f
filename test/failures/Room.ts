/** RabbitMQ cannot take a retried message or a dead letter. The worker logs that, and nothing is lost. */
import { expect } from "bun:test"
import { failedQueue, retryQueue } from "../../src/services/ports/InteractionQueue.ts"
import { openAiStandIn } from "../support/openAiStandIn.ts"
import { until } from "./Program.ts"
import { happenings, searches } from "./Shop.ts"
import { consuming, heavyFailures, type System } from "./System.ts"

const poison = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ body: Buffer.from(`no JSON, ${i}`) }))

heavyFailures("no room in RabbitMQ", "programs", (scenario) => {
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
    // A quorum queue notices only at the next message that it is full.
    for (const half of [bad.slice(0, 10), bad.slice(10)]) {
      const before = worker.count("message.parked")
      await system.publish(half)
      await until(
        "ten dead letters logged",
        60,
        () => worker.count("message.parked") === before + 10 || undefined,
      )
    }
    await system.post(happenings(20, 10))
    const { count } = await worker.saw("republish.blocked")
    expect(count).toBeGreaterThan(0)
    // All other messages are applied in the meantime.
    await until("the good messages applied", 60, async () =>
      (await system.applied()) === 200 ? true : undefined,
    )
    await mend()
    await worker.saw("republish.unblocked", 30)
    const letters = await until("all in failed", 60, async () => {
      const found = await system.deadLetters()
      return found.length >= bad.length ? found : undefined
    })
    const text = (all: ReadonlyArray<{ body: Buffer }>) => all.map(({ body }) => body.toString()).sort()
    expect(text(letters)).toEqual(text(bad))
    await system.proof()
  }

  scenario("for dead letters: the binding of the queue failed is gone", (system) =>
    withoutRoom(
      system,
      () => system.manage("bindings", `/e/${failedQueue}/q/${failedQueue}/${failedQueue}`, "DELETE"),
      () =>
        system.manage("bindings", `/e/${failedQueue}/q/${failedQueue}`, "POST", {
          routing_key: failedQueue,
        }),
    ),
  )

  scenario("for dead letters: the greatest length of the queue failed is reached", (system) =>
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
    "for retries: the first retry queue is gone",
    async (system) => {
      openAi.mend()
      openAi.fault = { status: 500 }
      await system.api()
      const worker = system.worker()
      await consuming(worker)
      await system.manage("queues", `/${retryQueue(200)}`, "DELETE")
      await system.post(searches(Array.from({ length: 20 }, (_, i) => `phrase ${i}`)))
      await until("all failed once", 60, () => worker.count("message.retried") === 20 || undefined)
      await worker.saw("republish.blocked")
      openAi.mend()
      // The messages must wait until the retry queue exists again.
      await Bun.sleep(1000)
      expect(await system.applied()).toBe(0)
      expect((await system.command("setup")).code).toBe(0)
      await worker.saw("republish.unblocked", 30)
      await system.proof()
    },
    env,
  )
})
