/**
 * Any interleaving of events, retractions and merges over three ids, delivered twice and out of order to workers that run at
 * the same time, gives what the surviving events of each person give alone, on both stacks.
 */
import { expect } from "bun:test"
import { type ConfigError, Effect, Layer, Runtime } from "effect"
import fc from "fast-check"
import type { Ports } from "../../src/layers/Stack.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import * as EventTypes from "../../src/services/model/EventTypes.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Eraser from "../../src/services/operate/Eraser.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import { ownerOf } from "../../src/services/update/People.ts"
import { later } from "../support/clocks.ts"
import { layerSuite } from "../support/effect.ts"
import { embeddingOf, product, search, storeProduct } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"
import {
  type Act,
  acked,
  apply,
  audited,
  deliver,
  expectSurvivors,
  history,
  interactionOf,
  makeWorkers,
  phrases,
  productTexts,
  record,
  toMessage,
} from "../support/survivors.ts"

const isLong = process.env.FAILURES === "long"

const id = fc.nat({ max: 2 })
/** What three ids did, and how the messages arrive. */
interface Scenario {
  readonly acts: ReadonlyArray<Act & { readonly user: number; readonly retracted: boolean }>
  /** Merges, which the log refuses where they contradict each other. Others are recorded before all events. */
  readonly merges: ReadonlyArray<{ readonly into: number; readonly from: number }>
  /** Order of arrival: any numbers, and the messages in the order of these. */
  readonly order: ReadonlyArray<number>
  readonly batch: number
}
const scenario: fc.Arbitrary<Scenario> = fc.record({
  acts: fc.array(
    fc.record({ user: id, what: fc.nat({ max: 13 }), hour: fc.nat({ max: 1_000 }), retracted: fc.boolean() }),
    { minLength: 1, maxLength: 90, size: "max" },
  ),
  merges: fc.array(
    fc.record({ into: id, from: id }).filter(({ from, into }) => from !== into),
    { maxLength: 4 },
  ),
  order: fc.array(fc.nat(), { minLength: 50, maxLength: 400, size: "max" }),
  batch: fc.integer({ min: 1, max: 40 }),
})

/** The people that the merges of the log make of these ids, as the ids that each one has. */
const peopleOf = (ids: ReadonlyArray<string>, merges: ReadonlyArray<Interaction.Interaction>) => {
  const owner = new Map(ids.map((one) => [one, one]))
  for (const { reference, user_id } of merges) {
    const [from, into] = [owner.get(reference!), owner.get(user_id)!]
    for (const one of ids) if (owner.get(one) === from) owner.set(one, into)
  }
  return Map.groupBy(ids, (one) => owner.get(one)!)
}

let runs = 0
const check = Effect.fnUntraced(function* ({ acts, batch, merges, order }: Scenario) {
  const run = runs++
  const ids = [0, 1, 2].map((user) => `run-${run}-${user}`)
  const events = new Map(
    acts.map((act) => {
      const interaction = interactionOf(ids[act.user]!, act)
      return [interaction.message_id, { interaction, retracted: act.retracted }] as const
    }),
  )
  const merged = yield* record(
    merges.map(({ from, into }, index) =>
      Interaction.merge(ids[into]!, ids[from]!, new Date(Date.UTC(2026, 1, 1, 0, index)).toISOString()),
    ),
  )
  const taken = [...events.values()].filter(({ retracted }) => retracted)
  const rows = [
    ...merged,
    ...(yield* record([
      ...Array.from(events.values(), ({ interaction }) => interaction),
      ...taken.map(({ interaction }) => Interaction.retract(interaction)),
    ])),
  ]
  const messages = [...rows, ...rows]
    .map((row, index) => ({ row, rank: (order[index % order.length] ?? 0) + index }))
    .toSorted((a, b) => (a.rank % 1_009) - (b.rank % 1_009))
  yield* deliver(
    messages.map(({ row }) => row),
    batch,
  )
  const users = yield* UserEmbeddings
  const { audit } = yield* Auditor.Auditor
  const { rebuild } = yield* Rebuilder.Rebuilder
  for (const [owner, members] of peopleOf(
    ids,
    merged.map(({ interaction }) => interaction),
  )) {
    const survivors = [...events.values()]
      .filter(({ interaction, retracted }) => members.includes(interaction.user_id) && !retracted)
      .map(({ interaction }) => interaction)
    const found = yield* Effect.forEach(members, (member) => ownerOf(users, member))
    expect(found.map(({ user_id }) => user_id)).toEqual(members.map(() => owner))
    yield* expectSurvivors(found[0]!.record?.embedding, survivors)
    if (survivors.length === 0) continue
    expect(yield* rebuild({ user: members[0]! })).toMatchObject({ rebuilt: 1, failed: 0 })
    yield* expectSurvivors((yield* ownerOf(users, owner)).record?.embedding, survivors)
    expect(yield* audit({ user: members[0]! })).toMatchObject({ extra: 0, missing: 0 })
  }
  expect(yield* audit({})).toMatchObject({ extra: 0, missing: 0 })
}, Effect.scoped)

