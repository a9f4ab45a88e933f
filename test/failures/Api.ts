/** The API is killed between the commit in MySQL and the publish to RabbitMQ. */
import { expect } from "bun:test"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { failures, heavy, repetitions, type System } from "./System.ts"

/** Every committed row is published within 5 s after the API is back. */
const published = (system: System) =>
  until("every committed row published", 5, async () =>
    (await system.unpublished()) === 0 ? true : undefined,
  )

failures("the API killed", "programs", (scenario) => {
  heavy(scenario)("between commit and publish", async (system) => {
    const rounds = repetitions(2, 10)
    const rabbit = await system.proxy("RABBITMQ_DSN")
    let api = await system.api({ RABBITMQ_DSN: rabbit.url })
    system.worker()
    for (let round = 1; round <= rounds; round++) {
      if (round % 2 === 0) rabbit.cut()
      else rabbit.freeze()
      const items = happenings(20, 10, `round-${round}`)
      await system.post(items)
      expect(await system.unpublished()).toBe(items.length)
      await api.kill()
      // Its connections are cut, so that everything it had sent is lost.
      rabbit.cut()
      rabbit.restore()
      api = await system.api({ RABBITMQ_DSN: rabbit.url })
      await published(system)
      system.say(`killed before publishing, ${round} of ${rounds}`)
    }
    await system.proof()
  })

  scenario("at random points under load", async (system) => {
    const kills = repetitions(3, 10)
    let api = await system.api()
    system.worker()
    for (let kill = 1; kill <= kills; kill++) {
      const items = happenings(50, 100, `load-${kill}`)
      // A request without an answer may be lost.
      const posting = [0, 1, 2].map(async (lane) => {
        for (let start = lane * 100; start < items.length; start += 300)
          await system.post(items.slice(start, start + 100))
      })
      const settled = Promise.allSettled(posting)
      await Bun.sleep(100 + Math.random() * 400)
      await api.kill()
      const answers = await settled
      // Connection errors have a code. The error for an answer other than 200 has none.
      expect(answers.filter((one) => one.status === "rejected" && one.reason.code === undefined)).toEqual([])
      api = await system.api()
      await published(system)
      system.say(`killed under load, ${kill} of ${kills}; ${system.accepted.size} accepted so far`)
    }
    await system.proof()
  })
})
