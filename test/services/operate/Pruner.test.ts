/**
 * Pruning at any time leaves embeddings, audit, rebuild, exclusions, buy-again and popularity as they were, on both stacks.
 */
import { expect } from "bun:test"
import { Chunk, type ConfigError, Effect, Either, Layer, Option, Runtime, Stream } from "effect"
import fc from "fast-check"
import type { Ports } from "../../../src/layers/Stack.ts"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import { decay, weightOf } from "../../../src/services/model/Fold.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import * as Auditor from "../../../src/services/operate/Auditor.ts"
import * as Eraser from "../../../src/services/operate/Eraser.ts"
import * as Pruner from "../../../src/services/operate/Pruner.ts"
import * as Rebuilder from "../../../src/services/operate/Rebuilder.ts"
import type { DependencyDown } from "../../../src/services/ports/Dependencies.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { ProductPairs } from "../../../src/services/ports/ProductPairs.ts"
import { ProductTally } from "../../../src/services/ports/ProductTally.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import * as Catalogue from "../../../src/services/recommend/Catalogue.ts"
import * as Popularity from "../../../src/services/recommend/Popularity.ts"
import * as Recommender from "../../../src/services/recommend/Recommender.ts"
import * as EmbeddingUpdater from "../../../src/services/update/EmbeddingUpdater.ts"
import { EventVectors, layer as eventVectors } from "../../../src/services/update/EventVectors.ts"
import { delivery } from "../../support/delivery.ts"
import { layerSuite } from "../../support/effect.ts"
import { embeddingOf, eventually, product, search, storeProduct } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const isLong = process.env.FAILURES === "long"
const variables = { EVENT_WEIGHTS: "dislike:-0.4" }
const phrases = ["running shoes", "red wine", "board games", "cordless drill"]
const types = ["product_view", "product_purchase", "dislike"]
const productTexts = ["red shoes", "white wine", "chess", "hammer"]
const began = Date.UTC(2026, 0, 1)
const hour = 3_600_000
const at = (hours: number) => new Date(began + hours * hour).toISOString()

/** What a user does, then a prune. */
interface Phase {
  readonly acts: ReadonlyArray<{ readonly user: number; readonly what: number; readonly hour: number }>
  /** Positions among the events that are in the log. */
  readonly retracted: ReadonlyArray<number>
  readonly cut: number
}
const phases: fc.Arbitrary<ReadonlyArray<Phase>> = fc.array(
  fc.record({
    acts: fc.array(
      fc.record({ user: fc.nat({ max: 1 }), what: fc.nat({ max: 15 }), hour: fc.nat({ max: 500 }) }),
      { minLength: 1, maxLength: 30, size: "max" },
    ),
    retracted: fc.array(fc.nat(), { maxLength: 3 }),
    cut: fc.integer({ min: 0, max: 520 }),
  }),
  { minLength: 2, maxLength: 3 },
)

const interactionOf = (user: string, { hour, what }: Phase["acts"][number]) =>
  what < 4
    ? search(user, phrases[what]!, at(hour))
    : Interaction.make({
        user_id: user,
        event_type: types[(what - 4) % 3]!,
        product_id: `p-${Math.floor((what - 4) / 3)}`,
        occurred_at: at(hour),
        metadata: {},
      })

/** Records and marks interactions as published. */
const record = Effect.fnUntraced(function* (interactions: ReadonlyArray<Interaction.Interaction>) {
  const log = yield* InteractionLog
  const recordedAt = Date.now()
  const facts = { idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt }
  const appended = yield* log.append(interactions.map((interaction) => ({ interaction, ...facts })))
  const rows = appended.flatMap((one) => (one._tag === "Recorded" ? [{ ...one, recordedAt }] : []))
  yield* log.markPublished(rows, recordedAt)
  return rows
})

/** Applies the messages of rows. */
const deliver = Effect.fnUntraced(function* (rows: Effect.Effect.Success<ReturnType<typeof record>>) {
  const updater = yield* EmbeddingUpdater.EmbeddingUpdater
  const outcomes = yield* updater.update(
    rows.map(({ id, interaction, recordedAt }) => ({
      delivery: delivery(encodeMessage(interaction), { recordedAt, logId: id }),
      decoded: Either.right(interaction),
    })),
  )
  expect(outcomes.map(({ settlement }) => settlement._tag)).toEqual(rows.map(() => "Ack"))
})

const act = (interactions: ReadonlyArray<Interaction.Interaction>) =>
  Effect.flatMap(record(interactions), deliver)

