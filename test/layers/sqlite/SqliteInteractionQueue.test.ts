/** The queue in a file that outlives processes and is shared by them. The rest is in the contract of the queue. */
import { Database } from "bun:sqlite"
import { describe, expect } from "bun:test"
import { spawn } from "node:child_process"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { Array as Arr, Chunk, Effect, Exit, Fiber, Layer, Stream, TestClock, TestContext } from "effect"
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

/** A consumer in another process, killed with the scope. `line` waits for the next line of its output. */
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
  effectTest("messages, retry delays and dead letters survive closing the file", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      const sent = messages(4)
      yield* Effect.gen(function* () {
        yield* publish(sent)
        const consumer = yield* consume(10)
        const [done, slow, dead] = yield* takeAll(consumer, 4)
        yield* consumer.settle([
          [done!, Ack],
          [slow!, Retry(5_000, failure)],
          [dead!, DeadLetter(failure)],
        ])
        expect(yield* depths).toMatchObject({
          main: { ready: 0, unacked: 1, consumers: 1 },
          retry: { 5000: 1, 60000: 0 },
          failed: 1,
        })
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))

      yield* Effect.gen(function* () {
        expect(yield* depths).toMatchObject({ main: { ready: 1, unacked: 0, consumers: 0 }, failed: 1 })
        const consumer = yield* consume(10)
        const [first] = yield* takeAll(consumer, 1)
        const [second] = yield* later("5 seconds")(takeAll(consumer, 1))
        expect(ids([first!, second!])).toEqual([sent[3]!.messageId, sent[1]!.messageId])
        expect(first).toMatchObject({ redeliveries: 0, retryCount: 0 })
        expect(second).toMatchObject({ redeliveries: 0, retryCount: 1, recordedAt: sent[1]!.recordedAt })
        expect(ids(yield* letters)).toEqual([sent[2]!.messageId])
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest(
    "messages of a killed process are delivered again when its lease has expired, counted as redeliveries",
    () =>
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
          const waiting = yield* Effect.fork(early.take(10))
          // Statements of one connection run in order: after these, `take` has run its own.
          yield* Effect.repeatN(depths, 5)
          expect(yield* depths).toMatchObject({ main: { ready: 0, unacked: 5 } })
          expect(Exit.isInterrupted(yield* Fiber.interrupt(waiting))).toBe(true)

          const late = yield* later("10 seconds")(consume(10))
          const again = yield* takeAll(late, 5)
          expect(ids(again)).toEqual(ids(sent))
          expect(again.map(({ redeliveries }) => redeliveries)).toEqual([1, 1, 1, 1, 1])
        }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
      }),
  )

  effectTest("a living consumer keeps its messages, no matter how long", () =>
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

  effectTest("a settlement after the lease has expired changes nothing", () =>
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

  effectTest("two processes share the messages of a third, each message going to one of them", () =>
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

  effectTest("a waiting consumer receives a message of its own process without polling", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        const consumers = yield* Effect.all([consume(1), consume(1)])
        const waiting = yield* Effect.forEach(consumers, (consumer) => Effect.fork(consumer.take(1)))
        // Each consumer sleeps until its next poll and its next renewal. The clock stands still, so both never end.
        yield* Effect.repeat(TestClock.sleeps(), { until: (sleeps) => Chunk.size(sleeps) === 4 })
        yield* publish(messages(2))
        const taken = yield* Effect.forEach(waiting, Fiber.join)
        expect(taken.map(({ length }) => length)).toEqual([1, 1])
      }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(queueIn(directory), TestContext.TestContext)))
    }),
  )

  effectTest("settling is retried until the database answers", () =>
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
        // The consumer sleeps until its next renewal, and the settlement until its next attempt.
        yield* Effect.repeat(TestClock.sleeps(), { until: (sleeps) => Chunk.size(sleeps) === 2 })
        expect(settling.unsafePoll()).toBeNull()
        outside.run("ALTER TABLE away RENAME TO queue_messages")
        outside.close()
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(settling)
        const [again] = yield* takeAll(consumer, 1)
        expect(again).toMatchObject({ messageId: second!.messageId, retryCount: 1 })
      }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(queueIn(directory), TestContext.TestContext)))
    }),
  )

  effectTest("dead letters are listed in the order in which they failed, over several pages", () =>
    Effect.gen(function* () {
      const directory = yield* freshDirectory
      yield* Effect.gen(function* () {
        const sent = messages(1_201)
        yield* publish(sent)
        const consumer = yield* consume(2_000)
        const [first, ...others] = yield* takeAll(consumer, sent.length)
        yield* consumer.settle(others.map((one) => [one, DeadLetter(failure)]))
        yield* later("2 millis")(consumer.settle([[first!, DeadLetter(failure)]]))
        expect(ids(yield* letters)).toEqual([...ids(sent.slice(1)), sent[0]!.messageId])
        const dead = yield* DeadLetters
        expect(
          yield* later("2 millis")(dead.remove(({ messageId }) => messageId !== sent[600]!.messageId)),
        ).toBe(1_200)
        expect(yield* dead.count).toBe(1)
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )

  effectTest("a retried message that fails again is a new dead letter with a new count of attempts", () =>
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
        const dead = yield* DeadLetters
        expect(yield* dead.retry(() => true)).toBe(1)
        expect(yield* dead.count).toBe(0)
        const [third] = yield* takeAll(consumer, 1)
        const other = { error: "other", message: "é".repeat(600) }
        yield* later("2 millis")(consumer.settle([[third!, DeadLetter(other)]]))
        const [fresh] = yield* letters
        expect(fresh).toMatchObject({ attempts: 1, error: "other", message: "é".repeat(512) })
        expect(fresh!.id).not.toBe(old!.id)
        expect(Date.parse(fresh!.firstFailedAt)).toBeGreaterThan(Date.parse(old!.lastFailedAt))
      }).pipe(Effect.scoped, Effect.provide(queueIn(directory)))
    }),
  )
})
