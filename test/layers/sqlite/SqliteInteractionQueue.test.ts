/** The queue in a file: it outlives processes, and processes share it. The rest is in the contract of the queue. */
import { Database } from "bun:sqlite"
import { describe, expect } from "bun:test"
import { spawn } from "node:child_process"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { Array as Arr, Chunk, Effect, Fiber, Layer, Stream, TestClock, TestContext } from "effect"
import { fileName } from "../../../src/layers/sqlite/Sqlite.ts"
import { DeadLetters } from "../../../src/services/ports/DeadLetters.ts"
import {
  Ack,
  type Consumer,
  DeadLetter,
  type Delivery,
  InteractionQueue,
  type Message,
  Retry,
} from "../../../src/services/ports/InteractionQueue.ts"
import { later } from "../../support/clocks.ts"
import { effectTest } from "../../support/effect.ts"
import { freshDirectory, queueIn } from "../../support/sqliteQueue.ts"

const failure = { error: "test_failure", message: "on purpose" }
const messages = (count: number): ReadonlyArray<Message> =>
  Array.from({ length: count }, (_, n) => ({
    messageId: n.toString(16).padStart(64, "0"),
    eventType: "product_view",
    body: Buffer.from(`{"n":${n}}`),
    trace: null,
    recordedAt: 1_770_000_000_000,
  }))
const ids = (of: ReadonlyArray<{ readonly messageId: string | null }>) => of.map(({ messageId }) => messageId)

const publish = (batch: ReadonlyArray<Message>) =>
  Effect.flatMap(InteractionQueue, (queue) => queue.publish(batch))
const consume = (prefetch: number) => Effect.flatMap(InteractionQueue, (queue) => queue.consume(prefetch))
const depths = Effect.flatMap(InteractionQueue, (queue) => queue.depths)
const letters = Effect.flatMap(DeadLetters, ({ list }) =>
  Effect.map(Stream.runCollect(list), Arr.fromIterable),
)

const takeAll = (consumer: Consumer, count: number) =>
  Effect.gen(function* () {
    const taken: Array<Delivery> = []
    while (taken.length < count) taken.push(...(yield* consumer.take(count - taken.length)))
    return taken
  }).pipe(Effect.timeout("10 seconds"))

/** A consumer in another process, killed with the scope; `line` is the next that it prints. */
const spawnConsumer = (directory: string, mode: "hold" | "drain") =>
  Effect.gen(function* () {
    const script = join(import.meta.dir, "../../support/sqliteConsumer.ts")
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(process.execPath, [script, directory, mode], { stdio: ["ignore", "pipe", "inherit"] }),
      ),
      (child) => Effect.sync(() => child.kill("SIGKILL")),
    )
    const exited = Effect.async<void>((resume) => void child.once("exit", () => resume(Effect.void)))
    const printed = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    const line = Effect.promise(() => printed.next()).pipe(
      Effect.map(({ value }) => value ?? ""),
      Effect.timeout("10 seconds"),
    )
    expect(yield* line).toBe("ready")
    return {
      line,
      kill: Effect.zipRight(
        Effect.sync(() => child.kill("SIGKILL")),
        exited,
      ),
    }
  })

