/** The figures of the system, on both stacks. */
import { expect, test } from "bun:test"
import { Duration, Effect, Fiber, Layer, Schedule } from "effect"
import { workerName } from "../../../src/layers/RecordedFailure.ts"
import { targets } from "../../../src/layers/rabbitmq/RabbitManagement.ts"
import * as Worker from "../../../src/programs/Worker.ts"
import type { Interaction } from "../../../src/services/model/Interaction.ts"
import * as SystemStats from "../../../src/services/operate/SystemStats.ts"
import {
  type Appended,
  InteractionLog,
  type InteractionLogError,
} from "../../../src/services/ports/InteractionLog.ts"
import {
  DeadLetter,
  InteractionQueue,
  InteractionQueueError,
  Retry,
} from "../../../src/services/ports/InteractionQueue.ts"
import { notBegun, ProductPairs } from "../../../src/services/ports/ProductPairs.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import { WorkerReports } from "../../../src/services/ports/WorkerReports.ts"
import { InteractionRecorder } from "../../../src/services/record/InteractionRecorder.ts"
import { takeAll } from "../../contracts/InteractionQueueContract.ts"
import { layerSuite } from "../../support/effect.ts"
import { drained, eventually, record, recording, search } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

/** Instants of events that occur now. */
const start = Date.now() - 60_000
const searches = (user: string, from: number, count: number, since = start) =>
  Array.from({ length: count }, (_, index) =>
    search(user, "red wine", new Date(since + from + index).toISOString()),
  )
const emptyRetryQueues = { "5000": 0, "10000": 0, "20000": 0, "40000": 0, "60000": 0 }
const emptySystem = {
  queues: {
    user_embedding_updates: { ready: 0, unacked: 0, consumers: 0 },
    isolated: 0,
    retry: emptyRetryQueues,
    failed: 0,
  },
  rates: { publish: 0, deliver: 0, ack: 0 },
  log: { total: 0, unpublished: 0, oldest_unpublished_s: null },
  waiting: 0,
  oldest_waiting_s: null,
  newest_applied_s: null,
  uncounted_pairs: 0,
  workers: [],
  users: 0,
  event_to_embedding_s: null,
  attention: [],
  unavailable: [],
}

/** Records interactions with a time of recording in the past. */
const recordSecondsAgo = (seconds: number, ...interactions: ReadonlyArray<Interaction>) =>
  Effect.flatMap(InteractionRecorder, (recorder) =>
    Effect.async<ReadonlyArray<Appended>, InteractionLogError>((resume) =>
      recorder.submit(
        interactions.map((interaction) => ({ interaction, idempotencyKey: null, occurredAtGiven: true })),
        { trace: null, recordedAt: Date.now() - seconds * 1_000 },
        resume,
      ),
    ),
  )

