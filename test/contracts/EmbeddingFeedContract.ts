/** What every feed of changes promises. The stack of the suite has EMBEDDING_FEED=vectors. */
import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import type { EmbeddingChange } from "../../src/services/model/EmbeddingChange.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { Eraser, layer as eraser } from "../../src/services/operate/Eraser.ts"
import { sweep } from "../../src/services/operate/ErasureSweep.ts"
import { Rebuilder, layer as rebuilder } from "../../src/services/operate/Rebuilder.ts"
import { EmbeddingFeed, type Subscription } from "../../src/services/ports/EmbeddingFeed.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { layerSuite } from "../support/effect.ts"
import { record, recording, search, workedOff } from "../support/pipeline.ts"

const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()
const subscribe = (name?: string) => Effect.flatMap(EmbeddingFeed, ({ subscribe }) => subscribe(name))
const stored = (user: string) =>
  Effect.flatMap(UserEmbeddings, (users) => Effect.map(users.load([user]), (found) => found.get(user)))

/** Takes changes until one satisfies the predicate. Answers all of them. */
const takeUntil = (subscription: Subscription, wanted: (change: EmbeddingChange) => boolean) =>
  Effect.gen(function* () {
    const taken: Array<EmbeddingChange> = []
    while (!taken.some(wanted)) taken.push(...(yield* subscription.take(100)))
    return taken
  }).pipe(Effect.timeout("10 seconds"))

export const suite = (name: string, stack: Parameters<typeof recording>[0]) =>
  layerSuite(name, Layer.mergeAll(eraser, rebuilder).pipe(Layer.provideMerge(recording(stack))), (it) => {
    it("announces each written record with its version and its vector", () =>
      Effect.gen(function* () {
        const subscription = yield* subscribe()
        yield* record(search("a", "red wine", at(0)), search("b", "white wine", at(1)))
        yield* workedOff
        const seen = new Map<string, EmbeddingChange>()
        while (seen.size < 2)
          for (const change of yield* subscription.take(10)) seen.set(change.user_id, change)
        for (const user of ["a", "b"]) {
          const record = yield* stored(user)
          expect(seen.get(user)).toEqual({
            type: "updated",
            user_id: user,
            version: record!.version,
            space: record!.embedding!.space,
            updated_at: new Date(record!.embedding!.updated_at).toISOString(),
            event_count: 1,
            dimension_count: record!.embedding!.embedding.length,
            embedding: record!.embedding!.embedding,
          })
        }
      }))

    it("delivers again what was not acknowledged, and nothing that was", () =>
      Effect.gen(function* () {
        const named = <A, E, R>(use: (subscription: Subscription) => Effect.Effect<A, E, R>) =>
          Effect.scoped(Effect.flatMap(subscribe("user_embeddings.test"), use))
        yield* named(() => Effect.void)
        yield* record(search("c", "tent", at(0)))
        yield* workedOff
        const isC = ({ user_id }: EmbeddingChange) => user_id === "c"
        const first = yield* named((subscription) => takeUntil(subscription, isC))
        const second = yield* named((subscription) =>
          Effect.tap(takeUntil(subscription, isC), subscription.acknowledge),
        )
        expect(second).toEqual(first)
        yield* record(search("d", "stove", at(0)))
        yield* workedOff
        const third = yield* named((subscription) =>
          takeUntil(subscription, ({ user_id }) => user_id === "d"),
        )
        expect(third.filter(isC)).toEqual([])
      }))

    it("announces an erasure with a version above all before, and below all after", () =>
      Effect.gen(function* () {
        const subscription = yield* subscribe()
        const isE = ({ user_id }: EmbeddingChange) => user_id === "e"
        yield* record(search("e", "rope", at(0)))
        yield* workedOff
        const [before] = (yield* takeUntil(subscription, isE)).filter(isE)
        yield* (yield* Eraser).erase("e")
        yield* sweep()
        const [erased] = (yield* takeUntil(subscription, ({ type }) => type === "erased")).filter(isE)
        yield* record(search("e", "lamp", at(0)))
        yield* workedOff
        const isBack = (change: EmbeddingChange) => isE(change) && change.type === "updated"
        const after = (yield* takeUntil(subscription, isBack)).find(isBack)
        expect([before!.type, erased!.type, after!.type]).toEqual(["updated", "erased", "updated"])
        expect(before!.version).toBeLessThan(erased!.version)
        expect(erased!.version).toBeLessThan(after!.version)
      }))

    it("announces merges, retractions and rebuilds", () =>
      Effect.gen(function* () {
        const subscription = yield* subscribe()
        const [guest, kept, undone] = [
          search("guest-f", "jacket", at(0)),
          search("f", "boots", at(1)),
          search("f", "gloves", at(2)),
        ]
        yield* record(guest, kept, undone)
        yield* workedOff
        yield* record(Interaction.merge("f", "guest-f", at(10)), Interaction.retract(undone))
        yield* workedOff
        yield* (yield* Rebuilder).rebuild({ user: "f" })
        const record_ = yield* stored("f")
        const isLast = ({ user_id, version }: EmbeddingChange) =>
          user_id === "f" && version === record_!.version
        const changes = yield* takeUntil(subscription, isLast)
        expect(changes.find(isLast)).toMatchObject({
          event_count: 2,
          embedding: record_!.embedding!.embedding,
        })
        const alias = yield* stored("guest-f")
        expect(changes.findLast(({ user_id }) => user_id === "guest-f")).toEqual({
          type: "merged",
          user_id: "guest-f",
          version: alias!.version,
          into: "f",
        })
      }))
  })
