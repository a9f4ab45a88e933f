/** What every DeadLetters promises, with the queue that fills it. The layer must be set up and empty. */
import { expect } from "bun:test"
import { Effect, type Layer, Stream } from "effect"
import { type DeadLetter, DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import * as Queue from "../../src/services/ports/InteractionQueue.ts"
import { layerSuite } from "../support/effect.ts"
import {
  acknowledge,
  consume,
  eventually,
  type Features,
  failure,
  ids,
  messages,
  publish,
  takeAll,
  takeOne,
} from "./InteractionQueueContract.ts"

const letters = Effect.flatMap(DeadLetters, ({ list }) =>
  Effect.map(Stream.runCollect(list), (all) => [...all]),
)
const count = Effect.flatMap(DeadLetters, ({ count }) => count)
const remove = (pick: (letter: DeadLetter) => boolean) =>
  Effect.flatMap(DeadLetters, (dead) => dead.remove(pick))
const retry = (pick: (letter: DeadLetter) => boolean) =>
  Effect.flatMap(DeadLetters, (dead) => dead.retry(pick))
const isOne =
  (...some: ReadonlyArray<Queue.Message>) =>
  ({ messageId }: DeadLetter) =>
    some.some((message) => message.messageId === messageId)

/** Publishes messages and makes them dead letters. */
const makeDead = (sent: ReadonlyArray<Queue.Message>, why: Queue.Failure = failure) =>
  Effect.scoped(
    Effect.gen(function* () {
      yield* publish(sent)
      const consumer = yield* consume(sent.length)
      const got = yield* takeAll(consumer, sent.length)
      yield* consumer.settle(got.map((delivery) => [delivery, Queue.DeadLetter(why)]))
    }),
  )

export const suite = <R extends DeadLetters | Queue.InteractionQueue, E>(
  name: string,
  layer: Layer.Layer<R | DeadLetters | Queue.InteractionQueue, E>,
  { retryDelay }: Pick<Features, "retryDelay">,
) =>
  layerSuite(name, layer, (it) => {
    it("lists every dead letter, oldest first, with all its fields", () =>
      Effect.gen(function* () {
        const sent = messages(3)
        const before = new Date().toISOString()
        yield* makeDead(sent)
        const all = yield* eventually(letters, ({ length }) => length === 3)
        expect(ids(all)).toEqual(ids(sent))
        expect(new Set(all.map(({ id }) => id)).size).toBe(3)
        for (const [index, letter] of all.entries()) {
          expect(letter).toMatchObject({
            ...failure,
            attempts: 1,
            originalExchange: "user_events",
            originalRoutingKey: Queue.routingKey(sent[index]!.eventType),
          })
          expect(letter.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/)
          expect(letter.firstFailedAt >= before && letter.firstFailedAt <= new Date().toISOString()).toBe(
            true,
          )
          expect(letter.lastFailedAt).toBe(letter.firstFailedAt)
          expect(letter.worker).not.toBe("")
          expect(Buffer.from(letter.body).equals(Buffer.from(sent[index]!.body))).toBe(true)
        }
        expect(yield* remove(() => true)).toBe(3)
      }))

    it("a dead letter that was retried before has its number of attempts and its first failure", () =>
      Effect.gen(function* () {
        const [sent] = messages(1)
        yield* publish([sent!])
        const consumer = yield* consume(1)
        yield* consumer.settle([
          [yield* takeOne(consumer), Queue.Retry(retryDelay, { error: "first", message: "" })],
        ])
        yield* consumer.settle([[yield* takeOne(consumer), Queue.DeadLetter(failure)]])
        const [letter] = yield* eventually(letters, ({ length }) => length === 1)
        expect(letter).toMatchObject({
          ...failure,
          messageId: sent!.messageId,
          attempts: 2,
          originalExchange: "user_events",
          originalRoutingKey: Queue.routingKey(sent!.eventType),
        })
        expect(Date.parse(letter!.lastFailedAt) - Date.parse(letter!.firstFailedAt)).toBeGreaterThanOrEqual(
          0.9 * retryDelay - 5,
        )
        yield* remove(() => true)
      }))

    it("listing many pages keeps the dead letters and their order", () =>
      Effect.gen(function* () {
        const sent = messages(1_050)
        yield* makeDead(sent)
        yield* eventually(count, (found) => found === 1_050)
        const first = yield* letters
        expect(ids(first)).toEqual(ids(sent))
        expect(yield* eventually(letters, ({ length }) => length === 1_050)).toEqual(first)
        const { list } = yield* DeadLetters
        const some = yield* Stream.runCollect(Stream.take(list, 5))
        expect(ids([...some])).toEqual(ids(sent.slice(0, 5)))
        expect(yield* eventually(letters, ({ length }) => length === 1_050)).toEqual(first)
        expect(yield* remove(isOne(...sent.slice(1)))).toBe(1_049)
        expect(ids(yield* eventually(letters, ({ length }) => length === 1))).toEqual([sent[0]!.messageId])
        yield* remove(() => true)
      }))

    it("looks at the same time each see all dead letters, and what is removed is removed once", () =>
      Effect.gen(function* () {
        const sent = messages(20)
        yield* makeDead(sent)
        yield* eventually(count, (found) => found === 20)
        const looks = yield* Effect.all(
          Array.from({ length: 6 }, () => letters),
          { concurrency: "unbounded" },
        )
        for (const look of looks) expect(ids(look)).toEqual(ids(sent))
        const amounts = yield* Effect.all(
          Array.from({ length: 3 }, () => remove(() => true)),
          { concurrency: "unbounded" },
        )
        expect(amounts.reduce((a, b) => a + b)).toBe(20)
      }))

    it("picked dead letters are retried as new messages; the others stay", () =>
      Effect.gen(function* () {
        const sent = messages(4)
        yield* makeDead(sent)
        const consumer = yield* consume(10)
        expect(yield* retry(isOne(sent[1]!, sent[3]!))).toBe(2)
        const back = yield* takeAll(consumer, 2)
        expect(ids(back)).toEqual([sent[1]!.messageId, sent[3]!.messageId])
        expect(back[0]).toMatchObject({
          retryCount: 0,
          quarantineAttempts: 0,
          redeliveries: 0,
          routingKey: Queue.routingKey(sent[1]!.eventType),
          trace: sent[1]!.trace,
          recordedAt: sent[1]!.recordedAt,
        })
        expect(Buffer.from(back[0]!.body).equals(Buffer.from(sent[1]!.body))).toBe(true)
        yield* acknowledge(consumer, back)
        const left = yield* eventually(letters, ({ length }) => length === 2)
        expect(ids(left)).toEqual([sent[0]!.messageId, sent[2]!.messageId])
        expect(yield* remove(() => true)).toBe(2)
      }))

    it("a retried message that fails again is a new dead letter with a new count", () =>
      Effect.gen(function* () {
        const [sent] = messages(1)
        yield* makeDead([sent!], { error: "old", message: "old" })
        const [old] = yield* eventually(letters, ({ length }) => length === 1)
        expect(yield* retry(() => true)).toBe(1)
        const consumer = yield* consume(1)
        yield* consumer.settle([[yield* takeOne(consumer), Queue.DeadLetter(failure)]])
        const [letter] = yield* eventually(letters, ({ length }) => length === 1)
        expect(letter).toMatchObject({ ...failure, messageId: sent!.messageId, attempts: 1 })
        expect(letter!.id).not.toBe(old!.id)
        expect([old!.retriedFrom, letter!.retriedFrom]).toEqual([null, old!.id])
        expect(letter!.firstFailedAt >= old!.lastFailedAt).toBe(true)
        yield* remove(() => true)
      }))

    it("a retry ends even if its messages become dead letters again at once", () =>
      Effect.gen(function* () {
        yield* makeDead(messages(20))
        yield* eventually(count, (found) => found === 20)
        const consumer = yield* consume(100)
        yield* Effect.forkScoped(
          Effect.forever(
            Effect.flatMap(consumer.take(100), (some) =>
              consumer.settle(some.map((delivery) => [delivery, Queue.DeadLetter(failure)])),
            ),
          ),
        )
        expect(
          yield* Effect.timeout(
            retry(() => true),
            "10 seconds",
          ),
        ).toBe(20)
        yield* eventually(count, (found) => found === 20)
        yield* remove(() => true)
      }))

    it("removes only picked dead letters", () =>
      Effect.gen(function* () {
        const sent = messages(5)
        yield* makeDead(sent)
        yield* eventually(count, (found) => found === 5)
        expect(yield* remove(isOne(sent[0]!, sent[2]!))).toBe(2)
        expect(yield* remove(() => false)).toBe(0)
        const left = yield* eventually(letters, ({ length }) => length === 3)
        expect(ids(left)).toEqual(ids([sent[1]!, sent[3]!, sent[4]!]))
        expect(yield* remove(() => true)).toBe(3)
        expect(yield* count).toBe(0)
        expect(yield* letters).toEqual([])
      }))
  })
