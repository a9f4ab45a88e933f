/** MongoDB stops, freezes and dies under load: a backlog waits unharmed. */
import { expect } from "bun:test"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, inForm, long, type System } from "./System.ts"

failures("MongoDB", "servers", (scenario) => {
  /** Posts all the while; what was accepted until MongoDB is back is applied at most 30 s later. */
  const outage = async (system: System, away: () => Promise<unknown>, back: () => Promise<unknown>) => {
    const posting = system.load(happenings(100, 10_000, `outage-${system.accepted.size}`), inForm(40, 150))
    const before = await system.applied()
    await until("load", 60, async () => (await system.applied()) > before || undefined)
    await away()
    await back()
    const { statuses, times } = await posting.stop()
    expect(statuses).toEqual(new Map([[201, times.length]]))
    await system.settled(30)
    expect((await system.depths()).failed).toBe(0)
  }

  const outages = async (system: System) => {
    await system.api()
    const workers = system.workers(2)
    await Promise.all(workers.map(consuming))
    let times = 0
    /** Both workers have said so, and then it lasts. */
    const lasts = async () => {
      times += 1
      await until("the workers say so", 30, () =>
        workers.every((worker) => worker.count("outage.began") >= times) ? true : undefined,
      )
      await Bun.sleep(inForm(1000, 60_000))
    }
    const { kill, pause, resume, start, stop } = sacrificial
    const away = (how: typeof stop) => () => how("mongodb").then(lasts)
    if (long) await outage(system, away(stop), () => start("mongodb"))
    system.say("was stopped")
    await outage(system, away(pause), () => resume("mongodb"))
    system.say("was frozen")
    const kills = inForm(1, 5)
    for (let dead = 1; dead <= kills; dead++) {
      await outage(
        system,
        () => kill("mongodb"),
        () => start("mongodb"),
      )
      system.say(`was killed, ${dead} of ${kills}`)
    }
    await system.proof()
  }
  // One attempt may be held against a message that was alone when MongoDB died; a second makes a dead letter.
  scenario("stopped, frozen and killed under load", outages, { WORKER_MAX_RETRIES: "1" })
})
