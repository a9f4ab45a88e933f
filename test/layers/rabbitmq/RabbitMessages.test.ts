/** Message batches on the wire, and how their interactions are settled. */
import { expect } from "bun:test"
import { Effect } from "effect"
import { headerSchemas } from "../../../scripts/contracts/documents.ts"
import { defaults } from "../../../src/services/model/EventTypes.ts"
import {
  Ack,
  DeadLetter,
  type Delivery,
  InteractionQueue,
  type Message,
  Quarantine,
  Retry,
  Return,
  routingKey,
} from "../../../src/services/ports/InteractionQueue.ts"
import {
  acknowledge,
  consume,
  eventually,
  failure,
  ids,
  messages,
  publish,
  recordedAt,
  takeAll,
  takeOne,
} from "../../contracts/InteractionQueueContract.ts"
import { client, get, headersOf, onRabbit } from "../../support/rabbit.ts"
import { withServers } from "../../support/servers.ts"

const it = onRabbit({ eventsPerMessage: 10 })

/** New messages of one type. */
const views = (count: number): ReadonlyArray<Message> =>
  messages(count).map((message) => ({ ...message, eventType: "product_view" as const }))
const text = ({ body }: { readonly body: Uint8Array }) => Buffer.from(body).toString()
const depths = Effect.flatMap(InteractionQueue, ({ depths }) => depths)
const allSettled = eventually(depths, ({ main }) => main.ready + main.unacked === 0)

