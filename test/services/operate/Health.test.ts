/** Probes answer at once, whatever the servers do. */
import { expect } from "bun:test"
import { Duration, Effect, TestClock, TestContext } from "effect"
import * as Health from "../../../src/services/operate/Health.ts"
import { Dependencies, type Dependency, DependencyDown } from "../../../src/services/ports/Dependencies.ts"
import { effectTest } from "../../support/effect.ts"
import { eventually } from "../../support/pipeline.ts"

const dependency = (
  name: string,
  ping: Dependency["ping"],
  missing: ReadonlyArray<string> = [],
): Dependency => ({
  name,
  essentialFor: ["api"],
  ping,
  lookEvery: Duration.millis(20),
  missing: Effect.succeed(missing),
  setup: Effect.succeed([]),
})
const make = (...dependencies: ReadonlyArray<Dependency>) =>
  Effect.provideService(Health.make("api"), Dependencies, dependencies)
const refused = new DependencyDown({
  dependency: "mysql",
  detail: "connect ECONNREFUSED",
  remedy: "start it",
})

/** A call to a frozen server in a region that cannot be interrupted, and the way to thaw the server. */
const frozen = () => {
  let asked = 0
  const thaw = Effect.unsafeMakeLatch(false)
  const ping = Effect.suspend(() => {
    asked += 1
    return Effect.uninterruptible(Effect.as(thaw.await, "8.4"))
  })
  return { ping, thaw, asked: () => asked }
}

/** Milliseconds. A probe takes less than 100 on a quiet machine; a probe that waits takes at least 3 s. */
const atOnce = 1_000

effectTest("the first probe does not wait while all servers are frozen, nor does any other", () =>
  Effect.gen(function* () {
    const server = frozen()
    const check = yield* make(dependency("mysql", server.ping), dependency("mongodb", server.ping))
    // Else a failed expectation would leave the looks waiting for ever.
    yield* Effect.addFinalizer(() => server.thaw.open)
    for (let probe = 0; probe < 5; probe++) {
      const [took, health] = yield* Effect.timed(check)
      expect(Duration.toMillis(took)).toBeLessThan(atOnce)
      expect(health.status).toBe("unavailable")
    }
    expect(server.asked()).toBe(2)
    yield* server.thaw.open
    yield* eventually(Effect.map(check, ({ status }) => (status === "ok" ? true : undefined)))
  }),
)

effectTest("a server that is frozen after it was up counts as down after 3 s, and is not asked twice", () =>
  Effect.gen(function* () {
    const server = frozen()
    server.thaw.unsafeOpen()
    const check = yield* make(dependency("mysql", server.ping))
    yield* TestClock.adjust("1 second")
    expect((yield* check).status).toBe("ok")
    server.thaw.unsafeClose()
    yield* TestClock.adjust("2 seconds")
    const asked = server.asked()
    expect((yield* check).status).toBe("ok")
    yield* TestClock.adjust("10 seconds")
    expect((yield* check).status).toBe("unavailable")
    expect(server.asked()).toBe(asked)
    yield* server.thaw.open
    yield* TestClock.adjust("1 second")
    expect((yield* check).status).toBe("ok")
  }).pipe(Effect.provide(TestContext.TestContext)),
)

effectTest(
  "the first probe already tells what the servers answer, and failures are told without secrets of others",
  () =>
    Effect.gen(function* () {
      const check = yield* make(
        dependency("mysql", Effect.fail(refused)),
        dependency("mongodb", Effect.succeed("8.0"), ["collection user_embeddings"]),
      )
      const health = yield* check
      expect(health.status).toBe("unavailable")
      expect(health.dependencies.mysql).toEqual({ status: "down", detail: "connect ECONNREFUSED" })
      expect(health.dependencies.mongodb).toMatchObject({
        status: "degraded",
        detail: "missing collection user_embeddings: run user-embeddings setup",
      })
    }),
)

effectTest("a database without its tables is down: an API that cannot record is not ready", () =>
  Effect.gen(function* () {
    const mysql = (missing: ReadonlyArray<string>) => ({
      ...dependency("mysql", Effect.succeed("9.7"), missing),
      isUselessWithout: (parts: ReadonlyArray<string>) => parts.includes("the table"),
    })
    const withoutTable = yield* yield* make(mysql(["the table", "an index"]))
    expect(withoutTable.status).toBe("unavailable")
    expect(withoutTable.dependencies.mysql?.detail).toBe(
      "missing the table, an index: run user-embeddings setup",
    )
    expect((yield* yield* make(mysql(["an index"]))).status).toBe("degraded")
  }),
)
