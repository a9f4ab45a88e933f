/** Whether a part can do its job: what `/readyz` answers. */
import { Duration, Effect, Option, Record } from "effect"
import { Dependencies, type Dependency } from "../ports/Dependencies.ts"

export interface DependencyHealth {
  readonly status: "up" | "degraded" | "down"
  readonly detail?: string
  /** Of what answered; only when asked for by `?verbose`. */
  readonly version?: string
  /** Until it answered a ping, in ms; only when asked for by `?verbose`. */
  readonly latency_ms?: number
}
export interface Health {
  /** `unavailable`: the part can't do its job; `degraded`: it can, and something else is down. */
  readonly status: "ok" | "degraded" | "unavailable"
  readonly dependencies: Readonly<Record<string, DependencyHealth>>
}

const deadline = Duration.seconds(3)
/** Probes come in crowds; the servers are asked once a second. */
const freshness = Duration.seconds(1)

const look = ({ missing, ping }: Dependency): Effect.Effect<DependencyHealth> =>
  Effect.all([Effect.timed(ping), missing]).pipe(
    Effect.map(
      ([[latency, version], missing]): DependencyHealth => ({
        ...(missing.length === 0
          ? { status: "up" }
          : { status: "degraded", detail: `missing ${missing.join(", ")}: run user-embeddings setup` }),
        version,
        latency_ms: Math.round(Duration.toMillis(latency) * 10) / 10,
      }),
    ),
    Effect.catchAll(({ detail }) => Effect.succeed<DependencyHealth>({ status: "down", detail })),
    Effect.interruptible,
    Effect.disconnect,
    Effect.timeoutTo({
      duration: deadline,
      onTimeout: (): DependencyHealth => ({ status: "down", detail: "no answer within 3 s" }),
      onSuccess: (health) => health,
    }),
  )

/**
 * The health of a part, looked at together. `outage` tells what a worker waits for, if it does: then it is degraded
 * even when every dependency answers.
 */
export const make = (
  part: "api" | "worker",
  outage: Effect.Effect<Option.Option<string>> = Effect.succeedNone,
) =>
  Effect.gen(function* () {
    const dependencies = yield* Dependencies
    const check = Effect.gen(function* () {
      const found = yield* Effect.forEach(dependencies, look, { concurrency: "unbounded" })
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
    // A probe that hangs up must not take the answer of the others with it.
    return yield* Effect.cachedWithTTL(Effect.uninterruptible(check), freshness)
  })

/** Without what only `?verbose` asks for. */
export const brief = ({ dependencies, status }: Health): Health => ({
  status,
  dependencies: Record.map(dependencies, ({ latency_ms: _, version: __, ...state }) => state),
})
