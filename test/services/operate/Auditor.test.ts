/** The audit on both stacks: every way in which log and embedding can differ. */
import { expect } from "bun:test"
import { Chunk, Effect, Layer, Option, Redacted, Stream } from "effect"
import type { Interaction } from "../../../src/services/model/Interaction.ts"
import {
  Auditor,
  type AuditReport,
  layer as auditor,
  type Finding,
} from "../../../src/services/operate/Auditor.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { DeadLetter, InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import * as Settings from "../../../src/services/Settings.ts"
import { layerSuite } from "../../support/effect.ts"
import {
  drained,
  eventually,
  message,
  product,
  record,
  recording,
  search,
  storeProduct,
  workedOff,
} from "../../support/pipeline.ts"
import { connectAmqp, withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const none: AuditReport = {
  users: 0,
  consistent: 0,
  missing: 0,
  extra: 0,
  not_erased: 0,
  in_flight: 0,
  dead: 0,
  skipped: 0,
}
const day = (n: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, n)).toISOString()
const searches = (user: string, count: number) =>
  Array.from({ length: count }, (_, index) => search(user, `phrase ${index % 7}`, day(index)))

const audit = (user?: string) =>
  Effect.flatMap(Auditor, (auditor) => auditor.audit(user === undefined ? {} : { user }))
const detailed = (user: string) =>
  Effect.map(
    Effect.flatMap(Auditor, (auditor) => auditor.audit({ user, details: true })),
    ({ details = [] }) => details,
  )
const ids = (details: ReadonlyArray<Finding>, state: Finding["state"]) =>
  details.flatMap((finding) => (finding.state === state ? [finding.message_id] : [])).toSorted()

/** Writes to the log only, as if the process had died before publishing. */
const append = (...interactions: ReadonlyArray<Interaction>) =>
  Effect.flatMap(InteractionLog, (log) =>
    log.append(
      interactions.map((interaction) => ({
        interaction,
        idempotencyKey: null,
        occurredAtGiven: true,
        trace: null,
        recordedAt: Date.now(),
      })),
    ),
  )
const markPublished = (...interactions: ReadonlyArray<Interaction>) =>
  Effect.gen(function* () {
    const log = yield* InteractionLog
    const ids = new Set(interactions.map(({ message_id }) => message_id))
    const rows = Chunk.toArray(yield* Stream.runCollect(log.stream({})))
    yield* log.markPublished(
      rows.filter(({ interaction }) => ids.has(interaction.message_id)),
      Date.now(),
    )
  })
/** Marks interactions as published without publishing them, which only a bug could do. */
const lose = (...interactions: ReadonlyArray<Interaction>) =>
  Effect.zipRight(append(...interactions), markPublished(...interactions))

