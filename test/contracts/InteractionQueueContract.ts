/**
 * What every InteractionQueue promises. The layer must be set up and empty, with WORKER_RETRY_DELAY=200; each test
 * leaves the main queue empty.
 */
import { expect } from "bun:test"
import { Effect, Fiber, type Layer } from "effect"
import { defaults } from "../../src/services/model/EventTypes.ts"
import {
  Ack,
  type Consumer,
  DeadLetter,
  type Delivery,
  InteractionQueue,
  type Message,
  Quarantine,
  Retry,
  routingKey,
} from "../../src/services/ports/InteractionQueue.ts"
import { layerSuite } from "../support/effect.ts"

export const failure = { error: "test_failure", message: "on purpose" }
export const recordedAt = 1_770_000_000_000
let counter = 0
/** New messages, each with an id, a type and a trace of its own. */
export const messages = (count: number): ReadonlyArray<Message> =>
  Array.from({ length: count }, (): Message => {
    const number = counter++
    const messageId = number.toString(16).padStart(64, "0")
    const span = (number + 1).toString(16).padStart(16, "0")
    return {
      messageId,
      eventType: defaults.names[number % defaults.names.length]!,
      body: Buffer.from(`{"message_id":"${messageId}"}`),
      trace: {
        traceparent: `00-0af7651916cd43dd8448eb211c80319c-${span}-01`,
        tracestate: `vendor=${number}`,
      },
      recordedAt,
    }
  })
export const ids = (some: ReadonlyArray<{ readonly messageId: string | null }>) =>
  some.map(({ messageId }) => messageId)

export const publish = (batch: ReadonlyArray<Message>) =>
  Effect.flatMap(InteractionQueue, (queue) => queue.publish(batch))
export const consume = (prefetch: number) =>
  Effect.flatMap(InteractionQueue, (queue) => queue.consume(prefetch))
export const acknowledge = (consumer: Consumer, deliveries: ReadonlyArray<Delivery>) =>
  consumer.settle(deliveries.map((delivery) => [delivery, Ack]))

/** Takes until so many have come. */
export const takeAll = (consumer: Consumer, count: number) =>
  Effect.gen(function* () {
    const taken: Array<Delivery> = []
    while (taken.length < count) taken.push(...(yield* consumer.take(count - taken.length)))
    return taken
  }).pipe(Effect.timeout("10 seconds"))
/** Takes the one that has come. */
export const takeOne = (consumer: Consumer) => Effect.map(takeAll(consumer, 1), ([one]) => one!)
/** That nothing comes can only be waited for. */
const nothingComes = (consumer: Consumer) =>
  Effect.map(Effect.timeoutOption(consumer.take(1), "300 millis"), (taken) =>
    expect(taken).toMatchObject({ _tag: "None" }),
  )

/** Asks again until the answer is as expected; the test fails when it never is. */
export const eventually = <A, E, R>(probe: Effect.Effect<A, E, R>, expected: (answer: A) => boolean) =>
  Effect.gen(function* () {
    while (true) {
      const answer = yield* probe
      if (expected(answer)) return answer
      yield* Effect.sleep("20 millis")
    }
  }).pipe(Effect.timeout("15 seconds"))

const depths = Effect.flatMap(InteractionQueue, ({ depths }) => depths)

