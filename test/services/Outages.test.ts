/** What the log says of an outage: its beginning, each minute of it, and its end. Nothing else, and no password. */
import { expect } from "bun:test"
import { Effect, Either, Layer, Logger, TestClock, TestContext } from "effect"
import { isOutage, ServerOutage, serverName, unlessReported } from "../../src/services/Outages.ts"
import { effectTest as it } from "../support/effect.ts"

/** Runs with a clock of its own; answers the events of the log. */
const logged = (run: Effect.Effect<unknown>) => {
  const events: Array<string> = []
  const logger = Logger.make(({ message }) => {
    events.push(String(message))
  })
  return run.pipe(
    Effect.provide(Layer.merge(TestContext.TestContext, Logger.replace(Logger.defaultLogger, logger))),
    Effect.as(events),
  )
}

const down = (outage: ServerOutage, operation: string) =>
  Effect.ignore(outage.watch(operation, Effect.fail("refused"), (detail) => detail))
const up = (outage: ServerOutage, operation: string) => outage.watch(operation, Effect.void, () => undefined)

it("an outage of three minutes with a failed call each second is logged at its beginning, each minute, and at its end", () =>
  Effect.gen(function* () {
    const outage = new ServerOutage("MySQL at db:3306")
    const events = yield* logged(
      Effect.gen(function* () {
        yield* up(outage, "SELECT")
        for (let second = 0; second < 180; second++) {
          yield* down(outage, "SELECT")
          yield* TestClock.adjust("1 second")
        }
        yield* up(outage, "SELECT")
        yield* up(outage, "SELECT")
      }),
    )
    expect(events).toEqual(["server.down", "server.down", "server.down", "server.up"])
  }))

it("a server that answers reads and refuses writes is one outage, which ends with the first write", () =>
  Effect.gen(function* () {
    const outage = new ServerOutage("MySQL at db:3306")
    const events = yield* logged(
      Effect.gen(function* () {
        for (let second = 0; second < 30; second++) {
          yield* down(outage, "INSERT")
          yield* up(outage, "SELECT")
          yield* TestClock.adjust("1 second")
        }
        yield* up(outage, "INSERT")
      }),
    )
    expect(events).toEqual(["server.down", "server.up"])
  }))

it("an operation that failed once and is not repeated does not keep an outage open", () =>
  Effect.gen(function* () {
    const outage = new ServerOutage("MongoDB at db:27017")
    const events = yield* logged(
      Effect.gen(function* () {
        yield* down(outage, "deleteOne user_embeddings")
        yield* TestClock.adjust("11 seconds")
        yield* up(outage, "ping")
      }),
    )
    expect(events).toEqual(["server.down", "server.up"])
  }))

it("a failure that is no outage is not logged as one", () =>
  Effect.gen(function* () {
    const outage = new ServerOutage("MySQL at db:3306")
    const run = Effect.ignore(outage.watch("INSERT", Effect.fail("duplicate"), () => undefined))
    expect(yield* logged(run)).toEqual([])
    expect(outage.isKnown).toBe(false)
  }))

it("while an operation fails, one call a second is tried, and all others fail at once", () =>
  Effect.gen(function* () {
    const outage = new ServerOutage("MySQL at db:3306")
    let calls = 0
    let isUp = false
    const answer = Effect.suspend(() => {
      calls += 1
      return isUp ? Effect.succeed("row") : Effect.delay(Effect.fail("refused"), "5 seconds")
    })
    const watched = outage.watch("SELECT", answer, (error) => error)
    const read = Effect.either(outage.failFast("SELECT", watched))
    const refused = Either.left("refused")
    yield* logged(
      Effect.gen(function* () {
        const first = yield* Effect.fork(read)
        yield* TestClock.adjust("5 seconds")
        expect(yield* first).toEqual(refused)
        const trying = yield* Effect.fork(read)
        yield* TestClock.adjust("4 seconds")
        expect([yield* read, yield* read, calls]).toEqual([refused, refused, 2])
        yield* TestClock.adjust("1 second")
        expect(yield* trying).toEqual(refused)
        isUp = true
        expect([yield* read, calls]).toEqual([refused, 2])
        yield* TestClock.adjust("1 second")
        expect([yield* read, yield* read, calls]).toEqual([Either.right("row"), Either.right("row"), 4])
      }),
    )
  }))

it("a step logs a failure only when no adapter has reported it", () =>
  Effect.gen(function* () {
    const log = Effect.logWarning("step.failed")
    const server = "MongoDB at db:27017"
    expect(yield* logged(unlessReported({ reason: "unavailable", server }, log))).toEqual([])
    expect(yield* logged(unlessReported({ reason: "conflict", server }, log))).toEqual(["step.failed"])
    expect(yield* logged(unlessReported({ reason: "unavailable" }, log))).toEqual(["step.failed"])
    expect(isOutage("invalid_data")).toBe(false)
  }))

it("the name of a server holds neither user nor password", () =>
  Effect.sync(() => {
    expect(serverName("MySQL", "mysql://shop:s3cret%40@db.example/events", 3306)).toBe(
      "MySQL at db.example:3306",
    )
    expect(serverName("RabbitMQ", "amqp://u:p@127.0.0.1:5673", 5672)).toBe("RabbitMQ at 127.0.0.1:5673")
  }))
