/** Tests for every implementation of the interaction log. Tests share a log, so each uses its own users. */
import { expect } from "bun:test"
import { Chunk, Context, Deferred, Effect, Exit, Fiber, Layer, Stream } from "effect"
import fc from "fast-check"
import * as Interaction from "../../src/services/model/Interaction.ts"
import {
  type Appended,
  InteractionLog,
  type LogFilter,
  type NewInteraction,
  type OrderRefund,
  type ProductEvents,
} from "../../src/services/ports/InteractionLog.ts"
import { layerSuite } from "../support/effect.ts"

let users = 0
const newUser = (): string => `contract-${users++}`
const at = (second: number): string => new Date(1_770_000_000_000 + second * 1_000).toISOString()

type Facts = Partial<
  Pick<NewInteraction, "idempotencyKey" | "occurredAtGiven" | "trace" | "recordedAt"> & {
    occurred_at: string
    metadata: Interaction.Metadata
  }
>
const entry = (interaction: Interaction.Interaction, facts: Facts): NewInteraction => ({
  interaction,
  idempotencyKey: facts.idempotencyKey ?? null,
  occurredAtGiven: facts.occurredAtGiven ?? true,
  trace: facts.trace ?? null,
  recordedAt: facts.recordedAt ?? 1_770_000_000_000,
})
export const search = (user_id: string, search_phrase: string, facts: Facts = {}) => {
  const { occurred_at = at(0), metadata = {} } = facts
  return entry(
    Interaction.make({ user_id, occurred_at, metadata, event_type: "search", search_phrase }),
    facts,
  )
}
export const view = (user_id: string, product_id: string, facts: Facts = {}) => {
  const { occurred_at = at(0), metadata = {} } = facts
  return entry(
    Interaction.make({ user_id, occurred_at, metadata, event_type: "product_view", product_id }),
    facts,
  )
}

const views = (user: string, count: number) =>
  Array.from({ length: count }, (_, index) => view(user, `p-${index}`))

const merge = (into: string, from: string, facts: Facts = {}) =>
  entry(Interaction.merge(into, from, facts.occurred_at ?? at(0), facts.metadata), facts)

const tags = (answers: ReadonlyArray<Appended>) => answers.map(({ _tag }) => _tag)
const rowsOf = (filter: LogFilter) =>
  Effect.flatMap(InteractionLog, (log) => Effect.map(Stream.runCollect(log.stream(filter)), Chunk.toArray))
const interactionsOf = (filter: LogFilter) =>
  Effect.map(rowsOf(filter), (rows) => rows.map(({ interaction }) => interaction))
const append = (...entries: ReadonlyArray<NewInteraction>) =>
  Effect.flatMap(InteractionLog, (log) => log.append(entries))

/** Appends one interaction, and answers its row. */
const recorded = (entry: NewInteraction) =>
  Effect.map(append(entry), ([answer]) => {
    if (answer?._tag !== "Recorded") throw new Error(`the answer is ${answer?._tag}`)
    return answer
  })