const suite = (name: string, stack: Parameters<typeof recording>[0]) =>
  layerSuite(name, recording(stack), (it) => {
    it(
      "an empty system has all figures",
      () =>
        Effect.gen(function* () {
          // The management API learns of a new queue a moment later.
          const stats = yield* eventually(
            Effect.map(SystemStats.look, (stats) => (stats.rates === null ? undefined : stats)),
          )
          expect(stats).toEqual(emptySystem)
        }),
      30_000,
    )

    it(
      "the time from event to embedding and the rates are measured",
      () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const waiting = Array.from({ length: 20 }, (_, index) => `waited-${index}`)
          yield* recordSecondsAgo(15, ...waiting.flatMap((user) => searches(user, 0, 2)))
          // Imported history.
          yield* recordSecondsAgo(45, ...searches("imported", 0, 2, 1_770_000_000_000))
          // Old rows count twice between their publication and their mark.
          const isPublished = ({ log, waiting }: SystemStats.SystemStats) =>
            log?.unpublished === 0 && waiting === 42
          const before = yield* eventually(
            Effect.map(SystemStats.look, (stats) => (isPublished(stats) ? stats : undefined)),
          )
          expect(before.oldest_waiting_s).toBeGreaterThanOrEqual(15)
          const log = yield* InteractionLog
          const pairs = yield* ProductPairs
          const newest = yield* log.maxId
          expect([newest >= 42, before.uncounted_pairs]).toEqual([true, newest])
          yield* pairs.advance(notBegun, { ...notBegun, countedUpTo: newest - 2, begunUpTo: newest - 2 })
          expect((yield* SystemStats.look).uncounted_pairs).toBe(2)
          expect(before.attention.map(({ text }) => text)).toEqual([
            expect.stringMatching(/^No worker is running: 42 events wait, the oldest for /),
          ])

          yield* Layer.build(Layer.fresh(Worker.layer))
          yield* eventually(Effect.map(users.count, (count) => (count === 21 ? true : undefined)))
          const { newestApplied, waited } = yield* SystemStats.latency()
          expect(waited!.p50).toBeGreaterThanOrEqual(15)
          expect(waited!.p99).toBeLessThan(30)
          expect(newestApplied).toBeLessThan(15)
          // What was applied before says nothing about now.
          yield* Effect.sleep("5 millis")
          expect((yield* SystemStats.latency(1)).waited).toBeNull()
          const { attention, workers } = yield* eventually(
            Effect.map(SystemStats.look, (stats) => (stats.workers?.length === 1 ? stats : undefined)),
          )
          expect(workers).toEqual([
            {
              worker: workerName,
              seen_s: expect.any(Number),
              held: expect.any(Number),
              per_second: expect.any(Number),
              outage: null,
            },
          ])
          expect(attention).toEqual([])

          // A write whose last event is not among the newest rows of the log is not measured.
          const { embedding, ...facts } = (yield* users.load(["waited-0"])).get("waited-0")!
          const changed = {
            ...facts,
            embedding: { ...embedding!, updated_at: Date.now() + 1e9 },
            version: facts.version + 1,
            applied: new Uint8Array(16).fill(7),
          }
          expect(yield* users.save([{ record: changed, expected: facts.version }])).toEqual([true])
          expect((yield* SystemStats.latency()).waited!.p99).toBeLessThan(30)

          let n = 10
          const steady = yield* Effect.suspend(() => record(...searches("steady", n++, 1))).pipe(
            Effect.repeat(Schedule.fixed("100 millis")),
            Effect.fork,
          )
          const rates = yield* eventually(
            Effect.map(SystemStats.look, ({ rates }) =>
              rates !== null && Math.min(rates.publish, rates.deliver, rates.ack) > 5 ? rates : undefined,
            ),
            Duration.seconds(30),
          )
          expect(Math.max(rates.publish, rates.deliver, rates.ack)).toBeLessThan(20)
          yield* Fiber.interrupt(steady)
          yield* drained
        }),
      60_000,
    )

    it(
      "messages are counted where they are: ready, unacknowledged, waiting for a retry, failed",
      () =>
        Effect.gen(function* () {
          const queue = yield* InteractionQueue
          const log = yield* InteractionLog
          const { total } = yield* log.backlog
          // The worker of the test before has taken its report away.
          expect(yield* (yield* WorkerReports).latest).toEqual([])
          const interaction = search("u", "not published", "2026-02-10T12:00:00.000Z")
          const recordedAt = Date.now() - 90_000
          yield* log.append([
            { interaction, idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt },
          ])
          yield* record(...searches("u", 0, 10))
          const consumer = yield* queue.consume(4)
          const [retried, dead, ...held] = yield* takeAll(consumer, 4)
          const failure = { error: "test", message: "" }
          yield* consumer.settle([
            [retried!, Retry(60_000, failure)],
            [dead!, DeadLetter(failure)],
          ])
          held.push(...(yield* takeAll(consumer, 2)))
          const stats = yield* eventually(
            Effect.map(SystemStats.look, (stats) => {
              const { retry, user_embedding_updates: main } = stats.queues!
              const isMarked = stats.log?.unpublished === 1
              return main.ready === 4 && main.unacked === held.length && retry["60000"] === 1 && isMarked
                ? stats
                : undefined
            }),
          )
          expect(stats.queues).toMatchObject({ user_embedding_updates: { consumers: 1 }, failed: 1 })
          expect(stats.log).toMatchObject({ total: total + 11 })
          expect(stats.log?.oldest_unpublished_s).toBeGreaterThanOrEqual(90)
          expect(stats.log?.oldest_unpublished_s).toBeLessThan(120)
          expect(stats.waiting).toBe(10)
          expect(stats.oldest_waiting_s).toBeGreaterThanOrEqual(90)
          expect(stats.unavailable).toEqual([])
        }),
      30_000,
    )

    it("a part that is not available is named, and the other parts are shown", () =>
      Effect.gen(function* () {
        const queue = yield* InteractionQueue
        const away = new InteractionQueueError({
          reason: "unavailable",
          operation: "depths",
          cause: new Error("away"),
        })
        const stats = yield* Effect.provide(
          SystemStats.look,
          Layer.succeed(InteractionQueue, {
            ...queue,
            depths: Effect.fail(away),
            traffic: Effect.succeed(null),
          }),
        )
        expect(stats).toMatchObject({ queues: null, rates: null, users: 22, waiting: null })
        expect(stats.unavailable).toEqual(["interaction queue: depths: unavailable: away"])
      }))
  })

suite("statistics on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "statistics on real servers", () =>
  suite("with the management API", external()),
)

test("a percentile is the nearest rank; events without embedding count", () => {
  const hundred = Array.from({ length: 100 }, (_, index) => 100 - index)
  expect(SystemStats.percentiles(hundred)).toEqual({ p50: 50, p95: 95, p99: 99 })
  expect(SystemStats.percentiles([0.12345])).toEqual({ p50: 0.123, p95: 0.123, p99: 0.123 })
  expect(SystemStats.percentiles([1, 2, 3, Number.POSITIVE_INFINITY])).toEqual({
    p50: 2,
    p95: null,
    p99: null,
  })
  expect(SystemStats.percentiles([])).toEqual({ p50: null, p95: null, p99: null })
})

test("the management API has the host and the user of RABBITMQ_DSN, unless its own URL is set", () => {
  const basic = (user: string) => `Basic ${btoa(user)}`
  const queue = (dsn: string, management?: string) => targets(dsn, management, "queues", "/main")
  expect(queue("amqp://shop:p%40ss@rabbit:5672,hare:5673")).toEqual([
    { url: "http://rabbit:15672/api/queues/%2F/main", authorization: basic("shop:p@ss") },
    { url: "http://hare:15672/api/queues/%2F/main", authorization: basic("shop:p@ss") },
  ])
  expect(queue("amqps://rabbit/shop")).toEqual([
    { url: "https://rabbit:15671/api/queues/shop/main", authorization: basic("guest:guest") },
  ])
  expect(queue("amqp://a:b@rabbit/%2Fshop", "https://monitor:secret@proxy,other/rabbitmq/")).toEqual([
    {
      url: "https://proxy/rabbitmq/api/queues/%2Fshop/main",
      authorization: basic("monitor:secret"),
    },
    {
      url: "https://other/rabbitmq/api/queues/%2Fshop/main",
      authorization: basic("monitor:secret"),
    },
  ])
})
