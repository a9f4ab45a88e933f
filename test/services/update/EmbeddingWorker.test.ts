/** The worker's loop over a queue and an updater that the test controls, on a test clock. */
import { expect, test } from "bun:test"
import {
  Chunk,
  Clock,
  type ConfigError,
  Duration,
  Effect,
  Exit,
  Layer,
  Logger,
  Option,
  Scope,
  TestClock,
  TestContext,
} from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import {
  Ack,
  DeadLetter,
  type Delivery,
  type Intake,
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

const occurred = { occurred_at: "2026-02-10T12:34:56.789Z", metadata: {} }
const search = (user_id: string, more: Partial<Delivery> = {}): Delivery =>
  delivery(
    encodeMessage(
      Interaction.make({ user_id, event_type: "search", search_phrase: "garden chairs", ...occurred }),
    ),
    more,
  )
const view = (user_id: string): Delivery =>
  delivery(
    encodeMessage(Interaction.make({ user_id, event_type: "product_view", product_id: "1", ...occurred })),
    { routingKey: "user.embedding.product_view" },
  )
const failure = { error: "user_embeddings_unavailable", message: "gone" }
const error = new UserEmbeddingsError({ reason: "unavailable", operation: "load", cause: new Error("gone") })
const acked: Outcome = { _tag: "Settle", settlement: Ack }
const outage: Outcome = { _tag: "Outage", error, settlement: Retry(5_000, failure) }

/** A worker, the messages that arrive, and what the worker did with them. */
const setUp = (knobs: Partial<EmbeddingConfig.Knobs> = {}, pauseAbove = 1_000) => {
  /** Messages that wait in the main queue, and searches that are set aside. */
  const queues = { main: [] as Array<Delivery>, setAside: [] as Array<Delivery> }
  const arrival = Effect.unsafeMakeLatch(false)
  let wanted: Intake = { main: "all", setAside: "all" }
  /** What the worker holds: from where, and since when. */
  const held = new Map<Delivery, { readonly source: keyof typeof queues; readonly since: number }>()
  const prefetch = knobs.prefetch ?? Number.POSITIVE_INFINITY
  /** Delivers what is wanted, as far as the prefetch allows. After one message nothing is wanted. */
  const deliver = (now: number): ReadonlyArray<Delivery> =>
    (["main", "setAside"] as const).flatMap((source) => {
      const room = prefetch - [...held.values()].filter((one) => one.source === source).length
      const amount = { none: 0, one: Math.min(1, room), all: room }[state.draining ? "none" : wanted[source]]
      const delivered = queues[source].splice(0, amount)
      if (wanted[source] === "one" && delivered.length > 0) wanted = { ...wanted, [source]: "none" }
      for (const one of delivered) held.set(one, { source, since: now })
      return delivered
    })
  const state = {
    queues,
    /** What waits for a dependency, once for each time that it was not held for it. */
    waited: [] as Array<Settled>,
    intake: () => wanted,
    batches: [] as Array<ReadonlyArray<Delivery>>,
    settled: [] as Array<Settled>,
    outcomeOf: ((_: Delivery) => acked) as (delivery: Delivery) => Outcome,
    /** Messages that wait in the main queue. */
    ready: 0,
    /** Messages in retry queues. */
    retrying: 0,
    /** Messages that all workers hold together; `undefined` if there is only one worker. */
    unacked: undefined as number | undefined,
    /** Duration of a batch, and of a batch with searches, in ms. */
    updateMillis: 0,
    searchMillis: 0,
    /** Searches have a lane of their own, and fail there. */
    embedderIsOut: false,
    /** Deliveries of a lost connection. */
    lost: new Set<Delivery>(),
    taken: 0,
    /** Quarantined messages wait. */
    draining: false,
    held: () => held.size,
    longestHeldMillis: 0,
  }
  const queue = Layer.succeed(InteractionQueue, {
    system: "test",
    eventsPerMessage: 1,
    pauseAbove,
    publish: () => Effect.succeed([]),
    traffic: Effect.sync(() =>
      state.unacked === undefined ? null : { publish: 0, deliver: 0, ack: 0, unacked: state.unacked },
    ),
    depths: Effect.sync(() => ({
      main: {
        ready: state.ready + queues.main.length + queues.setAside.length,
        unacked: 1,
        consumers: state.unacked === undefined ? 1 : 2,
      },
      quarantined: 0,
      retry: { "5000": state.retrying },
      failed: 0,
    })),
    consume: () =>
      Effect.succeed({
        take: () =>
          Effect.gen(function* () {
            while (true) {
              const taken = deliver(yield* Clock.currentTimeMillis)
              state.taken += taken.length
              if (taken.length > 0) return taken
              arrival.unsafeClose()
              yield* arrival.await
            }
          }),
        receive: (intake) => {
          wanted = intake
          arrival.unsafeOpen()
        },
        settle: (settled) =>
          Effect.map(Clock.currentTimeMillis, (now) => {
            for (const one of settled) {
              const [delivery, { _tag }] = one
              const since = held.get(delivery)?.since ?? now
              state.longestHeldMillis = Math.max(state.longestHeldMillis, now - since)
              held.delete(delivery)
              const waits = _tag === "Return" || _tag === "SetAside"
              if (waits)
                queues[_tag === "Return" ? "main" : "setAside"].push({
                  ...delivery,
                  wasSetAside: _tag === "SetAside",
                })
              ;(waits ? state.waited : state.settled).push(one)
            }
            arrival.unsafeOpen()
          }),
        stop: Effect.void,
        holds: (one) => !state.lost.has(one),
        draining: () => state.draining,
        full: () => [...held.values()].filter(({ source }) => source === "main").length >= prefetch,
      }),
  })
  const updater = Layer.succeed(EmbeddingUpdater, {
    update: (messages) => {
      const deliveries = messages.map(({ delivery }) => delivery)
      const isSearch = deliveries.some(({ routingKey }) => routingKey.endsWith("search"))
      return Effect.sync(() => {
        state.batches.push(deliveries)
        return deliveries.map((one) => state.outcomeOf(one))
      }).pipe(Effect.delay(state.updateMillis + (isSearch ? state.searchMillis : 0)))
    },
    needsEmbedder: () => state.searchMillis > 0 || state.embedderIsOut,
  })
  const config = EmbeddingConfig.layer({ workerInterval: 0, ...knobs }).pipe(Layer.provide(variables({})))
  return {
    state,
    arrive: (...deliveries: ReadonlyArray<Delivery>) =>
      Effect.sync(() => {
        queues.main.push(...deliveries)
        arrival.unsafeOpen()
      }),
    layer: EmbeddingWorker.layer.pipe(Layer.provide([queue, updater, config])),
  }
}

/** Lets all fibers run until they wait, and the clock jump from one timer to the next, until the condition holds. */
const until = (holds: () => boolean) =>
  Effect.gen(function* () {
    for (let jump = 0; jump < 300; jump++) {
      for (let turn = 0; turn < 100; turn++) {
        if (holds()) return
        yield* Effect.yieldNow()
      }
      const timers = yield* TestClock.sleeps()
      if (Chunk.isNonEmpty(timers)) yield* TestClock.setTime(Math.min(...timers))
    }
    throw new Error("the condition never holds")
  })

/** Runs the program beside the worker, then stops the worker; answers how long that took, in ms. */
const run = <A, E>(
  layer: Layer.Layer<EmbeddingWorker.EmbeddingWorker, ConfigError.ConfigError>,
  program: Effect.Effect<A, E, EmbeddingWorker.EmbeddingWorker>,
) =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    yield* program.pipe(Effect.provide(yield* Layer.buildWithScope(layer, scope)))
    const stopped = yield* Clock.currentTimeMillis
    const stopping = yield* Effect.fork(Scope.close(scope, Exit.void))
    yield* until(() => stopping.unsafePoll() !== null)
    return (yield* Clock.currentTimeMillis) - stopped
  }).pipe(
    Effect.provide([Logger.replace(Logger.defaultLogger, Logger.none), TestContext.TestContext]),
    Effect.runPromise,
  )

