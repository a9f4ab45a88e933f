/** Whether a part of the system can do its job, for `/readyz`. */
import { Duration, Effect, Fiber, Option, Record, Schema } from "effect"
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

/** A look is a round trip to the server: a system at rest must cost next to nothing. */
const lookEvery = Duration.seconds(5)
/** Until the dependency is up (again). */
const lookAgainAfter = Duration.seconds(1)
/** A dependency that does not answer for this long counts as down. */
const timeout = Duration.seconds(3)
/** `missing` and `impaired` ask several questions, so they are asked at every third look while there is no problem. */
const problemsEvery = 3
/** A probe that comes before the first look has ended waits this long for it. */
const firstLookTimeout = Duration.millis(50)

const down = (detail: string): DependencyHealth => ({ status: "down", detail })
const degraded = (detail: string): DependencyHealth => ({ status: "degraded", detail })
const up: DependencyHealth = { status: "up" }

/** By what is missing, else by what the dependency refuses to do. */
const stateOf = Effect.fnUntraced(function* ({ impaired, isUselessWithout, missing }: Dependency) {
  const parts = yield* missing
  if (parts.length > 0) {
    const detail = `missing ${parts.join(", ")}: run user-embeddings setup`
    return isUselessWithout?.(parts) === true ? down(detail) : degraded(detail)
  }
  const refused = yield* impaired ?? Effect.succeed([])
  return refused.length > 0 ? degraded(refused.join("; ")) : up
})

/** The state of one dependency, from a look at it that is repeated in the background. */
class Watched {
  state = down("no answer yet")
  /** Opens after the first look. */
  readonly looked = Effect.unsafeMakeLatch(false)
  private looks = 0
  /** While the dependency answers. */
  private answering = up

  constructor(private readonly dependency: Dependency) {}

  private readonly ask = Effect.gen(this, function* () {
    const [latency, version] = yield* Effect.timed(this.dependency.ping)
    if (this.answering !== up || this.looks % problemsEvery === 0)
      this.answering = yield* stateOf(this.dependency)
    this.looks += 1
    return { ...this.answering, version, latency_ms: Math.round(Duration.toMillis(latency) * 10) / 10 }
  }).pipe(Effect.catchAll(({ detail }) => Effect.succeed(down(detail))))

  /** Asks once. The answer counts when it comes, however late, so that no second question is asked meanwhile. */
  readonly look = Effect.gen(this, function* () {
    const answer = yield* Effect.fork(this.ask)
    if (Option.isNone(yield* Effect.timeoutOption(Fiber.await(answer), timeout)))
      this.state = down(`no answer within ${Duration.format(timeout)}`)
    this.state = yield* Fiber.join(answer)
  })
}

/** Looks at all dependencies in the background until the scope closes. */
const watchAll = Effect.gen(function* () {
  const all = (yield* Dependencies).map((dependency) => ({ dependency, watched: new Watched(dependency) }))
  yield* Effect.forEach(all, ({ dependency, watched }) =>
    watched.look.pipe(
      Effect.zipRight(watched.looked.open),
      Effect.zipRight(
        Effect.suspend(() =>
          Effect.sleep(dependency.lookEvery ?? (watched.state.status === "up" ? lookEvery : lookAgainAfter)),
        ),
      ),
      Effect.forever,
      Telemetry.untraced,
      Effect.interruptible,
      Effect.forkScoped,
    ),
  )
  return all
})

/**
 * Answers at once from what the last look found. `outage` says which outage a worker waits for. A waiting worker is
 * degraded, even when every dependency answers.
 */
export const make = (
  part: "api" | "worker",
  outage: Effect.Effect<Option.Option<string>> = Effect.succeedNone,
) =>
  Effect.map(watchAll, (all) =>
    Effect.gen(function* () {
      const looked = Effect.forEach(all, ({ watched }) => watched.looked.await, { discard: true })
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
    }),
  )

/** Without the fields that only `?verbose` shows, and without the texts of failures unless they are wanted. */
export const brief = ({ dependencies, ...health }: Health, withDetails: boolean): Health => ({
  ...health,
  dependencies: Record.map(dependencies, ({ detail, status }) =>
    withDetails && detail !== undefined ? { status, detail } : { status },
  ),
})
