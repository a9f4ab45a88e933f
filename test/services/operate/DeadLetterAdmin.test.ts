/** The operations of `failed …` on both stacks. */
import { expect } from "bun:test"
import { Effect } from "effect"
import type { Interaction } from "../../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import {
  DeadLetterNotFound,
  groupDeadLetters,
  listDeadLetters,
  pickDeadLetters,
  removeDeadLetters,
  retryDeadLetters,
  showDeadLetter,
} from "../../../src/services/operate/DeadLetterAdmin.ts"
import { DeadLetters } from "../../../src/services/ports/DeadLetters.ts"
import { DeadLetter, InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { layerSuite } from "../../support/effect.ts"
import { eventually, message, product, recording, search, workedOff } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()

/** Publishes messages and settles them as dead letters; a body may be any bytes. */
const addDeadLetters = (
  error: string,
  ...dying: ReadonlyArray<readonly [Interaction, (Uint8Array | string)?]>
) =>
  Effect.scoped(
    Effect.gen(function* () {
      const queue = yield* InteractionQueue
      const deadLetters = yield* DeadLetters
      const before = yield* deadLetters.count
      yield* queue.publish(
        dying.map(([one, body]) => (body === undefined ? message(one) : message(one, Buffer.from(body)))),
      )
      const consumer = yield* queue.consume(dying.length)
      for (let left = dying.length; left > 0; ) {
        const taken = yield* consumer.take(left)
        left -= taken.length
        yield* consumer.settle(
          taken.map((delivery) => [delivery, DeadLetter({ error, message: `failed with ${error}` })]),
        )
      }
      yield* eventually(
        Effect.map(deadLetters.count, (found) => (found === before + dying.length ? true : undefined)),
      )
    }),
  )

const clear = Effect.flatMap(DeadLetters, ({ remove }) => remove(() => true))
const messageIds = (deadLetters: ReadonlyArray<{ readonly message_id: string | null }>) =>
  deadLetters.map(({ message_id }) => message_id)

/** Fewer in the whole test command. */
const many = process.env.FAILURES === "brief" ? 2_000 : 10_000

const suite = (name: string, stack: Parameters<typeof recording>[0]) =>
  layerSuite(name, recording(stack), (it) => {
    it("lists dead letters with the documented fields, and null for fields that can't be read", () =>
      Effect.gen(function* () {
        const good = search("u-1", "tent", at(1))
        yield* addDeadLetters("not_json", [search("u-2", "tent", at(2)), Buffer.from([0xff, 0xfe])])
        yield* addDeadLetters("some_error", [good])
        const [unreadable, readable] = yield* listDeadLetters({})
        expect(Object.keys(readable!)).toEqual([
          "id",
          "message_id",
          "user_id",
          "event_type",
          "product_id",
          "error",
          "message",
          "attempts",
          "first_failed_at",
          "last_failed_at",
        ])
        expect(readable).toMatchObject({
          message_id: good.message_id,
          user_id: "u-1",
          event_type: "search",
          error: "some_error",
          message: "failed with some_error",
          attempts: 1,
        })
        expect(unreadable).toMatchObject({ user_id: null, event_type: null, error: "not_json" })
        const [shown] = yield* showDeadLetter(unreadable!.id!)
        expect(shown).toMatchObject({
          ...unreadable,
          retried_from: null,
          original_exchange: "user_events",
          original_routing_key: "user.embedding.search",
          body: null,
          body_base64: "//4=",
        })
        expect((yield* showDeadLetter(good.message_id))[0]?.body).toBe(
          Buffer.from(encodeMessage(good)).toString(),
        )
        expect(yield* Effect.flip(showDeadLetter("nobody"))).toEqual(
          new DeadLetterNotFound({ ids: ["nobody"] }),
        )
        expect((yield* listDeadLetters({})).length).toBe(2)
        yield* clear
      }))

    it("filters by error, type, user and time, and groups by error", () =>
      Effect.gen(function* () {
        const [a, b, c] = [
          search("filter-1", "tent", at(1)),
          product("filter-1", "product_click", "p", at(2)),
          search("filter-2", "tent", at(3)),
        ]
        yield* addDeadLetters("first", [a], [b])
        const lastFailure = Date.parse((yield* listDeadLetters({})).at(-1)!.last_failed_at!)
        const between = new Date(lastFailure + 1).toISOString()
        yield* eventually(Effect.sync(() => (Date.now() > lastFailure ? true : undefined)))
        yield* addDeadLetters("second", [c])
        const found = (filter: Parameters<typeof listDeadLetters>[0]) =>
          Effect.map(listDeadLetters(filter), messageIds)
        expect(yield* found({})).toEqual([a.message_id, b.message_id, c.message_id])
        expect(yield* found({ error: "first" })).toEqual([a.message_id, b.message_id])
        expect(yield* found({ type: "product_click" })).toEqual([b.message_id])
        expect(yield* found({ user: "filter-1", type: "search" })).toEqual([a.message_id])
        expect(yield* found({ product: "p" })).toEqual([b.message_id])
        expect(yield* found({ since: between })).toEqual([c.message_id])
        const [, second] = yield* listDeadLetters({ error: "first" })
        expect(yield* groupDeadLetters({})).toEqual([
          {
            error: "first",
            count: 2,
            first_failed_at: (yield* listDeadLetters({ error: "first" }))[0]!.first_failed_at,
            last_failed_at: second!.last_failed_at,
            example: { id: second!.id, message_id: b.message_id, message: "failed with first" },
          },
          {
            error: "second",
            count: 1,
            first_failed_at: expect.any(String),
            last_failed_at: expect.any(String),
            example: { id: expect.any(String), message_id: c.message_id, message: "failed with second" },
          },
        ])
        yield* clear
      }))

    it("retries by either id; a message that fails again becomes a dead letter with a reference to the first", () =>
      Effect.gen(function* () {
        const good = search("retried", "tent", at(1))
        const bad = search("retried", "boat", at(2))
        yield* addDeadLetters("outage", [good], [bad, "{}"])
        const [first, second] = yield* listDeadLetters({})
        expect(yield* retryDeadLetters({ ids: new Set([first!.id!, bad.message_id]) })).toEqual({
          picked: 2,
          retried: 2,
        })
        yield* workedOff
        const [again, ...others] = yield* showDeadLetter(bad.message_id)
        expect(others).toEqual([])
        expect(again).toMatchObject({
          error: "schema_violation",
          attempts: 1,
          retried_from: second!.id,
          body: "{}",
        })
        expect(again!.id).not.toBe(second!.id)
        expect(messageIds(yield* listDeadLetters({}))).toEqual([bad.message_id])
        yield* clear
      }))

    it("changes nothing when one of the ids is unknown, and removes only what was picked", () =>
      Effect.gen(function* () {
        const dying = Array.from({ length: 3 }, (_, index) => search("removed", "tent", at(index)))
        yield* addDeadLetters("error", ...dying.map((one) => [one] as const))
        const [first] = yield* listDeadLetters({})
        expect(yield* Effect.flip(pickDeadLetters({ ids: new Set([first!.id!, "nobody"]) }))).toEqual(
          new DeadLetterNotFound({ ids: ["nobody"] }),
        )
        const picked = yield* pickDeadLetters({ user: "removed" })
        yield* addDeadLetters("error", [search("removed", "later", at(9))])
        expect(yield* removeDeadLetters(picked)).toBe(3)
        expect((yield* listDeadLetters({})).length).toBe(1)
        yield* clear
      }))

    it(
      `${many} dead letters are listed, retried and removed in less than a minute`,
      () =>
        Effect.gen(function* () {
          const dying = Array.from({ length: many }, (_, index) => search(`many-${index}`, "tent", at(index)))
          yield* addDeadLetters("error", ...dying.map((one) => [one] as const))
          const started = performance.now()
          expect((yield* groupDeadLetters({}))[0]?.count).toBe(many)
          expect((yield* listDeadLetters({ user: "many-5" })).length).toBe(1)
          expect(
            yield* retryDeadLetters({ ids: new Set(dying.slice(0, 10).map(({ message_id }) => message_id)) }),
          ).toEqual({
            picked: 10,
            retried: 10,
          })
          expect(yield* removeDeadLetters(yield* pickDeadLetters({ error: "error" }))).toBe(many - 10)
          expect(performance.now() - started).toBeLessThan(50_000)
        }),
      90_000,
    )
  })

suite("dead letters on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "dead letters on real servers", () =>
  suite("in the queue failed", external()),
)