const suite = (name: string, stack: Parameters<typeof recording>[0]) =>
  layerSuite(name, Layer.provideMerge(auditor, recording(stack)), (it) => {
    it("an empty log and no embeddings are consistent, and an unknown user is none", () =>
      Effect.gen(function* () {
        expect(yield* audit()).toEqual(none)
        expect(yield* audit("nobody")).toEqual(none)
      }))

    it("interactions in the outbox or in the queue are in flight; applied ones are consistent", () =>
      Effect.gen(function* () {
        yield* append(...searches("outbox", 3))
        expect(yield* audit("outbox")).toEqual({ ...none, users: 1, consistent: 1, in_flight: 3 })
        yield* record(...searches("queued", 20))
        const log = yield* InteractionLog
        yield* eventually(
          Effect.map(log.backlog, ({ unpublished }) => (unpublished === 3 ? true : undefined)),
        )
        expect(yield* audit("queued")).toEqual({ ...none, users: 1, consistent: 1, in_flight: 20 })
        const queue = yield* InteractionQueue
        yield* queue.publish(searches("outbox", 3).map((one) => message(one)))
        yield* markPublished(...searches("outbox", 3))
        yield* workedOff
        expect(yield* audit("queued")).toEqual({ ...none, users: 1, consistent: 1 })
        expect(yield* audit()).toEqual({ ...none, users: 2, consistent: 2 })
      }))

    it("ids on the record and in the overflow count alike, and an id in both counts once", () =>
      Effect.gen(function* () {
        const many = searches("overflow", 900)
        for (const part of [many.slice(0, 400), many.slice(400)]) {
          yield* record(...part)
          yield* workedOff
        }
        const users = yield* UserEmbeddings
        const found = (yield* users.load(["overflow"])).get("overflow")
        expect(found?.archived).toBeGreaterThan(0)
        expect(yield* audit("overflow")).toEqual({ ...none, users: 1, consistent: 1 })
        // A lost compare-and-swap leaves ids in the overflow that are still on the record.
        yield* users.saveToLedger("applied", [
          {
            user_id: "overflow",
            generation: found!.generation,
            ids: many.slice(-300).map(({ message_id }) => message_id.slice(0, 32)),
          },
        ])
        expect(yield* audit("overflow")).toEqual({ ...none, users: 1, consistent: 1 })
        expect(yield* audit()).toMatchObject({ missing: 0, extra: 0 })
      }))

    it(
      "an interaction marked as published but in no queue is missing, and listed",
      () =>
        Effect.gen(function* () {
          const [lost, ...rest] = searches("lost", 5)
          yield* record(...rest)
          yield* workedOff
          yield* lose(lost!)
          const details = yield* detailed("lost")
          expect(details).toEqual([
            {
              user_id: "lost",
              message_id: lost!.message_id,
              state: "missing",
              event_type: "search",
              product_id: null,
              occurred_at: lost!.occurred_at,
            },
          ])
          expect(yield* audit("lost")).toEqual({ ...none, users: 1, missing: 1 })
          // The audit can't read the queue: a message of another user may be one of the two, so one counts as in flight.
          yield* lose(search("lost", "another", day(9)))
          const queue = yield* InteractionQueue
          yield* queue.publish([message(search("stranger", "tent", day(1)))])
          expect(yield* audit("lost")).toMatchObject({ missing: 1, in_flight: 1 })
          yield* append(search("stranger", "tent", day(1)))
          yield* markPublished(search("stranger", "tent", day(1)))
          yield* workedOff
          expect(yield* audit("lost")).toMatchObject({ missing: 2, in_flight: 0 })
          yield* queue.publish([lost!, search("lost", "another", day(9))].map((one) => message(one)))
          yield* workedOff
          expect(yield* audit("lost")).toEqual({ ...none, users: 1, consistent: 1 })
        }),
      60_000,
    )

    it("an applied interaction that is not in the log is extra, and listed by the stored half of its id", () =>
      Effect.gen(function* () {
        const known = searches("more", 3)
        const unknown = searches("more", 5).slice(3)
        yield* record(...known)
        const queue = yield* InteractionQueue
        yield* queue.publish(unknown.map((one) => message(one)))
        yield* workedOff
        const details = yield* detailed("more")
        expect(ids(details, "extra")).toEqual(
          unknown.map(({ message_id }) => message_id.slice(0, 32)).toSorted(),
        )
        expect(yield* audit("more")).toEqual({ ...none, users: 1, extra: 2 })
        yield* append(...unknown)
        yield* markPublished(...unknown)
        expect(yield* audit("more")).toEqual({ ...none, users: 1, consistent: 1 })
      }))

    it("an event_count that differs from the number of ids counts as extra", () =>
      Effect.gen(function* () {
        yield* record(...searches("count", 4))
        yield* workedOff
        const users = yield* UserEmbeddings
        const counted = (event_count: number) =>
          Effect.gen(function* () {
            const found = (yield* users.load(["count"])).get("count")!
            const embedding = { ...found.embedding!, event_count }
            const next = { ...found, embedding, version: found.version + 1 }
            expect(yield* users.save([{ record: next, expected: found.version }])).toEqual([true])
          })
        yield* counted(6)
        expect(yield* audit("count")).toEqual({ ...none, users: 1, extra: 2 })
        yield* counted(4)
        expect(yield* audit("count")).toEqual({ ...none, users: 1, consistent: 1 })
      }))

    it("events of a product without embedding are skipped, even after it gets one; a replay applies them", () =>
      Effect.gen(function* () {
        const clicked = product("skipper", "product_click", "p-none", day(1))
        yield* record(clicked, search("skipper", "tent", day(2)))
        yield* workedOff
        const skipped = { ...none, users: 1, consistent: 1, skipped: 1 }
        expect(yield* audit("skipper")).toEqual(skipped)
        yield* storeProduct("p-none", "a two-person tent")
        expect(yield* audit("skipper")).toEqual(skipped)
        expect(ids(yield* detailed("skipper"), "skipped")).toEqual([clicked.message_id])
        const queue = yield* InteractionQueue
        yield* queue.publish([message(clicked)])
        yield* workedOff
        expect(yield* audit("skipper")).toEqual({ ...none, users: 1, consistent: 1 })
      }))

    it("a dead letter explains why an interaction is not applied", () =>
      Effect.gen(function* () {
        const dying = searches("dead", 2)
        yield* record(...dying)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const queue = yield* InteractionQueue
            const consumer = yield* queue.consume(10)
            let left = dying.length
            while (left > 0) {
              const taken = yield* consumer.take(10)
              left -= taken.length
              yield* consumer.settle(
                taken.map((delivery) => [delivery, DeadLetter({ error: "test", message: "" })]),
              )
            }
          }),
        )
        yield* drained
        expect(ids(yield* detailed("dead"), "dead")).toEqual(
          dying.map(({ message_id }) => message_id).toSorted(),
        )
        expect(yield* audit("dead")).toEqual({ ...none, users: 1, consistent: 1, dead: 2 })
      }))

    it("what the broker lost is missing, also if the product was stored after the event", () =>
      Effect.gen(function* () {
        const [lost, skipped] = [1, 2].map((second) => product("shop", "product_view", "p-lost", day(second)))
        yield* lose(lost!)
        yield* record(skipped!)
        yield* workedOff
        yield* storeProduct("p-lost", "a tent")
        const details = yield* detailed("shop")
        expect(ids(details, "missing")).toEqual([lost!.message_id])
        expect(ids(details, "skipped")).toEqual([skipped!.message_id])
        const queue = yield* InteractionQueue
        yield* queue.publish([lost!, skipped!].map((one) => message(one)))
        yield* workedOff
        expect(yield* audit("shop")).toEqual({ ...none, users: 1, consistent: 1 })
      }))

    it("a row that its user's erasure covers is named, unless it survived the erasure and will be published again", () =>
      Effect.gen(function* () {
        yield* record(...searches("erased", 3))
        yield* workedOff
        const users = yield* UserEmbeddings
        const log = yield* InteractionLog
        const late = search("erased", "late", day(8))
        yield* lose(late)
        const erased_to = yield* log.maxId
        const token = (yield* log.beginErasure(["erased"])).token
        yield* users.erase("erased", { erased_at: Date.now(), erased_to })
        yield* log.erase("erased", erased_to - 1)
        expect(ids(yield* detailed("erased"), "not_erased")).toEqual([late.message_id])
        yield* log.finishErasure("erased", token, erased_to)
        expect(yield* audit("erased")).toEqual({ ...none, users: 1, consistent: 1, in_flight: 1 })
        expect(yield* log.renewSurvivors("erased")).toBe(1)
        expect(yield* audit("erased")).toEqual({ ...none, users: 1, consistent: 1, in_flight: 1 })
        yield* log.erase("erased", yield* log.maxId)
        expect(yield* audit("erased")).toEqual({ ...none, users: 1, consistent: 1 })
      }))

    it(
      "adds up over all users, and reports the number of rows read",
      () =>
        Effect.gen(function* () {
          yield* lose(search("aa-lost", "x", day(1)))
          yield* lose(search("zz-lost", "x", day(1)))
          const queue = yield* InteractionQueue
          yield* queue.publish([message(search("mm-extra", "x", day(1)))])
          yield* workedOff
          let rows = 0
          const auditor = yield* Auditor
          const report = yield* auditor.audit({
            progress: (read) =>
              Effect.sync(() => {
                rows = read
              }),
          })
          const { total } = yield* (yield* InteractionLog).backlog
          expect(rows).toBe(total)
          expect(report).toMatchObject({ missing: 2, extra: 1, in_flight: 0, dead: 2, skipped: 0 })
          expect(report.users - report.consistent).toBe(3)
        }),
      60_000,
    )
  })

