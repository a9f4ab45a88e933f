/** One process counts pairs in the background, with pauses in which a command can count. */
import { expect } from "bun:test"
import { Array as Arr, Deferred, Duration, Effect, Layer } from "effect"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { ProductPairs } from "../../../src/services/ports/ProductPairs.ts"
import { ProductTally } from "../../../src/services/ports/ProductTally.ts"
import * as PairCounter from "../../../src/services/recommend/PairCounter.ts"
import { view } from "../../contracts/InteractionLogContract.ts"
import { withClock } from "../../support/clocks.ts"
import { effectTest } from "../../support/effect.ts"
import * as stacks from "../../support/stacks.ts"

const rows = 5_001
const noProgress = () => Effect.void

/** Ids settle at once. */
const counterWith = (changes: Partial<InteractionLog["Type"]> = {}) =>
  Effect.gen(function* () {
    const log = yield* InteractionLog
    const tally = yield* ProductTally
    const services = Layer.mergeAll(
      Layer.succeed(ProductTally, { ...tally, settled: log.maxId }),
      Layer.succeed(InteractionLog, { ...log, ...changes }),
    )
    return yield* PairCounter.PairCounter.pipe(
      Effect.provide(PairCounter.layer.pipe(Layer.provide(services))),
    )
  })

const leaseRenewal = Duration.seconds(2)

effectTest(
  "a command counts in a pause of the background, and another process does not",
  () =>
    Effect.gen(function* () {
      const log = yield* InteractionLog
      const stored = yield* ProductPairs
      const events = Arr.makeBy(rows, (n) =>
        view(`u-${n % 100}`, `p-${n % 7}`, { occurred_at: new Date(Date.UTC(2026, 0) + n).toISOString() }),
      )
      for (const some of Arr.chunksOf(events, 1_000)) yield* log.append(some)
      const counter = yield* counterWith()
      const paused = yield* Deferred.make<void>()
      yield* counter.catchUp.pipe(
        withClock(
          () => 0,
          (duration, clock) =>
            Duration.equals(duration, leaseRenewal)
              ? clock.sleep(duration)
              : Effect.zipRight(Deferred.succeed(paused, undefined), Effect.never),
        ),
        Effect.fork,
      )
      yield* Deferred.await(paused)
      const inThePause = (yield* stored.progress).countedUpTo
      expect(inThePause).toBeLessThan(rows)
      expect(yield* counter.catchUp).toBe(inThePause)
      expect(yield* counter.rebuild(noProgress)).toBe(rows)
      expect((yield* stored.progress).countedUpTo).toBe(rows)
    }).pipe(Effect.provide(stacks.embedded())),
  20_000,
)

effectTest("a rebuild says that it did not count because another process did", () =>
  Effect.gen(function* () {
    let ahead = 0
    const busy = yield* counterWith({ withLeaderLock: () => Effect.succeed(false) })
    const error = yield* busy.rebuild(noProgress).pipe(
      withClock(
        () => ahead,
        (duration) =>
          Effect.sync(() => {
            ahead += Duration.toMillis(duration)
          }),
      ),
      Effect.flip,
    )
    expect(error.message).toContain("run it again")
  }).pipe(Effect.provide(stacks.embedded())),
)
