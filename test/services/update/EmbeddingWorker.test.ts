/** The worker's loop over a queue and an updater that the test plays. */
import { expect, test } from "bun:test"
import { type ConfigError, Duration, Effect, Layer, Option } from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import {
  Ack,
  DeadLetter,
  type Delivery,
  InteractionQueue,
  Retry,
  type Settled,
} from "../../../src/services/ports/InteractionQueue.ts"
import { PhraseEmbedderError } from "../../../src/services/ports/PhraseEmbedder.ts"
import { UserEmbeddingsError } from "../../../src/services/ports/UserEmbeddings.ts"
import { EmbeddingUpdater, type Outcome } from "../../../src/services/update/EmbeddingUpdater.ts"
import * as EmbeddingWorker from "../../../src/services/update/EmbeddingWorker.ts"
import { delivery } from "../../support/delivery.ts"
import { variables } from "../../support/stacks.ts"

const from = (user: string): Delivery => delivery(Buffer.from(`{"user_id":"${user}"}`))
const failure = { error: "user_embeddings_unavailable", message: "gone" }
const error = new UserEmbeddingsError({ reason: "unavailable", operation: "load", cause: new Error("gone") })
const acked: Outcome = { _tag: "Settle", settlement: Ack }
const out: Outcome = { _tag: "Outage", error, settlement: Retry(5_000, failure) }

/** A worker with the deliveries that arrive, and what it did with them. */
const play = (knobs: Partial<EmbeddingConfig.Knobs> = {}, busyBatch = 1_000) => {
  const state = {
    arriving: [] as Array<Delivery>,
    batches: [] as Array<ReadonlyArray<Delivery>>,
    settled: [] as Array<Settled>,
    answer: ((_: Delivery) => acked) as (delivery: Delivery) => Outcome,
    /** Waiting in the queue beside what the worker holds. */
    ready: 0,
    climbing: 0,
    /** Held by all workers together. */
    held: undefined as number | undefined,
    /** How long searches take, in ms. */
    searching: 0,
    lost: new Set<Delivery>(),
    taken: 0,
  }
  const queue = Layer.succeed(InteractionQueue, {
    system: "test",
    eventsPerMessage: 1,
    pauseAbove: busyBatch,
    publish: () => Effect.succeed([]),
    traffic: Effect.sync(() =>
      state.held === undefined ? null : { publish: 0, deliver: 0, ack: 0, unacked: state.held },
    ),
    depths: Effect.sync(() => ({
      main: { ready: state.ready, unacked: 1, consumers: state.held === undefined ? 1 : 2 },
      quarantined: 0,
      retry: { "5000": state.climbing },
      failed: 0,
    })),
    consume: () =>
      Effect.succeed({
        take: () =>
          Effect.suspend(() => Effect.succeed(state.arriving.splice(0))).pipe(
            Effect.delay("5 millis"),
            Effect.repeat({ until: (taken) => taken.length > 0 }),
            Effect.tap((taken) => Effect.sync(() => (state.taken += taken.length))),
          ),
        settle: (settled) => Effect.sync(() => void state.settled.push(...settled)),
        stop: Effect.void,
        holds: (one) => !state.lost.has(one),
        full: () => state.taken - state.settled.length >= (knobs.prefetch ?? Number.POSITIVE_INFINITY),
      }),
  })
  const updater = Layer.succeed(EmbeddingUpdater, {
    update: (batch) =>
      Effect.sync(() => {
        state.batches.push(batch)
        return batch.map((one) => state.answer(one))
      }).pipe(
        Effect.delay(batch.some(({ routingKey }) => routingKey.endsWith("search")) ? state.searching : 0),
      ),
    needsEmbedder: () => state.searching > 0,
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
  state.answer = () => out
  state.arriving.push(...["a", "b", "c", "d"].map(from))
  await run(
    layer,
    Effect.gen(function* () {
      const worker = yield* EmbeddingWorker.EmbeddingWorker
      yield* until(() => state.batches.length === 2)
      expect(state.batches.map(({ length }) => length)).toEqual([4, 1])
      expect(state.settled).toEqual([])
      expect(Option.isSome(yield* worker.outage)).toBe(true)
      state.answer = () => acked
      yield* until(() => state.settled.length === 4)
      expect(Option.isNone(yield* worker.outage)).toBe(true)
    }),
  )
  expect(new Set(state.settled.map(([, { _tag }]) => _tag))).toEqual(new Set(["Ack"]))
})

test("product events go on while phrases are being embedded, and nothing is left when it stops", async () => {
  const { layer, state } = play()
  state.searching = 400
  const view = (user: string) =>
    delivery(Buffer.from(`{"user_id":"${user}"}`), { routingKey: "user.embedding.product_view" })
  const users = () => state.settled.map(([{ body }]) => JSON.parse(Buffer.from(body).toString()).user_id)
  await run(
    layer,
    Effect.gen(function* () {
      state.arriving.push(from("s1"), view("p1"))
      yield* until(() => state.settled.length === 1)
      state.arriving.push(view("p2"), from("s2"))
      yield* until(() => state.settled.length === 2)
      expect(users()).toEqual(["p1", "p2"])
      yield* until(() => state.settled.length === 4)
      state.arriving.push(from("s3"), view("p3"))
      yield* until(() => state.settled.length === 5)
    }),
  )
  // The last one was under way when the worker was told to stop.
  expect(users()).toEqual(["p1", "p2", "s1", "s2", "p3", "s3"])
})

test("a lone message climbs its rungs in an outage", async () => {
  const { layer, state } = play()
  state.answer = () => out
  state.arriving.push(from("a"))
  await run(
    layer,
    until(() => state.settled.length === 1),
  )
  expect(state.settled[0]?.[1]).toMatchObject({ _tag: "Retry", delayMillis: 5_000 })
})

test("a message beside which another worker holds others is no lone one, and climbs when it has become one", async () => {
  const { layer, state } = play()
  state.answer = () => out
  state.held = 5
  state.arriving.push(from("a"))
  await run(
    layer,
    Effect.gen(function* () {
      yield* until(() => state.batches.length === 2)
      expect(state.settled).toEqual([])
      state.held = 1
      yield* until(() => state.settled.length === 1)
    }),
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
      yield* until(() => state.taken === 4)
    }),
  )
  expect(state.settled.length).toBe(4)
})

