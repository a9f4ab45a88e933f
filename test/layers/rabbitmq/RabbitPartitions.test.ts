/** RABBITMQ_PARTITIONS: update messages are spread by user, come back to their partition, and outlive a change of number. */
import { expect } from "bun:test"
import { Effect, Either, Layer } from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import {
  type Delivery,
  InteractionQueue,
  type Message,
  Retry,
} from "../../../src/services/ports/InteractionQueue.ts"
import {
  acknowledge,
  consume,
  eventually,
  failure,
  ids,
  messages,
  publish,
  takeAll,
} from "../../contracts/InteractionQueueContract.ts"
import { effectTest } from "../../support/effect.ts"
import { client, dependency, ports, virtualHost } from "../../support/rabbit.ts"
import { withServers } from "../../support/servers.ts"
import { variables } from "../../support/stacks.ts"

const count = 400
const sent: ReadonlyArray<Message> = messages(count).map((message, index) => ({
  ...message,
  userId: `user-${index % 100}`,
}))
const all = (partitions: number) => Array.from({ length: partitions }, (_, index) => index)
const on = (dsn: string, partitions: number, more: Partial<EmbeddingConfig.Knobs> = {}) =>
  Layer.fresh(ports(dsn, { partitions, workerPartitions: all(partitions), ...more }))
const depths = Effect.flatMap(InteractionQueue, (queue) => queue.depths)

withServers(["rabbitmq"], "RabbitMQ: partitions", () => {
  for (const eventsPerMessage of [1, 50])
    effectTest(
      `1 → 4 → 2 → 1 partitions lose nothing, with ${eventsPerMessage} interactions a message`,
      () =>
        Effect.gen(function* () {
          const { dsn } = yield* virtualHost
          const channel = yield* client(dsn)
          const ready = (name: string) =>
            Effect.map(
              Effect.promise(() => channel.checkQueue(name)),
              ({ messageCount }) => messageCount,
            )
          const partition = (index: number) => ready(`user_embedding_updates.${index}`)
          const publishAll = (partitions: number) =>
            Effect.provide(
              Effect.gen(function* () {
                yield* Effect.flatMap(dependency, ({ setup }) => setup)
                expect(new Set(yield* publish(sent))).toEqual(new Set(["confirmed"]))
                expect((yield* depths).main.ready).toBeGreaterThan(0)
              }),
              on(dsn, partitions, { eventsPerMessage }),
            )
          yield* publishAll(1)
          const main = yield* ready("user_embedding_updates")
          yield* publishAll(4)
          expect(yield* ready("user_embedding_updates")).toBe(main)
          const four = yield* Effect.forEach(all(4), partition)
          for (const one of four) expect(one).toBeGreaterThan(0)
          yield* publishAll(2)
          // A former partition gets nothing more.
          for (const index of [2, 3]) expect(yield* partition(index)).toBe(four[index]!)
          yield* publishAll(1)
          yield* Effect.gen(function* () {
            const total = 4 * count
            const consumer = yield* consume(8_000)
            const got: Array<Delivery> = []
            while (got.length < total) {
              const some = yield* Effect.timeout(consumer.take(total), "10 seconds")
              got.push(...some)
              yield* acknowledge(consumer, some)
            }
            expect(ids(got).toSorted()).toEqual(
              [...ids(sent), ...ids(sent), ...ids(sent), ...ids(sent)].toSorted(),
            )
            yield* eventually(depths, ({ main }) => main.ready + main.unacked === 0)
          }).pipe(Effect.scoped, Effect.provide(on(dsn, 1, { eventsPerMessage })))
        }),
      60_000,
    )

  effectTest(
    "each user has one partition, to which retried messages return; a worker consumes its own partitions only",
    () =>
      Effect.gen(function* () {
        const { dsn } = yield* virtualHost
        const take = (own: ReadonlyArray<number>, amount: (ready: number) => number) =>
          Effect.gen(function* () {
            const consumer = yield* consume(8_000)
            const got = yield* takeAll(consumer, amount((yield* depths).main.ready))
            yield* consumer.settle(got.map((delivery) => [delivery, Retry(200, failure)]))
            const again = yield* takeAll(consumer, got.length)
            expect(ids(again).toSorted()).toEqual(ids(got).toSorted())
            yield* acknowledge(consumer, again)
            return ids(again)
          }).pipe(Effect.scoped, Effect.provide(on(dsn, 4, { workerPartitions: own })))
        const sizes = yield* Effect.provide(
          Effect.gen(function* () {
            yield* Effect.flatMap(dependency, ({ setup }) => setup)
            yield* publish(sent)
            const channel = yield* client(dsn)
            return yield* Effect.forEach(all(4), (index) =>
              Effect.map(
                Effect.promise(() => channel.checkQueue(`user_embedding_updates.${index}`)),
                ({ messageCount }) => messageCount,
              ),
            )
          }),
          on(dsn, 4),
        )
        const userOf = new Map(sent.map(({ messageId, userId = "" }) => [messageId as string, userId]))
        const users: Array<Set<string>> = []
        for (const own of [[0, 2], [1], [3]]) {
          const got = yield* take(own, () => own.reduce((sum, index) => sum + (sizes[index] ?? 0), 0))
          users.push(new Set(got.map((id) => userOf.get(id ?? "") ?? "")))
        }
        expect(users.reduce((sum, { size }) => sum + size, 0)).toBe(100)
        expect(new Set(users.flatMap((some) => [...some])).size).toBe(100)
      }),
    60_000,
  )

  effectTest(
    "doctor names partitions that no worker consumes, and those of a greater number before",
    () =>
      Effect.gen(function* () {
        const { dsn } = yield* virtualHost
        yield* Effect.gen(function* () {
          const { inspect, notes, setup } = yield* dependency
          yield* setup
          yield* publish(sent)
          // The management API is asked about another virtual host here.
          const abandoned = Effect.map(inspect!, (found) =>
            found.map(({ problem }) => problem).filter((problem) => problem.startsWith("no worker")),
          )
          expect(yield* abandoned).toEqual([])
          const consumer = yield* consume(10)
          yield* takeAll(consumer, 1)
          expect(yield* abandoned).toEqual([
            expect.stringMatching(/^no worker consumes user_embedding_updates.1, which holds \d+ messages$/),
            expect.stringMatching(/^no worker consumes user_embedding_updates.3, which holds \d+ messages$/),
          ])
          expect((yield* notes!).filter((note) => note.includes("greater"))).toEqual([])
        }).pipe(Effect.scoped, Effect.provide(on(dsn, 4, { workerPartitions: [0, 2] })))
        const notes = Effect.flatMap(dependency, ({ notes }) => notes!)
        expect(yield* Effect.provide(notes, on(dsn, 2))).toContainEqual(
          expect.stringMatching(/^user_embedding_updates.2, user_embedding_updates.3: from a greater/),
        )
      }),
    60_000,
  )

  effectTest("a partition that does not exist stops the start", () =>
    Effect.gen(function* () {
      const start = yield* Effect.either(
        Effect.provide(
          EmbeddingConfig.EmbeddingConfig,
          Layer.provide(
            EmbeddingConfig.layerConfig,
            variables({ RABBITMQ_PARTITIONS: "2", WORKER_PARTITIONS: "0,2" }),
          ),
        ),
      )
      expect(String(Either.getOrUndefined(Either.flip(start)))).toContain(
        "WORKER_PARTITIONS names partition 2, but RABBITMQ_PARTITIONS=2: the last one is 1",
      )
    }),
  )
})
