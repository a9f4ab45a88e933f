/** MongoDB is stopped, frozen and killed under load. The backlog waits, and no message is lost or becomes a dead letter. */
import { expect } from "bun:test"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, inForm, long, type System } from "./System.ts"

failures("MongoDB", "servers", (scenario) => {
  /** Posts during the whole outage. All accepted interactions are applied within 30 s after MongoDB is back. */
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
    /** Waits until both workers have noticed the outage, and a while longer. */
    const continues = async () => {
      times += 1
      await until("both workers notice the outage", 30, () =>
        workers.every((worker) => worker.count("outage.began") >= times) ? true : undefined,
      )
      await Bun.sleep(inForm(1000, 60_000))
    }
    const { kill, pause, resume, start, stop } = sacrificial
    const away = (how: typeof stop) => () => how("mongodb").then(continues)
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
  // The only message in the system at the time of the kill may count one failed attempt. A second one would make it a dead letter.
  scenario("stopped, frozen and killed under load", outages, { WORKER_MAX_RETRIES: "1" })
})
