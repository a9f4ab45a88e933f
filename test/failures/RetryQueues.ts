/** MongoDB is unreachable, and the queue holds a single message. It becomes a dead letter after all attempts, at the planned times. */
import { expect } from "bun:test"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { type LogLine, until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, heavyFailures, inForm, long, type System } from "./System.ts"

heavyFailures("MongoDB without an answer", "programs", (scenario) => {
  const [delay, retries] = inForm([200, 2] as const, [5000, 5] as const)
  const env = { WORKER_RETRY_DELAY: String(delay), WORKER_MAX_RETRIES: String(retries) }
  const single = async (system: System) => {
    await system.api()
    const mongo = await system.proxy("MONGODB_URL")
    const worker = system.worker({ MONGODB_URL: mongo.url })
    await consuming(worker)
    await system.post(happenings(1, 1))
    await system.settled(60)
    if (long) await sacrificial.stop("mongodb")
    else mongo.cut()
    await system.post(happenings(1, 1, "single"))
    await worker.saw("message.parked", inForm(90, 300))
    const failures = worker.log.filter(
      ({ event }) => event === "message.retried" || event === "message.parked",
    )
    expect(failures.map(({ attempt }) => attempt)).toEqual(
      Array.from({ length: retries + 1 }, (_, i) => i + 1),
    )
    const at = ({ time }: LogLine) => Date.parse(String(time))
    // A batch is logged at its end, with its duration.
    const began = await until("the last attempt logged", 5, () => {
      const attempts = worker.log.filter(
        (line) => line.event === "batch.processed" && at(line) >= at(failures[0]!),
      )
      return attempts.length > retries
        ? attempts.map((line) => at(line) - Number(line.duration_ms))
        : undefined
    })
    for (const [i, failure] of failures.slice(0, -1).entries()) {
      const planned = Math.min(60_000, delay * 2 ** i)
      // During an outage the worker tries again only after 1, 2 and 4 s. In the short form other scenarios add delays.
      const most = inForm(Math.max(planned, 1000 * 2 ** i) + 5000, planned) + 1000
      const waited = began[i + 1]! - at(failure)
      system.say(`retry queue ${i + 1}: waited ${waited} ms, planned ${planned} ms`)
      expect(waited).toBeGreaterThanOrEqual(0.9 * planned)
      expect(waited).toBeLessThanOrEqual(most)
    }
    if (long) await sacrificial.start("mongodb")
    else mongo.restore()
    const [deadLetter] = await system.deadLetters()
    expect(deadLetter?.headers).toMatchObject({ "x-attempts": retries + 1, "x-retry-count": retries })
    expect((await system.command("failed", "retry", "--all")).code).toBe(0)
    await system.proof()
  }
  scenario("a single message goes through all retry queues to failed, and a retry applies it", single, env)
})