test("in an outage a backlog waits, is probed by one message, and is finished when the outage ends", async () => {
  const { arrive, layer, state } = setUp()
  state.outcomeOf = () => outage
  await run(
    layer,
    Effect.gen(function* () {
      const worker = yield* EmbeddingWorker.EmbeddingWorker
      yield* arrive(...["a", "b", "c", "d"].map((user, recordedAt) => search(user, { recordedAt })))
      yield* until(() => state.batches.length === 2)
      expect(state.batches.map(({ length }) => length)).toEqual([4, 1])
      // Nothing is held between the probes.
      yield* until(() => state.waited.length === 5)
      expect(state.waited.every(([, { _tag }]) => _tag === "Return")).toBe(true)
      expect(state.queues.main.length).toBe(4)
      expect(state.settled).toEqual([])
      expect(Option.isSome(yield* worker.outage)).toBe(true)
      expect(yield* worker.look).toMatchObject({
        held: 0,
        acknowledged: 0,
        outage: { since: 0, oldestRecordedAt: 0 },
      })
      yield* until(() => state.batches.length === 8)
      expect(state.batches.slice(1).map(({ length }) => length)).toEqual([1, 1, 1, 1, 1, 1, 1])
      expect(yield* Clock.currentTimeMillis).toBe(1_000 * (1 + 2 + 4 + 8 + 10 + 10 + 10))
      state.outcomeOf = () => acked
      yield* until(() => state.settled.length === 4)
      expect(Option.isNone(yield* worker.outage)).toBe(true)
      expect(yield* worker.look).toEqual({ held: 0, acknowledged: 4, outage: undefined })
    }),
  )
  expect(new Set(state.settled.map(([, { _tag }]) => _tag))).toEqual(new Set(["Ack"]))
})

