/**
 * Outages of any length. RabbitMQ limits how long a message may be held (`consumer_timeout`), so a worker holds nothing
 * that waits: no message is quarantined, none becomes a dead letter, and what can go on does. To show that, the long form
 * needs a timeout of 20 s: `consumer_timeout` of the broker before 4.0, the policy of `setup` from 4.0 on.
 */
import { expect } from "bun:test"
import { type Fault, openAiStandIn } from "../support/openAiStandIn.ts"
import { type Program, until } from "./Program.ts"
import { happenings, searches } from "./Shop.ts"
import { consuming, heavyFailures, inForm, long, type System } from "./System.ts"

const backlog = inForm(300, 5_000)
const outageMillis = inForm(4_000, 180_000)
/** Each worker may hold one message at a time, to probe with it. */
const workerCount = 2

const products = (users: number, each: number, name: string) =>
  happenings(users, each, name).filter(({ event_type }) => event_type !== "search")
const phrases = (name: string, count: number) => Array.from({ length: count }, (_, i) => `${name} ${i}`)

/** No connection was lost, no message was given up, and none was suspected but `suspects`. */
const expectPeace = async (
  system: System,
  workers: ReadonlyArray<Program>,
  suspects = new Set<unknown>(),
) => {
  const lines = workers.flatMap(({ log }) => log)
  const quarantined = lines.filter(({ event }) => event === "message.quarantined")
  expect(quarantined.filter(({ message_id }) => !suspects.has(message_id))).toEqual([])
  expect(lines.filter(({ event }) => event === "message.parked" || event === "rabbitmq.waiting")).toEqual([])
  expect(await system.depths()).toMatchObject({ failed: 0 })
}

/** Waits until the broker has all messages that wait, except for the probes. */
const givenBack = (system: System, messages: number) =>
  until(
    "all messages given back",
    20,
    async () => (await system.depths()).main >= messages - workerCount || undefined,
  )

const settledWithin = async (system: System, seconds: number) => {
  const begun = performance.now()
  await system.settled(seconds)
  system.say(`everything applied ${((performance.now() - begun) / 1000).toFixed(1)} s after the end`)
}

