/** Sets the dependencies up, or only looks at what is missing or out of order. */
import { Effect, Either, Schema } from "effect"
import { Dependencies } from "../services/Dependencies.ts"

/** `setup`: creates what is missing in every dependency, and says what it did. Safe to run twice. */
export const setup = Effect.gen(function* () {
  const dependencies = yield* Dependencies
  return yield* Effect.forEach(dependencies, ({ name, setup }) =>
    Effect.map(setup, (done) => ({ dependency: name, done })),
  )
})

/** `setup --check`: what `setup` would create. */
export const missing = Effect.gen(function* () {
  const dependencies = yield* Dependencies
  return yield* Effect.forEach(dependencies, ({ missing, name }) =>
    Effect.map(missing, (missing) => ({ dependency: name, missing })),
  )
})

/** What `doctor` finds out about one dependency. */
export interface Diagnosis {
  readonly dependency: string
  readonly status: "ok" | "incomplete" | "down"
  readonly version: string | null
  readonly missing: ReadonlyArray<string>
  readonly detail: string | null
  /** What to do about it; `null` when nothing is to be done. */
  readonly remedy: string | null
}

/** `doctor`: each dependency: reachable, version, what is missing, how to mend it. */
export const doctor: Effect.Effect<ReadonlyArray<Diagnosis>, never, Dependencies> = Effect.gen(function* () {
  const dependencies = yield* Dependencies
  return yield* Effect.forEach(
    dependencies,
    ({ missing, name, ping }) =>
      Effect.either(Effect.all([ping, missing])).pipe(
        Effect.map(
          Either.match({
            onLeft: ({ detail, remedy }): Diagnosis => ({
              dependency: name,
              status: "down",
              version: null,
              missing: [],
              detail,
              remedy,
            }),
            onRight: ([version, missing]): Diagnosis => ({
              dependency: name,
              status: missing.length === 0 ? "ok" : "incomplete",
              version,
              missing,
              detail: null,
              remedy: missing.length === 0 ? null : "run: user-embeddings setup",
            }),
          }),
        ),
      ),
    { concurrency: "unbounded" },
  )
})

/** Something is not as it should be; the report says what. */
export class Unhealthy extends Schema.TaggedError<Unhealthy>()("Unhealthy", { message: Schema.String }) {}
