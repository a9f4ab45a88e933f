/** Whether a part of the system can do its job, for `/readyz`. */
import { Duration, Effect, Option, Record, Schema } from "effect"
import { Dependencies, type Dependency } from "../ports/Dependencies.ts"

const DependencyHealth = Schema.Struct({
  status: Schema.Literal("up", "degraded", "down"),
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

const timeout = Duration.seconds(3)
/** Many clients may probe at the same time; the servers are pinged once a second. */
const cacheDuration = Duration.seconds(1)

const stateOf = (missing: ReadonlyArray<string>, impaired: ReadonlyArray<string>): DependencyHealth => {
  if (missing.length > 0)
    return { status: "degraded", detail: `missing ${missing.join(", ")}: run user-embeddings setup` }
  return impaired.length > 0 ? { status: "degraded", detail: impaired.join("; ") } : { status: "up" }
}

const probe = ({
  impaired = Effect.succeed([]),
  missing,
  ping,
}: Dependency): Effect.Effect<DependencyHealth> =>
  Effect.all([Effect.timed(ping), missing, impaired]).pipe(
    Effect.map(
      ([[latency, version], missing, impaired]): DependencyHealth => ({
        ...stateOf(missing, impaired),
        version,
        latency_ms: Math.round(Duration.toMillis(latency) * 10) / 10,
      }),
    ),
    Effect.catchAll(({ detail }) => Effect.succeed<DependencyHealth>({ status: "down", detail })),
    Effect.interruptible,
    Effect.disconnect,
    Effect.timeoutTo({
      duration: timeout,
      onTimeout: (): DependencyHealth => ({ status: "down", detail: "no answer within 3 s" }),
      onSuccess: (health) => health,
    }),
  )

/**
 * All dependencies are probed at once. `outage` says which outage a worker waits for. A waiting worker is
 * degraded, even when every dependency answers.
 */
export const make = (
  part: "api" | "worker",
  outage: Effect.Effect<Option.Option<string>> = Effect.succeedNone,
) =>
  Effect.gen(function* () {
    const dependencies = yield* Dependencies
    const check = Effect.gen(function* () {
      const found = yield* Effect.forEach(dependencies, probe, { concurrency: "unbounded" })
      const waiting = yield* outage
      const isDown = (index: number) => found[index]?.status === "down"
      const unavailable = dependencies.some(
        ({ essentialFor }, index) => essentialFor.includes(part) && isDown(index),
      )
      const ok = Option.isNone(waiting) && found.every(({ status }) => status === "up")
      const states = Object.fromEntries(dependencies.map(({ name }, index) => [name, found[index]!]))
      const health: Health = {
        status: unavailable ? "unavailable" : ok ? "ok" : "degraded",
        dependencies: Option.match(waiting, {
          onNone: () => states,
          onSome: (detail) => ({ ...states, intake: { status: "degraded", detail } }),
        }),
      }
      return health
    })
    // Uninterruptible, because a client that disconnects must not interrupt the probe that others wait for.
    return yield* Effect.cachedWithTTL(Effect.uninterruptible(check), cacheDuration)
  })

/** Without the fields that only `?verbose` shows. */
export const brief = ({ dependencies, ...health }: Health): Health => ({
  ...health,
  dependencies: Record.map(dependencies, ({ latency_ms: _, version: __, ...state }) => state),
})
