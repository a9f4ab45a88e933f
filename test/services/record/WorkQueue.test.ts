import { describe, expect, test } from "bun:test"
import { Effect, Fiber } from "effect"
import { WorkQueue } from "../../../src/services/record/WorkQueue.ts"
import { effectTest } from "../../support/effect.ts"

const weighted = (...weights: ReadonlyArray<number>) => {
  const queue = new WorkQueue<number>({ pace: { interval: 0 }, full: 100, weigh: (weight) => weight })
  for (const weight of weights) queue.offer(weight)
  return queue
}

describe("WorkQueue", () => {
  test("takes the oldest items up to a weight, and a heavier item alone", () => {
    const queue = weighted(2, 2, 7, 1)
    expect([queue.take(5), queue.take(5), queue.take(5), queue.take(5)]).toEqual([[2, 2], [7], [1], []])
    expect(queue.weight).toBe(0)
  })

  test("takes the oldest items that satisfy a predicate", () => {
    const queue = weighted(2, 3, 7, 1)
    expect([queue.takeWhile((n) => n < 5), queue.weight]).toEqual([[2, 3], 8])
    expect([queue.takeWhile((n) => n < 5), queue.take(10)]).toEqual([[], [7, 1]])
    queue.offer(1)
    expect([queue.takeWhile(() => true), queue.weight]).toEqual([[1], 0])
  })

  effectTest("handles items that arrive later, and ends after the last item once it is closed", () =>
    Effect.gen(function* () {
      const queue = weighted(1)
      const handled: Array<ReadonlyArray<number>> = []
      const consumer = yield* Effect.fork(queue.consume(Effect.sync(() => void handled.push(queue.take(10)))))
      yield* Effect.yieldNow()
      expect(handled).toEqual([[1]])
      queue.offer(2)
      queue.offer(3)
      yield* queue.close
      queue.offer(4)
      yield* Fiber.join(consumer)
      expect(handled).toEqual([[1], [2, 3, 4]])
    }),
  )
})
