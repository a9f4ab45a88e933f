/** Long pieces of work take turns, so that a request between them waits for one piece alone. */
import { expect, test } from "bun:test"
import { Effect, Fiber } from "effect"
import { yieldToEventLoop } from "../../src/services/EventLoop.ts"

test("in each turn of the event loop one waiting fiber goes on, the first one first", async () => {
  const pieces: Array<string> = []
  const turns: Array<number> = []
  const work = (name: string) =>
    Effect.gen(function* () {
      for (let piece = 1; piece <= 3; piece++) {
        pieces.push(name + piece)
        yield* yieldToEventLoop
      }
    })
  let counting = true
  const count = () => {
    turns.push(pieces.length)
    if (counting) setImmediate(count)
  }
  setImmediate(count)
  await Effect.runPromise(Effect.forEach(["a", "b", "c"], work, { concurrency: "unbounded" }))
  counting = false
  expect(pieces).toEqual(["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"])
  expect(turns.slice(1).every((done, turn) => done - turns[turn]! <= 1)).toBe(true)
})

test("a fiber that is interrupted while it waits holds up no other", async () => {
  const waiting = Effect.runFork(Effect.forever(yieldToEventLoop))
  const others = Effect.runPromise(
    Effect.repeatN(yieldToEventLoop, 100).pipe(
      Effect.timeoutFail({ duration: "5 seconds", onTimeout: () => "stuck" }),
    ),
  )
  await Effect.runPromise(Fiber.interrupt(waiting))
  await others
})