describe("SQLite: the queue in a file", () => {
  effectTest("messages, their delays and dead letters survive that the file is closed", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      const sent = messages(4)
      yield* Effect.gen(function* () {
        yield* publish(sent)
        const consumer = yield* consume(10)
        const [done, slow, dead] = yield* takeAll(consumer, 4)
        yield* consumer.settle([
          [done!, Ack],
          [slow!, Retry(400, failure)],
          [dead!, DeadLetter(failure)],
        ])
        expect(yield* depths).toMatchObject({
          main: { ready: 0, unacked: 1, consumers: 1 },
          retry: { 400: 1, 5000: 0, 60000: 0 },
          failed: 1,
        })
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))

      yield* Effect.gen(function* () {
        expect(yield* depths).toMatchObject({ main: { ready: 1, unacked: 0, consumers: 0 }, failed: 1 })
        const consumer = yield* consume(10)
        const [first, second] = yield* takeAll(consumer, 2)
        expect(ids([first!, second!])).toEqual([sent[3]!.messageId, sent[1]!.messageId])
        expect(first).toMatchObject({ redeliveries: 0, retryCount: 0 })
        expect(second).toMatchObject({ redeliveries: 0, retryCount: 1, recordedAt: sent[1]!.recordedAt })
        expect(ids(yield* letters)).toEqual([sent[2]!.messageId])
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest("what a killed process held comes back when its lease is over, and is counted", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        const sent = messages(5)
        yield* publish(sent)
        const other = yield* spawnConsumer(directory, "hold")
        expect(JSON.parse(yield* other.line)).toEqual(ids(sent))
        yield* other.kill
        expect(yield* depths).toMatchObject({ main: { ready: 0, unacked: 5 } })

        const early = yield* consume(10)
        expect(yield* Effect.timeoutOption(early.take(10), "500 millis")).toMatchObject({ _tag: "None" })

        const late = yield* later("10 seconds")(consume(10))
        const again = yield* takeAll(late, 5)
        expect(ids(again)).toEqual(ids(sent))
        expect(again.map(({ redeliveries }) => redeliveries)).toEqual([1, 1, 1, 1, 1])
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest("a living consumer keeps what it holds for as long as it likes", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        yield* publish(messages(1))
        const patient = yield* consume(10)
        const held = yield* patient.take(10)
        yield* TestClock.adjust("1 minute")
        yield* consume(10)
        yield* TestClock.adjust("1 minute")
        expect(yield* depths).toMatchObject({ main: { ready: 0, unacked: 1, consumers: 2 } })
        yield* patient.settle(held.map((one) => [one, Ack]))
        expect(yield* depths).toMatchObject({ main: { ready: 0, unacked: 0 } })
      }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(queueIn(directory), TestContext.TestContext)))
    }),
  )

  effectTest("a settlement that comes after the lease was lost changes nothing", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        yield* publish(messages(2))
        const stopped = yield* consume(10)
        const [first, second] = yield* takeAll(stopped, 2)
        const next = yield* later("10 seconds")(consume(10))
        const again = yield* takeAll(next, 2)
        yield* stopped.settle([
          [first!, Ack],
          [second!, DeadLetter(failure)],
        ])
        expect(yield* depths).toMatchObject({ main: { ready: 0, unacked: 2 }, failed: 0 })
        yield* next.settle(again.map((one) => [one, Ack]))
        expect(yield* depths).toMatchObject({ main: { ready: 0, unacked: 0 }, failed: 0 })
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest("two processes share the messages of a third, and none gets what the other has", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        const sent = messages(1_000)
        const taken = new Map<string, ReadonlyArray<string>>()
        const drain = (name: string) =>
          Effect.gen(function* () {
            const consumer = yield* spawnConsumer(directory, "drain")
            yield* Effect.forever(
              Effect.map(consumer.line, (line) => {
                taken.set(name, [...(taken.get(name) ?? []), ...JSON.parse(line)])
              }),
            ).pipe(Effect.forkScoped)
          })
        yield* Effect.all([drain("one"), drain("two")], { concurrency: "unbounded" })
        yield* Effect.forEach(Arr.chunksOf(sent, 50), (part) =>
          Effect.zipRight(publish(part), Effect.sleep("5 millis")),
        )
        yield* Effect.repeat(Effect.delay(depths, "20 millis"), {
          until: ({ main }) => main.ready + main.unacked === 0,
        }).pipe(Effect.timeout("20 seconds"))
        yield* Effect.repeat(Effect.sleep("5 millis"), {
          until: () => [...taken.values()].flat().length >= sent.length,
        }).pipe(Effect.timeout("5 seconds"))
        expect([...taken.values()].flat().toSorted()).toEqual(sent.map(({ messageId }) => messageId))
        for (const name of ["one", "two"]) expect(taken.get(name)?.length).toBeGreaterThan(0)
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest("a waiting consumer gets a message that is published in its process without a poll", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        const consumers = yield* Effect.all([consume(1), consume(1)])
        const waiting = yield* Effect.forEach(consumers, (consumer) => Effect.fork(consumer.take(1)))
        // Each sleeps until its next poll and its next renewal, which never come: time stands still.
        yield* Effect.repeat(TestClock.sleeps(), { until: (sleeps) => Chunk.size(sleeps) === 4 })
        yield* publish(messages(2))
        const taken = yield* Effect.forEach(waiting, Fiber.join)
        expect(taken.map(({ length }) => length)).toEqual([1, 1])
      }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(queueIn(directory), TestContext.TestContext)))
    }),
  )

  effectTest("settling goes on until the file takes it", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        yield* publish(messages(2))
        const consumer = yield* consume(10)
        const [first, second] = yield* takeAll(consumer, 2)
        const outside = new Database(join(directory, fileName))
        outside.run("ALTER TABLE queue_messages RENAME TO away")
        expect(yield* Effect.flip(publish(messages(1)))).toMatchObject({ reason: "not_set_up" })
        const settling = yield* Effect.fork(
          consumer.settle([
            [first!, Ack],
            [second!, Retry(200, failure)],
          ]),
        )
        yield* Effect.sleep("50 millis")
        expect(settling.unsafePoll()).toBeNull()
        outside.run("ALTER TABLE away RENAME TO queue_messages")
        outside.close()
        yield* Effect.timeout(Fiber.join(settling), "5 seconds")
        const [again] = yield* takeAll(consumer, 1)
        expect(again).toMatchObject({ messageId: second!.messageId, retryCount: 1 })
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest("dead letters stand in the order of their deaths, and a page is no limit", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        const sent = messages(1_201)
        yield* publish(sent)
        const consumer = yield* consume(2_000)
        const [first, ...others] = yield* takeAll(consumer, sent.length)
        yield* consumer.settle(others.map((one) => [one, DeadLetter(failure)]))
        yield* Effect.sleep("2 millis")
        yield* consumer.settle([[first!, DeadLetter(failure)]])
        expect(ids(yield* letters)).toEqual([...ids(sent.slice(1)), sent[0]!.messageId])
        const dead = yield* DeadLetters
        expect(yield* dead.remove(({ messageId }) => messageId !== sent[600]!.messageId)).toBe(1_200)
        expect(yield* dead.count).toBe(1)
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest("a letter that was retried and dies again is a new one, with its attempts counted anew", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        yield* publish(messages(1))
        const consumer = yield* consume(10)
        const [first] = yield* takeAll(consumer, 1)
        yield* consumer.settle([[first!, Retry(1, failure)]])
        const [second] = yield* takeAll(consumer, 1)
        yield* consumer.settle([[second!, DeadLetter(failure)]])
        const [old] = yield* letters
        expect(old).toMatchObject({ attempts: 2 })
        yield* Effect.sleep("2 millis")
        const dead = yield* DeadLetters
        expect(yield* dead.retry(() => true)).toBe(1)
        expect(yield* dead.count).toBe(0)
        const [third] = yield* takeAll(consumer, 1)
        yield* consumer.settle([[third!, DeadLetter({ error: "other", message: "é".repeat(600) })]])
        const [fresh] = yield* letters
        expect(fresh).toMatchObject({ attempts: 1, error: "other", message: "é".repeat(512) })
        expect(fresh!.id).not.toBe(old!.id)
        expect(Date.parse(fresh!.firstFailedAt)).toBeGreaterThan(Date.parse(old!.lastFailedAt))
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )
})
