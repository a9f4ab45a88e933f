/**
 * What every InteractionQueue promises. The layer must be set up and empty, with WORKER_RETRY_DELAY as in the features.
 * Each test leaves the main queue empty.
 */
import { expect } from "bun:test"
import { Effect, Exit, Fiber, type Layer } from "effect"
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
  Return,
  routingKey,
  SetAside,
} from "../../src/services/ports/InteractionQueue.ts"
import { layerSuite } from "../support/effect.ts"

export const failure = { error: "test_failure", message: "on purpose" }
export const recordedAt = 1_770_000_000_000
let counter = 0
/** New messages. Each has its own id, type and trace. */
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

/** Takes until `count` deliveries have arrived. */
export const takeAll = (consumer: Consumer, count: number) =>
  Effect.gen(function* () {
    const taken: Array<Delivery> = []
    while (taken.length < count) taken.push(...(yield* consumer.take(count - taken.length)))
    return taken
  }).pipe(Effect.timeout("10 seconds"))
export const takeOne = (consumer: Consumer) => Effect.map(takeAll(consumer, 1), ([one]) => one!)

/** Repeats the probe until its answer is as expected. */
export const eventually = <A, E, R>(probe: Effect.Effect<A, E, R>, expected: (answer: A) => boolean) =>
  Effect.gen(function* () {
    while (true) {
      const answer = yield* probe
      if (expected(answer)) return answer
      yield* Effect.sleep("20 millis")
    }
  }).pipe(Effect.timeout("15 seconds"))

const depths = Effect.flatMap(InteractionQueue, ({ depths }) => depths)

/** Where the queues differ. */
export interface Features {
  /** WORKER_RETRY_DELAY in ms. */
  readonly retryDelay: number
  /** After this, a waiting `take` has received everything that the queue delivers. */
  readonly quiet: Effect.Effect<unknown, unknown, InteractionQueue>
}

/** Statements of one connection run in order: after a few of them, `take` has run its own. */
export const sqlite: Features = { retryDelay: 100, quiet: Effect.repeatN(depths, 5) }
/** The broker pushes messages, so nothing shows that no message is on its way. */
export const rabbitmq: Features = { retryDelay: 200, quiet: Effect.sleep("300 millis") }