test("product events do not wait for phrases to be embedded, and a worker that stops finishes both", async () => {
  const { arrive, layer, state } = setUp()
  state.searchMillis = 400
  const users = () => state.settled.map(([{ body }]) => JSON.parse(Buffer.from(body).toString()).user_id)
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(search("s1"), view("p1"))
      yield* until(() => state.settled.length === 1)
      yield* arrive(view("p2"), search("s2"))
      yield* until(() => state.settled.length === 2)
      expect(users()).toEqual(["p1", "p2"])
      yield* until(() => state.settled.length === 4)
      yield* arrive(search("s3"), view("p3"))
      yield* until(() => state.settled.length === 5)
    }),
  )
  // The last search was in process when the worker was stopped.
  expect(users()).toEqual(["p1", "p2", "s1", "s2", "p3", "s3"])
})

test("in an outage a single message goes to the retry queues", async () => {
  const { arrive, layer, state } = setUp()
  state.outcomeOf = () => outage
  await run(
    layer,
    Effect.zipRight(
      arrive(search("a")),
      until(() => state.settled.length === 1),
    ),
  )
  expect(state.settled[0]?.[1]).toMatchObject({ _tag: "Retry", delayMillis: 5_000 })
})

test("in an outage a message waits while another worker holds messages, then goes to the retry queues", async () => {
  const { arrive, layer, state } = setUp()
  state.outcomeOf = () => outage
  state.unacked = 5
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(search("a"))
      yield* until(() => state.batches.length === 2)
      expect(state.settled).toEqual([])
      state.unacked = 1
      yield* until(() => state.settled.length === 1)
    }),
  )
  expect(state.settled[0]?.[1]).toMatchObject({ _tag: "Retry", delayMillis: 5_000 })
})

test("messages of a user that arrive within the window become one batch; a worker that stops does not wait for it", async () => {
  const { arrive, layer, state } = setUp({ batchEnabled: true, batchWindow: Duration.millis(300) })
  const stopMillis = await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(search("a"))
      yield* until(() => state.taken === 1)
      yield* arrive(search("a"), search("a"))
      yield* until(() => state.settled.length === 3)
      expect(state.batches.map(({ length }) => length)).toEqual([3])
      expect(yield* Clock.currentTimeMillis).toBe(300)
      yield* arrive(search("b"))
      yield* until(() => state.taken === 4)
    }),
  )
  expect(state.settled.length).toBe(4)
  expect(stopMillis).toBe(0)
})

test("a worker that is full handles half of its messages before their window closes, the oldest windows first", async () => {
  const { arrive, layer, state } = setUp({
    batchEnabled: true,
    batchWindow: Duration.minutes(1),
    prefetch: 4,
  })
  const [a, b, again, c] = ["a", "b", "a", "c"].map((user) => search(user))
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(a!, b!, again!)
      yield* until(() => state.taken === 3)
      yield* arrive(c!)
      yield* until(() => state.settled.length === 2)
      expect(state.batches).toEqual([[a!, again!]])
      expect(yield* Clock.currentTimeMillis).toBe(0)
    }),
  )
  expect(state.batches).toEqual([
    [a!, again!],
    [b!, c!],
  ])
})

test("on a shared thread a worker pauses after a large batch, and messages that arrive meanwhile become one batch", async () => {
  const { arrive, layer, state } = setUp({}, 2)
  state.updateMillis = 20
  const [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map((user) => search(user))
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(a!, b!)
      yield* until(() => state.settled.length === 2)
      yield* arrive(c!)
      yield* until(() => state.taken === 3)
      yield* arrive(d!)
      yield* until(() => state.settled.length === 4)
      // 20 ms for each batch, and three times as long for the pause.
      expect(yield* Clock.currentTimeMillis).toBe(20 + 60 + 20)
      yield* arrive(e!)
      yield* until(() => state.settled.length === 5)
    }),
  )
  expect(state.batches).toEqual([[a!, b!], [c!, d!], [e!]])
})

