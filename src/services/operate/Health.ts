/** Whether a part of the system can do its job, for `/readyz`. */
import { Deferred, Duration, Effect, Fiber, Option, Record, Schedule, Schema } from "effect"
import { Dependencies, type Dependency } from "../ports/Dependencies.ts"
import * as Telemetry from "../Telemetry.ts"

const DependencyHealth = Schema.Struct({
  status: Schema.Literal("up", "degraded", "down"),
  /** Only without API_TOKENS, or with one of them. */
  detail: Schema.optional(Schema.String),
  /** Of the server; only with `?verbose`. */
  version: Schema.optional(Schema.String),
  /** Duration of a ping; only with `?verbose`. */
  latency_ms: Schema.optional(Schema.Number),
})
type DependencyHealth = typeof DependencyHealth.Type
const dependencies = Schema.Record({ key: Schema.String, value: DependencyHealth })

/** `degraded`: the part can do its job, but a dependency is down or incomplete. */
export const Ready = Schema.Struct({ status: Schema.Literal("ok", "degraded"), dependencies }).annotations({
  identifier: "Health",
})
export const Unavailable = Schema.Struct({ status: Schema.Literal("unavailable"), dependencies }).annotations(
  { identifier: "Unavailable" },
)
export type Health = typeof Ready.Type | typeof Unavailable.Type

const lookEvery = Duration.seconds(1)
/** A dependency that does not answer for this long counts as down. */
const timeout = Duration.seconds(3)
/** `missing` asks several questions, so it is asked less often while nothing is missing. */
const missingEvery = 5
/** A probe that comes before the first look has ended waits this long for it. */
const firstLookTimeout = Duration.millis(50)

const down = (detail: string): DependencyHealth => ({ status: "down", detail })

const stateOf = (missing: ReadonlyArray<string>, impaired: ReadonlyArray<string>): DependencyHealth => {
  if (missing.length > 0)
    return { status: "degraded", detail: `missing ${missing.join(", ")}: run user-embeddings setup` }
  return impaired.length > 0 ? { status: "degraded", detail: impaired.join("; ") } : { status: "up" }
}

/** The state of one dependency, from a look at it that is repeated in the background. */
class Watched {
  state = down("no answer yet")
  private looks = 0
  private lacking: ReadonlyArray<string> = []

  constructor(private readonly dependency: Dependency) {}

  private readonly ask = Effect.gen(this, function* () {
    const [latency, version] = yield* Effect.timed(this.dependency.ping)
    if (this.lacking.length > 0 || this.looks % missingEvery === 0)
      this.lacking = yield* this.dependency.missing
    this.looks += 1
    const impaired = yield* this.dependency.impaired ?? Effect.succeed<ReadonlyArray<string>>([])
    const state = stateOf(this.lacking, impaired)
    return { ...state, version, latency_ms: Math.round(Duration.toMillis(latency) * 10) / 10 }
  }).pipe(Effect.catchAll(({ detail }) => Effect.succeed(down(detail))))

  /** Asks once. The answer counts when it comes, however late, so that no second question is asked meanwhile. */
  readonly look = Effect.gen(this, function* () {
    const answer = yield* Effect.fork(this.ask)
    if (Option.isNone(yield* Effect.timeoutOption(Fiber.await(answer), timeout)))
      this.state = down(`no answer within ${Duration.format(timeout)}`)
    this.state = yield* Fiber.join(answer)
  })
}

/**
 * Answers at once from what the last look found. `outage` says which outage a worker waits for. A waiting worker is
 * degraded, even when every dependency answers.
 */
export const make = (
  part: "api" | "worker",
  outage: Effect.Effect<Option.Option<string>> = Effect.succeedNone,
) =>
  Effect.gen(function* () {
    const all = (yield* Dependencies).map((dependency) => ({ dependency, watched: new Watched(dependency) }))
    const firstLooks = yield* Effect.forEach(all, ({ dependency, watched }) =>
      Effect.gen(function* () {
        const first = yield* Deferred.make<void>()
        yield* watched.look.pipe(
          Effect.zipRight(Deferred.succeed(first, undefined)),
          Effect.repeat(Schedule.spaced(dependency.lookEvery ?? lookEvery)),
          Telemetry.untraced,
          Effect.interruptible,
          Effect.forkScoped,
        )
        return Deferred.await(first)
      }),
    )
    const looked = Effect.all(firstLooks, { concurrency: "unbounded", discard: true })
    return Effect.gen(function* () {
      yield* Effect.timeoutOption(looked, firstLookTimeout)
      const waiting = yield* outage
      const unavailable = all.some(
        ({ dependency, watched }) =>
          dependency.essentialFor.includes(part) && watched.state.status === "down",
      )
      const ok = Option.isNone(waiting) && all.every(({ watched }) => watched.state.status === "up")
      const states = Object.fromEntries(
        all.map(({ dependency, watched }) => [dependency.name, watched.state]),
      )
      const health: Health = {
        status: unavailable ? "unavailable" : ok ? "ok" : "degraded",
        dependencies: Option.match(waiting, {
          onNone: () => states,
          onSome: (detail) => ({ ...states, intake: { status: "degraded", detail } }),
        }),
      }
      return health
    })
  })

/** Without the fields that only `?verbose` shows, and without the texts of failures unless they are wanted. */
export const brief = ({ dependencies, ...health }: Health, withDetails: boolean): Health => ({
  ...health,
  dependencies: Record.map(dependencies, ({ detail, status }) =>
    withDetails && detail !== undefined ? { status, detail } : { status },
  ),
})
