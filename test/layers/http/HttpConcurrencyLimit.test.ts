import { expect, test } from "bun:test"
import { Deferred, Effect, Either, Fiber } from "effect"
import { makeConcurrencyLimit } from "../../../src/layers/http/HttpConcurrencyLimit.ts"

test("more requests than may run and wait are refused, until others have ended or gone away", () =>
  Effect.runPromise(
    Effect.gen(function* () {
      const limited = makeConcurrencyLimit({ running: 2, waiting: 1 })
      const end = yield* Deferred.make<void>()
      let running = 0
      const request = limited(
        Effect.suspend(() => {
          running += 1
          return Deferred.await(end)
        }),
      )
      const first = yield* Effect.forkAll([request, request])
      const third = yield* Effect.fork(request)
      yield* Effect.yieldNow()
      expect(running).toBe(2)
      const refused = yield* Effect.either(request)
      expect(Either.isLeft(refused) && [refused.left.status, refused.left.headers]).toEqual([
        503,
        { "retry-after": "1" },
      ])
      yield* Fiber.interrupt(third)
      const last = yield* Effect.fork(request)
      yield* Effect.yieldNow()
      yield* Deferred.succeed(end, undefined)
      yield* Fiber.join(first)
      yield* Fiber.join(last)
      expect(running).toBe(3)
    }),
  ))

test("a request that runs keeps its place until it ends, whether or not its client waits for it", () =>
  Effect.runPromise(
    Effect.gen(function* () {
      const limited = makeConcurrencyLimit({ running: 1, waiting: 0 })
      const end = yield* Deferred.make<void>()
      const running = yield* Effect.fork(limited(Deferred.await(end)))
      yield* Effect.yieldNow()
      yield* Fiber.interruptFork(running)
      yield* Effect.yieldNow()
      expect(Either.isLeft(yield* Effect.either(limited(Effect.void)))).toBe(true)
      yield* Deferred.succeed(end, undefined)
      yield* Fiber.await(running)
      yield* limited(Effect.void)
    }),
  ))
