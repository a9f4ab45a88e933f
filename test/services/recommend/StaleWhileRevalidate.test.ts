import { expect } from "bun:test"
import { Deferred, Duration, Effect, Fiber } from "effect"
import * as StaleWhileRevalidate from "../../../src/services/recommend/StaleWhileRevalidate.ts"
import { effectTest } from "../../support/effect.ts"

effectTest("who waited for the first load reads what changed meanwhile", () =>
  Effect.gen(function* () {
    let stored = "old"
    let read = ""
    const end = yield* Deferred.make<void>()
    const { current, invalidate } = yield* StaleWhileRevalidate.make<never, never>({
      name: "test",
      freshFor: Duration.minutes(1),
      refresh: Effect.suspend(() => {
        const found = stored
        return Effect.map(Deferred.await(end), () => {
          read = found
        })
      }),
      stillLoading: () => expect.unreachable(),
    })
    const caller = yield* Effect.fork(current)
    yield* Effect.yieldNow()
    stored = "new"
    yield* invalidate
    yield* Deferred.succeed(end, undefined)
    yield* Fiber.join(caller)
    expect(read).toBe("new")
  }),
)
