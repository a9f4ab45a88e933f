/** Progress without a terminal: a log entry every ten seconds, and a line where a signal stopped the command. */
import { afterAll, beforeAll, expect } from "bun:test"
import { ConfigProvider, Effect, Fiber, HashMap, Logger, LogLevel, TestClock, TestContext } from "effect"
import { counting, measured, type Stopped } from "../../../../src/programs/cli/support/Progress.ts"
import { effectTest } from "../../../support/effect.ts"

const terminal = process.stderr.isTTY
beforeAll(() => {
  process.stderr.isTTY = false
})
afterAll(() => {
  process.stderr.isTTY = terminal
})

/** Log entries of a run that reports 100 more of 6,000 rows every second, for 25 s. */
const entries = (env: Readonly<Record<string, string>>) =>
  Effect.gen(function* () {
    const logged: Array<unknown> = []
    const logger = Logger.make<unknown, void>(({ annotations, message }) => {
      logged.push([...[message].flat(), Object.fromEntries(HashMap.toEntries(annotations))])
    })
    const run = measured("rows", (progress) =>
      Effect.forEach(
        Array.from({ length: 26 }, (_, second) => second * 100),
        (count) =>
          Effect.zipRight(progress({ count, done: count, total: 6_000 }), TestClock.adjust("1 second")),
      ),
    )
    yield* run.pipe(
      Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
      Logger.withMinimumLogLevel(LogLevel.Warning),
      Effect.withConfigProvider(ConfigProvider.fromMap(new Map(Object.entries(env)))),
    )
    return logged
  }).pipe(Effect.provide(TestContext.TestContext))

effectTest("a command that logs only warnings still logs its progress, with rate and time left", () =>
  Effect.gen(function* () {
    expect(yield* entries({})).toEqual([
      ["progress", { rows: 1_000, per_second: 100, percent: 17, seconds_left: 50 }],
      ["progress", { rows: 2_000, per_second: 100, percent: 33, seconds_left: 40 }],
    ])
  }),
)

effectTest("with LOG_LEVEL=warn it logs no progress", () =>
  Effect.gen(function* () {
    expect(yield* entries({ LOG_LEVEL: "warn" })).toEqual([])
  }),
)

/** What is printed when a run that counts up to 1,234 is interrupted. */
const printed = (stopped?: Stopped) =>
  Effect.gen(function* () {
    const lines: Array<unknown> = []
    const own = yield* Effect.console
    const running = counting("users", (progress) => Effect.zipRight(progress(1_234), Effect.never), stopped)
    const fiber = yield* Effect.fork(
      Effect.withConsole(running, { ...own, error: (line) => Effect.sync(() => void lines.push(line)) }),
    )
    yield* Effect.yieldNow()
    yield* Fiber.interrupt(fiber)
    return lines
  })

effectTest("an interrupted command says how far it was, and what to do", () =>
  Effect.gen(function* () {
    expect(yield* printed()).toEqual(["stopped after 1,234 users; run it again to go on"])
    expect(yield* printed(({ count }) => `halted at ${count}`)).toEqual(["halted at 1234"])
    expect(yield* printed(() => undefined)).toEqual([])
  }),
)