suite("the audit on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "the audit on real servers", () => {
  suite("without other consumers", external())

  const management = process.env.RABBITMQ_MANAGEMENT_URL ?? ""
  layerSuite(
    "beside a consumer that holds messages",
    Layer.provideMerge(auditor, recording(external({ RABBITMQ_MANAGEMENT_URL: management }))),
    (it) => {
      it(
        "messages held by another process are in flight, according to the management API",
        () =>
          Effect.gen(function* () {
            const dsn = Option.getOrThrow(yield* Settings.RABBITMQ_DSN)
            const holder = yield* Effect.acquireRelease(
              Effect.promise(() => connectAmqp(Redacted.value(dsn))),
              (connection) => Effect.promise(() => connection.close()),
            )
            const channel = yield* Effect.promise(() => holder.createChannel())
            let held = 0
            yield* Effect.promise(() => channel.consume("user_embedding_updates", () => void held++))
            yield* record(...searches("held", 7))
            yield* eventually(Effect.sync(() => (held === 7 ? true : undefined)))
            // The broker updates its statistics every few seconds.
            const { traffic } = yield* InteractionQueue
            yield* eventually(Effect.map(traffic, (now) => (now?.unacked === 7 ? true : undefined)))
            expect(yield* audit("held")).toEqual({ ...none, users: 1, consistent: 1, in_flight: 7 })
          }),
        60_000,
      )
    },
  )
})
