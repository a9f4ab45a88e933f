/** MongoDB answers, but refuses every command. That is an outage too: nothing becomes a dead letter. */
import { expect } from "bun:test"
import { MongoClient, MongoServerError } from "mongodb"
import { nodes } from "../support/cluster.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, heavyFailures, inForm, type System } from "./System.ts"

/** Unauthorized, a quota of a hosted service, OutOfDiskSpace, HostUnreachable, UnsatisfiableWriteConcern. */
const codes = inForm([13], [13, 8000, 14031, 6, 100])

/** Refuses all reads and writes of the programs, on every node, and lets those of this test pass. */
const refuse = async (errorCode: number | undefined) => {
  for (const { env } of nodes("mongodb")) {
    const client = new MongoClient(env.MONGODB_URL ?? "")
    try {
      await client
        .db("admin")
        .command({
          configureFailPoint: "failCommand",
          mode: errorCode === undefined ? "off" : "alwaysOn",
          data: {
            errorCode,
            failCommands: ["find", "getMore", "insert", "update", "delete", "findAndModify", "aggregate"],
            appName: "user-embeddings",
          },
        })
        .catch((error) => {
          const lacksFailPoints = error instanceof MongoServerError && error.codeName === "CommandNotFound"
          throw lacksFailPoints
            ? new Error("start this MongoDB with --setParameter enableTestCommands=1", { cause: error })
            : error
        })
    } finally {
      await client.close()
    }
  }
}

heavyFailures("MongoDB that refuses", "servers", (scenario) => {
  const refused = async (system: System) => {
    await system.api()
    const workers = system.workers(2)
    await Promise.all(workers.map(consuming))
    for (const code of codes) {
      await refuse(code)
      try {
        await system.post(happenings(100, inForm(3, 50), `code-${code}`))
        await until("both workers notice the outage", 60, () =>
          workers.every((worker) => worker.log.some(({ detail }) => String(detail).includes("failCommand")))
            ? true
            : undefined,
        )
        await Bun.sleep(inForm(1_000, 60_000))
      } finally {
        await refuse(undefined)
      }
      const returned = performance.now()
      await system.settled(30)
      expect((await system.depths()).failed).toBe(0)
      system.report(`recovery after code ${code}`, `${((performance.now() - returned) / 1000).toFixed(1)} s`)
    }
    await system.proof()
  }
  // A single message may go through the retry queues. With one retry, a second failure would make it a dead letter.
  scenario("answers with errors of its own to everything", refused, { WORKER_MAX_RETRIES: "1" })
})