test.each([
  ["in the main queue", { ready: 5 }],
  ["in a retry queue", { retrying: 1 }],
])("in an outage the only message of a worker waits while others are %s", async (_, backlog) => {
  const { arrive, layer, state } = setUp({ prefetch: 1 })
  state.outcomeOf = () => outage
  Object.assign(state, backlog)
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(search("a"))
      yield* until(() => state.batches.length === 2)
      expect(state.settled).toEqual([])
      Object.assign(state, { ready: 0, retrying: 0 })
      yield* until(() => state.settled.length === 1)
    }),
  )
})

test("while phrases can't be embedded, product events are handled and searches are set aside; a bad message does not end the outage", async () => {
  const { arrive, layer, state } = setUp()
  const error = new PhraseEmbedderError({ reason: "unauthorized", detail: "401" })
  const tag = ([, { _tag }]: Settled) => _tag
  state.embedderIsOut = true
  state.outcomeOf = (one) => (one.routingKey.endsWith("search") ? { ...outage, error } : acked)
  await run(
    layer,
    Effect.gen(function* () {
      const worker = yield* EmbeddingWorker.EmbeddingWorker
      yield* arrive(search("a"), search("b"), view("c"))
      yield* until(() => state.settled.length === 1 && state.waited.length === 2)
      expect(Option.isSome(yield* worker.outage)).toBe(true)
      // New searches are set aside untried, and do not bring the next probe forward.
      const tried = state.batches.length
      for (let n = 1; n <= 5; n++) {
        yield* arrive(search("new"), view("d"))
        yield* until(() => state.settled.length === 1 + n && state.queues.setAside.length === 2 + n)
      }
      expect(state.batches.slice(tried).every(([one]) => one!.routingKey.endsWith("view"))).toBe(true)
      expect(state.waited.map(tag)).toEqual(Array.from({ length: 7 }, () => "SetAside"))
      expect(state.intake()).toEqual({ main: "all", setAside: "none" })
      expect(yield* Clock.currentTimeMillis).toBe(0)
      // Each probe is one of the searches that were set aside.
      yield* until(() => state.waited.length === 9)
      expect(yield* Clock.currentTimeMillis).toBe(1_000 + 2_000)
      expect(state.queues.setAside.length).toBe(7)
      // A message that is bad in itself shows nothing. Another probe follows at once.
      let isFirst = true
      state.outcomeOf = () => {
        if (!isFirst) return { ...outage, error }
        isFirst = false
        return { _tag: "Settle", settlement: DeadLetter(failure) }
      }
      yield* until(() => state.settled.length === 7)
      expect(Option.isSome(yield* worker.outage)).toBe(true)
      state.outcomeOf = () => acked
      yield* until(() => state.settled.length === 6 + 7)
      expect(Option.isNone(yield* worker.outage)).toBe(true)
    }),
  )
})

test("an outage that began with searches becomes one of the store, and nothing is received but probes", async () => {
  const { arrive, layer, state } = setUp()
  const embedder = new PhraseEmbedderError({ reason: "unauthorized", detail: "401" })
  state.embedderIsOut = true
  state.outcomeOf = (one) => ({ ...outage, error: one.routingKey.endsWith("search") ? embedder : error })
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(search("a"), search("b"))
      yield* until(() => state.queues.setAside.length === 2)
      yield* arrive(view("c"), view("d"))
      yield* until(() => state.waited.length === 4)
      expect(state.intake()).toEqual({ main: "none", setAside: "none" })
      state.outcomeOf = () => acked
      yield* until(() => state.settled.length === 4)
      expect(yield* Clock.currentTimeMillis).toBe(1_000)
    }),
  )
})

test("a worker that stops in an outage gives back what it holds, also what waits in windows", async () => {
  const { arrive, layer, state } = setUp({ batchEnabled: true, batchWindow: Duration.millis(100) })
  state.outcomeOf = () => outage
  state.updateMillis = 50
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(view("a"), view("b"))
      yield* until(() => state.batches.length === 1)
      yield* arrive(view("c"), view("d"))
      yield* until(() => state.taken === 4)
    }),
  )
  expect(state.settled).toEqual([])
  expect(state.waited.map(([, { _tag }]) => _tag)).toEqual(["Return", "Return", "Return", "Return"])
})

