/** The API dies between the commit in MySQL and the publishing to RabbitMQ. */
import { expect } from "bun:test"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { failures, inForm, type System } from "./System.ts"

/** Every committed row is published at most 5 s after the API is back. */
const published = (system: System) =>
  until("every committed row published", 5, async () =>
    (await system.unpublished()) === 0 ? true : undefined,
  )

failures("the API killed", "programs", (scenario) => {
  scenario("between commit and publish", async (system) => {
    const rounds = inForm(2, 10)
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
      // What it had sent is lost with its connections.
      rabbit.cut()
      rabbit.restore()
      api = await system.api({ RABBITMQ_DSN: rabbit.url })
      await published(system)
      system.say(`killed before publishing, ${round} of ${rounds}`)
    }
    await system.proof()
  })

  scenario("at random points under load", async (system) => {
    const kills = inForm(2, 10)
    let api = await system.api()
    system.worker()
    for (let kill = 1; kill <= kills; kill++) {
      const posting = system.load(happenings(50, 40, `load-${kill}`), 200)
      await Bun.sleep(500 + Math.random() * 1000)
      await api.kill()
      const { statuses } = await posting.stop()
      expect([...statuses.keys()].filter((status) => status !== 0 && status !== 201)).toEqual([])
      api = await system.api()
      await published(system)
      system.say(`killed under load, ${kill} of ${kills}; ${system.accepted.size} accepted so far`)
    }
    await system.proof()
  })
})
