/** MongoDB stops, freezes and dies under load: a backlog waits unharmed, a lone message gives up in plain sight. */
import { expect } from "bun:test"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { type LogLine, until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, inForm, type System } from "./System.ts"

failures("MongoDB", "servers", (scenario) => {
  /** Without retries every failed attempt that is held against a message makes a dead letter. */
  const env = { WORKER_MAX_RETRIES: "0" }

  /** Posts all the while; what was accepted until MongoDB is back is applied at most 30 s later. */
  const outage = async (system: System, away: () => Promise<unknown>, back: () => Promise<unknown>) => {
    const posting = system.load(happenings(100, 10_000, `outage-${system.accepted.size}`), inForm(40, 150))
    await until("load", 60, async () => (await system.applied()) > 0 || undefined)
    await away()
    await back()
    const { statuses, times } = await posting.stop()
    expect(statuses).toEqual(new Map([[201, times.length]]))
    await system.settled(30)
    expect((await system.depths()).failed).toBe(0)
  }

  scenario(
    "stopped, frozen and killed under load",
    async (system) => {
      await system.api()
      const workers = system.workers(2)
      await Promise.all(workers.map(consuming))
      const noticed = (times: number) =>
        until("the workers say so", 30, () =>
          workers.every((worker) => worker.count("outage.began") >= times) ? true : undefined,
        )
      const stay = () => Bun.sleep(inForm(2000, 60_000))
      await outage(
        system,
        () =>
          sacrificial
            .stop("mongodb")
            .then(() => noticed(1))
            .then(stay),
        () => sacrificial.start("mongodb"),
      )
      system.say("was stopped")
      await outage(
        system,
        () =>
          sacrificial
            .pause("mongodb")
            .then(() => noticed(2))
            .then(stay),
        () => sacrificial.resume("mongodb"),
      )
      system.say("was frozen")
      const kills = inForm(1, 5)
      for (let kill = 1; kill <= kills; kill++) {
        await Bun.sleep(500 + Math.random() * 1000)
        await outage(
          system,
          () => sacrificial.kill("mongodb"),
          () => sacrificial.start("mongodb"),
        )
        system.say(`was killed, ${kill} of ${kills}`)
      }
      await system.proof()
    },
    env,
  )

  const [delay, retries] = inForm([200, 2], [5000, 5])
  const ladder = { WORKER_RETRY_DELAY: String(delay), WORKER_MAX_RETRIES: String(retries) }
  scenario(
    "stopped, and one lone message",
    async (system) => {
      await system.api()
      const worker = system.worker()
      await consuming(worker)
      await system.post(happenings(1, 1))
      await system.settled(20)
      await sacrificial.stop("mongodb")
      await system.post(happenings(1, 1, "lone"))
      await worker.saw("message.parked", inForm(60, 300))
      const failures = worker.log.filter(
        ({ event }) => event === "message.retried" || event === "message.parked",
      )
      expect(failures.map(({ attempt }) => attempt)).toEqual(
        Array.from({ length: retries! + 1 }, (_, i) => i + 1),
      )
      const at = ({ time }: LogLine) => Date.parse(String(time))
      // A batch is logged when it is done, and says how long it took.
      const began = await until("the last attempt logged", 5, () => {
        const attempts = worker.log.filter(
          (line) => line.event === "batch.processed" && at(line) >= at(failures[0]!),
        )
        return attempts.length > retries!
          ? attempts.map((line) => at(line) - Number(line.duration_ms))
          : undefined
      })
      for (const [i, failure] of failures.slice(0, -1).entries()) {
        const planned = Math.min(60_000, delay! * 2 ** i)
        // A worker that waits for MongoDB looks 1, 2, 4 s later, whatever comes before.
        const most = Math.max(planned, 1000 * 2 ** i)
        const waited = began[i + 1]! - at(failure)
        system.say(`rung ${i + 1}: waited ${waited} ms, planned ${planned} ms`)
        expect(waited).toBeGreaterThanOrEqual(0.9 * planned)
        expect(waited).toBeLessThanOrEqual(most + 1000)
      }
      await sacrificial.start("mongodb")
      const [letter] = await system.letters()
      expect(letter?.headers).toMatchObject({ "x-attempts": retries! + 1, "x-retry-count": retries })
      expect((await system.command("failed", "retry", "--all")).code).toBe(0)
      await system.proof()
    },
    ladder,
  )
})