export const suite = <R extends InteractionQueue, E>(
  name: string,
  layer: Layer.Layer<R | InteractionQueue, E>,
) =>
  layerSuite(name, layer, (it) => {
    it("delivers what it confirmed, in order, with bytes and headers", () =>
      Effect.gen(function* () {
        const sent = messages(300)
        expect(yield* publish(sent)).toEqual(sent.map(() => "confirmed"))
        const consumer = yield* consume(1_000)
        const got = yield* takeAll(consumer, 300)
        expect(ids(got)).toEqual(ids(sent))
        for (const index of [0, 7, 299]) {
          expect(Buffer.from(got[index]!.body).equals(Buffer.from(sent[index]!.body))).toBe(true)
          expect(got[index]).toMatchObject({
            routingKey: routingKey(sent[index]!.eventType),
            trace: sent[index]!.trace,
            retryCount: 0,
            quarantineAttempts: 0,
            redeliveries: 0,
            recordedAt,
          })
          expect(got[index]!.publishedAt).toBeGreaterThan(recordedAt)
        }
        yield* acknowledge(consumer, got)
      }))

    it("publishes any number at once, also none, also bytes that are no text, also without trace", () =>
      Effect.gen(function* () {
        expect(yield* publish([])).toEqual([])
        const odd: Message = { ...messages(1)[0]!, body: Uint8Array.of(0, 255, 128, 10), trace: null }
        const sent = [odd, ...messages(2_500)]
        expect(yield* publish(sent)).toEqual(sent.map(() => "confirmed"))
        const consumer = yield* consume(4_000)
        const got = yield* takeAll(consumer, sent.length)
        expect(ids(got)).toEqual(ids(sent))
        expect([...got[0]!.body]).toEqual([0, 255, 128, 10])
        expect(got[0]!.trace).toBeNull()
        yield* acknowledge(consumer, got)
      }))

    it("publishers side by side get their own answers", () =>
      Effect.gen(function* () {
        const batches = [messages(700), messages(1), messages(900), messages(30)]
        const answers = yield* Effect.forEach(batches, publish, { concurrency: "unbounded" })
        expect(answers.map((own) => own.length)).toEqual([700, 1, 900, 30])
        expect(new Set(answers.flat())).toEqual(new Set(["confirmed"]))
        const consumer = yield* consume(4_000)
        const got = yield* takeAll(consumer, 1_631)
        expect(ids(got).toSorted()).toEqual(ids(batches.flat()).toSorted())
        yield* acknowledge(consumer, got)
      }))

    it("waits for the first delivery, then takes what there is, at most as many as asked for", () =>
      Effect.gen(function* () {
        const consumer = yield* consume(100)
        const waiting = yield* Effect.fork(consumer.take(100))
        const sent = messages(10)
        yield* publish(sent)
        const first = yield* Effect.timeout(Fiber.join(waiting), "10 seconds")
        expect(first.length).toBeGreaterThanOrEqual(1)
        const got = [...first]
        while (got.length < 10) {
          const some = yield* Effect.timeout(consumer.take(2), "10 seconds")
          expect(some.length === 1 || some.length === 2).toBe(true)
          got.push(...some)
        }
        expect(ids(got)).toEqual(ids(sent))
        yield* acknowledge(consumer, got)
      }))

    it("a take that was given up loses nothing", () =>
      Effect.gen(function* () {
        const consumer = yield* consume(10)
        yield* nothingComes(consumer)
        const sent = messages(2)
        yield* publish(sent)
        const got = yield* takeAll(consumer, 2)
        expect(ids(got)).toEqual(ids(sent))
        yield* acknowledge(consumer, got)
      }))

    it("a consumer that stops and settles what it holds leaves no message behind as delivered in vain", () =>
      Effect.gen(function* () {
        yield* publish(messages(300))
        const stopping = Effect.gen(function* () {
          const consumer = yield* consume(100)
          const held = yield* takeAll(consumer, 100)
          yield* consumer.stop
          yield* acknowledge(consumer, held)
        })
        yield* Effect.scoped(stopping)
        const next = yield* consume(300)
        const left = yield* takeAll(next, 200)
        expect(new Set(left.map(({ redeliveries }) => redeliveries))).toEqual(new Set([0]))
        yield* acknowledge(next, left)
      }))

    it("holds no more than the prefetch, and goes on when it is settled", () =>
      Effect.gen(function* () {
        yield* publish(messages(30))
        const consumer = yield* consume(10)
        const held = yield* takeAll(consumer, 10)
        yield* nothingComes(consumer)
        yield* acknowledge(consumer, held)
        yield* acknowledge(consumer, yield* takeAll(consumer, 10))
        yield* acknowledge(consumer, yield* takeAll(consumer, 10))
      }))

    it("gives back what a closed consumer has not settled, taken or not", () =>
      Effect.gen(function* () {
        const sent = messages(5)
        yield* publish(sent)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const consumer = yield* consume(10)
            const [, second] = yield* takeAll(consumer, 4)
            yield* acknowledge(consumer, [second!])
          }),
        )
        const consumer = yield* consume(10)
        const again = yield* takeAll(consumer, 4)
        expect(ids(again).toSorted()).toEqual(ids([sent[0]!, ...sent.slice(2)]))
        expect(again.every(({ retryCount }) => retryCount === 0)).toBe(true)
        yield* acknowledge(consumer, again)
      }))

    it("settles in any order", () =>
      Effect.gen(function* () {
        const sent = messages(9)
        yield* publish(sent)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const consumer = yield* consume(20)
            const got = yield* takeAll(consumer, 9)
            const pick = (...indices: ReadonlyArray<number>) =>
              acknowledge(
                consumer,
                indices.map((index) => got[index]!),
              )
            yield* pick(8, 3)
            yield* pick(0, 1)
            yield* pick(6)
            yield* pick(5, 2)
          }),
        )
        const consumer = yield* consume(20)
        const left = yield* takeAll(consumer, 2)
        expect(ids(left).toSorted()).toEqual([sent[4]!.messageId, sent[7]!.messageId])
        yield* nothingComes(consumer)
        yield* acknowledge(consumer, left)
      }))

    it("shares the messages among consumers, each to one of them", () =>
      Effect.gen(function* () {
        const sent = messages(40)
        const [one, other] = [yield* consume(5), yield* consume(5)]
        const got: Array<Delivery> = []
        const drain = (consumer: Consumer) =>
          Effect.forever(
            Effect.flatMap(consumer.take(5), (some) => {
              got.push(...some)
              return acknowledge(consumer, some)
            }),
          )
        yield* Effect.forkScoped(drain(one))
        yield* Effect.forkScoped(drain(other))
        yield* publish(sent)
        yield* eventually(depths, ({ main }) => got.length >= 40 && main.ready + main.unacked === 0)
        expect(ids(got).toSorted()).toEqual(ids(sent).toSorted())
      }))

    it("a retry comes back after its delay, counted, with the same bytes and headers", () =>
      Effect.gen(function* () {
        const [sent] = messages(1)
        yield* publish([sent!])
        const consumer = yield* consume(10)
        const first = yield* takeOne(consumer)
        let parkedAt = performance.now()
        yield* consumer.settle([[first, Retry(200, failure)]])
        const second = yield* takeOne(consumer)
        expect(performance.now() - parkedAt).toBeGreaterThanOrEqual(175)
        const same = {
          messageId: sent!.messageId,
          routingKey: routingKey(sent!.eventType),
          trace: sent!.trace,
          recordedAt,
          publishedAt: first.publishedAt,
          redeliveries: 0,
        }
        expect(second).toMatchObject({ ...same, retryCount: 1 })
        expect(Buffer.from(second.body).equals(Buffer.from(sent!.body))).toBe(true)
        parkedAt = performance.now()
        yield* consumer.settle([[second, Retry(400, failure)]])
        const third = yield* takeOne(consumer)
        expect(performance.now() - parkedAt).toBeGreaterThanOrEqual(355)
        expect(third).toMatchObject({ ...same, retryCount: 2 })
        yield* acknowledge(consumer, [third])
      }))

    it("a suspect comes back at once, counted as isolated", () =>
      Effect.gen(function* () {
        const [sent] = messages(1)
        yield* publish([sent!])
        const consumer = yield* consume(10)
        yield* consumer.settle([[yield* takeOne(consumer), Quarantine]])
        const again = yield* takeOne(consumer)
        expect(again).toMatchObject({
          messageId: sent!.messageId,
          routingKey: routingKey(sent!.eventType),
          trace: sent!.trace,
          quarantined: true,
          quarantineAttempts: 1,
          redeliveries: 0,
          retryCount: 0,
        })
        yield* consumer.settle([[again, Quarantine]])
        const last = yield* takeOne(consumer)
        expect(last.quarantineAttempts).toBe(2)
        // The ladder brings it back among the others; from there it goes on where it was.
        yield* consumer.settle([[last, Retry(200, failure)]])
        const retried = yield* takeOne(consumer)
        expect(retried).toMatchObject({ quarantined: false, quarantineAttempts: 2, retryCount: 1 })
        yield* consumer.settle([[retried, Quarantine]])
        const end = yield* takeOne(consumer)
        expect(end).toMatchObject({
          quarantined: true,
          quarantineAttempts: 2,
          retryCount: 1,
          trace: sent!.trace,
        })
        yield* acknowledge(consumer, [end])
      }))

    it("a suspect comes when all else is settled, and nothing comes before it is settled", () =>
      Effect.gen(function* () {
        const sent = messages(6)
        yield* publish(sent)
        const consumer = yield* consume(4)
        const held = yield* takeAll(consumer, 4)
        yield* consumer.settle([
          [held[0]!, Quarantine],
          [held[1]!, Quarantine],
        ])
        yield* eventually(depths, ({ quarantined }) => quarantined === 2)
        // What came in before the suspects did belongs to the consumer; it takes in no more.
        const others = [...held.slice(2)]
        while (true) {
          const more = yield* Effect.timeoutOption(consumer.take(10), "300 millis")
          if (more._tag === "None") break
          others.push(...more.value)
        }
        expect(others.every(({ quarantined }) => !quarantined)).toBe(true)
        yield* acknowledge(consumer, others)
        const came: Array<Delivery> = []
        for (let left = 6 - others.length; left > 0; left--) {
          const some = yield* Effect.timeout(consumer.take(10), "10 seconds")
          if (some[0]!.quarantined) {
            expect(some).toHaveLength(1)
            yield* nothingComes(consumer)
          }
          came.push(...some)
          yield* acknowledge(consumer, some)
          left -= some.length - 1
        }
        expect(ids(came.slice(0, 2))).toEqual(ids(sent.slice(0, 2)))
        expect(
          came.slice(0, 2).every(({ quarantined, redeliveries }) => quarantined && redeliveries === 0),
        ).toBe(true)
        expect(ids([...others, ...came]).toSorted()).toEqual(ids(sent))
        yield* eventually(depths, ({ quarantined, main }) => quarantined + main.ready + main.unacked === 0)
      }))

    it("settles a batch of all kinds, and tells where everything is", () =>
      Effect.gen(function* () {
        const before = yield* depths
        expect(before.main).toMatchObject({ ready: 0, unacked: 0 })
        yield* publish(messages(6))
        yield* eventually(depths, ({ main }) => main.ready === 6)
        const consumer = yield* consume(4)
        const got = yield* takeAll(consumer, 4)
        yield* eventually(
          depths,
          ({ main }) => main.ready === 2 && main.unacked === 4 && main.consumers === 1,
        )
        yield* consumer.settle([
          [got[0]!, Ack],
          [got[1]!, Retry(800, failure)],
          [got[2]!, DeadLetter(failure)],
          [got[3]!, Quarantine],
        ])
        yield* eventually(depths, ({ failed, retry }) => failed === before.failed + 1 && retry["800"] === 1)
        const back: Array<Delivery> = []
        while (back.length < 4) {
          const some = yield* Effect.timeout(consumer.take(4), "10 seconds")
          yield* acknowledge(consumer, some)
          back.push(...some)
        }
        expect(back.map(({ retryCount }) => retryCount).toSorted()).toEqual([0, 0, 0, 1])
        expect(back.map(({ quarantineAttempts }) => quarantineAttempts).toSorted()).toEqual([0, 0, 0, 1])
        yield* eventually(
          depths,
          ({ quarantined, main, retry }) => quarantined + main.ready + main.unacked === 0 && !retry["800"],
        )
      }))
  })
