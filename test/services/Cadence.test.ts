import { expect, test } from "bun:test"
import { Effect } from "effect"
import { Cadence } from "../../src/services/Cadence.ts"
import { WorkQueue } from "../../src/services/record/WorkQueue.ts"

/** Beginnings of the rounds of a queue, in ms since the first item, and what each round took. */
const rounds = async (interval: number, full: number, offer: (queue: WorkQueue<number>) => Promise<void>) => {
  const queue = new WorkQueue<number>({ pace: { interval }, full })
  const seen: Array<{ readonly at: number; readonly items: ReadonlyArray<number> }> = []
  const start = performance.now()
  const consumed = Effect.runPromise(
    queue.consume(Effect.sync(() => seen.push({ at: performance.now() - start, items: queue.take(100) }))),
  )
  await offer(queue)
  await Effect.runPromise(queue.close)
  await consumed
  return seen
}

test("the first item does not wait; later ones share the round after the interval", async () => {
  const seen = await rounds(200, 100, async (queue) => {
    queue.offer(1)
    for (const item of [2, 3, 4]) {
      await Bun.sleep(10)
      queue.offer(item)
    }
    await Bun.sleep(400)
  })
  expect(seen.map(({ items }) => items)).toEqual([[1], [2, 3, 4]])
  expect(seen[0]!.at).toBeLessThan(150)
  expect(seen[1]!.at - seen[0]!.at).toBeGreaterThanOrEqual(199)
})

test("a full queue and a queue that closes do not wait", async () => {
  const start = performance.now()
  const seen = await rounds(60_000, 3, async (queue) => {
    for (const item of [1, 2, 3, 4]) {
      queue.offer(item)
      await Bun.sleep(1)
    }
    queue.offer(5)
  })
  expect(seen.map(({ items }) => items)).toEqual([[1], [2, 3, 4], [5]])
  expect(performance.now() - start).toBeLessThan(30_000)
})

test("an interval of 0 never waits, and an interrupted wait leaves no timer", async () => {
  const none = new Cadence({ interval: 0 })
  none.begin()
  expect(none.isDue).toBe(true)
  const long = new Cadence({ interval: 60_000 })
  long.begin()
  await Effect.runPromise(Effect.timeoutOption(long.untilDue, "5 millis"))
  expect(long.isDue).toBe(false)
  long.hurry()
  await Effect.runPromise(long.untilDue)
})

test("at a busy rate the rounds are farther apart", async () => {
  const cadence = new Cadence({ interval: 0, busy: { perSecond: 2_500, interval: 60_000 } })
  cadence.begin()
  await Bun.sleep(20)
  cadence.begin(20)
  expect(cadence.isDue).toBe(true)
  await Bun.sleep(20)
  cadence.begin(100_000)
  expect(cadence.isDue).toBe(false)
})
