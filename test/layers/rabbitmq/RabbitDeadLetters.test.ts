/** RabbitMQ only: dead letters in many pages, and read by several processes. The rest is in the contract. */
import { expect } from "bun:test"
import { Effect, Layer, Stream } from "effect"
import { DeadLetters } from "../../../src/services/ports/DeadLetters.ts"
import { client, onRabbit, ports } from "../../support/rabbit.ts"
import { withServers } from "../../support/servers.ts"

const long = process.env.FAILURES === "long"
const it = onRabbit()

/** Publishes dead letters with these bodies; their message ids are numbers from 0. */
const publishDead = (dsn: string, count: number, body: Buffer) =>
  Effect.flatMap(client(dsn), (channel) =>
    Effect.promise(async () => {
      for (let i = 0; i < count; i++) {
        channel.publish("failed", "failed", body, { messageId: String(i), deliveryMode: 2 })
        if (i % 5_000 === 4_999) await channel.waitForConfirms()
      }
      await channel.waitForConfirms()
    }),
  )
const numbers = (count: number) => Array.from({ length: count }, (_, i) => i)
const listed = Effect.flatMap(DeadLetters, ({ list }) =>
  Stream.runCollect(Stream.map(list, ({ messageId }) => Number(messageId))),
).pipe(Effect.map((all) => [...all]))
const removed = (pick: (id: number) => boolean) =>
  Effect.flatMap(DeadLetters, ({ remove }) => remove(({ messageId }) => pick(Number(messageId))))
/** Another connection to the broker, as another process would have. */
const elsewhere = (dsn: string) => Layer.fresh(ports(dsn))

withServers(["rabbitmq"], "RabbitMQ: dead letters", () => {
  it(
    "several processes at once each see and remove all of them, in order",
    ({ dsn }) =>
      Effect.gen(function* () {
        const count = long ? 70_000 : 2_500
        yield* publishDead(dsn, count, Buffer.from("{}"))
        const [first, second, third] = yield* Effect.all(
          [
            listed,
            Effect.provide(listed, elsewhere(dsn)),
            Effect.provide(
              removed((id) => id % 25 === 0),
              elsewhere(dsn),
            ),
          ],
          { concurrency: "unbounded" },
        )
        expect(third).toBe(count / 25)
        const left = numbers(count).filter((id) => id % 25 !== 0)
        for (const all of [first, second]) expect(all).toEqual(all.length === count ? numbers(count) : left)
        expect((yield* listed).toSorted((a, b) => a - b)).toEqual(left)
      }),
    long ? 600_000 : 30_000,
  )

  it(
    "large ones are all seen, a bounded part of them at a time",
    ({ dsn }) =>
      Effect.gen(function* () {
        const [count, bytes] = long ? [2_000, 1_000_000] : [150, 400_000]
        yield* publishDead(dsn, count, Buffer.alloc(bytes, "x"))
        Bun.gc(true)
        const before = process.memoryUsage.rss()
        expect(yield* removed((id) => id === count - 1)).toBe(1)
        expect(process.memoryUsage.rss() - before).toBeLessThan(500_000_000)
        const { count: left } = yield* DeadLetters
        expect(yield* left).toBe(count - 1)
      }),
    long ? 600_000 : 30_000,
  )

  if (long)
    it("a program that consumes them is an error, not a shorter list", ({ dsn }) =>
      Effect.gen(function* () {
        yield* publishDead(dsn, 10, Buffer.from("{}"))
        const channel = yield* client(dsn)
        yield* Effect.promise(async () => {
          await channel.prefetch(1)
          await channel.consume("failed", () => {})
        })
        expect((yield* Effect.flip(listed)).message).toContain("another program consumes the queue failed")
      }))
})