const suite = (
  name: string,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
  numRuns: number,
) =>
  layerSuite(
    name,
    Layer.mergeAll(Auditor.layer, Rebuilder.layer, Eraser.layer).pipe(
      Layer.provideMerge(eventVectors),
      Layer.provideMerge(stack),
    ),
    (it) => {
      it(
        "gives the vector, the counts and the newest events of the surviving events; live, rebuilt and audited",
        () =>
          Effect.gen(function* () {
            for (const [index, text] of productTexts.entries()) yield* storeProduct(`p-${index}`, text)
            const runtime = yield* Effect.runtime<
              Effect.Effect.Context<ReturnType<typeof check>> | EmbeddingConfig.EmbeddingConfig
            >()
            const property = fc.asyncProperty(scenario, (one) => Runtime.runPromise(runtime)(check(one)))
            yield* Effect.promise(() =>
              fc.assert(property, { numRuns, interruptAfterTimeLimit: isLong ? 100_000 : 30_000 }),
            )
          }),
        120_000,
      )

      it("an event whose product was embedded anew is taken out with the vector that was folded", () =>
        Effect.gen(function* () {
          yield* storeProduct("changing", "tent for two")
          const events = history("anew")
          const bought = product("anew", "product_purchase", "changing", "2026-01-02T00:00:00.000Z")
          yield* apply([...events, bought])
          yield* storeProduct("changing", "red wine from Portugal")
          yield* apply([Interaction.retract(bought)])
          yield* expectSurvivors(yield* embeddingOf("anew"), events)
        }))

      it("an event whose product is gone is taken out, too", () =>
        Effect.gen(function* () {
          yield* storeProduct("vanishing", "tent for two")
          const events = history("gone")
          const bought = product("gone", "product_purchase", "vanishing", "2026-01-02T00:00:00.000Z")
          yield* apply([...events, bought])
          const products = yield* ProductEmbeddings
          const [known] = yield* products.find(["vanishing"])
          yield* products.upsert([{ ...known!, space: "other" }])
          yield* apply([Interaction.retract(bought)])
          yield* expectSurvivors(yield* embeddingOf("gone"), events)
        }))

      it("an event whose product is sold out since is taken out without the products of the others", () =>
        Effect.gen(function* () {
          yield* storeProduct("selling", "tent for two")
          yield* storeProduct("leaving", "red wine from Portugal")
          const products = yield* ProductEmbeddings
          const events = [
            ...history("sold-out"),
            product("sold-out", "product_purchase", "leaving", "2026-01-01T00:00:00.000Z"),
          ]
          const bought = product("sold-out", "product_purchase", "selling", "2026-01-02T00:00:00.000Z")
          yield* later("2 days")(apply([...events, bought]))
          yield* later("3 days")(products.upsert([{ product_id: "selling", available: false }]))
          const [leaving] = yield* products.find(["leaving"])
          const before = yield* embeddingOf("sold-out")
          yield* products.upsert([{ ...leaving!, space: "other" }])
          yield* later("3 days")(apply([Interaction.retract(bought)]))
          const after = yield* embeddingOf("sold-out")
          expect(after?.event_count).toBe(before!.event_count - 1)
          yield* products.upsert([leaving!])
          yield* expectSurvivors(after, events)
        }))

      it("after a change of weights, and in recency history, a retraction rebuilds its user", () =>
        Effect.gen(function* () {
          for (const [user, changed] of [
            ["weights", { eventTypes: EventTypes.make({ product_view: 0.9 }) }],
            ["recency", { history: "recency" }],
          ] as const) {
            const settings = EmbeddingConfig.layer(user === "recency" ? changed : {})
            const events = history(user)
            yield* Effect.provide(apply(events), settings)
            yield* Effect.provide(apply([Interaction.retract(events[3]!)]), EmbeddingConfig.layer(changed))
            const left = yield* embeddingOf(user)
            yield* Effect.provide(
              Effect.flatMap(Rebuilder.Rebuilder, ({ rebuild }) => rebuild({ user })),
              Rebuilder.layer.pipe(Layer.provide(EmbeddingConfig.layer(changed))),
            )
            const rebuilt = yield* embeddingOf(user)
            expect(left?.event_count).toBe(29)
            expect(Vector.dot(left!.embedding, rebuilt!.embedding)).toBeGreaterThan(1 - 1e-9)
            expect(left?.total_weight).toBeCloseTo(rebuilt!.total_weight, 9)
          }
        }))

      it("a retraction that cannot be exact is a dead letter; what else the user did is applied", () =>
        Effect.gen(function* () {
          const [first, second] = [`${phrases[0]}`, `${phrases[1]}`].map((phrase, day) =>
            search("stuck", phrase, `2026-01-0${day + 1}T00:00:00.000Z`),
          )
          yield* storeProduct("lost", "tent for two")
          const viewed = product("stuck", "product_view", "lost", "2026-01-03T00:00:00.000Z")
          yield* apply([first!, viewed])
          const products = yield* ProductEmbeddings
          const [known] = yield* products.find(["lost"])
          yield* products.upsert([{ ...known!, space: "other" }])
          // Vectors stay in memory for a while.
          const outcomes = yield* Effect.provide(
            apply([Interaction.retract(first!), second!]),
            Layer.fresh(eventVectors),
          )
          expect(outcomes).toMatchObject([
            { settlement: { _tag: "DeadLetter", failure: { error: "cannot_rebuild" } } },
            acked,
          ])
          expect((yield* embeddingOf("stuck"))?.event_count).toBe(3)
          // A rebuild by hand applies the retraction that the log has.
          yield* (yield* Rebuilder.Rebuilder).rebuild({ user: "stuck", allowMissing: true })
          expect((yield* embeddingOf("stuck"))?.event_count).toBe(2)
          expect((yield* embeddingOf("stuck"))?.metadata).toMatchObject({ search_count: 1, view_count: 1 })
          expect(yield* audited("stuck")).toEqual({ extra: 0, missing: 0 })
        }))

      it("a worker that remembers an older record of the user finds the retraction applied", () =>
        Effect.gen(function* () {
          const [first, second] = history("older")
          const [one, other] = yield* makeWorkers(2)
          const rows = yield* record([
            first!,
            second!,
            Interaction.retract(first!),
            Interaction.retract(second!),
          ])
          const [m1, m2, r1, r2] = rows.map(toMessage)
          yield* one!.update([m1!, m2!])
          // Rebuilds the user without both events, because the log has both retractions.
          yield* other!.update([r1!])
          expect(yield* embeddingOf("older")).toBeUndefined()
          expect(yield* one!.update([r2!])).toEqual([acked])
          expect(yield* audited("older")).toEqual({ extra: 0, missing: 0 })
        }))

      it("an erasure covers retractions; what is done afterwards counts, also the same event again", () =>
        Effect.gen(function* () {
          const [first, second] = history("erased")
          const rows = yield* record([first!, second!, Interaction.retract(first!)], 0)
          const messages = rows.map(toMessage)
          const [worker] = yield* makeWorkers(1)
          yield* worker!.update(messages.slice(0, 2))
          yield* (yield* Eraser.Eraser).erase("erased")
          expect(yield* worker!.update(messages)).toEqual([acked, acked, acked])
          expect(yield* embeddingOf("erased")).toBeUndefined()
          yield* apply([first!, second!], 0)
          yield* expectSurvivors(yield* embeddingOf("erased"), [first!, second!])
          yield* apply([Interaction.retract(first!), Interaction.retract(second!)], 0)
          yield* expectSurvivors(yield* embeddingOf("erased"), [])
          yield* (yield* Eraser.Eraser).erase("erased")
          yield* apply([first!], 0)
          yield* expectSurvivors(yield* embeddingOf("erased"), [first!])
          expect(yield* audited("erased")).toEqual({ extra: 0, missing: 0 })
        }))
    },
  )

suite("events, retractions and merges on the embedded stack", embedded(), isLong ? 200 : 12)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  suite("events, retractions and merges", external(), isLong ? 100 : 6),
)