const rowsOf = (user: string) =>
  Effect.flatMap(InteractionLog, ({ stream }) =>
    Effect.map(Stream.runCollect(stream({ user })), (rows) =>
      Chunk.toArray(rows).map(({ interaction }) => interaction),
    ),
  )
const pruneTo = (hours: number) => Effect.flatMap(Pruner.Pruner, ({ prune }) => prune({ before: at(hours) }))
const audited = Effect.flatMap(Auditor.Auditor, ({ audit }) =>
  Effect.map(audit({}), ({ extra, missing }) => ({ extra, missing })),
)

const rebuilt = (user: string) =>
  Effect.flatMap(Rebuilder.Rebuilder, (rebuilder) =>
    Effect.map(rebuilder.rebuild({ user }), ({ failures }) => expect(failures).toEqual([])),
  )

/** The same, with some tolerance for numbers. */
const near = <A>(value: A): A =>
  JSON.parse(JSON.stringify(value ?? null), (_, part) =>
    typeof part === "number" ? expect.closeTo(part, 5) : part,
  )

/** The figures of an embedding that pruning and rebuilding leave as they are. */
const figuresOf = Effect.fnUntraced(function* (user: string) {
  const embedding = yield* embeddingOf(user)
  if (embedding === undefined) return null
  const { event_count, last_event_id, last_updated, mass, metadata, recent, total_weight } = embedding
  const counters = Object.entries(metadata).filter(([name, value]) => name.endsWith("_count") && value !== 0)
  return {
    event_count,
    last_event_id,
    last_updated,
    recent,
    counters: Object.fromEntries(counters),
    mass,
    total_weight,
  }
})

/** The sum of the surviving events, straight from their vectors. */
const expectSum = Effect.fnUntraced(function* (user: string, events: ReadonlyArray<Interaction.Interaction>) {
  const embedding = yield* embeddingOf(user)
  expect(embedding?.event_count ?? 0).toBe(events.length)
  if (embedding === undefined) return
  const vectors = yield* Effect.flatMap(EventVectors, ({ resolve }) => resolve(events))
  const { eventTypes, lambda } = yield* EmbeddingConfig.EmbeddingConfig
  const sum = new Float64Array(1536)
  for (const [index, { event_type, occurred_at }] of events.entries()) {
    const faded = decay(lambda, embedding.last_updated, Date.parse(occurred_at))
    Vector.addScaled(sum, weightOf(eventTypes.weights, event_type) * faded, yield* vectors[index]!)
  }
  const difference = sum.map((value, i) => value - embedding.mass * embedding.embedding[i]!)
  expect(Vector.norm(difference)).toBeLessThanOrEqual(1e-4)
})

/** What the user gets, but for the scores. */
const answersOf = Effect.fnUntraced(function* (user: string) {
  const { buyAgain, recommend } = yield* Recommender.Recommender
  const log = yield* InteractionLog
  const events: Array<string> = []
  for (const exclude of ["purchased", "seen"] as const) {
    // Without taste the answer depends on popularity, which takes a minute to agree with a prune.
    const { items } = yield* recommend(user, { limit: 50, exclude, fallback: "none" }).pipe(
      Effect.catchTag("NoTaste", () => Effect.succeed({ items: [] })),
    )
    events.push(`${exclude}: ${items.map(({ product_id }) => product_id).toSorted()}`)
  }
  const again = yield* buyAgain(user, 50)
  const among = productTexts.map((_, i) => `p-${i}`)
  const counts = new Map<string, number>()
  for (const { event_type, events, product_id } of yield* log.productEvents(user, { among })) {
    const key = `${product_id} ${event_type}`
    counts.set(key, (counts.get(key) ?? 0) + events)
  }
  const popularity = yield* Effect.flatMap(Popularity.Popularity, ({ counts }) => counts).pipe(
    Effect.provide(Layer.fresh(Popularity.layer)),
  )
  return {
    events,
    counts: Object.fromEntries(counts),
    again,
    popularity: among.map((id) => [popularity.of(id), popularity.decayed(id)]),
  }
})

