/** The worker's loop over a queue and an updater that the test plays. */
import { expect, test } from "bun:test"
import { type ConfigError, Duration, Effect, Layer, Option } from "effect"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import { EmbeddingUpdater, type Outcome } from "../../src/services/EmbeddingUpdater.ts"
import * as EmbeddingWorker from "../../src/services/EmbeddingWorker.ts"
import {
  Ack,
  type Delivery,
  InteractionQueue,
  Retry,
  type Settled,
} from "../../src/services/InteractionQueue.ts"
import { UserEmbeddingsError } from "../../src/services/UserEmbeddings.ts"
import { delivery } from "../support/delivery.ts"
import { variables } from "../support/stacks.ts"

const from = (user: string): Delivery => delivery(Buffer.from(`{"user_id":"${user}"}`))
const failure = { error: "user_embeddings_unavailable", message: "gone" }
const error = new UserEmbeddingsError({ reason: "unavailable", operation: "load", cause: new Error("gone") })
const acked: Outcome = { _tag: "Settle", settlement: Ack }
const out: Outcome = { _tag: "Outage", error, settlement: Retry(5_000, failure) }

/** A worker with the deliveries that arrive, and what it did with them. */
const play = (knobs: Partial<EmbeddingConfig.Knobs> = {}) => {
  const state = {
    arriving: [] as Array<Delivery>,
    batches: [] as Array<ReadonlyArray<Delivery>>,
    settled: [] as Array<Settled>,
    answer: acked as Outcome,
  }
  const queue = Layer.succeed(InteractionQueue, {
    publish: () => Effect.succeed([]),
    depths: Effect.succeed({ main: { ready: 0, unacked: 0, consumers: 0 }, retry: {}, failed: 0 }),
    traffic: Effect.succeed(null),
    consume: () =>
      Effect.succeed({
        take: () =>
          Effect.suspend(() => Effect.succeed(state.arriving.splice(0))).pipe(
            Effect.delay("5 millis"),
            Effect.repeat({ until: (taken) => taken.length > 0 }),
          ),
        settle: (settled) => Effect.sync(() => void state.settled.push(...settled)),
      }),
  })
  const updater = Layer.succeed(EmbeddingUpdater, {
    update: (batch) =>
      Effect.sync(() => {
        state.batches.push(batch)
        return batch.map(() => state.answer)
      }),
  })
  const config = EmbeddingConfig.layer(knobs).pipe(Layer.provide(variables({})))
  return { state, layer: EmbeddingWorker.layer.pipe(Layer.provide([queue, updater, config])) }
}

const until = (holds: () => boolean) =>
  Effect.repeat(Effect.delay(Effect.sync(holds), "5 millis"), { until: (yes) => yes }).pipe(
    Effect.timeout("5 seconds"),
  )
const run = <A, E>(
  layer: Layer.Layer<EmbeddingWorker.EmbeddingWorker, ConfigError.ConfigError>,
  program: Effect.Effect<A, E, EmbeddingWorker.EmbeddingWorker>,
) => Effect.runPromise(Effect.provide(program, layer))

test("a backlog waits unharmed through an outage, probed by one message, and is finished after it", async () => {
  const { layer, state } = play()
  state.answer = out
  state.arriving.push(...["a", "b", "c", "d"].map(from))
  await run(
    layer,
    Effect.gen(function* () {
      const worker = yield* EmbeddingWorker.EmbeddingWorker
      yield* until(() => state.batches.length === 2)
      expect(state.batches.map(({ length }) => length)).toEqual([4, 1])
      expect(state.settled).toEqual([])
      expect(Option.isSome(yield* worker.outage)).toBe(true)
      state.answer = acked
      yield* until(() => state.settled.length === 4)
      expect(Option.isNone(yield* worker.outage)).toBe(true)
    }),
  )
  expect(new Set(state.settled.map(([, { _tag }]) => _tag))).toEqual(new Set(["Ack"]))
})

test("a lone message climbs its rungs in an outage", async () => {
  const { layer, state } = play()
  state.answer = out
  state.arriving.push(from("a"))
  await run(
    layer,
    until(() => state.settled.length === 1),
  )
  expect(state.settled[0]?.[1]).toMatchObject({ _tag: "Retry", delayMillis: 5_000 })
})

test("with the window on, what arrives for a user within it becomes one batch; stopping does not wait for it", async () => {
  const { layer, state } = play({ batchEnabled: true, batchWindow: Duration.millis(300) })
  const started = Date.now()
  await run(
    layer,
    Effect.gen(function* () {
      state.arriving.push(from("a"))
      yield* until(() => state.arriving.length === 0)
      state.arriving.push(from("a"), from("a"))
      yield* until(() => state.settled.length === 3)
      expect(state.batches.map(({ length }) => length)).toEqual([3])
      expect(Date.now() - started).toBeGreaterThanOrEqual(300)
      state.arriving.push(from("b"))
      yield* until(() => state.arriving.length === 0)
      yield* Effect.sleep("20 millis")
    }),
  )
  expect(state.settled.length).toBe(4)
})

test("suspects are handled alone, one after the other", async () => {
  const { layer, state } = play()
  state.arriving.push(
    from("a"),
    { ...from("b"), isolatedAttempts: 1 },
    { ...from("c"), isolatedAttempts: 2 },
    from("d"),
  )
  await run(
    layer,
    until(() => state.settled.length === 4),
  )
  expect(state.batches.map(({ length }) => length)).toEqual([2, 1, 1])
})
