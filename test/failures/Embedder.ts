/** The embedding service refuses, hangs or answers nonsense. The worker treats each failure by its class and makes few calls. */
import { expect } from "bun:test"
import { type Fault, type OpenAiStandIn, openAiStandIn } from "../support/openAiStandIn.ts"
import { type Program, until } from "./Program.ts"
import { happenings, searches } from "./Shop.ts"
import { consuming, failures, heavy, inForm, type System } from "./System.ts"

failures("the embedding service", "programs", (scenario) => {
  const phrases = (name: string, count: number) => Array.from({ length: count }, (_, i) => `${name} ${i}`)

  /** A scenario with its own embedding service, the API and one worker. */
  const withService = (
    name: string,
    run: (system: System, openAi: OpenAiStandIn, worker: Program) => Promise<void>,
    define = scenario,
  ) => {
    const openAi = openAiStandIn()
    const env = { OPENAI_API_KEY: "sk-stand-in", OPENAI_BASE_URL: openAi.url }
    define(
      name,
      async (system) => {
        await system.api()
        const worker = system.worker()
        await consuming(worker)
        await run(system, openAi, worker)
      },
      env,
    )
  }
  const callsFor = (openAi: OpenAiStandIn, phrase: string) =>
    openAi.received.filter(({ input }) => input.includes(phrase)).length

  withService(
    "wrong dimension and zero vector: dead letters at once, and all other phrases are applied",
    async (system, openAi) => {
      const [wrong, zero, good] = [phrases("wrong", 3), phrases("zero", 3), phrases("good", 20)]
      for (const phrase of wrong) openAi.faults.set(phrase, "wrong_dimension")
      for (const phrase of zero) openAi.faults.set(phrase, "zero")
      await system.post(searches([...good.slice(0, 10), ...wrong, ...zero, ...good.slice(10)]))
      await system.settled(30, 6)
      const deadLetters = await until("six dead letters", 60, async () => {
        const found = await system.deadLetters()
        return found.length === 6 ? found : undefined
      })
      for (const { headers } of deadLetters)
        expect(headers).toMatchObject({ "x-error": "phrase_embedder_bad_vector", "x-attempts": 1 })
      for (const phrase of [...wrong, ...zero, ...good]) expect(callsFor(openAi, phrase)).toBe(1)
      await system.proof({ dead: 6 })
    },
    heavy(scenario),
  )

  withService(
    "500: all retry queues, then dead letters, and a retry applies them after the outage",
    async (system, openAi, worker) => {
      const bad = phrases("failing", 3)
      for (const phrase of bad) openAi.faults.set(phrase, { status: 500 })
      await system.post(searches(bad))
      await until("three dead letters", 120, async () => (await system.depths()).failed === 3 || undefined)
      for (const { headers } of await system.deadLetters())
        expect(headers).toMatchObject({ "x-error": "phrase_embedder_server_error", "x-attempts": 6 })
      // Six attempts. Phrases that fail together are also requested in smaller groups.
      for (const phrase of bad) {
        expect(callsFor(openAi, phrase)).toBeGreaterThanOrEqual(6)
        expect(callsFor(openAi, phrase)).toBeLessThanOrEqual(18)
      }
      await system.post(searches(phrases("later", 20)))
      await system.settled(30, 3)
      openAi.mend()
      const { code } = await system.command("failed", "retry", "--all")
      expect(code).toBe(0)
      expect(worker.count("outage.began")).toBe(0)
      await system.proof()
    },
    heavy(scenario),
  )

  withService(
    "429 with Retry-After: no phrase is requested again before that time",
    async (system, openAi, worker) => {
      openAi.fault = { status: 429, code: "rate_limit_exceeded", headers: { "retry-after": "3" } }
      const wanted = phrases("patient", 40)
      await system.post(searches(wanted))
      await until(
        "all retried later",
        60,
        () => worker.count("message.retried") === wanted.length || undefined,
      )
      const retriedAt = Date.now()
      openAi.mend()
      await until("requested again", 30, () => openAi.received.length > 0 || undefined)
      // The retry queue for 3 s has a delay of 3,200 ms, minus at most a tenth.
      expect(Date.now() - retriedAt).toBeGreaterThan(2000)
      await system.proof()
      for (const phrase of wanted) expect(callsFor(openAi, phrase)).toBe(1)
    },
    heavy(scenario),
  )

  const outages: ReadonlyArray<readonly [string, Fault]> = [
    ["401", { status: 401, code: "invalid_api_key" }],
    ["an exhausted quota", { status: 429, code: "insufficient_quota" }],
    ["429 with a long Retry-After", { status: 429, headers: { "retry-after": "3600" } }],
  ]
  withService(
    "401, exhausted quota, long Retry-After: a backlog waits, few calls are made, product events continue",
    async (system, openAi, worker) => {
      for (const [name, fault] of outages) {
        openAi.mend()
        openAi.fault = fault
        const prefix = name.replaceAll(/[^a-z0-9]/g, "-")
        const products = happenings(20, 10, prefix).filter(({ event_type }) => event_type !== "search")
        const before = await system.applied()
        await system.post(searches(phrases(prefix, 200)))
        await until(`a call during ${name}`, 60, () => openAi.received.length > 0 || undefined)
        await system.post(products)
        await until(
          `product events are applied during ${name}`,
          20,
          async () => (await system.applied()) === before + products.length || undefined,
        )
        await Bun.sleep(inForm(2500, 20_000))
        // The calls in progress when the outage began, and one call after 1, 3, 7, 15 and 31 s.
        system.say(`${name}: ${openAi.received.length} calls`)
        expect(openAi.received.length).toBeLessThanOrEqual(inForm(8, 12))
        expect((await system.depths()).failed).toBe(0)
        openAi.mend()
        await system.settled(40)
      }
      expect(worker.count("message.parked")).toBe(0)
      await system.proof()
    },
    heavy(scenario),
  )

  withService(
    "no answer: each call ends at its deadline, then the retry queues",
    async (system, openAi, worker) => {
      openAi.fault = "hang"
      const stalled = phrases("stalled", 20)
      await system.post(searches(stalled))
      const retried = await worker.saw("message.retried", 40)
      expect(retried.error).toBe("phrase_embedder_timeout")
      // During an outage only one message tries the service again.
      expect(openAi.mostConcurrent).toBeLessThanOrEqual(4)
      openAi.mend()
      await system.proof()
    },
    heavy(scenario),
  )
})