const suite = (
  name: string,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
  runs: number,
) => {
  const operating = Layer.mergeAll(
    Pruner.layer,
    Auditor.layer,
    Rebuilder.layer,
    Eraser.layer,
    EmbeddingUpdater.layer,
    Layer.provideMerge(Recommender.layer, Layer.merge(Catalogue.layer, Popularity.layer)),
  )
  layerSuite(name, operating.pipe(Layer.provideMerge(eventVectors), Layer.provideMerge(stack)), (it) => {
    let run = 0
    const check = Effect.fnUntraced(function* (all: ReadonlyArray<Phase>) {
      const users = [`a-${run}`, `b-${run++}`]
      /** Ids that were pruned. An event that is posted again may be taken back, and then the retraction stays. */
      const gone = new Set<string>()
      const remaining = (user: string) =>
        Effect.map(rowsOf(user), (rows) => rows.filter(({ reference }) => !gone.has(reference ?? "")))
      const surviving = new Map(users.map((user) => [user, new Map<string, Interaction.Interaction>()]))
      /** Ids of events that were taken back. They stay so when they are posted again, also after a prune. */
      const takenBack = new Map<string, Interaction.Interaction>()
      for (const { acts, cut, retracted } of all) {
        const made = acts.map((one) => interactionOf(users[one.user]!, one))
        yield* act(made)
        for (const one of made)
          if (!takenBack.has(one.message_id)) surviving.get(one.user_id)!.set(one.message_id, one)
        const rows = (yield* Effect.forEach(users, rowsOf)).flat()
        const events = rows.filter(({ message_id, user_id }) => surviving.get(user_id)!.has(message_id))
        const taken = new Set(
          retracted.flatMap((n) => (events.length > 0 ? [events[n % events.length]!] : [])),
        )
        yield* act([...taken].map((event) => Interaction.retract(event)))
        for (const one of taken) {
          takenBack.set(one.message_id, one)
          surviving.get(one.user_id)!.delete(one.message_id)
        }
        const before = yield* Effect.forEach(users, (user) => Effect.all([figuresOf(user), answersOf(user)]))

        yield* pruneTo(cut)
        for (const user of users)
          expect((yield* remaining(user)).filter(({ occurred_at }) => occurred_at < at(cut))).toEqual([])
        for (const { message_id, occurred_at } of rows) if (occurred_at < at(cut)) gone.add(message_id)
        expect(yield* audited).toEqual({ extra: 0, missing: 0 })
        for (const [index, user] of users.entries()) {
          const events = [...surviving.get(user)!.values()]
          yield* expectSum(user, events)
          expect(yield* answersOf(user)).toEqual(near(before[index]![1]))
          if (events.length === 0) continue
          yield* rebuilt(user)
          yield* expectSum(user, events)
          expect(yield* figuresOf(user)).toEqual(near(before[index]![0]))
        }
      }
      // Posted again: nothing counts twice, and the next prune deletes the rows.
      const figures = yield* Effect.forEach(users, figuresOf)
      const again = [...surviving.values(), takenBack].flatMap((events) => [...events.values()])
      // Popularity counts such a row until it goes.
      const answers = Effect.forEach(users, (user) =>
        Effect.map(answersOf(user), ({ popularity: _, ...rest }) => rest),
      )
      const answered = yield* answers
      yield* act(again)
      expect(yield* answers).toEqual(near(answered))
      expect(yield* audited).toEqual({ extra: 0, missing: 0 })
      for (const user of users) if (surviving.get(user)!.size > 0) yield* rebuilt(user)
      expect(yield* Effect.forEach(users, figuresOf)).toEqual(near(figures))
      yield* pruneTo(1_000)
      expect(yield* Effect.forEach(users, remaining)).toEqual([[], []])
      expect(yield* audited).toEqual({ extra: 0, missing: 0 })
      for (const user of users) {
        const events = [...surviving.get(user)!.values()]
        if (events.length > 0) yield* rebuilt(user)
        yield* expectSum(user, events)
      }
      expect(yield* Effect.forEach(users, figuresOf)).toEqual(near(figures))
    })

    it(
      "whatever is pruned and whenever: nothing changes but the log",
      () =>
        Effect.gen(function* () {
          for (const [index, text] of productTexts.entries()) yield* storeProduct(`p-${index}`, text)
          const { describe } = yield* Catalogue.Catalogue
          const ids = productTexts.map((_, index) => `p-${index}`)
          yield* eventually(
            Effect.map(describe(ids), (known) => (known.size === ids.length ? true : undefined)),
          )
          const runtime = yield* Effect.runtime<Effect.Effect.Context<ReturnType<typeof check>>>()
          yield* Effect.promise(() =>
            fc.assert(
              fc.asyncProperty(phases, (all) => Runtime.runPromise(runtime)(check(all))),
              { numRuns: runs, endOnFailure: true },
            ),
          )
        }),
      600_000,
    )

    const shop = Effect.forEach(productTexts, (text, index) => storeProduct(`p-${index}`, text))
    const event = (user: string, what: number, hour: number) => interactionOf(user, { user: 0, what, hour })
    /** A user with one event of each kind. */
    const history = (user: string) => Array.from({ length: 14 }, (_, what) => event(user, what, 10 * what))

    it("an erasure removes what is kept of pruned rows, and the user begins anew", () =>
      Effect.gen(function* () {
        yield* shop
        const log = yield* InteractionLog
        const [user, other] = ["erased", "not-erased"]
        yield* act([...history(user), ...history(other)])
        const before = yield* answersOf(other)
        yield* pruneTo(1_000)
        expect((yield* log.pruned.checkpoints([user]))[0]?.rows).toBe(14)
        yield* (yield* Eraser.Eraser).erase(user)
        expect(yield* log.pruned.checkpoints([user])).toEqual([])
        expect(yield* log.pruned.products([user])).toEqual([])
        expect(Chunk.toArray(yield* Stream.runCollect(log.pruned.idsOf([user]))).flat()).toEqual([])
        const { popularity } = yield* answersOf(other)
        expect(popularity.map(([count]) => count)).toEqual(
          before.popularity.map(([count], index) => count! - [2, 2, 2, 1][index]!),
        )
        yield* Effect.sleep("5 millis")
        yield* act(history(user))
        expect((yield* embeddingOf(user))?.event_count).toBe(14)
        expect(yield* audited).toEqual({ extra: 0, missing: 0 })
        // The erasure may still find rows.
        expect((yield* pruneTo(1_000)).kept).toEqual({ not_applied: 14 })
      }))

    it("an event that is taken back while it is pruned leaves every answer", () =>
      Effect.gen(function* () {
        yield* shop
        const user = "taken-back"
        yield* act(history(user))
        const log = yield* InteractionLog
        const { interaction: bought } = yield* Effect.map(
          Stream.runHead(log.stream({ user, type: "product_purchase" })),
          Option.getOrThrow,
        )
        const { again, counts } = yield* answersOf(user)
        const key = `${bought.product_id} product_purchase`
        const count = counts[key]!
        yield* pruneTo(1_000)
        yield* act([Interaction.retract(bought)])
        const after = yield* answersOf(user)
        expect(after.counts[key] ?? 0).toBe(count - 1)
        const purchases = (some: typeof again) => some.reduce((sum, one) => sum + one.purchases, 0)
        expect(purchases(after.again)).toBe(purchases(again) - 1)
        yield* (yield* Eraser.Eraser).erase(user)
      }))

    it("rows that are still needed stay, and a dry run deletes nothing", () =>
      Effect.gen(function* () {
        yield* shop
        const log = yield* InteractionLog
        const entry = (interaction: Interaction.Interaction) => ({
          interaction,
          idempotencyKey: null,
          occurredAtGiven: true,
          trace: null,
          recordedAt: Date.now(),
        })
        yield* pruneTo(1_000)
        const user = "kept"
        yield* act(history(user))
        // One is in the outbox, one is published and not applied, and a retraction is not applied.
        yield* log.append([entry(event(user, 0, 300))])
        const [waiting] = yield* log.append([entry(event(user, 0, 301))])
        if (waiting?._tag === "Recorded") yield* log.markPublished([waiting], Date.now())
        const [retraction] = yield* log.append([entry(Interaction.retract(history(user)[5]!))])
        if (retraction?._tag === "Recorded") yield* log.markPublished([retraction], Date.now())
        const { prune } = yield* Pruner.Pruner
        const dry = yield* prune({ before: at(1_000), dryRun: true })
        expect(dry).toMatchObject({ events: 13, retractions: 0 })
        expect(dry.kept).toMatchObject({ unpublished: 1, not_applied: expect.any(Number) })
        expect(yield* rowsOf(user)).toHaveLength(17)
        expect(yield* prune({ before: at(1_000) })).toEqual(dry)
        const left = (yield* rowsOf(user)).map(({ event_type, occurred_at }) => [event_type, occurred_at])
        expect(left).toEqual([
          ["product_purchase", at(50)],
          ["retraction", at(50)],
          ["search", at(300)],
          ["search", at(301)],
        ])
        yield* (yield* Eraser.Eraser).erase(user)
      }))

    it("pairs of products are counted before their rows go, and rows that are not settled stay", () =>
      Effect.gen(function* () {
        yield* pruneTo(1_000)
        const tally = yield* ProductTally
        const user = "paired"
        for (const id of ["cup", "tray", "spoon"]) yield* storeProduct(id, `a ${id}`)
        yield* act([
          product(user, "product_view", "cup", at(1)),
          product(user, "product_view", "tray", at(2)),
        ])
        const settled = Effect.succeed(yield* (yield* InteractionLog).maxId)
        yield* act([product(user, "product_view", "spoon", at(3))])
        const prune = (dryRun: boolean) =>
          Effect.flatMap(Pruner.Pruner, (pruner) => pruner.prune({ before: at(1_000), dryRun })).pipe(
            Effect.provide(
              Layer.fresh(Pruner.layer).pipe(
                Layer.provide(Layer.succeed(ProductTally, { ...tally, settled })),
                Layer.provide(EmbeddingConfig.layer({ togetherWeight: 1 })),
              ),
            ),
          )
        const dry = yield* prune(true)
        expect(dry).toMatchObject({ events: 2, kept: { not_counted: 1 } })
        expect(yield* prune(false)).toEqual(dry)
        expect((yield* rowsOf(user)).map(({ product_id }) => product_id)).toEqual(["spoon"])
        const pairs = yield* (yield* ProductPairs).load(["cup", "tray", "spoon"])
        expect(pairs.get("cup")?.pairs.get("tray")).toBeGreaterThan(0)
        expect(pairs.get("tray")?.pairs.get("cup")).toBeGreaterThan(0)
        expect(pairs.has("spoon")).toBe(false)
        yield* (yield* Eraser.Eraser).erase(user)
      }))

    it("only cumulative history can be pruned", () =>
      Effect.gen(function* () {
        const config = EmbeddingConfig.layer({ history: "recency" })
        const failure = yield* Effect.flip(pruneTo(1_000)).pipe(
          Effect.provide(Layer.fresh(Pruner.layer).pipe(Layer.provide(config))),
        )
        expect(failure.message).toContain("EMBEDDING_HISTORY=cumulative")
      }))

    it("a rebuild with another λ names the pruned events, and leaves them out if it may", () =>
      Effect.gen(function* () {
        yield* shop
        const user = "faded"
        yield* act([...history(user), event(user, 1, 900)])
        yield* pruneTo(800)
        const rebuild = (options: { readonly allowMissing?: boolean }) =>
          Effect.flatMap(Rebuilder.Rebuilder, (rebuilder) => rebuilder.rebuild({ user, ...options })).pipe(
            Effect.provide(
              Layer.fresh(Rebuilder.layer).pipe(Layer.provide(EmbeddingConfig.layer({ lambda: 0.5 }))),
            ),
          )
        const { failures } = yield* rebuild({})
        expect(failures[0]?.reason).toContain("14 events are pruned")
        expect(failures[0]?.reason).toContain("--allow-missing")
        expect((yield* rebuild({ allowMissing: true })).failures).toEqual([])
        const embedding = yield* embeddingOf(user)
        expect(embedding?.event_count).toBe(15)
        expect(embedding?.mass).toBeCloseTo(0.7, 6)
        expect(embedding?.recent).toHaveLength(10)
        expect(yield* audited).toEqual({ extra: 0, missing: 0 })
      }))

    it("an event that is pruned while it is taken back is taken out of the sum", () =>
      Effect.gen(function* () {
        yield* shop
        const user = "late"
        const events = history(user)
        yield* act(events)
        yield* pruneTo(1_000)
        yield* act([Interaction.retract(events[10]!)])
        const left = events.filter((_, index) => index !== 10)
        const check = Effect.gen(function* () {
          yield* expectSum(user, left)
          expect(yield* audited).toEqual({ extra: 0, missing: 0 })
          // The log no longer has the event that would take its place.
          const recent = (yield* embeddingOf(user))?.recent.map(({ message_id }) => message_id)
          expect(recent).toEqual([13, 12, 11, 9, 8, 7, 6, 5, 4].map((index) => events[index]!.message_id))
        })
        yield* check
        yield* rebuilt(user)
        yield* check
        // Its row stays, because the sum still has the event; that of the event goes, if it is posted again.
        yield* act([events[10]!])
        yield* pruneTo(1_000)
        expect((yield* rowsOf(user)).map(({ event_type }) => event_type)).toEqual(["retraction"])
      }))

    it("a user whose document is older than the prune lacks events, and a rebuild takes them from the sum", () =>
      Effect.gen(function* () {
        yield* shop
        const user = "restored"
        const users = yield* UserEmbeddings
        yield* act(history(user).slice(0, 5))
        const backup = (yield* users.load([user])).get(user)!
        yield* act(history(user).slice(5))
        yield* pruneTo(1_000)
        const { version } = (yield* users.load([user])).get(user)!
        yield* users.save([{ record: { ...backup, version: version + 1 }, expected: version }])
        expect(yield* audited).toEqual({ extra: 0, missing: 9 })
        yield* rebuilt(user)
        yield* expectSum(user, history(user))
        expect(yield* audited).toEqual({ extra: 0, missing: 0 })
      }))

    it("a merge takes the pruned events of a guest over", () =>
      Effect.gen(function* () {
        yield* shop
        const log = yield* InteractionLog
        const [guest, customer] = ["guest", "customer"]
        const events = [...history(guest), ...history(customer)]
        yield* act(events)
        yield* pruneTo(70)
        yield* act([Interaction.merge(customer, guest, at(600))])
        const check = Effect.fnUntraced(function* () {
          yield* expectSum(customer, events)
          expect(yield* audited).toEqual({ extra: 0, missing: 0 })
          yield* rebuilt(customer)
          yield* expectSum(customer, events)
          const { counts, again } = yield* answersOf(customer)
          expect(counts["p-0 product_view"]).toBe(2)
          expect(again[0]?.purchases).toBe(2)
        })
        yield* check()
        yield* pruneTo(1_000)
        // The row of the merge stays.
        expect(yield* rowsOf(customer)).toHaveLength(1)
        yield* check()
        yield* (yield* Eraser.Eraser).erase(guest)
        expect(yield* log.pruned.checkpoints([guest, customer])).toEqual([])
      }))

    it("a guest's pruned event is taken back from a customer who was erased before the merge", () =>
      Effect.gen(function* () {
        yield* shop
        const [guest, customer] = ["guest-2", "customer-2"]
        const events = history(guest)
        yield* act([...events, event(customer, 0, 5)])
        yield* pruneTo(1_000)
        const [taken, ...left] = events
        const late = yield* record([Interaction.retract(taken!)])
        yield* (yield* Eraser.Eraser).erase(customer)
        yield* act([event(customer, 1, 600)])
        yield* act([Interaction.merge(customer, guest, at(700))])
        yield* deliver(late)
        yield* expectSum(customer, [...left, event(customer, 1, 600)])
        expect(yield* audited).toEqual({ extra: 0, missing: 0 })
        yield* (yield* Eraser.Eraser).erase(customer)
      }))

    it("a slice is not pruned if a row is gone, taken back or behind an erasure since it was read", () =>
      Effect.gen(function* () {
        yield* shop
        const log = yield* InteractionLog
        const user = "changed"
        yield* act(history(user))
        const rows = Chunk.toArray(yield* Stream.runCollect(log.stream({ user })))
        const { eventTypes, lambda } = yield* EmbeddingConfig.EmbeddingConfig
        const settings = {
          lambda,
          weights: eventTypes.weights,
          history: "cumulative" as const,
          space: (yield* EventVectors).space,
        }
        const prune = (ids: ReadonlyArray<number>) =>
          log.pruned.prune({
            parts: [{ user_id: user, interactions: rows.map(({ interaction }) => interaction), events: [] }],
            ids,
            again: [],
            settings,
          })
        const ids = rows.map(({ id }) => id)
        expect(yield* prune([...ids, 1e9])).toBe(false)
        yield* act([Interaction.retract(history(user)[0]!)])
        expect(yield* prune(ids)).toBe(false)
        const { token } = yield* log.beginErasure([user])
        expect(yield* prune(ids.slice(1))).toBe(false)
        expect(yield* log.pruned.checkpoints([user])).toEqual([])
        expect(yield* rowsOf(user)).toHaveLength(15)
        yield* log.forgetErasure({ user_id: user, token, ageMillis: 0, hasSurvivors: false })
        expect(yield* prune(ids.slice(1))).toBe(true)
        yield* (yield* Eraser.Eraser).erase(user)
      }))
  })
}

suite("pruning on the embedded stack", embedded(variables), isLong ? 50 : 3)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  // Rows count in the pairs of products half a minute after their commit, and they are pruned only then.
  suite("pruning", external({ ...variables, TOGETHER_WEIGHT: "0" }), isLong ? 15 : 1),
)
