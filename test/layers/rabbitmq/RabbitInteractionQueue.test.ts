/** RabbitMQ only: republished messages on the wire, outages and topology. The rest is in the contract of the queue. */
import { expect } from "bun:test"
import type { Options } from "amqplib"
import { Effect, Either, Schema } from "effect"
import { DeadLetters, type DeadLettersError } from "../../../src/services/ports/DeadLetters.ts"
import {
  Ack,
  DeadLetter,
  type Delivery,
  InteractionQueue,
  type InteractionQueueError,
  Quarantine,
  Retry,
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
import { client, dependency, get, headersOf, onRabbit, ports, virtualHost } from "../../support/rabbit.ts"
import { management, withServers } from "../../support/servers.ts"
import { tcpProxy } from "../../support/tcpProxy.ts"

const isoInstant = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)

const connectionNames = Schema.decodeUnknownSync(Schema.Array(Schema.Struct({ name: Schema.String })))

const it = onRabbit()

withServers(["rabbitmq"], "RabbitMQ", () => {
  it("a retried message waits in its retry queue, with the failure in its headers", ({ dsn }) =>
    Effect.gen(function* () {
      const [sent] = messages(1)
      yield* publish([sent!])
      const consumer = yield* consume(1)
      const first = yield* takeOne(consumer)
      const channel = yield* client(dsn)
      yield* consumer.settle([[first, Retry(800, failure)]])
      const { content, fields, properties } = yield* get(channel, "user_embedding_updates.retry.800")
      expect(content.equals(Buffer.from(sent!.body))).toBe(true)
      expect(fields).toMatchObject({ exchange: "", routingKey: "user_embedding_updates.retry.800" })
      expect(Number(properties.expiration)).toBeGreaterThanOrEqual(720)
      expect(Number(properties.expiration)).toBeLessThanOrEqual(800)
      expect(properties).toMatchObject({
        contentType: "application/json",
        deliveryMode: 2,
        messageId: sent!.messageId,
        appId: "user-embeddings",
        type: sent!.eventType,
      })
      expect(headersOf(properties)).toEqual({
        ...sent!.trace,
        "x-retry-count": 1,
        "x-published-at": first.publishedAt,
        "x-recorded-at": recordedAt,
        "x-log-id": expect.any(Number),
        "x-error": failure.error,
        "x-error-message": failure.message,
        "x-first-failed-at": isoInstant,
        "x-last-failed-at": properties.headers?.["x-first-failed-at"],
        "x-worker": expect.any(String),
        "x-original-exchange": "user_events",
        "x-original-routing-key": routingKey(sent!.eventType),
      })
    }))

  it("a dead letter after all retries has the documented headers, with an error text of at most 1 KiB", ({
    dsn,
  }) =>
    Effect.gen(function* () {
      const [sent] = messages(1)
      yield* publish([sent!])
      const consumer = yield* consume(1)
      for (const delay of [200, 400, 800])
        yield* consumer.settle([
          [yield* takeOne(consumer), Retry(delay, { error: "early", message: "early" })],
        ])
      const last = yield* takeOne(consumer)
      yield* consumer.settle([[last, DeadLetter({ error: "late", message: `${"é".repeat(600)}` })]])
      const channel = yield* client(dsn)
      const { content, fields, properties } = yield* get(channel, "failed")
      expect(content.equals(Buffer.from(sent!.body))).toBe(true)
      expect(fields).toMatchObject({ exchange: "failed", routingKey: "failed" })
      expect(properties).toMatchObject({ messageId: sent!.messageId, deliveryMode: 2, expiration: undefined })
      expect(headersOf(properties)).toEqual({
        ...sent!.trace,
        "x-retry-count": 3,
        "x-published-at": last.publishedAt,
        "x-recorded-at": recordedAt,
        "x-log-id": expect.any(Number),
        "x-dead-letter-id": expect.stringMatching(/^[0-9a-f-]{36}$/),
        "x-error": "late",
        "x-error-message": "é".repeat(512),
        "x-attempts": 4,
        "x-first-failed-at": isoInstant,
        "x-last-failed-at": isoInstant,
        "x-worker": expect.any(String),
        "x-original-exchange": "user_events",
        "x-original-routing-key": routingKey(sent!.eventType),
      })
      const between =
        Date.parse(properties.headers?.["x-last-failed-at"]) -
        Date.parse(properties.headers?.["x-first-failed-at"])
      expect(between).toBeGreaterThanOrEqual(0.9 * 1400 - 50)
    }))

  it("a retried dead letter has the id of the dead letter, and no headers of its failure", ({ dsn }) =>
    Effect.gen(function* () {
      const [sent] = messages(1)
      yield* publish([sent!])
      yield* Effect.scoped(
        Effect.gen(function* () {
          const consumer = yield* consume(1)
          yield* consumer.settle([[yield* takeOne(consumer), Quarantine]])
          yield* consumer.settle([[yield* takeOne(consumer), DeadLetter(failure)]])
        }),
      )
      const dead = yield* DeadLetters
      let id = ""
      const pick = (letter: { readonly id: string }) => {
        id = letter.id
        return true
      }
      expect(yield* eventually(dead.retry(pick), (count) => count > 0)).toBe(1)
      const channel = yield* client(dsn)
      const { fields, properties } = yield* get(channel, "user_embedding_updates")
      expect(fields).toMatchObject({ exchange: "user_events", routingKey: routingKey(sent!.eventType) })
      expect(headersOf(properties)).toEqual({
        ...sent!.trace,
        "x-retry-count": 0,
        "x-published-at": expect.any(Number),
        "x-recorded-at": recordedAt,
        "x-log-id": expect.any(Number),
        "x-retried-from": id,
      })
    }))

  it("messages of other programs are delivered, and headers of the wrong type count as absent", ({ dsn }) =>
    Effect.gen(function* () {
      const consumer = yield* consume(10)
      const channel = yield* client(dsn)
      const sendForeign = (body: string, options: Options.Publish) =>
        Effect.promise(async () => {
          channel.publish("user_events", "user.embedding.search", Buffer.from(body), options)
          await channel.waitForConfirms()
        })
      const garbage = {
        "x-retry-count": "many",
        "x-isolated-attempts": -1,
        "x-published-at": { nested: true },
        "x-recorded-at": "yesterday",
        "x-original-routing-key": 7,
        traceparent: 42,
        "x-error": null,
        CC: ["user_embedding_updates"],
      }
      yield* sendForeign("bare", {})
      yield* sendForeign("garbage", { headers: { ...garbage, CC: undefined }, messageId: "7", priority: 1 })
      const got = yield* takeAll(consumer, 2)
      const nothing = {
        trace: null,
        retryCount: 0,
        quarantineAttempts: 0,
        publishedAt: null,
        recordedAt: null,
      }
      expect(got[0]).toMatchObject({ ...nothing, messageId: null, routingKey: "user.embedding.search" })
      expect(got[1]).toMatchObject({ ...nothing, messageId: "7", routingKey: "user.embedding.search" })
      yield* consumer.settle([
        [got[0]!, DeadLetter(failure)],
        [got[1]!, Retry(200, failure)],
      ])
      const again = yield* takeOne(consumer)
      expect(again).toMatchObject({ messageId: "7", retryCount: 1 })
      yield* acknowledge(consumer, [again])
      const { content, properties } = yield* get(channel, "failed")
      expect(content.toString()).toBe("bare")
      expect(properties.messageId).toBeUndefined()
      // The broker has obeyed the CC header once. The republished message has no CC.
      yield* sendForeign("twice", { headers: { CC: ["user_embedding_updates"] }, expiration: 60_000 })
      const once = yield* takeOne(consumer)
      yield* consumer.settle([[once, Quarantine]])
      const alone = yield* takeOne(consumer)
      expect(alone.quarantineAttempts).toBe(1)
      yield* acknowledge(consumer, [alone])
      yield* eventually((yield* InteractionQueue).depths, ({ main }) => main.ready + main.unacked === 0)
    }))

  it("a message with as many headers as AMQP allows can become a dead letter", ({ dsn }) =>
    Effect.gen(function* () {
      const consumer = yield* consume(10)
      const channel = yield* client(dsn)
      const headers = { big: "x".repeat(65_000), traceparent: "kept" }
      channel.publish("user_events", "user.embedding.search", Buffer.from("{}"), { headers })
      yield* consumer.settle([
        [yield* takeOne(consumer), DeadLetter({ error: "e", message: "m".repeat(2000) })],
      ])
      const { properties } = yield* get(channel, "failed")
      expect(properties.headers).toMatchObject({ "x-error": "e", "x-attempts": 1, traceparent: "kept" })
    }))

  it("messages that match no queue are returned, and can be published again later", ({ dsn }) =>
    Effect.gen(function* () {
      const sent = messages(50)
      const channel = yield* client(dsn)
      yield* Effect.promise(() =>
        channel.unbindQueue("user_embedding_updates", "user_events", "user.embedding.*"),
      )
      expect(yield* publish(sent)).toEqual(sent.map(() => "returned"))
      yield* Effect.promise(() =>
        channel.bindQueue("user_embedding_updates", "user_events", "user.embedding.search"),
      )
      expect(yield* publish(sent)).toEqual(
        sent.map(({ eventType }) => (eventType === "search" ? "confirmed" : "returned")),
      )
    }))

  it("a dead letter that cannot be republished stays unacknowledged until it can be", ({ dsn }) =>
    Effect.gen(function* () {
      const queue = yield* InteractionQueue
      const [sent, other] = messages(2)
      yield* publish([sent!])
      const channel = yield* client(dsn)
      const consumer = yield* consume(10)
      const held = yield* takeOne(consumer)
      yield* Effect.promise(() => channel.unbindQueue("failed", "failed", "failed"))
      yield* consumer.settle([[held, DeadLetter(failure)]])
      yield* publish([other!])
      const next = yield* takeOne(consumer)
      expect(next.messageId).toBe(other!.messageId)
      yield* acknowledge(consumer, [next])
      expect((yield* queue.depths).failed).toBe(0)
      yield* eventually(queue.depths, ({ main }) => main.unacked === 1 && main.ready === 0)
      yield* Effect.promise(() => channel.bindQueue("failed", "failed", "failed"))
      yield* eventually(queue.depths, ({ failed, main }) => failed === 1 && main.unacked === 0)
      expect((yield* get(channel, "failed")).properties.messageId).toBe(sent!.messageId)
    }))

  it("a blocked dead letter delays neither quarantined messages nor, if it is quarantined, the others", ({
    dsn,
  }) =>
    Effect.gen(function* () {
      const queue = yield* InteractionQueue
      const [dead, poison, other] = messages(3)
      yield* publish([dead!, poison!])
      const channel = yield* client(dsn)
      const consumer = yield* consume(10)
      const [first, second] = yield* takeAll(consumer, 2)
      yield* Effect.promise(() => channel.unbindQueue("failed", "failed", "failed"))
      yield* consumer.settle([
        [first!, DeadLetter(failure)],
        [second!, Quarantine],
      ])
      const alone = yield* takeOne(consumer)
      expect(alone).toMatchObject({ messageId: poison!.messageId, quarantined: true })
      yield* consumer.settle([[alone, DeadLetter(failure)]])
      yield* publish([other!])
      // When the consumer receives from the main queue again, the first is delivered again and has to be settled again.
      const next = yield* takeAll(consumer, 2)
      expect(ids(next).toSorted()).toEqual(ids([dead!, other!]))
      yield* consumer.settle(
        next.map((one) => [one, one.messageId === other!.messageId ? Ack : DeadLetter(failure)]),
      )
      yield* Effect.promise(() => channel.bindQueue("failed", "failed", "failed"))
      yield* eventually(
        queue.depths,
        ({ failed, quarantined, main }) => failed === 2 && quarantined + main.ready + main.unacked === 0,
      )
    }))

  it("loses no message when its connections are closed by force", ({ name }) =>
    Effect.gen(function* () {
      const consumer = yield* consume(50)
      const seen = new Map<string | null, number>()
      const take = Effect.flatMap(consumer.take(20), (some) => {
        for (const { messageId } of some) seen.set(messageId, (seen.get(messageId) ?? 0) + 1)
        return Effect.zipRight(Effect.sleep("5 millis"), acknowledge(consumer, some))
      })
      yield* Effect.forkScoped(Effect.forever(take))
      const connections = Effect.promise(async () => {
        const response = await management(`/vhosts/${name}/connections`)
        return connectionNames(await response.json())
      })
      const killed = new Set<string>()
      const kill = Effect.flatMap(connections, (all) =>
        Effect.forEach(all, (connection) => {
          killed.add(connection.name)
          return Effect.promise(() =>
            management(`/connections/${encodeURIComponent(connection.name)}`, { method: "DELETE" }),
          )
        }),
      )
      const sent = messages(1_500)
      const publishing = Effect.forEach(
        Array.from({ length: 75 }, (_, index) => sent.slice(20 * index, 20 * index + 20)),
        (batch) => {
          let left = batch
          return eventually(
            Effect.map(Effect.either(publish(left)), (answer) => {
              if (Either.isRight(answer))
                left = left.filter((_, index) => answer.right[index] !== "confirmed")
              return left.length
            }),
            (length) => length === 0,
          )
        },
        { discard: true },
      )
      yield* eventually(connections, ({ length }) => length === 3)
      yield* Effect.all([publishing, Effect.delay(kill, "100 millis")], { concurrency: "unbounded" })
      yield* eventually(
        Effect.sync(() => seen.size),
        (size) => size === sent.length,
      )
      expect([...seen.keys()].toSorted()).toEqual(ids(sent).toSorted())
      expect(killed.size).toBe(3)
      yield* eventually((yield* InteractionQueue).depths, ({ main }) => main.ready + main.unacked === 0)
    }))

  it("deliveries of a lost connection are delivered again, and settling the old ones has no effect", () =>
    Effect.gen(function* () {
      const { dsn } = yield* virtualHost
      const proxy = yield* tcpProxy(dsn)
      yield* Effect.gen(function* () {
        const sent = messages(3)
        yield* publish(sent)
        const consumer = yield* consume(10)
        const lost = yield* takeAll(consumer, 3)
        proxy.cut()
        proxy.restore()
        const again = yield* takeAll(consumer, 3)
        expect(ids(again).toSorted()).toEqual(ids(sent).toSorted())
        expect(again.map(({ redeliveries }) => redeliveries)).toEqual([1, 1, 1])
        const settled = (all: ReadonlyArray<Delivery>) => consumer.settle(all.map((one) => [one, Quarantine]))
        yield* settled(lost)
        yield* acknowledge(consumer, again)
        yield* eventually((yield* InteractionQueue).depths, ({ main }) => main.ready + main.unacked === 0)
      }).pipe(Effect.provide(ports(proxy.url)))
    }))

  it("starts while the broker is down, fails calls at once, and works when the broker is up", () =>
    Effect.gen(function* () {
      const { dsn } = yield* virtualHost
      const proxy = yield* tcpProxy(dsn)
      proxy.cut()
      yield* Effect.gen(function* () {
        const consumer = yield* consume(10)
        const queue = yield* InteractionQueue
        const dead = yield* DeadLetters
        const { ping } = yield* dependency
        const [sent] = messages(1)
        const attempts: ReadonlyArray<
          Effect.Effect<unknown, InteractionQueueError | DeadLettersError, InteractionQueue>
        > = [publish([sent!]), queue.depths, dead.count, dead.retry(() => true)]
        for (const attempt of attempts) {
          const refused = yield* Effect.timeout(Effect.flip(attempt), "3 seconds")
          expect(refused).toMatchObject({ reason: "unavailable" })
          expect(refused.message).not.toContain("guest")
        }
        expect(yield* Effect.flip(ping)).toMatchObject({ _tag: "DependencyDown", dependency: "rabbitmq" })
        proxy.restore()
        yield* eventually(Effect.option(publish([sent!])), ({ _tag }) => _tag === "Some")
        expect((yield* takeOne(consumer)).messageId).toBe(sent!.messageId)
        expect(yield* ping).toMatch(/^\d+\.\d+/)
      }).pipe(Effect.provide(ports(proxy.url)))
    }))

  it("reports missing and differently declared parts, and declares the missing ones", ({ dsn, name }) =>
    Effect.gen(function* () {
      const { missing, setup } = yield* dependency
      yield* setup
      yield* setup
      expect(yield* missing).toEqual([])
      const retryQueue = yield* Effect.promise(async () => {
        const response = await management(`/queues/${name}/user_embedding_updates.retry.400`)
        return response.json()
      })
      expect(retryQueue).toMatchObject({
        durable: true,
        arguments: {
          "x-queue-type": "quorum",
          "x-message-ttl": 400,
          "x-dead-letter-exchange": "",
          "x-dead-letter-routing-key": "user_embedding_updates",
          "x-dead-letter-strategy": "at-least-once",
          "x-overflow": "reject-publish",
        },
      })
      const channel = yield* client(dsn)
      yield* Effect.promise(async () => {
        await channel.deleteQueue("failed")
        await channel.deleteExchange("failed")
        await channel.deleteQueue("user_embedding_updates.retry.400")
        await channel.assertQueue("user_embedding_updates.retry.400", { durable: true })
      })
      const found = yield* missing
      expect(found.slice(0, 2)).toEqual(["exchange failed", "queue failed"])
      expect(found[2]).toStartWith("queue user_embedding_updates.retry.400 as it should be (")
      expect(found).toHaveLength(3)
      expect(yield* Effect.flip(setup)).toMatchObject({ _tag: "DependencyDown", dependency: "rabbitmq" })
      yield* Effect.promise(() => channel.deleteQueue("user_embedding_updates.retry.400"))
      yield* setup
      expect(yield* missing).toEqual([])
    }))

  it("declares a queue and an exchange again that were deleted under a running consumer", ({ dsn }) =>
    Effect.gen(function* () {
      const consumer = yield* consume(10)
      yield* eventually((yield* InteractionQueue).depths, ({ main }) => main.consumers === 1)
      const channel = yield* client(dsn)
      yield* Effect.promise(async () => {
        await channel.deleteQueue("user_embedding_updates")
        await channel.deleteExchange("user_events")
      })
      const [sent] = messages(1)
      yield* eventually(Effect.option(publish([sent!])), (answer) =>
        answer._tag === "Some" ? answer.value[0] === "confirmed" : false,
      )
      expect((yield* takeOne(consumer)).messageId).toBe(sent!.messageId)
    }))
})
