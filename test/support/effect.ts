/** Tests of Effect programs in bun:test. A program runs in a scope, and a failure shows its whole cause. */
import { afterAll, beforeAll, describe, test } from "bun:test"
import { Cause, Effect, Exit, type Layer, ManagedRuntime, type Scope } from "effect"

const unwrap = <A, E>(exit: Exit.Exit<A, E>): A => {
  if (Exit.isSuccess(exit)) return exit.value
  throw new Error(Cause.pretty(exit.cause), { cause: Cause.squash(exit.cause) })
}

/** A test of a scoped program without requirements. */
export const effectTest = <E>(
  name: string,
  program: () => Effect.Effect<unknown, E, Scope.Scope>,
  timeout?: number,
) => test(name, async () => void unwrap(await Effect.runPromiseExit(Effect.scoped(program()))), timeout)

/** A suite whose tests share one layer, which is built before the first test and closed after the last. */
export const layerSuite = <R, E>(
  name: string,
  layer: Layer.Layer<R, E>,
  tests: (
    it: <E2>(
      name: string,
      program: () => Effect.Effect<unknown, E2, R | Scope.Scope>,
      timeout?: number,
    ) => void,
  ) => void,
) =>
  describe(name, () => {
    const runtime = ManagedRuntime.make(layer)
    beforeAll(async () => void (await runtime.runtime()), 60_000)
    afterAll(() => runtime.dispose(), 60_000)
    tests((title, program, timeout) =>
      test(title, async () => void unwrap(await runtime.runPromiseExit(Effect.scoped(program()))), timeout),
    )
  })
