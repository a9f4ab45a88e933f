/** What every InteractionQueue and its DeadLetters promise. The layer must be set up, with WORKER_RETRY_DELAY=200. */
import { expect } from "bun:test"
import { Effect, type Layer, Stream } from "effect"
import { DeadLetters } from "../../src/services/DeadLetters.ts"
import {
  Ack,
  type Consumer,
  DeadLetter,
  type Delivery,
  InteractionQueue,
  Isolate,
  type Message,
  Retry,
} from "../../src/services/InteractionQueue.ts"
import { layerSuite } from "../support/effect.ts"

const failure = { error: "test_failure", message: "on purpose" }
let counter = 0
const messages = (count: number): ReadonlyArray<Message> =>
  Array.from({ length: count }, (): Message => {
    const messageId = (counter++).toString(16).padStart(64, "0")
    const trace = { traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", tracestate: null }
    return {
      messageId,
      eventType: "search",
      body: Buffer.from(`{"n":"${messageId}"}`),
      trace,
      recordedAt: 1_770_000_000_000,
    }
  })
const ids = (deliveries: ReadonlyArray<Delivery>) => deliveries.map(({ messageId }) => messageId)

/** Takes until so many have come. */
const takeAll = (consumer: Consumer, count: number) =>
  Effect.gen(function* () {
    const taken: Array<Delivery> = []
    while (taken.length < count) taken.push(...(yield* consumer.take(count - taken.length)))
    return taken
  }).pipe(Effect.timeout("10 seconds"))

export const suite = <E>(name: string, layer: Layer.Layer<InteractionQueue | DeadLetters, E>) =>
  layerSuite(name, layer, (it) => {
    const publish = (batch: ReadonlyArray<Message>) =>
      Effect.flatMap(InteractionQueue, (queue) => queue.publish(batch))
    const consume = (prefetch: number) => Effect.flatMap(InteractionQueue, (queue) => queue.consume(prefetch))
    const letters = Effect.flatMap(DeadLetters, ({ list }) =>
      Effect.map(Stream.runCollect(list), (all) => [...all]),
    )

    it("delivers what it confirmed, in order, with bytes and headers", () =>
      Effect.gen(function* () {
        const sent = messages(300)
        expect(new Set(yield* publish(sent))).toEqual(new Set(["confirmed"]))
        const consumer = yield* consume(1_000)
        const got = yield* takeAll(consumer, 300)
        expect(ids(got)).toEqual(sent.map(({ messageId }) => messageId))
        expect(Buffer.from(got[7]!.body).equals(Buffer.from(sent[7]!.body))).toBe(true)
        expect(got[7]).toMatchObject({
          routingKey: "user.embedding.search",
          trace: sent[7]!.trace,
          retryCount: 0,
          redeliveries: 0,
          recordedAt: 1_770_000_000_000,
        })
        expect(got[7]!.publishedAt).toBeGreaterThan(1_770_000_000_000)
        yield* consumer.settle(got.toReversed().map((one) => [one, Ack]))
      }))

    it("holds no more than the prefetch, and goes on when it is settled", () =>
      Effect.gen(function* () {
        yield* publish(messages(30))
        const consumer = yield* consume(10)
        const held = yield* takeAll(consumer, 10)
        expect(yield* Effect.timeoutOption(consumer.take(1), "300 millis")).toMatchObject({ _tag: "None" })
        yield* consumer.settle(held.map((one) => [one, Ack]))
        const rest = yield* takeAll(consumer, 10)
        yield* consumer.settle(rest.map((one) => [one, Ack]))
        yield* Effect.flatMap(takeAll(consumer, 10), (last) => consumer.settle(last.map((one) => [one, Ack])))
      }))

    it("gives back what a closed consumer has not settled", () =>
      Effect.gen(function* () {
        const sent = messages(5)
        yield* publish(sent)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const consumer = yield* consume(10)
            const [first] = yield* takeAll(consumer, 5)
            yield* consumer.settle([[first!, Ack]])
          }),
        )
        const consumer = yield* consume(10)
        const again = yield* takeAll(consumer, 4)
        expect(ids(again).toSorted()).toEqual(sent.slice(1).map(({ messageId }) => messageId))
        yield* consumer.settle(again.map((one) => [one, Ack]))
      }))

    it("a retry comes back after its delay, counted, with the same bytes and routing key", () =>
      Effect.gen(function* () {
        const [sent] = messages(1)
        yield* publish([sent!])
        const consumer = yield* consume(10)
        const [first] = yield* takeAll(consumer, 1)
        const parkedAt = Date.now()
        yield* consumer.settle([[first!, Retry(200, failure)]])
        const [second] = yield* takeAll(consumer, 1)
        expect(Date.now() - parkedAt).toBeGreaterThanOrEqual(175)
        expect(second).toMatchObject({
          retryCount: 1,
          routingKey: "user.embedding.search",
          recordedAt: sent!.recordedAt,
        })
        expect(Buffer.from(second!.body).equals(Buffer.from(sent!.body))).toBe(true)
        yield* consumer.settle([[second!, Ack]])
      }))

    it("a suspect comes back at once, counted as isolated", () =>
      Effect.gen(function* () {
        yield* publish(messages(1))
        const consumer = yield* consume(10)
        const [first] = yield* takeAll(consumer, 1)
        yield* consumer.settle([[first!, Isolate]])
        const [second] = yield* takeAll(consumer, 1)
        expect(second).toMatchObject({ isolatedAttempts: 1, redeliveries: 0, retryCount: 0 })
        yield* consumer.settle([[second!, Ack]])
      }))

    it("dead letters can be looked at again and again, retried, and removed", () =>
      Effect.gen(function* () {
        const sent = messages(3)
        yield* publish(sent)
        const consumer = yield* consume(10)
        const held = yield* takeAll(consumer, 3)
        yield* consumer.settle(held.map((one) => [one, DeadLetter(failure)]))
        for (let look = 0; look < 2; look++) {
          const all = yield* letters
          expect(all.map(({ messageId }) => messageId)).toEqual(sent.map(({ messageId }) => messageId))
          expect(all[0]).toMatchObject({
            ...failure,
            attempts: 1,
            originalExchange: "user_events",
            originalRoutingKey: "user.embedding.search",
          })
          expect(all[0]!.id).toMatch(/^[0-9a-f-]{36}$/)
          expect(Buffer.from(all[0]!.body).equals(Buffer.from(sent[0]!.body))).toBe(true)
        }
        const dead = yield* DeadLetters
        expect(yield* dead.retry(({ messageId }) => messageId === sent[1]!.messageId)).toBe(1)
        const [again] = yield* takeAll(consumer, 1)
        expect(again).toMatchObject({ messageId: sent[1]!.messageId, retryCount: 0 })
        yield* consumer.settle([[again!, Ack]])
        expect(yield* dead.remove(() => true)).toBe(2)
        expect(yield* letters).toEqual([])
      }))
  })