test("a worker that holds all that it may does not wait for the window: half goes early, whose window opened first", async () => {
  const { layer, state } = play({ batchEnabled: true, batchWindow: Duration.minutes(1), prefetch: 4 })
  const [a, b, again, c] = ["a", "b", "a", "c"].map(from)
  await run(
    layer,
    Effect.gen(function* () {
      state.arriving.push(a!, b!, again!)
      yield* until(() => state.taken === 3)
      state.arriving.push(c!)
      yield* until(() => state.settled.length === 2)
      expect(state.batches).toEqual([[a!, again!]])
    }),
  )
  expect(state.batches).toEqual([
    [a!, again!],
    [b!, c!],
  ])
})

test("after a batch of a busy thread a worker pauses, and what comes meanwhile is one batch", async () => {
  const { layer, state } = play({}, 2)
  state.answer = () => {
    Bun.sleepSync(20)
    return acked
  }
  const [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(from)
  state.arriving.push(a!, b!)
  await run(
    layer,
    Effect.gen(function* () {
      yield* until(() => state.settled.length === 2)
      state.arriving.push(c!)
      yield* until(() => state.taken === 3)
      state.arriving.push(d!)
      yield* until(() => state.settled.length === 4)
      state.arriving.push(e!)
      yield* until(() => state.settled.length === 5)
    }),
  )
  expect(state.batches).toEqual([[a!, b!], [c!, d!], [e!]])
})

test.each([
  ["in the queue", { ready: 5 }],
  ["on the ladder", { climbing: 1 }],
])("one message of a backlog that waits %s is held, however few a worker may hold", async (_, backlog) => {
  const { layer, state } = play({ prefetch: 1 })
  state.answer = () => out
  Object.assign(state, backlog)
  state.arriving.push(from("a"))
  await run(
    layer,
    Effect.gen(function* () {
      yield* until(() => state.batches.length === 2)
      expect(state.settled).toEqual([])
      Object.assign(state, { ready: 0, climbing: 0 })
      yield* until(() => state.settled.length === 1)
    }),
  )
})

test("while only phrases can't be embedded, product events go on; a bad message does not end the outage", async () => {
  const { layer, state } = play()
  const error = new PhraseEmbedderError({ reason: "unauthorized", detail: "401" })
  const search = (user: string, more = {}) => ({
    ...from(user),
    routingKey: "user.embedding.search",
    ...more,
  })
  const view = (user: string) => ({ ...from(user), routingKey: "user.embedding.product_view" })
  const bad = search("bad")
  state.answer = (one) => {
    if (one === bad) return { _tag: "Settle", settlement: DeadLetter(failure) }
    return one.routingKey.endsWith("search") ? { ...out, error } : acked
  }
  const searches = [search("a", { retryCount: 1 }), search("b", { retryCount: 1 })]
  state.arriving.push(...searches, view("c"))
  await run(
    layer,
    Effect.gen(function* () {
      const worker = yield* EmbeddingWorker.EmbeddingWorker
      yield* until(() => state.settled.length === 1)
      state.arriving.push(bad, view("d"), view("e"))
      yield* until(() => state.settled.length === 3)
      expect(Option.isSome(yield* worker.outage)).toBe(true)
      // The probe takes the least tried, which is the bad one, and the next at once.
      yield* until(() => state.settled.length === 4)
      yield* until(() => state.batches.at(-1)?.[0] === searches[0])
      expect(Option.isSome(yield* worker.outage)).toBe(true)
      state.answer = () => acked
      yield* until(() => state.settled.length === 6)
      expect(Option.isNone(yield* worker.outage)).toBe(true)
    }),
  )
})

test("a batch that is too much for a slow store becomes smaller until it gets through", async () => {
  const { layer, state } = play()
  state.answer = () => (state.batches.at(-1)!.length > 10 ? out : acked)
  state.arriving.push(...Array.from({ length: 20 }, (_, i) => from(`u${i}`)))
  await run(
    layer,
    until(() => state.settled.length === 20),
  )
  expect(state.batches.map(({ length }) => length)).toEqual([20, 1, 10, 9])
})

test("what a lost connection held is dropped, so that an outage piles nothing up", async () => {
  const { layer, state } = play({ prefetch: 3 })
  state.answer = () => out
  const first = ["a", "b", "c"].map(from)
  state.arriving.push(...first)
  const again = ["a", "b", "c"].map(from)
  await run(
    layer,
    Effect.gen(function* () {
      yield* until(() => state.batches.length === 1)
      for (const one of first) state.lost.add(one)
      state.arriving.push(...again)
      yield* until(() => state.arriving.length === 0)
      state.answer = () => acked
      yield* until(() => state.settled.length >= 3)
    }),
  )
  expect(new Set(state.settled.map(([one]) => one))).toEqual(new Set(again))
})

test("suspects are isolated before anything is done with the others", async () => {
  const { layer, state } = play()
  state.arriving.push(
    { ...from("killer"), redeliveries: 3 },
    from("a"),
    { ...from("from the ladder"), quarantineAttempts: 2 },
    { ...from("b"), redeliveries: 2 },
  )
  await run(
    layer,
    until(() => state.settled.length === 4),
  )
  expect(state.settled.map(([, { _tag }]) => _tag)).toEqual(["Quarantine", "Quarantine", "Ack", "Ack"])
  expect(state.batches.map(({ length }) => length)).toEqual([2])
})

test("a batch that throws is isolated; alone, a message that throws ten times is a crash loop", async () => {
  const { layer, state } = play({ batchEnabled: true, batchWindow: Duration.millis(100) })
  state.answer = () => {
    throw new Error("a bug")
  }
  state.arriving.push(from("a"), from("b"))
  const alone = (quarantineAttempts: number) => ({ ...from("c"), quarantined: true, quarantineAttempts })
  await run(
    layer,
    Effect.gen(function* () {
      yield* until(() => state.settled.length === 2)
      state.arriving.push(alone(9))
      yield* until(() => state.settled.length === 3)
      state.arriving.push(alone(10))
      yield* until(() => state.settled.length === 4)
    }),
  )
  expect(state.settled.map(([, { _tag }]) => _tag)).toEqual([
    "Quarantine",
    "Quarantine",
    "Quarantine",
    "DeadLetter",
  ])
  expect(state.settled[3]?.[1]).toMatchObject({ failure: { error: "crash_loop" } })
})