withServers(["rabbitmq"], "RabbitMQ", () => {
  it("a message batch has interactions of one type as lines, and their traces and times in its headers", ({
    dsn,
  }) =>
    Effect.gen(function* () {
      const [first, middle, last] = views(3)
      const { logId: _, ...bare } = middle!
      const sent = [
        first!,
        { ...bare, trace: null, recordedAt: 7 },
        { ...last!, logId: 2 ** 40, trace: { traceparent: last!.trace!.traceparent, tracestate: null } },
      ]
      expect(yield* publish(sent)).toEqual(sent.map(() => "confirmed"))
      const { content, fields, properties } = yield* get(yield* client(dsn), "user_embedding_updates")
      expect(content.toString()).toBe(sent.map(text).join("\n"))
      expect(fields).toMatchObject({ exchange: "user_events", routingKey: "user.embedding.product_view" })
      expect(properties).toMatchObject({
        contentType: "application/x-ndjson",
        deliveryMode: 2,
        messageId: undefined,
        appId: "user-embeddings",
        type: "product_view",
      })
      // Without partitions there is no header `user-id`.
      expect(["user-id", ...Object.keys(headersOf(properties))].toSorted()).toEqual(
        Object.keys(headerSchemas.pack.properties).toSorted(),
      )
      expect(headersOf(properties)).toEqual({
        "x-retry-count": 0,
        "x-published-at": expect.any(Number),
        "x-recorded-at": `${recordedAt}\n7\n${recordedAt}`,
        "x-log-id": `${first!.logId}\n\n${2 ** 40}`,
        "x-traces": `${first!.trace!.traceparent} ${first!.trace!.tracestate}\n\n${last!.trace!.traceparent}`,
      })
    }))

  it("some interactions of a message batch are returned: each comes again once, as it was, without the others", () =>
    Effect.gen(function* () {
      const sent = views(10)
      yield* publish(sent)
      const consumer = yield* consume(100)
      const [first, ...rest] = yield* takeAll(consumer, 10)
      const returned = rest.slice(0, 4)
      yield* consumer.settle([[first!, Ack], ...returned.map((one) => [one, Return] as const)])
      const again = yield* takeAll(consumer, 4)
      expect(ids(again)).toEqual(ids(returned))
      for (const [index, one] of again.entries()) {
        const { body, logId, messageId, publishedAt, recordedAt, routingKey, trace } = returned[index]!
        expect(one).toMatchObject({ logId, messageId, publishedAt, recordedAt, routingKey, trace })
        expect(one).toMatchObject({ redeliveries: 0, quarantineAttempts: 0, retryCount: 0 })
        expect(text(one)).toBe(Buffer.from(body).toString())
      }
      // The rest of the batch is settled after that, also by a return.
      yield* consumer.settle([
        ...again.map((one) => [one, Ack] as const),
        ...rest.slice(4).map((one) => [one, Return] as const),
      ])
      const last = yield* takeAll(consumer, 5)
      expect(ids(last)).toEqual(ids(rest.slice(4)))
      expect(last.every(({ redeliveries }) => redeliveries === 0)).toBe(true)
      yield* acknowledge(consumer, last)
      yield* allSettled
    }))

  it("one interaction is a single message; a message batch has limits of interactions and bytes, and one type", ({
    dsn,
  }) =>
    Effect.gen(function* () {
      const channel = yield* client(dsn)
      const batchSizes = Effect.gen(function* () {
        const counts: Array<number> = []
        while ((yield* depths).main.ready > 0) {
          const { content, properties } = yield* get(channel, "user_embedding_updates")
          const isBatch = properties.contentType === "application/x-ndjson"
          const lines = isBatch ? content.toString("latin1").split("\n").length : 1
          expect(isBatch).toBe(lines > 1)
          expect(content.length).toBeLessThan(160_000)
          counts.push(lines)
        }
        return counts
      })
      yield* publish(views(1))
      expect(yield* batchSizes).toEqual([1])
      yield* publish(views(21))
      expect(yield* batchSizes).toEqual([10, 10, 1])
      yield* publish(messages(8))
      expect(yield* batchSizes).toEqual(defaults.names.map(() => 2))
      const large = (one: Message) => ({ ...one, body: Buffer.alloc(50_000, "x") })
      yield* publish(views(5).map(large))
      expect(yield* batchSizes).toEqual([2, 2, 1])
      const tracestate = `vendor=${"x".repeat(5000)}`
      const traced = ({ trace, ...one }: Message) => ({ ...one, trace: { ...trace!, tracestate } })
      yield* publish(views(10).map(traced))
      expect(yield* batchSizes).toEqual([6, 4])
    }))

  it("the interactions of message batches arrive unchanged, in order per type, and are settled one by one", () =>
    Effect.gen(function* () {
      const binary: Message = { ...messages(1)[0]!, body: Uint8Array.of(10, 0, 255, 10), trace: null }
      const sent = [...messages(250), binary]
      expect(yield* publish(sent)).toEqual(sent.map(() => "confirmed"))
      const consumer = yield* consume(1_000)
      const got = yield* takeAll(consumer, sent.length)
      const idOf = (one: Delivery) => (one.messageId === null ? binary.messageId : one.messageId)
      const byId = new Map(got.map((one) => [idOf(one), one]))
      for (const one of sent) {
        const { body, logId = null, messageId, recordedAt, trace } = one
        const arrived = byId.get(messageId)!
        expect(Buffer.from(arrived.body).equals(Buffer.from(body))).toBe(true)
        expect(arrived).toMatchObject({
          messageId,
          trace,
          logId,
          recordedAt,
          routingKey: routingKey(one.eventType),
          retryCount: 0,
          quarantineAttempts: 0,
          redeliveries: 0,
        })
        expect(arrived.publishedAt).toBeGreaterThan(recordedAt)
      }
      for (const type of defaults.names)
        expect(ids(got.filter(({ routingKey: key }) => key === routingKey(type)))).toEqual(
          ids(sent.filter(({ eventType }) => eventType === type)),
        )
      const odd = got.filter((_, index) => index % 2 === 1)
      yield* acknowledge(consumer, odd.toReversed())
      // A second acknowledgement has no effect.
      yield* acknowledge(consumer, odd)
      expect(got.filter(consumer.holds)).toEqual(got.filter((_, index) => index % 2 === 0))
      expect((yield* depths).main.unacked).toBe(got.length - odd.length)
      yield* acknowledge(consumer, got)
      yield* allSettled
    }))

  it("a message batch is acknowledged with its last interaction, and until then redelivered as a whole", () =>
    Effect.gen(function* () {
      const sent = views(20)
      yield* publish(sent)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const consumer = yield* consume(100)
          const got = yield* takeAll(consumer, 20)
          yield* acknowledge(consumer, [...got.slice(0, 9), ...got.slice(10)])
        }),
      )
      const consumer = yield* consume(100)
      const again = yield* takeAll(consumer, 10)
      expect(ids(again)).toEqual(ids(sent.slice(0, 10)))
      expect(again.every(({ redeliveries }) => redeliveries === 1)).toBe(true)
      yield* acknowledge(consumer, again)
      yield* allSettled
    }))

  it("an interaction that is not acknowledged is republished as a message of its own", ({ dsn }) =>
    Effect.gen(function* () {
      const [good, retried, dead, poison] = views(4)
      yield* publish([good!, retried!, { ...dead!, trace: null }, poison!])
      const consumer = yield* consume(100)
      const got = yield* takeAll(consumer, 4)
      yield* consumer.settle([
        [got[0]!, Ack],
        [got[1]!, Retry(200, failure)],
        [got[2]!, DeadLetter(failure)],
        [got[3]!, Quarantine],
      ])
      const back = [yield* takeOne(consumer)]
      yield* acknowledge(consumer, back)
      back.push(yield* takeOne(consumer))
      yield* acknowledge(consumer, back)
      const [alone, again] = back.toSorted((a, b) => a.retryCount - b.retryCount)
      const same = { recordedAt, publishedAt: got[0]!.publishedAt, routingKey: "user.embedding.product_view" }
      expect(alone).toMatchObject({
        ...same,
        messageId: poison!.messageId,
        quarantined: true,
        retryCount: 0,
      })
      expect(again).toMatchObject({ ...same, messageId: retried!.messageId, retryCount: 1 })
      expect(again!.trace).toEqual(retried!.trace)
      expect(text(again!)).toBe(text(retried!))
      const { content, properties } = yield* get(yield* client(dsn), "failed")
      expect(content.toString()).toBe(text(dead!))
      expect(properties).toMatchObject({
        contentType: "application/json",
        messageId: dead!.messageId,
        type: "product_view",
      })
      expect(headersOf(properties)).toMatchObject({
        "x-recorded-at": recordedAt,
        "x-original-routing-key": "user.embedding.product_view",
        "x-attempts": 1,
      })
      for (const name of ["traceparent", "tracestate", "x-traces"])
        expect(properties.headers).not.toHaveProperty(name)
      yield* allSettled
    }))

  it("accepts message batches of other programs: without headers, with a trailing line break, empty, invalid", ({
    dsn,
  }) =>
    Effect.gen(function* () {
      const channel = yield* client(dsn)
      const sendForeign = (body: string, headers: Record<string, unknown> = {}) =>
        Effect.promise(async () => {
          const contentType = "application/x-ndjson"
          channel.publish("user_events", "user.embedding.search", Buffer.from(body), { contentType, headers })
          await channel.waitForConfirms()
        })
      yield* sendForeign('{"message_id":"a"}\n{"message_id":"b"}\n')
      yield* sendForeign("")
      yield* sendForeign('\n[1]\n{"message_id":7}', {
        "x-recorded-at": "yesterday\n\n5\n6",
        "x-traces": { traceparent: "no text" },
      })
      const consumer = yield* consume(100)
      const got = yield* takeAll(consumer, 6)
      expect(got.map(text)).toEqual([
        '{"message_id":"a"}',
        '{"message_id":"b"}',
        "",
        "",
        "[1]",
        '{"message_id":7}',
      ])
      expect(ids(got)).toEqual(["a", "b", null, null, null, null])
      expect(got.map(({ recordedAt }) => recordedAt)).toEqual([null, null, null, null, null, 5])
      expect(got.every(({ trace }) => trace === null)).toBe(true)
      yield* consumer.settle([
        ...got.slice(0, 4).map((one) => [one, Ack] as const),
        ...got.slice(4).map((one) => [one, DeadLetter(failure)] as const),
      ])
      yield* eventually(depths, ({ failed, main }) => failed === 2 && main.ready + main.unacked === 0)
    }))
})