/** `other` is a second log on the same database, like the log of another process. */
export const suite = <E>(
  name: string,
  layer: Layer.Layer<InteractionLog, E>,
  other: Layer.Layer<InteractionLog, E>,
) =>
  layerSuite(name, layer, (it) => {
    it("streams the appended rows: of one user by occurred_at, of all users in the order of recording", () =>
      Effect.gen(function* () {
        const user = newUser()
        const trace = {
          traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
          tracestate: "vendor=1",
        }
        const entries = [
          search(user, "wireless headphones", {
            occurred_at: at(3.007),
            trace,
            recordedAt: 1_770_000_000_001,
          }),
          view(user, "p-1", { occurred_at: at(1), metadata: { device: "mobile" } }),
          view(user, "p-2", { occurred_at: at(2) }),
        ]
        for (const each of entries) expect(tags(yield* append(each))).toEqual(["Recorded"])
        expect((yield* rowsOf({ user })).map(({ interaction }) => interaction.occurred_at)).toEqual([
          at(1),
          at(2),
          at(3.007),
        ])
        const rows = (yield* rowsOf({})).filter(({ interaction }) => interaction.user_id === user)
        expect(rows).toEqual(
          entries.map(({ interaction, trace, recordedAt }) => ({
            id: expect.any(Number),
            interaction,
            trace,
            recordedAt,
            published: false,
          })),
        )
      }))

    it("reads the JSON null that another program may write as metadata without facts", () =>
      Effect.gen(function* () {
        const [user, none] = [newUser(), null as unknown as Interaction.Metadata]
        const { interaction, ...facts } = view(user, "p-1")
        yield* append({ ...facts, interaction: { ...interaction, metadata: none } })
        expect((yield* interactionsOf({ user })).map(({ metadata }) => metadata)).toEqual([{}])
      }))

    it("stores retractions and merges with their reference", () =>
      Effect.gen(function* () {
        const user = newUser()
        const given = {
          trace: null,
          recordedAt: 1_770_000_000_001,
          idempotencyKey: null,
          occurredAtGiven: true,
        }
        const bought = view(user, "p-1", { occurred_at: at(1) })
        const searched = search(user, "shoes", { occurred_at: at(2) })
        const retractions = [bought, searched].map(({ interaction }) => Interaction.retract(interaction))
        const merged = {
          user_id: user,
          event_type: "merge" as const,
          search_phrase: null,
          product_id: null,
          reference: "guest-1",
          occurred_at: at(3),
          metadata: {},
        }
        const merge = { ...merged, message_id: Interaction.messageId(merged) }
        const entries = [...retractions, merge].map((interaction) => ({ ...given, interaction }))
        expect(tags(yield* append(bought, searched, ...entries))).toEqual(Array(5).fill("Recorded"))
        const stored = (yield* interactionsOf({ user })).filter(({ reference }) => reference !== null)
        expect(stored).toEqual([...retractions, merge])
        expect(tags(yield* append(...entries))).toEqual(Array(3).fill("Duplicate"))
      }))

    it("finds interactions by id, and leaves what is taken back out of the newest events and the counts", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const product_id = `p-${user}`
        const purchase = (second: number) => {
          const entry = view(user, product_id, { occurred_at: at(second) })
          const interaction = Interaction.make({
            user_id: user,
            event_type: "product_purchase",
            product_id,
            occurred_at: at(second),
            metadata: {},
          })
          return { ...entry, interaction }
        }
        const before = yield* log.maxId
        const [kept, taken, sought] = [
          purchase(1),
          purchase(2),
          search(user, "shoes", { occurred_at: at(3) }),
        ]
        const viewed = view(user, product_id, { occurred_at: at(2) })
        const retractions = [taken, sought].map((entry) => ({
          ...entry,
          interaction: Interaction.retract(entry.interaction),
        }))
        yield* append(kept, taken, viewed, sought, ...retractions)
        const ids = [taken.interaction.message_id, "f".repeat(64)]
        const found = yield* log.find(ids)
        expect(Array.from(found.values(), ({ interaction }) => interaction)).toEqual([taken.interaction])
        const newest = yield* log.newest(user, 10)
        expect(newest.map(({ interaction }) => interaction.message_id)).toEqual([
          viewed.interaction.message_id,
          kept.interaction.message_id,
        ])
        const events = (types?: ReadonlyArray<string>) =>
          Effect.map(log.productEvents(user, { among: [product_id], types }), (found) =>
            found.map(({ event_type, events }) => `${event_type} ${events}`).toSorted(),
          )
        expect(yield* events()).toEqual(["product_purchase 1", "product_view 1"])
        expect(yield* events(["product_purchase"])).toEqual(["product_purchase 1"])
        const counts = yield* log.productCounts(["product_purchase"], before, yield* log.maxId)
        const ofProduct = counts.filter((count) => count.product_id === product_id)
        expect(ofProduct).toEqual([{ product_id, day: at(1).slice(0, 10), interactions: 1 }])
      }))

    it("an empty append has no answers", () =>
      Effect.gen(function* () {
        expect(yield* append()).toEqual([])
      }))

    it("any phrase and any metadata are stored unchanged", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const phrase = fc
          .string({ minLength: 1, maxLength: 60, unit: "grapheme" })
          .map((text) => text.normalize("NFC"))
          .filter((text) => [...text].length <= 255 && !/\p{Cc}/u.test(text))
        const value = fc.oneof(
          fc.string({ unit: "grapheme" }),
          fc.boolean(),
          fc.maxSafeInteger(),
          fc.double({ noNaN: true, noDefaultInfinity: true }).map((n) => (n === 0 ? 0 : n)),
        )
        const metadata = fc.dictionary(
          fc.string({ unit: "grapheme", maxLength: 20 }).filter((key) => key !== "__proto__"),
          value,
          {
            maxKeys: 8,
            noNullPrototype: true,
          },
        )
        const samples = fc.sample(fc.tuple(phrase, metadata), 300)
        const user = newUser()
        const entries = samples.map(([text, metadata], index) =>
          search(user, text, { occurred_at: at(index), metadata }),
        )
        expect(new Set(tags(yield* log.append(entries)))).toEqual(new Set(["Recorded"]))
        const stored = (yield* interactionsOf({ user })).toSorted(Interaction.chronological)
        expect(stored).toEqual(entries.map(({ interaction }) => interaction))
      }))

    it("phrases and ids that differ in case, accents or spaces are different", () =>
      Effect.gen(function* () {
        const user = newUser()
        const phrases = ["café", "cafe", "Café", "café ", "ß", "ss", "👟", "👟🏽", "日本語".repeat(85)]
        const upper = user.toUpperCase()
        const entries = [
          ...phrases.map((phrase) => search(user, phrase)),
          search(upper, "café"),
          ...["A", "a"].map((key) => search(user, `by key ${key}`, { idempotencyKey: key })),
        ]
        expect(new Set(tags(yield* append(...entries)))).toEqual(new Set(["Recorded"]))
        expect((yield* interactionsOf({ user })).map((stored) => stored.search_phrase).toSorted()).toEqual(
          [...phrases, "by key A", "by key a"].toSorted(),
        )
        expect(yield* interactionsOf({ user: upper })).toHaveLength(1)
      }))

    it("timestamps from 1970 to 9999 are stored unchanged", () =>
      Effect.gen(function* () {
        const user = newUser()
        const instants = ["1970-01-01T00:00:00.000Z", "2026-03-29T02:30:00.001Z", "9999-12-31T23:59:59.999Z"]
        for (const occurred_at of instants) yield* append(view(user, "p", { occurred_at }))
        expect((yield* interactionsOf({ user })).map(({ occurred_at }) => occurred_at)).toEqual(instants)
      }))

    it("an existing message id is answered with the interaction in the log", () =>
      Effect.gen(function* () {
        const user = newUser()
        const first = view(user, "p", { metadata: { device: "mobile" } })
        yield* append(first)
        const [again] = yield* append(view(user, "p", { metadata: { device: "desktop" } }))
        expect(again).toEqual({ _tag: "Duplicate", interaction: first.interaction })
        expect(yield* rowsOf({ user })).toHaveLength(1)
      }))

    it("a batch with some existing interactions records the others, and answers are in the order of the batch", () =>
      Effect.gen(function* () {
        const user = newUser()
        const entries = Array.from({ length: 40 }, (_, index) => view(user, `p-${index}`))
        yield* append(...entries.filter((_, index) => index % 3 === 0))
        const answers = yield* append(...entries)
        expect(tags(answers)).toEqual(entries.map((_, index) => (index % 3 === 0 ? "Duplicate" : "Recorded")))
        expect(answers.map(({ interaction }) => interaction)).toEqual(
          entries.map(({ interaction }) => interaction),
        )
      }))

    it("a replayed key is answered with the first interaction, although its default occurred_at differs", () =>
      Effect.gen(function* () {
        const user = newUser()
        const facts = { idempotencyKey: "order 1", occurredAtGiven: false }
        const first = view(user, "p", { ...facts, metadata: { a: 1, b: "ü" } })
        yield* append(first)
        const [again] = yield* append(
          view(user, "p", { ...facts, occurred_at: at(60), metadata: { b: "ü", a: 1 } }),
        )
        expect(again).toEqual({ _tag: "Duplicate", interaction: first.interaction })
        expect(yield* rowsOf({ user })).toHaveLength(1)
      }))

    it("a key is reused when another interaction comes with it", () =>
      Effect.gen(function* () {
        const user = newUser()
        const facts = { idempotencyKey: "k", occurredAtGiven: false, metadata: { a: 1 } }
        const first = view(user, "p", facts)
        yield* append(first)
        const answers = yield* append(
          view(user, "q", facts),
          search(user, "p", facts),
          view(user, "p", { ...facts, occurred_at: at(1), metadata: { a: 2 } }),
          view(user, "p", { ...facts, occurred_at: at(1), occurredAtGiven: true }),
        )
        expect(answers).toEqual(
          answers.map(() => ({ _tag: "KeyReused" as const, interaction: first.interaction })),
        )
        expect(yield* rowsOf({ user })).toHaveLength(1)
      }))

    it("a key is reused when an existing message id comes with the key of another interaction", () =>
      Effect.gen(function* () {
        const user = newUser()
        const keyed = view(user, "p", { idempotencyKey: "k" })
        yield* append(keyed, view(user, "q"))
        expect(yield* append(view(user, "q", { idempotencyKey: "k" }))).toEqual([
          { _tag: "KeyReused", interaction: keyed.interaction },
        ])
      }))

    it("the same key of two users is two keys", () =>
      Effect.gen(function* () {
        const keyed = { idempotencyKey: "same" }
        expect(tags(yield* append(view(newUser(), "p", keyed), view(newUser(), "p", keyed)))).toEqual([
          "Recorded",
          "Recorded",
        ])
      }))

    it("keys that differ only in trailing spaces are equal", () =>
      Effect.gen(function* () {
        const user = newUser()
        yield* append(view(user, "p", { idempotencyKey: "k" }))
        expect(tags(yield* append(view(user, "q", { idempotencyKey: "k  " })))).toEqual(["KeyReused"])
      }))

    it("a row that was recorded without a key gets the key of a later replay", () =>
      Effect.gen(function* () {
        const user = newUser()
        const keyed = { idempotencyKey: "late" }
        yield* append(view(user, "p"))
        expect(tags(yield* append(view(user, "p", keyed), view(user, "q", keyed)))).toEqual([
          "Duplicate",
          "KeyReused",
        ])
        expect(tags(yield* append(view(user, "r", keyed)))).toEqual(["KeyReused"])
        expect(yield* rowsOf({ user })).toHaveLength(1)
      }))

    it("duplicates within a batch are answered as if each interaction had been appended alone", () =>
      Effect.gen(function* () {
        const user = newUser()
        const keyed = { idempotencyKey: "k", occurredAtGiven: false }
        const batch = (user: string) => [
          view(user, "p", { metadata: { first: true } }),
          view(user, "p"),
          view(user, "q", keyed),
          view(user, "q", { ...keyed, occurred_at: at(5) }),
          view(user, "r", keyed),
          view(user, "s"),
          view(user, "s", { idempotencyKey: "l" }),
          view(user, "t", { idempotencyKey: "l" }),
        ]
        const inOneBatch = yield* append(...batch(user))
        expect(tags(inOneBatch)).toEqual([
          "Recorded",
          "Duplicate",
          "Recorded",
          "Duplicate",
          "KeyReused",
          "Recorded",
          "Duplicate",
          "KeyReused",
        ])
        expect(inOneBatch[1]?.interaction.metadata).toEqual({ first: true })
        expect(yield* rowsOf({ user })).toHaveLength(3)
        const alone = yield* Effect.forEach(batch(newUser()), (each) => append(each))
        expect(tags(alone.flat())).toEqual(tags(inOneBatch))
        const again = yield* append(...batch(user))
        expect(tags(again)).toEqual(tags(inOneBatch).map((tag) => (tag === "Recorded" ? "Duplicate" : tag)))
      }))

    it("concurrent appends of the same interactions record each of them once", () =>
      Effect.gen(function* () {
        const second = Context.get(yield* Layer.build(other), InteractionLog)
        const first = yield* InteractionLog
        const user = newUser()
        const entries = Array.from({ length: 60 }, (_, index) =>
          view(user, `p-${index}`, { idempotencyKey: index % 2 === 0 ? `k-${index}` : null }),
        )
        const rotated = (by: number) => [...entries.slice(by), ...entries.slice(0, by)]
        const answers = yield* Effect.forEach(
          Array.from({ length: 24 }, (_, index) => index),
          (index) => (index % 2 === 0 ? first : second).append(rotated(index * 2)),
          { concurrency: "unbounded" },
        )
        const recorded = answers.flat().filter(({ _tag }) => _tag === "Recorded")
        expect(recorded.map(({ interaction }) => interaction.message_id).toSorted()).toEqual(
          entries.map(({ interaction }) => interaction.message_id).toSorted(),
        )
        expect(new Set(tags(answers.flat()))).toEqual(new Set(["Recorded", "Duplicate"]))
        expect(yield* rowsOf({ user })).toHaveLength(entries.length)
      }))

    it("only one of many concurrent appends gets a key", () =>
      Effect.gen(function* () {
        const user = newUser()
        const answers = yield* Effect.forEach(
          Array.from({ length: 24 }, (_, index) => index),
          (index) => append(view(user, `p-${index}`, { idempotencyKey: "one" })),
          { concurrency: "unbounded" },
        )
        expect(tags(answers.flat()).toSorted()).toEqual([...Array(23).fill("KeyReused"), "Recorded"])
        expect(yield* rowsOf({ user })).toHaveLength(1)
      }))

    it("accepts 1,000 interactions with the largest metadata, and more than fit into one statement", () =>
      Effect.gen(function* () {
        const user = newUser()
        const metadata = { note: "x'\\\"é".repeat(600) }
        const entries = Array.from({ length: 1_000 }, (_, index) =>
          view(user, `p-${index}`, { metadata: index < 300 ? metadata : {}, idempotencyKey: `key ${index}` }),
        )
        expect(new Set(tags(yield* append(...entries)))).toEqual(new Set(["Recorded"]))
        const more = Array.from({ length: 1_300 }, (_, index) => view(user, `p-${index + 400}`))
        const answers = tags(yield* append(...more))
        expect(answers).toEqual(more.map((_, index) => (index < 600 ? "Duplicate" : "Recorded")))
        expect(yield* rowsOf({ user })).toHaveLength(1_700)
      }))

    it("unpublished rows are read oldest first until they are marked published", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const drain = Effect.gen(function* () {
          while (true) {
            const rows = yield* log.unpublished({ limit: 5_000, recordedBy: 1_900_000_000_000 })
            if (rows.length === 0) return
            yield* log.markPublished(rows, 1_770_000_000_000)
          }
        })
        yield* drain
        const user = newUser()
        const entries = Array.from({ length: 6 }, (_, index) =>
          view(user, `p-${index}`, { recordedAt: 1_771_000_000_000 + index }),
        )
        const appended = yield* Effect.forEach(entries, (each) => recorded(each))
        const products = (limit: number, last: number) =>
          Effect.map(log.unpublished({ limit, recordedBy: 1_771_000_000_000 + last }), (rows) =>
            rows.map(({ interaction }) => interaction.product_id),
          )
        expect(yield* products(10, 5)).toEqual(["p-0", "p-1", "p-2", "p-3", "p-4", "p-5"])
        expect(yield* products(2, 5)).toEqual(["p-0", "p-1"])
        expect(yield* products(10, 3)).toEqual(["p-0", "p-1", "p-2", "p-3"])
        const before = yield* log.backlog
        expect(before.unpublished).toBe(6)
        expect(before.total).toBeGreaterThanOrEqual(6)
        expect(before.oldestUnpublishedSeconds).toBeGreaterThan(0)
        yield* log.markPublished(
          [0, 2, 4].flatMap((index) => appended[index] ?? []),
          1_771_000_001_000,
        )
        expect(yield* products(10, 5)).toEqual(["p-1", "p-3", "p-5"])
        yield* log.markPublished([], 1_771_000_001_000)
        yield* drain
        expect(yield* log.backlog).toEqual({
          total: before.total,
          unpublished: 0,
          oldestUnpublishedSeconds: null,
        })
      }))

    it("streams are filtered by user, type and time: since inclusive, until exclusive", () =>
      Effect.gen(function* () {
        const [user, otherUser] = [newUser(), newUser()]
        yield* append(
          ...[0, 1, 2, 3].map((second) => view(user, `p-${second}`, { occurred_at: at(second) })),
          search(user, "shoes", { occurred_at: at(2) }),
          view(otherUser, "p-2", { occurred_at: at(2) }),
        )
        const references = (filter: LogFilter) =>
          Effect.map(interactionsOf(filter), (found) => found.map(Interaction.referenceOf).toSorted())
        expect(yield* references({ user })).toEqual(["p-0", "p-1", "p-2", "p-3", "shoes"])
        expect(yield* references({ user, type: "search" })).toEqual(["shoes"])
        expect(yield* references({ user, since: at(1), until: at(3) })).toEqual(["p-1", "p-2", "shoes"])
        expect(yield* references({ user, since: at(2.001) })).toEqual(["p-3"])
        yield* append(view(user, "p-late", { occurred_at: at(0), recordedAt: Date.parse(at(50)) }))
        expect(yield* references({ user, recordedSince: at(50) })).toEqual(["p-late"])
        expect(yield* references({ user, recordedSince: at(50.001) })).toEqual([])
        const all = yield* interactionsOf({ since: at(2), until: at(2.001) })
        expect(new Set(all.map(({ user_id }) => user_id))).toEqual(
          new Set([...all.map(({ user_id }) => user_id), user, otherUser]),
        )
      }))

    it("a stream of several pages has neither gaps nor repetitions, and may be ended early", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const entries = Array.from({ length: 1_203 }, (_, index) => view(user, `p-${index}`))
        yield* append(...entries)
        const found = yield* interactionsOf({ user })
        expect(found).toHaveLength(1_203)
        expect(new Set(found.map(({ message_id }) => message_id)).size).toBe(1_203)
        expect(yield* log.stream({ user }).pipe(Stream.take(3), Stream.runCount)).toBe(3)
      }))

    it("all message ids are ordered by user, over many pages and among many users", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const owned = [newUser(), newUser(), newUser()] as const
        const many = Array.from({ length: 5_100 }, (_, index) =>
          view(owned[1], `p-${index}`, { occurred_at: at(index % 7) }),
        )
        const entries = [...many, view(owned[2], "q"), view(owned[0], "q"), search(owned[0], "q")]
        for (let i = 0; i < entries.length; i += 1_000) yield* log.append(entries.slice(i, i + 1_000))
        const all = [...(yield* Stream.runCollect(log.messageIds))].flat()
        const ids = all.map(({ user_id }) => user_id)
        expect(ids).toEqual(ids.toSorted((a, b) => (a < b ? -1 : a > b ? 1 : 0)))
        for (const user of owned)
          expect(
            all.flatMap(({ message_id, user_id }) => (user_id === user ? [message_id] : [])).toSorted(),
          ).toEqual(
            entries
              .flatMap(({ interaction }) => (interaction.user_id === user ? [interaction.message_id] : []))
              .toSorted(),
          )
      }))

    it("message ids are found by their prefix", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const entries = Array.from({ length: 250 }, (_, index) => view(user, `p-${index}`))
        yield* append(...entries)
        const prefixes = entries.map(({ interaction }) => interaction.message_id.slice(0, 32))
        const unknown = prefixes.map((prefix) => [...prefix].toReversed().join(""))
        expect(yield* log.existingIds([...unknown, ...prefixes])).toEqual(new Set(prefixes))
        expect(yield* log.existingIds([])).toEqual(new Set())
      }))

    it("rows tell whether they are published", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const [first, second] = [
          view(user, "p", { occurred_at: at(1) }),
          view(user, "q", { occurred_at: at(2) }),
        ]
        yield* append(first)
        yield* log.markPublished([yield* recorded(second)], 1_771_000_001_000)
        expect((yield* rowsOf({ user })).map(({ published }) => published)).toEqual([false, true])
      }))

    it("a late confirmation does not mark an interaction that was erased and recorded again", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const erased = yield* recorded(view(user, "p"))
        yield* log.erase(user, yield* log.maxId)
        const again = yield* recorded(view(user, "p"))
        const published = Effect.map(rowsOf({ user }), (rows) => rows.map((row) => row.published))
        yield* log.markPublished([erased], 1_771_000_001_000)
        expect(yield* published).toEqual([false])
        yield* log.markPublished([again], 1_771_000_001_000)
        expect(yield* published).toEqual([true])
      }))

    it("appends answer the ids of their rows, also when many of several processes run at once", () =>
      Effect.gen(function* () {
        const second = Context.get(yield* Layer.build(other), InteractionLog)
        const first = yield* InteractionLog
        const user = newUser()
        const sizes = [1, 2, 3, 7, 16, 17, 64, 300, 1, 33, 256, 5, 1_100, 128, 31, 2]
        const answers = yield* Effect.forEach(
          sizes,
          (size, batch) =>
            (batch % 2 === 0 ? first : second).append(
              // Every third interaction of a batch is a duplicate of the one before.
              Array.from({ length: size }, (_, i) => view(user, `p-${batch}-${i % 3 === 2 ? i - 1 : i}`)),
            ),
          { concurrency: "unbounded" },
        )
        const answered = answers
          .flat()
          .flatMap((answer) =>
            answer._tag === "Recorded" ? [`${answer.id} ${answer.interaction.message_id}`] : [],
          )
        const stored = (yield* rowsOf({ user })).map(
          ({ id, interaction }) => `${id} ${interaction.message_id}`,
        )
        expect(answered.toSorted()).toEqual(stored.toSorted())
      }))

    it("the newest interactions are the latest by occurred_at", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const entries = [3, 1, 2, 2, 0].map((second, index) =>
          view(user, `p-${index}`, { occurred_at: at(second) }),
        )
        yield* append(...entries, view(newUser(), "p", { occurred_at: at(9) }))
        const expected = entries
          .map(({ interaction }) => interaction)
          .toSorted((a, b) => Interaction.chronological(b, a))
        const newest = (limit: number) =>
          Effect.map(log.newest(user, limit), (rows) => rows.map(({ interaction }) => interaction))
        expect(yield* newest(10)).toEqual(expected)
        expect(yield* newest(2)).toEqual(expected.slice(0, 2))
      }))

    it("the rows recorded last are read for all users, whatever their occurred_at", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const entries = [3, 1, 2].map((second) =>
          view(newUser(), "p", { occurred_at: at(second), recordedAt: 1_770_000_000_000 + second }),
        )
        for (const entry of entries) yield* append(entry)
        expect(
          (yield* log.lastRecorded(2)).map(({ interaction, recordedAt }) => ({ interaction, recordedAt })),
        ).toEqual(
          [2, 1].map((index) => ({
            interaction: entries[index]!.interaction,
            recordedAt: entries[index]!.recordedAt,
          })),
        )
      }))

    it("the age of the oldest of the newest rows is known for any number of them", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        for (const seconds of [30, 20, 10])
          yield* append(
            view(newUser(), "p", { occurred_at: at(seconds), recordedAt: Date.now() - 1_000 * seconds }),
          )
        for (const [rank, seconds] of [
          [1, 10],
          [3, 30],
        ] as const) {
          const age = yield* log.ageOfNewest(rank)
          expect(age).toBeGreaterThanOrEqual(seconds)
          expect(age).toBeLessThan(seconds + 10)
        }
        // More than there are rows: the first row.
        expect(yield* log.ageOfNewest(1e9)).toBeGreaterThanOrEqual(30)
      }))

    it("a merge makes two ids one person, once, and is refused where it contradicts earlier ones", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [guest, customer, third, other] = [newUser(), newUser(), newUser(), newUser()]
        const first = merge(customer, guest)
        expect(
          tags(yield* append(view(guest, "p"), first, merge(customer, guest, { occurred_at: at(9) }))),
        ).toEqual(["Recorded", "Recorded", "Duplicate"])
        const [again] = yield* append(merge(customer, guest, { occurred_at: at(5), idempotencyKey: "k" }))
        expect(again).toEqual({ _tag: "Duplicate", interaction: first.interaction })
        expect(tags(yield* append(view(customer, "p", { idempotencyKey: "k" })))).toEqual(["KeyReused"])
        expect(yield* log.person(guest)).toEqual({ user_id: customer, ids: [guest, customer] })
        expect(yield* append(merge(other, guest), merge(guest, customer))).toMatchObject([
          { _tag: "Refused", detail: `${guest} is already an alias of ${customer}` },
          { _tag: "Refused", detail: `${guest} is already an alias of ${customer}` },
        ])
        expect(tags(yield* append(merge(third, customer), merge(third, guest)))).toEqual([
          "Recorded",
          "Duplicate",
        ])
        for (const refused of [merge(guest, third), merge(customer, third)])
          expect(tags(yield* append(refused))).toEqual(["Refused"])
        expect(yield* log.person(customer)).toEqual({ user_id: third, ids: [guest, customer, third] })
        expect(yield* log.person(other)).toEqual({ user_id: other, ids: [other] })
        expect(new Map([...(yield* log.aliases)].filter(([, owner]) => owner === third))).toEqual(
          new Map([
            [guest, third],
            [customer, third],
          ]),
        )
      }))

    it("the rows of all ids are those of the person", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [guest, customer] = [newUser(), newUser()]
        yield* append(
          view(guest, "p", { occurred_at: at(1) }),
          view(customer, "p", { occurred_at: at(2) }),
          view(guest, "q", { occurred_at: at(3) }),
          merge(customer, guest, { occurred_at: at(4) }),
        )
        // Of a late batch. More rows than one page has.
        yield* append(
          ...Array.from({ length: 600 }, (_, i) => view(guest, "late", { occurred_at: at(10 + i) })),
        )
        for (const user of [guest, customer]) {
          const rows = yield* interactionsOf({ user })
          expect(rows.map(({ occurred_at }) => occurred_at)).toEqual(
            [1, 2, 3, 4, ...Array.from({ length: 600 }, (_, i) => 10 + i)].map(at),
          )
          expect(
            (yield* log.newest(user, 602)).map(({ interaction }) => interaction.product_id).slice(-2),
          ).toEqual(["q", "p"])
          const found = yield* log.productEvents(user, { among: ["late", "p", "q", "unseen"] })
          const events = found.map(({ events, product_id }) => [product_id, events])
          expect(events.toSorted()).toEqual([
            ["late", 600],
            ["p", 2],
            ["q", 1],
          ])
        }
        expect(yield* interactionsOf({ postedAs: customer })).toHaveLength(2)
      }))

    it("merges at the same time form no circle, and each id is merged once", () =>
      Effect.gen(function* () {
        const logs = [yield* InteractionLog, Context.get(yield* Layer.build(other), InteractionLog)]
        const ids = Array.from({ length: 6 }, newUser)
        const merges = ids.flatMap((into) =>
          ids.filter((from) => from !== into).map((from) => merge(into, from)),
        )
        const answers = yield* Effect.forEach(
          merges.toSorted((a, b) => (a.interaction.message_id < b.interaction.message_id ? -1 : 1)),
          (one, index) => logs[index % 2]!.append([one]),
          { concurrency: "unbounded" },
        )
        expect(tags(answers.flat()).filter((tag) => tag === "Recorded")).toHaveLength(ids.length - 1)
        const people = yield* Effect.forEach(ids, (id) => logs[0]!.person(id))
        expect(new Set(people.map(({ user_id }) => user_id)).size).toBe(1)
        for (const { ids: all } of people) expect(all.toSorted()).toEqual(ids.toSorted())
      }))

    it("an erasure begins for all ids of a person, and a repetition finds them when their links are gone", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [guest, customer, third] = [newUser(), newUser(), newUser()]
        yield* append(view(guest, "p"), merge(customer, guest), merge(third, customer))
        const begun = yield* log.beginErasure([guest])
        expect(begun.users).toEqual([guest, customer, third])
        expect(yield* log.erase(guest, begun.upTo)).toBe(1)
        expect(yield* log.erase(customer, begun.upTo)).toBe(1)
        expect(yield* log.person(guest)).toEqual({ user_id: guest, ids: [guest] })
        // As if the erasure had failed here.
        const again = yield* log.beginErasure([guest])
        expect(again.users.toSorted()).toEqual([guest, customer, third].toSorted())
        expect(yield* log.erase(third, again.upTo)).toBe(1)
        for (const user of again.users) yield* log.finishErasure(user, again.token, again.upTo)
        expect((yield* log.beginErasure([guest])).users).toEqual([guest])
        expect(tags(yield* append(merge(guest, third)))).toEqual(["Recorded"])
      }))

    it("an erased interaction can be recorded again", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [user, otherUser] = [newUser(), newUser()]
        const entries = [view(user, "p", { idempotencyKey: "k" }), view(user, "q")]
        yield* append(...entries, view(otherUser, "p"))
        expect(yield* log.erase(user, yield* log.maxId)).toBe(2)
        expect(yield* log.erase(user, yield* log.maxId)).toBe(0)
        expect(yield* rowsOf({ user })).toEqual([])
        expect(yield* rowsOf({ user: otherUser })).toHaveLength(1)
        expect(tags(yield* append(...entries))).toEqual(["Recorded", "Recorded"])
      }))

    it("rows up to an id are erased in pages", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        yield* append(...Array.from({ length: 1_100 }, (_, index) => view(user, `p-${index}`)))
        const ids = (yield* rowsOf({ user })).map(({ id }) => id).toSorted((a, b) => a - b)
        expect(yield* log.erase(user, ids[1_097]!)).toBe(1_098)
        expect((yield* rowsOf({ user })).map(({ id }) => id)).toEqual(ids.slice(1_098))
      }))

    it("rows that survive a finished erasure get new ids in the outbox, and are otherwise unchanged", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const trace = { traceparent: `00-${"ab".repeat(16)}-${"cd".repeat(8)}-01`, tracestate: "a=b" }
        const facts = {
          idempotencyKey: "k",
          trace,
          metadata: { device: "phone" },
          recordedAt: 1_770_000_000_123,
        }
        const survivors = [search(user, "tent \u{1f3d5} 'x'", facts), ...views(user, 700)]
        yield* append(...survivors)
        const before = yield* rowsOf({ user })
        yield* log.markPublished(before, 1_771_000_001_000)
        const other = yield* recorded(view(newUser(), "p"))
        expect(yield* log.renewSurvivors(user)).toBe(0)

        const token = (yield* log.beginErasure([user])).token
        expect(yield* log.renewSurvivors(user)).toBe(0)
        const upTo = yield* log.maxId
        yield* log.finishErasure(user, token, upTo)
        const noted = (yield* log.finishedErasures).filter(({ user_id }) => user_id === user)
        expect(noted).toEqual([{ user_id: user, token, ageMillis: expect.any(Number), hasSurvivors: true }])
        // By the clock of the database, which may be another machine's.
        expect(noted[0]!.ageMillis).toBeGreaterThanOrEqual(0)
        expect(noted[0]!.ageMillis).toBeLessThan(10_000)
        expect(yield* log.renewSurvivors(user)).toBe(701)
        const after = yield* rowsOf({ user })
        expect(after.every(({ id, published }) => id > upTo && !published)).toBe(true)
        const facets = (rows: typeof after) =>
          rows
            .map(({ id: _, published: __, ...rest }) => rest)
            .toSorted((a, b) => (a.interaction.message_id < b.interaction.message_id ? -1 : 1))
        expect(facets(after)).toEqual(facets(before))
        expect(tags(yield* append(survivors[0]!))).toEqual(["Duplicate"])
        expect(yield* interactionsOf({})).toContainEqual(other.interaction)

        // A row with a greater id is left alone.
        expect(yield* log.renewSurvivors(user)).toBe(0)
        for (const erasure of yield* log.finishedErasures) {
          if (erasure.user_id !== user) continue
          expect(erasure.hasSurvivors).toBe(false)
          yield* log.forgetErasure({ ...erasure, token: "of another erasure" })
          yield* log.forgetErasure(erasure)
        }
        expect((yield* log.finishedErasures).filter(({ user_id }) => user_id === user)).toEqual([])
      }))

    it("an erasure that begins ends the notes of earlier ones, so that no row escapes it", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        yield* append(view(user, "p"))
        const first = (yield* log.beginErasure([user])).token
        const second = (yield* log.beginErasure([user])).token
        expect(second).not.toBe(first)
        yield* log.finishErasure(user, first, yield* log.maxId)
        expect(yield* log.renewSurvivors(user)).toBe(0)
        yield* log.finishErasure(user, second, yield* log.maxId)
        yield* log.beginErasure([user])
        expect(yield* log.renewSurvivors(user)).toBe(0)
        expect((yield* log.finishedErasures).some(({ user_id }) => user_id === user)).toBe(false)
      }))

    it("rows that several processes renew at once are renewed once", () =>
      Effect.gen(function* () {
        const first = yield* InteractionLog
        const second = Context.get(yield* Layer.build(other), InteractionLog)
        const user = newUser()
        yield* append(...views(user, 900))
        const token = (yield* first.beginErasure([user])).token
        yield* first.finishErasure(user, token, yield* first.maxId)
        const renewed = yield* Effect.forEach(
          [first, second, first, second],
          (log) => log.renewSurvivors(user),
          { concurrency: "unbounded" },
        )
        expect(renewed.reduce((sum, rows) => sum + rows, 0)).toBe(900)
        expect(yield* rowsOf({ user })).toHaveLength(900)
      }))

    it("one process at a time holds the leader lock", () =>
      Effect.gen(function* () {
        const second = Context.get(yield* Layer.build(other), InteractionLog)
        const first = yield* InteractionLog
        const acquired = yield* Deferred.make<void>()
        const done = yield* Deferred.make<void>()
        const relay = yield* Effect.fork(
          first.withLeaderLock(Effect.zipRight(Deferred.succeed(acquired, undefined), Deferred.await(done))),
        )
        yield* Deferred.await(acquired)
        let ran = 0
        const run = Effect.sync(() => void ran++)
        expect(yield* second.withLeaderLock(run)).toBe(false)
        expect(yield* first.withLeaderLock(run)).toBe(false)
        expect(ran).toBe(0)
        yield* Deferred.succeed(done, undefined)
        expect(yield* Fiber.join(relay)).toBe(true)
        expect(yield* second.withLeaderLock(run)).toBe(true)
        expect(ran).toBe(1)
      }))

    it("the leader lock is free again at once, for the same and for another process", () =>
      Effect.gen(function* () {
        const second = Context.get(yield* Layer.build(other), InteractionLog)
        const first = yield* InteractionLog
        for (let round = 0; round < 20; round++)
          expect(yield* (round % 2 === 0 ? first : second).withLeaderLock(Effect.void)).toBe(true)
      }))

    it("the leader lock is released when the effect fails or is interrupted", () =>
      Effect.gen(function* () {
        const second = Context.get(yield* Layer.build(other), InteractionLog)
        const first = yield* InteractionLog
        expect(yield* Effect.exit(first.withLeaderLock(Effect.fail("no broker")))).toEqual(
          Exit.fail("no broker"),
        )
        const acquired = yield* Deferred.make<void>()
        const relay = yield* Effect.fork(
          first.withLeaderLock(Effect.zipRight(Deferred.succeed(acquired, undefined), Effect.never)),
        )
        yield* Deferred.await(acquired)
        yield* Fiber.interrupt(relay)
        expect(yield* second.withLeaderLock(Effect.void)).toBe(true)
      }))

    it("the products that a user bought or viewed are found, however old the interactions are", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [user, otherUser] = [newUser(), newUser()]
        const buy = (product_id: string, second: number) => ({
          ...view(user, product_id),
          interaction: Interaction.make({
            user_id: user,
            event_type: "product_purchase",
            product_id,
            occurred_at: at(second),
            metadata: {},
          }),
        })
        yield* append(buy("old", -300_000_000), buy("new", 0), buy("new", 1), search(user, "shoes"))
        yield* append(view(user, "seen"), view(otherUser, "unseen"))
        const ordered = (rows: ReadonlyArray<ProductEvents>) =>
          rows.toSorted((a, b) => (a.product_id < b.product_id ? -1 : 1))
        const bought = [
          { product_id: "new", event_type: "product_purchase", events: 2 },
          { product_id: "old", event_type: "product_purchase", events: 1 },
        ]
        const all = [...bought, { product_id: "seen", event_type: "product_view", events: 1 }]
        const among = ["old", "new", "seen", "unseen"]
        const types = ["product_purchase", "product_view"]
        expect(ordered(yield* log.productEvents(user, { among, types: ["product_purchase"] }))).toEqual(
          bought,
        )
        expect(ordered(yield* log.productEvents(user, { among, types }))).toEqual(all)
        expect(ordered(yield* log.productEvents(user, { among }))).toEqual(all)
        expect(ordered(yield* log.productEvents(user, { among: ["new", "seen"] }))).toEqual(
          all.filter(({ product_id }) => product_id !== "old"),
        )
        expect(yield* log.productEvents(user, { among: [] })).toEqual([])
        expect(yield* log.productEvents(newUser(), { among })).toEqual([])
      }))

    it("refunds of an order are noted together, for all ids of the person, until one is erased", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [user, guest] = [newUser(), newUser()]
        const byOrder = (a: OrderRefund, b: OrderRefund) => (a.order_id < b.order_id ? -1 : 1)
        const all = Effect.map(log.refundsOf([user]), (refunds) => refunds.toSorted(byOrder))
        const noted = Effect.map(all, (refunds) =>
          refunds.find(({ order_id }) => order_id === "Ä-1")?.products.toSorted(),
        )
        expect(yield* noted).toBeUndefined()
        yield* log.noteRefunds([{ user_id: user, order_id: "Ä-1", products: ["2", "1"] }])
        yield* log.noteRefunds([{ user_id: user, order_id: "Ä-1", products: ["2", "3"] }])
        for (const order_id of ["ä-1", "Ä-2"])
          yield* log.noteRefunds([{ user_id: user, order_id, products: ["9"] }])
        expect(yield* noted).toEqual(["1", "2", "3"])
        expect(yield* log.refundsOf([])).toEqual([])
        expect((yield* all).map(({ order_id, user_id }) => [user_id, order_id])).toEqual([
          [user, "Ä-1"],
          [user, "Ä-2"],
          [user, "ä-1"],
        ])
        yield* log.noteRefunds([{ user_id: guest, order_id: "Ä-1", products: [] }])
        expect(yield* noted).toEqual(["1", "2", "3"])
        yield* append(entry(Interaction.merge(user, guest, at(0)), {}))
        expect(yield* noted).toEqual([])
        expect((yield* log.refundsOf([guest, user])).toSorted(byOrder)).toEqual(yield* all)
        yield* log.erase(guest, 0)
        expect(yield* noted).toEqual(["1", "2", "3"])
        yield* log.erase(user, 0)
        expect(yield* noted).toBeUndefined()
        const many = Array.from({ length: 2_500 }, (_, index) => String(index))
        yield* log.noteRefunds([{ user_id: user, order_id: "Ä-1", products: many }])
        expect((yield* noted)?.length).toBe(2_500)
      }))

    it("interactions are taken back once, unless they are gone or an erasure of the person has begun", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [user, guest] = [newUser(), newUser()]
        const purchases = ["1", "2", "3"].map((product_id) => view(guest, product_id))
        const [first, second, gone] = purchases.map(({ interaction }) => ({
          ...view(guest, "-"),
          interaction: Interaction.retract(interaction),
        }))
        yield* append(merge(user, guest), ...purchases.slice(0, 2))
        const retracted = Effect.map(rowsOf({ user, type: "retraction" }), (rows) =>
          rows.map(({ id, interaction }) => [id, interaction.reference]),
        )
        const taken = yield* log.takeBack([gone!, first!])
        expect(taken.map(({ interaction }) => interaction)).toEqual([first!.interaction])
        expect(yield* log.takeBack([first!])).toEqual([])
        const all = taken.map(({ id, interaction }) => [id, interaction.reference])
        expect(yield* retracted).toEqual(all)
        yield* log.beginErasure([user])
        expect(yield* log.takeBack([second!])).toEqual([])
        expect(yield* retracted).toEqual(all)
      }))

    it("the pruned purchases of an order are found under every id of the person, until one is erased", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const [user, guest] = [newUser(), newUser()]
        const buy = (product_id: string, order_id: string | number) =>
          Interaction.make({
            user_id: guest,
            event_type: "product_purchase",
            product_id,
            occurred_at: at(0),
            metadata: { order_id },
          })
        const [kept, taken, other] = [buy("1", "Ä-1"), buy("2", "Ä-1"), buy("1", 2)]
        const interactions = [kept, taken, other, Interaction.retract(taken)]
        yield* append(...interactions.map((one) => entry(one, {})))
        const ids = Array.from(yield* Stream.runCollect(log.stream({ user: guest })), ({ id }) => id)
        const settings = { lambda: 0, weights: {}, history: "cumulative", space: "none" } as const
        const pruning = { parts: [{ user_id: guest, interactions, events: [] }], ids, again: [], settings }
        expect(yield* log.pruned.purchases(guest, ["Ä-1"])).toEqual([])
        expect(yield* log.pruned.prune(pruning)).toBe(true)
        yield* append(entry(Interaction.merge(user, guest, at(1)), {}))
        for (const id of [user, guest]) {
          const found = yield* log.pruned.purchases(id, ["Ä-1", "ä-1", "3"])
          expect(found.toSorted((a, b) => (a.product_id < b.product_id ? -1 : 1))).toEqual([
            { order_id: "Ä-1", product_id: "1", taken_back: false },
            { order_id: "Ä-1", product_id: "2", taken_back: true },
          ])
        }
        expect(yield* log.pruned.purchases(user, ["2"])).toHaveLength(1)
        yield* log.erase(guest, yield* log.maxId)
        expect(yield* log.pruned.purchases(guest, ["Ä-1"])).toEqual([])
      }))

    it("interactions are counted per product and day between two row ids", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = newUser()
        const day = (iso: string) => ({ occurred_at: iso })
        const before = yield* log.maxId
        yield* append(
          view(user, "counted", day("2026-02-10T00:00:00.000Z")),
          view(user, "counted", day("2026-02-10T23:59:59.999Z")),
          view(user, "counted", day("2026-02-11T00:00:00.000Z")),
          search(user, "shoes"),
        )
        const between = yield* log.maxId
        yield* append(view(user, "other", day("2026-02-10T12:00:00.000Z")))
        const counts = yield* log.productCounts(["product_view"], before, between)
        expect(counts.toSorted((a, b) => (a.day < b.day ? -1 : 1))).toEqual([
          { product_id: "counted", day: "2026-02-10", interactions: 2 },
          { product_id: "counted", day: "2026-02-11", interactions: 1 },
        ])
        expect(yield* log.productCounts(["product_view"], between, yield* log.maxId)).toEqual([
          { product_id: "other", day: "2026-02-10", interactions: 1 },
        ])
        expect(
          yield* log.productCounts(["product_view"], yield* log.maxId, (yield* log.maxId) + 1_000),
        ).toEqual([])
        expect(yield* log.productCounts(["product_click"], before, between)).toEqual([])
      }))
  })