heavyFailures("outages of any length", "programs", (scenario) => {
  /** The default run has the first scenario alone, and unit tests of the worker for the others. */
  const longScenario: typeof scenario = (...scenarioOf) => {
    if (long) scenario(...scenarioOf)
  }
  scenario("MongoDB is out: the backlog is given back and waits", async (system) => {
    await system.api()
    const mongo = await system.proxy("MONGODB_URL")
    const workers = system.workers(workerCount, { MONGODB_URL: mongo.url })
    await Promise.all(workers.map(consuming))
    await system.post(happenings(20, 2, "before"))
    await system.settled(30)
    mongo.cut()
    const begun = performance.now()
    await system.post(happenings(100, backlog / 100, "during"))
    await givenBack(system, backlog)
    system.say(`given back after ${((performance.now() - begun) / 1000).toFixed(1)} s`)
    while (performance.now() - begun < outageMillis) {
      expect((await system.depths()).main).toBeGreaterThanOrEqual(backlog - workerCount)
      await Bun.sleep(1_000)
    }
    mongo.restore()
    await settledWithin(system, 30)
    await expectPeace(system, workers)
    await system.proof()
  })

  const refusing = openAiStandIn()
  const healthy = openAiStandIn({ latencyMs: 150 })
  const env = (url: string) => ({ OPENAI_API_KEY: "sk-stand-in", OPENAI_BASE_URL: url })
  const refusal: Fault = { status: 401, code: "invalid_api_key" }
  longScenario(
    "the embedding service is out: searches are set aside, product events go on, also past a suspected message",
    async (system) => {
      refusing.fault = refusal
      await system.api()
      // The prefetch is smaller than the number of searches that wait.
      const workers = system.workers(workerCount, { WORKER_PREFETCH: "100" })
      await Promise.all(workers.map(consuming))
      await system.post(searches(phrases("waiting", backlog)))
      await givenBack(system, backlog)
      // A search that was suspected before. It must not keep the worker from its other messages.
      const [suspect] = (await system.rows()).filter(({ event_type }) => event_type === "search")
      await system.suspect(suspect!)
      const begun = performance.now()
      const events = products(20, 360, "meanwhile")
      const load = system.load(events, 20)
      await load.done
      await until(
        "product events are applied",
        20,
        async () => (await system.applied()) === events.length || undefined,
      )
      await Bun.sleep(Math.max(0, outageMillis - (performance.now() - begun)))
      await expectPeace(system, workers, new Set([suspect!.message_id]))
      system.say(`${refusing.received.length} calls during the outage`)
      refusing.mend()
      await settledWithin(system, 30)
      await expectPeace(system, workers, new Set([suspect!.message_id]))
      await system.proof()
    },
    env(refusing.url),
  )

  const unresponsive = openAiStandIn()
  longScenario(
    "the embedding service does not answer: product events pass the searches that wait, also past suspected ones",
    async (system) => {
      unresponsive.fault = "hang"
      await system.api()
      const worker = system.worker({ WORKER_PREFETCH: "100" })
      await consuming(worker)
      await system.post(searches(phrases("waiting", backlog)))
      const all = (await system.rows()).filter(({ event_type }) => event_type === "search")
      const suspects = all.slice(0, 20)
      for (const suspect of suspects) await system.suspect(suspect)
      const begun = performance.now()
      let slowest = 0
      for (let round = 0; performance.now() - begun < outageMillis; round++) {
        const before = await system.applied()
        const events = products(10, 2, `round-${round}`)
        const posted = performance.now()
        await system.post(events)
        await until(
          "product events are applied",
          45,
          async () => (await system.applied()) === before + events.length || undefined,
        )
        slowest = Math.max(slowest, performance.now() - posted)
      }
      system.report("slowest product events", `${(slowest / 1000).toFixed(1)} s`)
      unresponsive.mend()
      await system.settled(240)
      const ids = new Set(suspects.map(({ message_id }) => message_id))
      await expectPeace(system, [worker], ids)
      await system.proof()
    },
    { ...env(unresponsive.url), WORKER_RETRY_DELAY: "20000", WORKER_MAX_RETRIES: "20" },
  )

  longScenario(
    "messages that were suspected because their workers were killed cost seconds, and the killer among them is found",
    async (system) => {
      const killer = "killer"
      const harmless = products(100, 60, "harmless").slice(0, backlog)
      await system.api()
      await system.post([...harmless, ...searches([killer])])
      const mongo = await system.proxy("MONGODB_URL")
      mongo.freeze()
      for (let death = 1; death <= 3; death++) {
        const worker = system.worker({ MONGODB_URL: mongo.url })
        await consuming(worker)
        await system.delivered()
        await worker.kill()
        await until(
          "all requeued",
          20,
          async () => (await system.depths()).main > harmless.length - 1 || undefined,
        )
      }
      const begun = performance.now()
      let over = false
      let deaths = 0
      /** Kills a worker whenever it requests the killer's vector, and starts another one. */
      const mortalWorker = async () => {
        let worker = system.worker()
        while (!over) {
          if (healthy.received.some(({ input }) => input.includes(killer))) {
            await worker.kill()
            deaths += 1
            healthy.received.length = 0
            worker = system.worker()
          }
          await Bun.sleep(5)
        }
      }
      healthy.received.length = 0
      const dying = mortalWorker()
      try {
        await system.settled(60, 1)
        await until(
          "the killer is a dead letter",
          60,
          async () => (await system.depths()).failed > 0 || undefined,
        )
      } finally {
        over = true
        await dying
      }
      system.say(
        `${harmless.length} drained in ${((performance.now() - begun) / 1000).toFixed(1)} s, ${deaths} deaths`,
      )
      expect(
        system.programs.reduce((sum, one) => sum + one.count("message.quarantined"), 0),
      ).toBeGreaterThanOrEqual(harmless.length)
      const deadLetters = await system.deadLetters()
      expect(deadLetters.map(({ headers }) => headers["x-error"])).toEqual(["crash_loop"])
      expect(JSON.parse(String(deadLetters[0]?.body))).toMatchObject({ search_phrase: killer })
      await system.proof({ dead: deadLetters.length })
    },
    env(healthy.url),
  )
})
