/** Merges that meet other merges, erasures and other spaces, on the embedded stack. */
import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import * as Auditor from "../../../src/services/operate/Auditor.ts"
import * as Eraser from "../../../src/services/operate/Eraser.ts"
import * as Rebuilder from "../../../src/services/operate/Rebuilder.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import { layer as eventVectors } from "../../../src/services/update/EventVectors.ts"
import { decoded, delivery } from "../../support/delivery.ts"
import { layerSuite } from "../../support/effect.ts"
import { embeddingOf, search, storeProduct } from "../../support/pipeline.ts"
import { embedded } from "../../support/stacks.ts"
import {
  acked,
  apply,
  audited,
  expectSurvivors,
  history,
  makeWorkers,
  productTexts,
  record,
  toMessage,
} from "../../support/survivors.ts"

const day = (n: number) => new Date(Date.UTC(2026, 1, n)).toISOString()
const merge = (into: string, from: string, n = 1) => Interaction.merge(into, from, day(n))
/** A message of another program: it has no row in the log. */
const foreign = (interaction: Interaction.Interaction) =>
  decoded(delivery(encodeMessage(interaction), { recordedAt: Date.parse(interaction.occurred_at) }))
const dead = (error: string) => ({ settlement: { _tag: "DeadLetter", failure: { error } } })
const loadRecord = (user: string) =>
  Effect.map(
    Effect.flatMap(UserEmbeddings, (users) => users.load([user])),
    (found) => found.get(user),
  )

const storeProducts = Effect.forEach(productTexts.entries(), ([index, text]) =>
  storeProduct(`p-${index}`, text),
)

