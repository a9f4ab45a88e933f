/** The embedding service refuses, stalls or answers nonsense: each failure by its class, and no storm of calls. */
import { expect } from "bun:test"
import { type Fault, type OpenAiStandIn, openAiStandIn } from "../support/openAiStandIn.ts"
import { type Program, until } from "./Program.ts"
import { happenings, searches } from "./Shop.ts"
import { consuming, failures, inForm, type System } from "./System.ts"

failures("the embedding service", "programs", (scenario) => {
  const phrases = (name: string, count: number) => Array.from({ length: count }, (_, i) => `${name} ${i}`)

  /** A scenario with a service of its own, the API and one worker. */
  const withService = (
    name: string,
    run: (system: System, openAi: OpenAiStandIn, worker: Program) => Promise<void>,
  ) => {
    const openAi = openAiStandIn()
    const env = { OPENAI_API_KEY: "sk-stand-in", OPENAI_BASE_URL: openAi.url }
    scenario(
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
    "wrong dimension and zero vector: dead letters at once, others unharmed",
    async (system, openAi) => {
      const [wrong, zero, good] = [phrases("wrong", 3), phrases("zero", 3), phrases("good", 20)]
      for (const phrase of wrong) openAi.faults.set(phrase, "wrong_dimension")
      for (const phrase of zero) openAi.faults.set(phrase, "zero")
      await system.post(searches([...good.slice(0, 10), ...wrong, ...zero, ...good.slice(10)]))
      await system.settled(30, 6)
      const letters = await until("six letters", 60, async () => {
        const letters = await system.letters()
        return letters.length === 6 ? letters : undefined
      })
      for (const { headers } of letters)
        expect(headers).toMatchObject({ "x-error": "phrase_embedder_bad_vector", "x-attempts": 1 })
      for (const phrase of [...wrong, ...zero, ...good]) expect(callsFor(openAi, phrase)).toBe(1)
      await system.proof({ dead: 6 })
    },
  )

  withService(
    "500: the ladder, then failed, and applied by a retry when it is over",
    async (system, openAi, worker) => {
      const bad = phrases("unlucky", 3)
      for (const phrase of bad) openAi.faults.set(phrase, { status: 500 })
      await system.post(searches(bad))
      await until("three letters", 120, async () => (await system.depths()).failed === 3 || undefined)
      for (const { headers } of await system.letters())
        expect(headers).toMatchObject({ "x-error": "phrase_embedder_server_error", "x-attempts": 6 })
      for (const phrase of bad) expect(callsFor(openAi, phrase)).toBe(6)
      await system.post(searches(phrases("later", 20)))
      await system.settled(30, 3)
      openAi.mend()
      const { code } = await system.command("failed", "retry", "--all")
      expect(code).toBe(0)
      expect(worker.count("outage.began")).toBe(0)
      await system.proof()
    },
  )

  withService("429 with Retry-After: nothing is asked again before", async (system, openAi, worker) => {
    openAi.fault = { status: 429, code: "rate_limit_exceeded", headers: { "retry-after": "3" } }
    const wishes = phrases("patient", 40)
    await system.post(searches(wishes))
    await until("all put off", 60, () => worker.count("message.retried") === wishes.length || undefined)
    const putOff = Date.now()
    openAi.mend()
    await until("asked again", 30, () => openAi.received.length > 0 || undefined)
    // The rung for it is 3,200 ms, less at most a tenth.
    expect(Date.now() - putOff).toBeGreaterThan(2000)
    await system.proof()
    for (const wish of wishes) expect(callsFor(openAi, wish)).toBe(1)
  })

  const outages: ReadonlyArray<readonly [string, Fault]> = [
    ["401", { status: 401, code: "invalid_api_key" }],
    ["an exhausted quota", { status: 429, code: "insufficient_quota" }],
    ["429 with a long Retry-After", { status: 429, headers: { "retry-after": "3600" } }],
  ]
  withService(
    "401, exhausted quota, long Retry-After: a backlog waits, few calls are made, products go on",
    async (system, openAi, worker) => {
      for (const [name, fault] of outages) {
        openAi.mend()
        openAi.fault = fault
        const prefix = name.replaceAll(/[^a-z0-9]/g, "-")
        const products = happenings(20, 10, prefix).filter(({ event_type }) => event_type !== "search")
        const before = await system.applied()
        await system.post(searches(phrases(prefix, 200)))
        await until(`${name} seen`, 60, () => openAi.received.length > 0 || undefined)
        await system.post(products)
        await until(
          `products go on during ${name}`,
          20,
          async () => (await system.applied()) === before + products.length || undefined,
        )
        await Bun.sleep(inForm(2500, 20_000))
        // Those at once when it began, and then at 1, 3, 7, 15, 31 s.
        system.say(`${name}: ${openAi.received.length} calls`)
        expect(openAi.received.length).toBeLessThanOrEqual(inForm(8, 12))
        expect((await system.depths()).failed).toBe(0)
        openAi.mend()
        await system.settled(40)
      }
      expect(worker.count("message.parked")).toBe(0)
      await system.proof()
    },
  )

  withService("no answer: given up after a deadline, then the ladder", async (system, openAi, worker) => {
    openAi.fault = "hang"
    const wishes = phrases("stalled", 20)
    await system.post(searches(wishes))
    const retried = await worker.saw("message.retried", 40)
    expect(retried.error).toBe("phrase_embedder_timeout")
    // One at a time is not asked again by everybody.
    expect(openAi.mostConcurrent).toBeLessThanOrEqual(4)
    openAi.mend()
    await system.proof()
  })
})
