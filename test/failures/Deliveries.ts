/** The same message is delivered again: to several workers at once, and long after it was applied. */
import { expect } from "bun:test"
import { happenings } from "./Shop.ts"
import { consuming, heavyFailures, inForm, type System } from "./System.ts"

const documents = async (system: System) =>
  new Map((await system.users()).map((document) => [document.user_id, JSON.stringify(document)]))

heavyFailures("a message delivered more than once", "programs", (scenario) => {
  scenario("to four workers at once", async (system) => {
    const users = inForm(100, 1000)
    await system.api()
    await Promise.all(system.workers(4, { WORKER_PREFETCH: "50" }).map(consuming))
    for (const round of [1, 2]) {
      await system.post(
        happenings(users, 1, "many").map((item) => ({
          ...item,
          occurred_at: new Date(Date.parse(item.occurred_at) + round).toISOString(),
        })),
      )
      // Neighbouring messages go to different workers, while the originals are still being delivered.
      const rows = await system.rows()
      await system.publishAgain(rows.flatMap((row) => [row, row, row, row]))
      await system.settled(60)
      const versions = (await system.users()).map(({ version }) => Number(version))
      expect(versions).toEqual(Array.from({ length: users }, () => round))
    }
    await system.proof()
    expect((await system.users()).every(({ version }) => Number(version) === 2)).toBe(true)
  })

  scenario("all of the log again, and the first of a user's many messages", async (system) => {
    await system.api()
    const worker = system.worker()
    await consuming(worker)
    // More messages than the 256 ids that a document keeps.
    await system.post(happenings(1, inForm(600, 2000), "regular"))
    await system.settled(60)
    await system.post(happenings(50, 10, "visitor"))
    await system.settled(60)
    const before = await documents(system)
    const rows = await system.rows()
    await worker.handled(rows.length, 10)
    await system.publishAgain([rows[0]!])
    await worker.handled(rows.length + 1, 20)
    expect((await system.command("replay", "--all")).code).toBe(0)
    await worker.handled(2 * rows.length + 1, 60)
    await system.proof()
    expect(await documents(system)).toEqual(before)
  })
})
