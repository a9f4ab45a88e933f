/** Messages that can never succeed among good ones, and a message that kills every worker that handles it. */
import { expect } from "bun:test"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { openAiStandIn } from "../support/openAiStandIn.ts"
import { type Program, until } from "./Program.ts"
import { happenings, searches } from "./Shop.ts"
import { consuming, failures, heavy, inForm, long } from "./System.ts"

/** Ten kinds of bad bodies. The number makes each body unique. */
const kinds: ReadonlyArray<(n: number) => string | Uint8Array> = [
  (n) => `{"user_id": "u-${n}", "version": "1.0"`,
  (n) => Uint8Array.of(0xff, 0xfe, n & 0xff, n >> 8),
  (n) => JSON.stringify([n]),
  (n) => JSON.stringify({ version: "1.0", n }),
  (n) => signed({ user_id: `two words ${n}` }),
  (n) => signed({ event_type: "product_wish", user_id: `u-${n}` }),
  (n) => signed({ version: "2.0", user_id: `u-${n}` }),
  (n) => JSON.stringify({ ...facts, user_id: `u-${n}`, message_id: "0".repeat(64) }),
  (n) => signed({ occurred_at: "2199-01-01T00:00:00.000Z", user_id: `u-${n}` }),
  (n) => signed({ user_id: `u-${n}`, extra: "x".repeat(270_000) }),
]
const facts = {
  user_id: "u-1",
  event_type: "search" as const,
  search_phrase: "yoga mat",
  product_id: null,
  occurred_at: "2026-02-10T10:00:00.000Z",
  metadata: {},
  version: "1.0",
}
const signed = (change: object) => {
  const changed = { ...facts, ...change }
  return JSON.stringify({ ...changed, message_id: Interaction.messageId(changed) })
}

failures("poison", "programs", (scenario) => {
  heavy(scenario)("ten kinds among good messages", async (system) => {
    const each = inForm(20, 200)
    await system.api()
    await Promise.all(system.workers(2).map(consuming))
    const bad = Array.from({ length: 10 * each }, (_, n) => ({ body: Buffer.from(kinds[n % 10]!(n)) }))
    const good = happenings(50, each / 5)
    for (let part = 0; part < 10; part++) {
      const slice = <A>(all: ReadonlyArray<A>) =>
        all.slice((part * all.length) / 10, ((part + 1) * all.length) / 10)
      await Promise.all([system.publish(slice(bad)), system.post(slice(good))])
    }
    await until(
      "all bad messages in failed",
      60,
      async () => (await system.depths()).failed === bad.length || undefined,
    )
    const digests = (all: ReadonlyArray<{ readonly body: Buffer }>) =>
      all.map(({ body }) => Bun.hash(body).toString(36)).sort()
    const deadLetters = await system.deadLetters()
    expect(digests(deadLetters)).toEqual(digests(bad))
    expect(new Set(deadLetters.map(({ headers }) => headers["x-attempts"]))).toEqual(new Set([1]))
    await system.proof()
  })

  // The short form leaves this scenario to test/programs/CrashLoop.test.ts.
  if (!long) return
  const healthy = openAiStandIn()
  const env = { OPENAI_API_KEY: "sk-stand-in", OPENAI_BASE_URL: healthy.url }
  scenario(
    "one that kills its worker each time",
    async (system) => {
      const killer = "killer"
      let over = false
      let deaths = 0
      /** Kills a worker whenever it requests the killer's vector, and starts another one. */
      const dyingWorker = async () => {
        const openAi = openAiStandIn({ latencyMs: 150 })
        const start = () => system.worker({ OPENAI_BASE_URL: openAi.url })
        let worker: Program = start()
        while (!over) {
          if (openAi.received.some(({ input }) => input.includes(killer))) {
            await worker.kill()
            deaths += 1
            openAi.received.length = 0
            worker = start()
          }
          await Bun.sleep(5)
        }
        openAi.stop()
      }
      await system.api()
      await system.post([
        ...happenings(20, 2),
        ...searches([killer, ...Array.from({ length: 20 }, (_, i) => `beside it ${i}`)]),
      ])
      const slots = Array.from({ length: 2 }, dyingWorker)
      try {
        await until(
          "the killer is a dead letter",
          200,
          async () => (await system.depths()).failed > 0 || undefined,
        )
        const [deadLetter] = await system.deadLetters()
        expect(deadLetter?.headers["x-error"]).toBe("crash_loop")
        expect(JSON.parse(String(deadLetter?.body))).toMatchObject({ search_phrase: killer })
        system.say(`${deaths} deaths`)
        await system.proof({ dead: 1 })
        expect((await system.depths()).failed).toBe(1)
      } finally {
        over = true
        await Promise.all(slots)
      }
    },
    env,
  )
})