export const suite = <R extends InteractionQueue, E>(
  name: string,
  layer: Layer.Layer<R | InteractionQueue, E>,
  { quiet, retryDelay }: Features,
) =>
  layerSuite(name, layer, (it) => {
    /** Takes what arrives before it is quiet. */
    const takeUntilQuiet = (consumer: Consumer, most: number) =>
      Effect.gen(function* () {
        const taking = yield* Effect.fork(consumer.take(most))
        yield* quiet
        const exit = yield* Fiber.interrupt(taking)
        return Exit.isSuccess(exit) ? exit.value : []
      })
    const expectNothing = (consumer: Consumer) =>
      Effect.map(takeUntilQuiet(consumer, 1), (taken) => expect(taken).toEqual([]))

    it("delivers confirmed messages in order, with their bytes and headers", () =>
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

    it("publishes any number of messages at once: none, many, binary ones, and ones without a trace", () =>
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

    it("concurrent publishers each get their own confirmations", () =>
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

    it("take waits for the first delivery, then returns at most as many as requested", () =>
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

    it("an interrupted take loses no delivery", () =>
      Effect.gen(function* () {
        const consumer = yield* consume(10)
        yield* expectNothing(consumer)
        const sent = messages(2)
        yield* publish(sent)
        const got = yield* takeAll(consumer, 2)
        expect(ids(got)).toEqual(ids(sent))
        yield* acknowledge(consumer, got)
      }))

    it("a consumer that stops and settles its deliveries causes no redelivery", () =>
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

    it("holds at most its prefetch, and receives more after settling", () =>
      Effect.gen(function* () {
        yield* publish(messages(30))
        const consumer = yield* consume(10)
        const held = yield* takeAll(consumer, 10)
        yield* expectNothing(consumer)
        yield* acknowledge(consumer, held)
        yield* acknowledge(consumer, yield* takeAll(consumer, 10))
        yield* acknowledge(consumer, yield* takeAll(consumer, 10))
      }))

    it("unsettled deliveries of a closed consumer are delivered again, taken or not", () =>
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

    it("deliveries can be settled in any order", () =>
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
        yield* expectNothing(consumer)
        yield* acknowledge(consumer, left)
      }))

    it("each message is delivered to one of several consumers", () =>
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

    it("a retried message is delivered again after its delay, with its retry count and the same bytes and headers", () =>
      Effect.gen(function* () {
        const [sent] = messages(1)
        yield* publish([sent!])
        const consumer = yield* consume(10)
        const first = yield* takeOne(consumer)
        let settledAt = performance.now()
        yield* consumer.settle([[first, Retry(retryDelay, failure)]])
        const second = yield* takeOne(consumer)
        expect(performance.now() - settledAt).toBeGreaterThanOrEqual(0.9 * retryDelay - 5)
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
        settledAt = performance.now()
        yield* consumer.settle([[second, Retry(2 * retryDelay, failure)]])
        const third = yield* takeOne(consumer)
        expect(performance.now() - settledAt).toBeGreaterThanOrEqual(0.9 * 2 * retryDelay - 5)
        expect(third).toMatchObject({ ...same, retryCount: 2 })
        yield* acknowledge(consumer, [third])
      }))

    it("a quarantined message is delivered again at once, with its quarantine attempts", () =>
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
        // A retry queue returns it to the main queue. The next quarantine continues its count.
        yield* consumer.settle([[last, Retry(retryDelay, failure)]])
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

    it("a consumer that takes quarantined messages holds nothing else, and takes nothing before they are settled", () =>
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
        // The consumer may have received more before the quarantined messages. Then it receives nothing.
        const others = [...held.slice(2)]
        for (let more = yield* takeUntilQuiet(consumer, 10); more.length > 0; ) {
          others.push(...more)
          more = yield* takeUntilQuiet(consumer, 10)
        }
        expect(others.every(({ quarantined }) => !quarantined)).toBe(true)
        yield* acknowledge(consumer, others)
        const rest: Array<Delivery> = []
        while (others.length + rest.length < 6) {
          const some = yield* Effect.timeout(consumer.take(10), "10 seconds")
          if (some[0]!.quarantined) {
            expect(some.every(({ quarantined }) => quarantined)).toBe(true)
            if (some.length === 2) yield* expectNothing(consumer)
          }
          rest.push(...some)
          yield* acknowledge(consumer, some)
        }
        const [first, second] = rest
        expect(ids([first!, second!])).toEqual(ids(sent.slice(0, 2)))
        for (const one of [first, second]) expect(one).toMatchObject({ quarantined: true, redeliveries: 0 })
        expect(ids([...others, ...rest]).toSorted()).toEqual(ids(sent))
        yield* eventually(depths, ({ quarantined, main }) => quarantined + main.ready + main.unacked === 0)
      }))

    it("quarantined messages come in a company of 64 at first, then of 8, then alone", () =>
      Effect.gen(function* () {
        const sent = messages(70)
        yield* publish(sent)
        const consumer = yield* consume(100)
        yield* consumer.settle((yield* takeAll(consumer, 70)).map((one) => [one, Quarantine]))
        yield* eventually(depths, ({ quarantined }) => quarantined === 70)
        const sizes = new Map<number, Array<number>>()
        const guilty = new Set(ids(sent.slice(0, 3)))
        for (let left = 70 + 70 + 3; left > 0; ) {
          const company = [...(yield* Effect.timeout(consumer.take(64), "10 seconds"))]
          for (let more = yield* takeUntilQuiet(consumer, 64); more.length > 0; ) {
            company.push(...more)
            more = yield* takeUntilQuiet(consumer, 64)
          }
          const [{ quarantineAttempts }] = company as [Delivery]
          sizes.set(quarantineAttempts, [...(sizes.get(quarantineAttempts) ?? []), company.length])
          yield* consumer.settle(
            company.map((one) => {
              expect(one).toMatchObject({ quarantined: true, quarantineAttempts, redeliveries: 0 })
              const again =
                quarantineAttempts === 1 || (quarantineAttempts === 2 && guilty.has(one.messageId))
              return [one, again ? Quarantine : Ack]
            }),
          )
          left -= company.length
        }
        const largest = (attempts: number) => Math.max(...(sizes.get(attempts) ?? []))
        expect(largest(1)).toBeGreaterThan(8)
        expect(largest(1)).toBeLessThanOrEqual(64)
        expect(largest(2)).toBeGreaterThan(1)
        expect(largest(2)).toBeLessThanOrEqual(8)
        expect(sizes.get(3)).toEqual([1, 1, 1])
        yield* eventually(depths, ({ quarantined }) => quarantined === 0)
      }))

    it("a returned message is delivered again as it was, without evidence against it", () =>
      Effect.gen(function* () {
        const sent = messages(3)
        yield* publish(sent)
        const consumer = yield* consume(10)
        const first = yield* takeAll(consumer, 3)
        for (let round = 0; round < 5; round++)
          yield* consumer.settle(
            (round === 0 ? first : yield* takeAll(consumer, 3)).map((one) => [one, Return]),
          )
        const again = yield* takeAll(consumer, 3)
        expect(ids(again)).toEqual(ids(sent))
        for (const [index, one] of again.entries()) {
          const { body, ...same } = sent[index]!
          expect(one).toMatchObject({
            messageId: same.messageId,
            routingKey: routingKey(same.eventType),
            trace: same.trace,
            recordedAt,
            publishedAt: first[index]!.publishedAt,
            retryCount: 0,
            redeliveries: 0,
            quarantined: false,
            quarantineAttempts: 0,
          })
          expect(Buffer.from(one.body).equals(Buffer.from(body))).toBe(true)
        }
        // A message from quarantine goes back there, with the same count.
        yield* consumer.settle(again.map((one) => [one, Quarantine]))
        const left = new Set(ids(sent))
        let isFirst = true
        while (left.size > 0) {
          const apart = yield* takeOne(consumer)
          expect(apart).toMatchObject({ quarantined: true, quarantineAttempts: 1, redeliveries: 0 })
          if (!isFirst) left.delete(apart.messageId)
          yield* consumer.settle([[apart, isFirst ? Return : Ack]])
          isFirst = false
        }
      }))

    it("receives only what is wanted: nothing, one message, or none of those that are set aside", () =>
      Effect.gen(function* () {
        const sent = messages(6)
        yield* publish(sent)
        const consumer = yield* consume(10)
        const got = yield* takeAll(consumer, 6)
        consumer.receive({ main: "none", setAside: "none" })
        yield* quiet
        yield* consumer.settle([
          ...got.slice(0, 3).map((one) => [one, Return] as const),
          ...got.slice(3).map((one) => [one, SetAside] as const),
        ])
        yield* expectNothing(consumer)
        yield* eventually(depths, ({ main }) => main.ready === 6 && main.unacked === 0)

        consumer.receive({ main: "one", setAside: "none" })
        const one = yield* takeOne(consumer)
        expect(one.messageId).toBe(sent[0]!.messageId)
        yield* expectNothing(consumer)
        yield* acknowledge(consumer, [one])
        yield* expectNothing(consumer)

        consumer.receive({ main: "all", setAside: "none" })
        const main = yield* takeAll(consumer, 2)
        expect(ids(main)).toEqual(ids(sent.slice(1, 3)))
        yield* acknowledge(consumer, main)
        yield* expectNothing(consumer)

        consumer.receive({ main: "all", setAside: "one" })
        const aside = yield* takeOne(consumer)
        expect(aside).toMatchObject({ messageId: sent[3]!.messageId, redeliveries: 0, retryCount: 0 })
        // A message that was set aside goes back to where it was.
        yield* quiet
        yield* consumer.settle([[aside, Return]])
        yield* expectNothing(consumer)

        consumer.receive({ main: "all", setAside: "all" })
        const rest = yield* takeAll(consumer, 3)
        expect(ids(rest)).toEqual(ids([sent[4]!, sent[5]!, sent[3]!]))
        yield* acknowledge(consumer, rest)
        yield* eventually(depths, ({ main }) => main.ready + main.unacked === 0)
      }))

    it("settles a batch of all settlements, and counts the messages in every queue", () =>
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
          [got[1]!, Retry(4 * retryDelay, failure)],
          [got[2]!, DeadLetter(failure)],
          [got[3]!, Quarantine],
        ])
        yield* eventually(
          depths,
          ({ failed, retry }) => failed === before.failed + 1 && retry[4 * retryDelay] === 1,
        )
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
          ({ quarantined, main, retry }) =>
            quarantined + main.ready + main.unacked === 0 && !retry[4 * retryDelay],
        )
      }))
  })