layerSuite(
  "merges",
  Layer.mergeAll(Auditor.layer, Rebuilder.layer, Eraser.layer).pipe(
    Layer.provideMerge(eventVectors),
    Layer.provideMerge(embedded()),
  ),
  (it) => {
    it("a circle that arrives by message is a dead letter, and so is an alias of somebody else", () =>
      Effect.gen(function* () {
        const [worker] = yield* makeWorkers(1)
        expect(
          yield* worker!.update([foreign(merge("c-1", "c-2")), foreign(merge("c-2", "c-1"))]),
        ).toMatchObject([acked, dead("alias_circle")])
        expect(yield* worker!.update([foreign(merge("c-3", "c-2"))])).toMatchObject([dead("alias_taken")])
        // The same said again at another time.
        expect(yield* worker!.update([foreign(merge("c-1", "c-2", 2))])).toMatchObject([acked])
        expect((yield* loadRecord("c-1"))?.links?.aliases).toHaveLength(1)
        // The log does not know these merges.
        expect((yield* (yield* Eraser.Eraser).erase("c-2")).other_ids).toEqual(["c-1"])
        for (const id of ["c-1", "c-2"]) expect(yield* loadRecord(id)).not.toHaveProperty("links")
      }))

    it("two workers that freeze each other's target leave one alias, and the other merge is a dead letter", () =>
      Effect.gen(function* () {
        yield* storeProducts
        const users = yield* UserEmbeddings
        yield* apply([...history("f-1"), ...history("f-2")])
        // As if both workers had frozen a record before either went on.
        for (const [from, into] of [
          ["f-1", "f-2"],
          ["f-2", "f-1"],
        ] as const) {
          const { message_id } = merge(into, from)
          const before = (yield* loadRecord(from))!
          const merging_into = { user_id: into, message_id, logId: null, recordedAt: Date.parse(day(1)) }
          const frozen = { ...before, version: before.version + 1, links: { merging_into } }
          yield* users.save([{ record: frozen, expected: before.version }])
        }
        const [worker] = yield* makeWorkers(1)
        const outcomes = yield* worker!.update([foreign(merge("f-1", "f-2")), foreign(merge("f-2", "f-1"))])
        expect(outcomes).toMatchObject([dead("alias_circle"), acked])
        yield* expectSurvivors(yield* embeddingOf("f-2"), [...history("f-1"), ...history("f-2")])
      }))

    it("ids in the ledgers of both users are found: nothing counts twice, rebuilt or delivered again", () =>
      Effect.gen(function* () {
        const many = (user: string, month: number) =>
          Array.from({ length: 400 }, (_, i) =>
            search(
              user,
              ["red wine", "board games"][i % 2]!,
              new Date(Date.UTC(2025, month, 1, i)).toISOString(),
            ),
          )
        const events = [...many("l-guest", 0), ...many("l-u", 3)]
        const [worker] = yield* makeWorkers(1)
        const rows = yield* record([...events, merge("l-u", "l-guest")])
        // In batches that move ids to the ledgers.
        for (let i = 0; i < rows.length; i += 90) yield* worker!.update(rows.slice(i, i + 90).map(toMessage))
        expect((yield* loadRecord("l-u"))?.links?.aliases).toMatchObject([{ user_id: "l-guest" }])
        const again = yield* makeWorkers(1)
        yield* again[0]!.update(rows.map(toMessage))
        yield* expectSurvivors(yield* embeddingOf("l-u"), events)
        expect(yield* audited("l-guest")).toEqual({ extra: 0, missing: 0 })
        const { rebuild } = yield* Rebuilder.Rebuilder
        expect(yield* rebuild({ user: "l-guest" })).toMatchObject({ rebuilt: 1, failed: 0 })
        yield* expectSurvivors(yield* embeddingOf("l-u"), events)
      }))

    it("in recency history, and where the guest is in another history, the target is rebuilt in order", () =>
      Effect.gen(function* () {
        yield* storeProducts
        const recency = EmbeddingConfig.layer({ history: "recency" })
        for (const [guest, user, ofGuest] of [
          ["h-guest", "h-u", recency],
          ["i-guest", "i-u", EmbeddingConfig.layer({})],
        ] as const) {
          yield* Effect.provide(apply(history(guest)), ofGuest)
          yield* Effect.provide(
            apply([search(user, "red wine", "2026-01-03T00:00:00.000Z"), merge(user, guest)]),
            recency,
          )
          const merged = yield* embeddingOf(user)
          expect(merged).toMatchObject({ event_count: 31, history: "recency", user_id: user })
          yield* Effect.provide(
            Effect.flatMap(Rebuilder.Rebuilder, ({ rebuild }) => rebuild({ user })),
            Rebuilder.layer.pipe(Layer.provide(recency)),
          )
          const rebuilt = yield* embeddingOf(user)
          const difference = merged!.embedding.map((value, i) => value - rebuilt!.embedding[i]!)
          expect(Vector.norm(difference)).toBeLessThanOrEqual(1e-6)
          expect(yield* audited(user)).toEqual({ extra: 0, missing: 0 })
        }
      }))

    it("where the guest's vector is in another space, the target is rebuilt from the rows of both", () =>
      Effect.gen(function* () {
        yield* storeProducts
        const users = yield* UserEmbeddings
        const own = search("s-u", "red wine", "2026-01-03T00:00:00.000Z")
        yield* apply([...history("s-guest"), own])
        const before = (yield* loadRecord("s-guest"))!
        const embedding = { ...before.embedding!, space: "other", embedding: Float32Array.of(1, 0) }
        yield* users.save([
          { record: { ...before, embedding, version: before.version + 1 }, expected: before.version },
        ])
        yield* apply([merge("s-u", "s-guest")])
        yield* expectSurvivors(yield* embeddingOf("s-u"), [...history("s-guest"), own])
        expect(yield* audited("s-u")).toEqual({ extra: 0, missing: 0 })
      }))

    it("an erasure covers a merge that is not applied yet, or applied in part", () =>
      Effect.gen(function* () {
        yield* storeProducts
        const users = yield* UserEmbeddings
        for (const isFrozen of [false, true]) {
          const [guest, user] = [`e-guest-${isFrozen}`, `e-u-${isFrozen}`]
          const [worker] = yield* makeWorkers(1)
          const rows = yield* record([...history(guest), ...history(user), merge(user, guest)], 0)
          const merging = rows.at(-1)!
          yield* worker!.update(rows.slice(0, -1).map(toMessage))
          if (isFrozen) {
            const before = (yield* loadRecord(guest))!
            const { id: logId, interaction, recordedAt } = merging
            const merging_into = { user_id: user, message_id: interaction.message_id, logId, recordedAt }
            const frozen = { ...before, version: before.version + 1, links: { merging_into } }
            yield* users.save([{ record: frozen, expected: before.version }])
          }
          yield* (yield* Eraser.Eraser).erase(guest)
          const [fresh] = yield* makeWorkers(1)
          expect(yield* fresh!.update(rows.map(toMessage))).toEqual(rows.map(() => acked))
          for (const id of [guest, user]) expect(yield* loadRecord(id)).not.toHaveProperty("links")
          for (const id of [guest, user]) expect(yield* embeddingOf(id)).toBeUndefined()
          const events = history(guest)
          yield* apply(events, 0)
          yield* expectSurvivors(yield* embeddingOf(guest), events)
          expect(yield* audited(guest)).toEqual({ extra: 0, missing: 0 })
        }
      }))

    it("a merge that is recorded while an erasure runs loses no event of the id that it adds", () =>
      Effect.gen(function* () {
        yield* storeProducts
        const users = yield* UserEmbeddings
        const log = yield* InteractionLog
        const [worker] = yield* makeWorkers(1)
        const added = history("w-guest")
        const before = yield* record([...history("w-u"), ...added], 0)
        yield* worker!.update(before.map(toMessage))
        const context = yield* Effect.context<Eraser.Eraser>()
        let isFirst = true
        const slow = Layer.succeed(UserEmbeddings, {
          ...users,
          erase: (...args) =>
            Effect.gen(function* () {
              if (isFirst) {
                isFirst = false
                const rows = yield* Effect.orDie(
                  Effect.provideService(record([merge("w-u", "w-guest")], 0), InteractionLog, log),
                )
                yield* worker!.update(rows.map(toMessage))
              }
              return yield* users.erase(...args)
            }),
        })
        yield* Effect.provide(
          Effect.flatMap(Eraser.Eraser, ({ erase }) => erase("w-u")),
          Layer.fresh(Eraser.layer).pipe(Layer.provide(slow)),
        ).pipe(Effect.provide(context))
        const left = yield* log.unpublished({ limit: 100, recordedBy: Date.now() + 1_000 })
        expect(left).toHaveLength(31)
        yield* worker!.update(left.map(toMessage))
        yield* expectSurvivors(yield* embeddingOf("w-u"), added)
        yield* log.markPublished(left, Date.now())
        expect(yield* audited("w-u")).toEqual({ extra: 0, missing: 0 })
      }))
  },
)
