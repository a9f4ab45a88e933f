/** Workers are killed: at random, during a write, and between the write and the acknowledgement. */
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, heavy, inForm, repetitions } from "./System.ts"

failures("workers killed", "programs", (scenario) => {
  heavy(scenario)("at random points", async (system) => {
    const [count, users, each] = inForm([2, 40, 80], [4, 200, 100])
    const kills = 2 * repetitions(4, 25)
    await system.api()
    const running = [...system.workers(count!)]
    await Promise.all(running.map(consuming))
    const items = happenings(users!, each!)
    for (let kill = 1; kill <= kills!; kill++) {
      // The worker is killed while it works on a burst.
      await system.post(items.slice(((kill - 1) / kills!) * items.length, (kill / kills!) * items.length))
      await Bun.sleep(Math.random() * 200)
      const victim = Math.floor(Math.random() * running.length)
      await running[victim]!.kill()
      running[victim] = system.worker()
      // Two kills in a row. A third one would send good messages to quarantine, which is slow and not tested here.
      if (kill % 2 === 0) await system.settled(60)
      system.say(`killed a worker, ${kill} of ${kills}; ${await system.applied()} applied`)
    }
    await system.proof()
  })

  heavy(scenario)("while a write hangs", async (system) => {
    await system.api()
    const items = happenings(20, 20)
    await system.post(items)
    const mongo = await system.proxy("MONGODB_URL")
    const worker = system.worker({ MONGODB_URL: mongo.url })
    await consuming(worker)
    await until("something applied", 60, async () => ((await system.applied()) > 0 ? true : undefined))
    mongo.freeze()
    await system.post(happenings(20, 20, "late"))
    await Bun.sleep(1500)
    await worker.kill()
    system.worker()
    await system.proof()
  })

  scenario("between write and acknowledgement", async (system) => {
    const rounds = repetitions(2, 20)
    await system.api()
    const [rabbit, mongo] = await Promise.all([system.proxy("RABBITMQ_DSN"), system.proxy("MONGODB_URL")])
    for (let round = 1; round <= rounds; round++) {
      const before = await system.applied()
      const worker = system.worker({ RABBITMQ_DSN: rabbit.url, MONGODB_URL: mongo.url })
      await consuming(worker)
      mongo.freeze()
      await system.post(happenings(20, 10, `round-${round}`))
      await system.delivered()
      // From now on no acknowledgement of the worker reaches RabbitMQ.
      rabbit.freeze()
      mongo.restore()
      await until("written", 60, async () => ((await system.applied()) > before ? true : undefined))
      await worker.kill()
      rabbit.cut()
      rabbit.restore()
      system.say(`killed between write and acknowledgement, ${round} of ${rounds}`)
    }
    system.worker()
    await system.proof()
  })
})