test("searches that an unresponsive embedder keeps waiting are set aside: product events pass them, nothing is held for a minute", async () => {
  const { arrive, layer, state } = setUp({ prefetch: 8 })
  state.searchMillis = 20_000
  const searches = Array.from({ length: 20 }, (_, i) => search(`u${i}`))
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(...searches, view("z"))
      yield* until(() => state.settled.some(([one]) => one.routingKey.endsWith("view")))
      expect(yield* Clock.currentTimeMillis).toBeLessThanOrEqual(6_000)
      const later = (yield* Clock.currentTimeMillis) + 120_000
      yield* Effect.fork(Effect.sleep(Duration.seconds(120)))
      while ((yield* Clock.currentTimeMillis) < later) yield* TestClock.adjust("1 second")
      expect(state.longestHeldMillis).toBeGreaterThan(20_000)
      state.searchMillis = 10
      yield* until(() => state.settled.length === searches.length + 1)
    }),
  )
  expect(state.longestHeldMillis).toBeLessThan(60_000)
  expect(state.settled.every(([, { _tag }]) => _tag === "Ack")).toBe(true)
})

test("while quarantined messages wait, a slow search lane gives back everything but its batch", async () => {
  const { layer, state } = setUp({ prefetch: 8 })
  state.searchMillis = 15_000
  state.queues.setAside.push(...Array.from({ length: 8 }, (_, i) => search(`u${i}`, { wasSetAside: true })))
  await run(
    layer,
    Effect.gen(function* () {
      yield* until(() => state.batches.length === 0 && state.taken === 8)
      state.draining = true
      yield* until(() => state.held() <= 4)
      expect(yield* Clock.currentTimeMillis).toBeLessThanOrEqual(6_000)
      yield* until(() => state.held() === 0)
      expect(yield* Clock.currentTimeMillis).toBe(15_000)
      state.draining = false
    }),
  )
})

test("a batch that is too large for a slow store becomes smaller until it succeeds", async () => {
  const { arrive, layer, state } = setUp()
  state.outcomeOf = () => (state.batches.at(-1)!.length > 10 ? outage : acked)
  await run(
    layer,
    Effect.zipRight(
      arrive(...Array.from({ length: 20 }, (_, i) => search(`u${i}`))),
      until(() => state.settled.length === 20),
    ),
  )
  expect(state.batches.map(({ length }) => length)).toEqual([20, 1, 10, 9])
})

test("after a lost connection the worker handles only what is delivered again", async () => {
  const { arrive, layer, state } = setUp()
  state.updateMillis = 50
  const first = ["a", "b", "c"].map((user) => search(user))
  const again = ["b", "c"].map((user) => search(user))
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(first[0]!)
      yield* until(() => state.batches.length === 1)
      yield* arrive(first[1]!, first[2]!)
      yield* until(() => state.taken === 3)
      state.lost.add(first[1]!).add(first[2]!)
      yield* arrive(...again)
      yield* until(() => state.settled.length === 3)
    }),
  )
  expect(state.batches.slice(1)).toEqual([again])
})

test("poison-message candidates go to quarantine before other messages are handled", async () => {
  const { arrive, layer, state } = setUp()
  await run(
    layer,
    Effect.zipRight(
      arrive(
        search("killer", { redeliveries: 3 }),
        search("a"),
        search("from a retry queue", { quarantineAttempts: 2 }),
        search("b", { redeliveries: 2 }),
      ),
      until(() => state.settled.length === 4),
    ),
  )
  expect(state.settled.map(([, { _tag }]) => _tag)).toEqual(["Quarantine", "Quarantine", "Ack", "Ack"])
  expect(state.batches.map(({ length }) => length)).toEqual([2])
})

test("a batch that throws goes to quarantine; a message that throws there ten times is a crash loop", async () => {
  const { arrive, layer, state } = setUp({ batchEnabled: true, batchWindow: Duration.millis(100) })
  state.outcomeOf = () => {
    throw new Error("a bug")
  }
  const quarantined = (quarantineAttempts: number) => search("c", { quarantined: true, quarantineAttempts })
  await run(
    layer,
    Effect.gen(function* () {
      yield* arrive(search("a"), search("b"))
      yield* until(() => state.settled.length === 2)
      yield* arrive(quarantined(9))
      yield* until(() => state.settled.length === 3)
      yield* arrive(quarantined(10))
      yield* until(() => state.settled.length === 4)
      // Messages from quarantine did not wait for the window.
      expect(yield* Clock.currentTimeMillis).toBe(100)
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
