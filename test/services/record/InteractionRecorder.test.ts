import { expect } from "bun:test"
import { Context, Deferred, Effect, Exit, Fiber, Layer } from "effect"
import { InteractionLog, type NewInteraction } from "../../../src/services/ports/InteractionLog.ts"
import * as InteractionRecorder from "../../../src/services/record/InteractionRecorder.ts"
import { OutboxRelay } from "../../../src/services/record/OutboxRelay.ts"
import { view } from "../../contracts/InteractionLogContract.ts"
import { effectTest } from "../../support/effect.ts"

const deadline = 200

/** A recorder on a log that answers an append only after `thaw`. */
const frozenLog = Effect.gen(function* () {
  const appended: Array<ReadonlyArray<NewInteraction>> = []
  const offered: Array<unknown> = []
  const thawed = yield* Deferred.make<void>()
  const log = Layer.mock(InteractionLog, {
    pruned: {} as InteractionLog["Type"]["pruned"],
    append: (entries) =>
      Effect.sync(() => appended.push(entries)).pipe(
        Effect.zipRight(Deferred.await(thawed)),
        Effect.as(entries.map(({ interaction }, id) => ({ _tag: "Recorded" as const, interaction, id }))),
      ),
  })
  const relay = Layer.mock(OutboxRelay, { offer: (rows) => void offered.push(...rows) })
  const context = yield* Layer.build(
    Layer.provide(InteractionRecorder.layerWithDeadline(deadline), [log, relay]),
  )
  const recorder = Context.get(context, InteractionRecorder.InteractionRecorder)
  const record = (product: string) => recorder.record([view("u", product)])
  return { appended, offered, record, thaw: Deferred.succeed(thawed, undefined) }
})

effectTest("while the log is frozen, every submission gets an answer soon after the deadline", () =>
  Effect.gen(function* () {
    const { appended, offered, record, thaw } = yield* frozenLog
    const began = performance.now()
    const first = yield* Effect.fork(Effect.exit(record("first")))
    yield* Effect.repeat(Effect.yieldNow(), { until: () => appended.length === 1 })
    const others = yield* Effect.fork(
      Effect.forEach(Array.from({ length: 600 }), (_, n) => Effect.exit(record(`p-${n}`)), {
        concurrency: "unbounded",
      }),
    )
    const running = yield* Fiber.join(first)
    const waiting = yield* Fiber.join(others)
    expect(performance.now() - began).toBeLessThan(5 * deadline)
    const reasonOf = (exit: Exit.Exit<unknown, { readonly reason: string }>) =>
      Exit.match(exit, {
        onSuccess: () => "success",
        onFailure: (cause) => (cause._tag === "Fail" ? cause.error.reason : cause._tag),
      })
    // The running append may still succeed, the others were never begun.
    expect(reasonOf(running)).toBe("timeout")
    expect(new Set(waiting.map(reasonOf))).toEqual(new Set(["unavailable"]))
    yield* thaw
    yield* record("after")
    expect(appended.map((entries) => entries.map(({ interaction }) => interaction.product_id))).toEqual([
      ["first"],
      ["after"],
    ])
    expect(offered).toHaveLength(2)
  }),
)
