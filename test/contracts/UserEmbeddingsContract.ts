/** What every store of user embeddings promises. */
import { expect } from "bun:test"
import { Array as Arr, Chunk, Effect, type Layer, Stream } from "effect"
import fc from "fast-check"
import { defaults } from "../../src/services/model/EventTypes.ts"
import type { RecentEvent, UserEmbedding } from "../../src/services/model/UserEmbedding.ts"
import { toBytes } from "../../src/services/model/Vector.ts"
import { type LedgerEntry, UserEmbeddings, type Write } from "../../src/services/ports/UserEmbeddings.ts"
import { layerSuite } from "../support/effect.ts"

type Stored = Write["record"] & { readonly embedding: UserEmbedding }

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex")
const id = fc.string({
  minLength: 1,
  maxLength: 50,
  unit: fc.constantFrom(..."abcXYZ0189._:-"),
})
const double = fc.double({ min: 0, max: 1e9, noNaN: true })
const int = fc.nat({ max: 1e9 })
const instant = fc.integer({ min: 0, max: 253_402_300_799_999 })
const messageId = fc.uint8Array({ minLength: 32, maxLength: 32 }).map(hex)
const phrase = fc.string({ minLength: 1, maxLength: 50, unit: "grapheme" }).filter((s) => !/\p{Cc}/u.test(s))
const recentEvent: fc.Arbitrary<RecentEvent> = fc.oneof(
  fc.record({
    event_type: fc.constant("search" as const),
    search_phrase: phrase,
    product_id: fc.constant(null),
    occurred_at: instant.map((at) => new Date(at).toISOString()),
    message_id: messageId,
  }),
  fc.record({
    event_type: fc.constantFrom(
      "product_view" as const,
      "product_click" as const,
      "product_purchase" as const,
    ),
    search_phrase: fc.constant(null),
    product_id: id,
    occurred_at: instant.map((at) => new Date(at).toISOString()),
    message_id: messageId,
  }),
)
const userEmbedding: fc.Arbitrary<UserEmbedding> = fc.record({
  user_id: id,
  embedding: fc.float32Array({ minLength: 1, maxLength: 64, noNaN: true, noDefaultInfinity: true }),
  last_updated: instant,
  event_count: int,
  last_event_type: fc.constantFrom(...defaults.names),
  last_event_id: messageId,
  mass: double,
  total_weight: double,
  space: fc.constantFrom("openai:text-embedding-3-small:1536", "local:static:384"),
  history: fc.constantFrom("cumulative" as const, "recency" as const),
  created_at: instant,
  updated_at: instant,
  recent: fc.array(recentEvent, { maxLength: 10 }),
  metadata: fc.record({
    search_count: int,
    view_count: int,
    click_count: int,
    purchase_count: int,
    decay_lambda: double,
    last_recalculation: instant,
  }),
})
const links = fc.record(
  {
    alias_of: id,
    aliases: fc.array(fc.record({ user_id: id, generation: fc.nat(), archived: fc.nat() }), { maxLength: 3 }),
    merging_into: fc.record({
      user_id: id,
      message_id: messageId,
      logId: fc.option(fc.maxSafeNat(), { nil: null }),
      recordedAt: instant,
    }),
  },
  { requiredKeys: [] },
)
const storedRecord: fc.Arbitrary<Stored> = fc
  .record({
    embedding: userEmbedding,
    applied: fc.nat({ max: 20 }).chain((n) => fc.uint8Array({ minLength: 16 * n, maxLength: 16 * n })),
    archived: int,
    erased_at: instant,
    erased_to: fc.option(fc.maxSafeNat(), { nil: null }),
    generation: fc.nat({ max: 1e6 }),
    links: fc.option(links.filter((some) => Object.keys(some).length > 0)),
  })
  .map(({ links, ...record }) => ({
    ...record,
    ...(links && { links }),
    user_id: record.embedding.user_id,
    version: 1,
  }))

/** A record with its vector and ids as hex, so that comparison is exact. */
const bits = (record: { embedding: UserEmbedding | undefined; applied: Uint8Array } | undefined) =>
  record && {
    ...record,
    applied: hex(record.applied),
    embedding: record.embedding && {
      ...record.embedding,
      embedding: hex(toBytes(record.embedding.embedding)),
    },
  }

/** Records with distinct user ids that start with `prefix`, the same in every run. */
const records = (prefix: string, count: number): Array<Stored> =>
  fc.sample(storedRecord, { numRuns: count, seed: 42 }).map((record, i) => {
    const user_id = `${prefix}-${String(i).padStart(4, "0")}`
    return { ...record, user_id, embedding: { ...record.embedding, user_id } }
  })
const one = (prefix: string): Stored => records(prefix, 1)[0]!
const next = (record: Stored, event_count = record.embedding.event_count + 1): Stored => ({
  ...record,
  version: record.version + 1,
  embedding: { ...record.embedding, event_count },
})
const entry = (user_id: string, generation: number, ...ids: ReadonlyArray<string>): LedgerEntry => ({
  user_id,
  generation,
  ids,
})
const erasure = (erased_at: number) => ({ erased_at, erased_to: 3 })
const insert = (record: Stored): Write => ({ record, expected: undefined })
const update = (record: Stored): Write => ({ record, expected: record.version - 1 })

export const suite = <E>(name: string, layer: Layer.Layer<UserEmbeddings, E>) =>
  layerSuite(`${name}: user embeddings`, layer, (it) => {
    const load = (user: string) =>
      Effect.map(
        Effect.flatMap(UserEmbeddings, (users) => users.load([user])),
        (found) => found.get(user),
      )

    it("a record without an embedding keeps its ids, and is no user in the counts", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const count = yield* users.count
        const first = { ...one("emptied"), erased_at: 0, erased_to: null, generation: 0 }
        const emptied = { ...next(first), embedding: undefined, applied: new Uint8Array(48).fill(7) }
        expect(yield* users.save([insert(first)])).toEqual([true])
        expect(yield* users.save([{ record: emptied, expected: first.version }])).toEqual([true])
        expect(bits(yield* load(first.user_id))).toStrictEqual(bits(emptied))
        expect(yield* users.count).toBe(count)
        expect(yield* users.usersAfter("emptied", 1)).not.toContain(first.user_id)
        expect((yield* users.lastWrites([first.user_id])).size).toBe(0)
        const { user_id, applied, archived, version } = emptied
        const facts = Stream.filter(users.bookkeeping, (one) => one.user_id === user_id)
        expect(Chunk.toArray(yield* Stream.runCollect(facts))).toMatchObject([
          { applied, archived, version, event_count: 0 },
        ])
        expect((yield* Stream.runCollect(users.unreadable)).length).toBe(0)
        const again = { ...next(first), version: emptied.version + 1 }
        expect(yield* users.save([{ record: again, expected: emptied.version }])).toEqual([true])
        expect(bits(yield* load(first.user_id))).toStrictEqual(bits(again))
      }))

    it("loads every field of a saved record exactly", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const edge = one("edge")
        const written: ReadonlyArray<Stored> = [
          ...records("exact", 60),
          {
            ...edge,
            applied: new Uint8Array(256 * 16).fill(255),
            embedding: {
              ...edge.embedding,
              embedding: Float32Array.of(0, -0, 1, 0.1, -1e-45, 3.4e38, 1.17549435e-38),
              mass: 1,
              total_weight: 0.1 + 0.2,
              metadata: { ...edge.embedding.metadata, decay_lambda: 0 },
            },
          },
          { ...one("nothing"), applied: new Uint8Array(0), archived: 0, erased_at: 0 },
        ]
        const outcome = yield* users.save(written.map(insert))
        expect(outcome).toEqual(written.map(() => true))
        const found = yield* users.load(written.map(({ user_id }) => user_id))
        expect(found.size).toBe(written.length)
        for (const record of written) expect(bits(found.get(record.user_id))).toStrictEqual(bits(record))

        const renewed = records("exact", 60).map(next)
        expect(yield* users.save(renewed.map(update))).toEqual(renewed.map(() => true))
        const again = yield* users.load(renewed.map(({ user_id }) => user_id))
        for (const record of renewed) expect(bits(again.get(record.user_id))).toStrictEqual(bits(record))
      }))

    it("loads users that have a record, and nothing for no users", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const known = one("known")
        yield* users.save([insert(known)])
        const found = yield* users.load([known.user_id, "unknown", known.user_id])
        expect([...found.keys()]).toEqual([known.user_id])
        expect((yield* users.load([])).size).toBe(0)
        expect(yield* users.save([])).toEqual([])
      }))

    it("of several concurrent writes of one version, exactly one succeeds", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        for (const record of records("race", 25)) {
          const inserts = [0, 1, 2].map((n) => ({ ...record, archived: n }))
          const born = yield* Effect.forEach(inserts, (it) => users.save([insert(it)]), {
            concurrency: "unbounded",
          })
          expect(born.flat().filter(Boolean)).toHaveLength(1)
          expect(bits(yield* load(record.user_id))).toStrictEqual(bits(inserts[born.flat().indexOf(true)]))

          const updates = [10, 11, 12].map((n) => ({ ...next(record), archived: n }))
          const moved = yield* Effect.forEach(updates, (it) => users.save([update(it)]), {
            concurrency: "unbounded",
          })
          expect(moved.flat().filter(Boolean)).toHaveLength(1)
          expect(bits(yield* load(record.user_id))).toStrictEqual(bits(updates[moved.flat().indexOf(true)]))
        }
      }))

    it("returns the outcome of each write in a mixed batch", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const [existing, moved, taken, fresh, gone, last] = records("mixed", 6)
        if (!existing || !moved || !taken || !fresh || !gone || !last) throw new Error("six records")
        yield* users.save([existing, moved, taken, last].map(insert))
        // Another writer has already written the version that the batch writes.
        const theirs = next(moved, 777)
        yield* users.save([update(theirs)])

        const outcome = yield* users.save([
          update(next(existing)),
          update(next(moved, 888)),
          insert({ ...taken, archived: taken.archived + 1 }),
          insert(fresh),
          update(next(gone)),
          update(next(last)),
        ])
        expect(outcome).toEqual([true, false, false, true, false, true])
        const found = yield* users.load([existing, moved, taken, fresh, gone, last].map((r) => r.user_id))
        expect(bits(found.get(existing.user_id))).toStrictEqual(bits(next(existing)))
        expect(bits(found.get(moved.user_id))).toStrictEqual(bits(theirs))
        expect(bits(found.get(taken.user_id))).toStrictEqual(bits(taken))
        expect(bits(found.get(fresh.user_id))).toStrictEqual(bits(fresh))
        expect(found.has(gone.user_id)).toBe(false)
        expect(bits(found.get(last.user_id))).toStrictEqual(bits(next(last)))
      }))

    it(
      "concurrent writers of the same users lose no update and apply none twice",
      () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const crowd = records("crowd", 12).map((record) => ({
            ...record,
            embedding: { ...record.embedding, event_count: 0 },
          }))
          const plan = fc.sample(
            fc.subarray(
              crowd.map(({ user_id }) => user_id),
              { minLength: 3 },
            ),
            {
              numRuns: 48,
              seed: 7,
            },
          )
          const template = new Map(crowd.map((record) => [record.user_id, record]))
          const count = (wanted: ReadonlyArray<string>): Effect.Effect<void, unknown> =>
            Effect.gen(function* () {
              if (wanted.length === 0) return
              const found = yield* users.load(wanted)
              const writes = wanted.map((user): Write => {
                const now = found.get(user)
                return now?.embedding === undefined
                  ? insert(next({ ...template.get(user)!, version: 0 }))
                  : update(next({ ...now, embedding: now.embedding }))
              })
              const outcome = yield* users.save(writes)
              yield* count(wanted.filter((_, i) => !outcome[i]))
            })
          yield* Effect.forEach(Arr.chunksOf(plan, 6), (mine) => Effect.forEach(mine, count), {
            concurrency: "unbounded",
          })
          const found = yield* users.load(crowd.map(({ user_id }) => user_id))
          for (const { user_id } of crowd) {
            const times = plan.filter((wanted) => wanted.includes(user_id)).length
            expect(found.get(user_id)?.embedding?.event_count ?? 0).toBe(times)
            expect(found.get(user_id)?.version ?? 0).toBe(times)
          }
        }),
      30_000,
    )

    it("the applied overflow stores ids per user, also when they are saved twice", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const [a, b, c, d] = fc.sample(messageId, { numRuns: 4, seed: 1 }).map((full) => full.slice(0, 32))
        if (!a || !b || !c || !d) throw new Error("four ids")
        yield* users.saveToLedger("applied", [])
        yield* users.saveToLedger("applied", [entry("ledger", 0, a, b), entry("ledger-2", 7, c)])
        yield* Effect.forEach([1, 2, 3], () => users.saveToLedger("applied", [entry("ledger", 0, b, c)]), {
          concurrency: "unbounded",
        })
        const found = yield* users.findInLedger("applied", [
          entry("ledger", 0, a, b, c, d),
          entry("ledger-2", 7, a, c),
          entry("ledger-3", 0, a),
        ])
        expect(found.get("ledger")).toEqual(new Set([a, b, c]))
        expect(found.get("ledger-2")).toEqual(new Set([c]))
        expect(found.get("ledger-3") ?? new Set()).toEqual(new Set())
        expect((yield* users.findInLedger("applied", [])).size).toBe(0)
      }))

    it("the ledger keeps kinds and generations apart", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const user = "generations"
        const places = (["applied", "skipped"] as const).flatMap((kind) =>
          [0, 1, 12].map((generation) => ({ kind, generation })),
        )
        const idOf = (index: number) => String(index).repeat(32)
        for (const [index, { generation, kind }] of places.entries())
          yield* users.saveToLedger(kind, [entry(user, generation, idOf(index))])
        for (const [index, { generation, kind }] of places.entries()) {
          const wanted = entry(user, generation, ...places.map((_, other) => idOf(other)))
          expect((yield* users.findInLedger(kind, [wanted])).get(user)).toEqual(new Set([idOf(index)]))
          if (kind === "skipped") continue
          const pages = yield* Stream.runCollect(users.overflow([{ user_id: user, generation }]))
          expect([...pages].flat()).toEqual([{ user_id: user, ids: [idOf(index)] }])
        }
      }))

    it("what a late writer leaves in the ledger does not count after an erasure, and can be removed", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const record: Stored = { ...one("late"), generation: 0, erased_at: 0 }
        const { user_id } = record
        const [before, late, skip, valid] = ["a", "b", "c", "d"].map((digit) => digit.repeat(32))
        yield* users.save([insert(record)])
        yield* users.saveToLedger("applied", [entry(user_id, 0, before!)])
        yield* users.erase(user_id, erasure(1000))
        const { generation } = (yield* load(user_id))!
        yield* users.saveToLedger("applied", [entry(user_id, 0, late!), entry(user_id, generation, valid!)])
        yield* users.saveToLedger("skipped", [entry(user_id, 0, skip!), entry(user_id, generation, valid!)])
        const all = [before!, late!, skip!, valid!]
        const found = (kind: "applied" | "skipped", of: number) =>
          Effect.map(users.findInLedger(kind, [entry(user_id, of, ...all)]), (ids) => [
            ...(ids.get(user_id) ?? []),
          ])
        expect(yield* found("applied", generation)).toEqual([valid!])
        expect(yield* found("applied", 0)).toEqual([late!])
        yield* users.removeStaleLedger(user_id)
        for (const kind of ["applied", "skipped"] as const) {
          expect(yield* found(kind, generation)).toEqual([valid!])
          expect(yield* found(kind, 0)).toEqual([])
        }
        yield* users.removeStaleLedger("nobody")
      }))

    it("nothing is stale in the ledger of a user who was never erased", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const record: Stored = { ...one("fresh"), generation: 0, erased_at: 0 }
        yield* users.save([insert(record)])
        yield* users.saveToLedger("applied", [entry(record.user_id, 0, "a".repeat(32))])
        yield* users.removeStaleLedger(record.user_id)
        const [page] = yield* Stream.runCollect(users.overflow([record]))
        expect(page).toEqual([{ user_id: record.user_id, ids: ["a".repeat(32)] }])
      }))

    it("users who have an embedding are listed in pages, in the order of their ids", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const many = records("paged", 7)
        yield* users.save(many.map(insert))
        yield* users.erase(many[3]!.user_id, erasure(1))
        const ids = many.map(({ user_id }) => user_id).filter((_, index) => index !== 3)
        expect(yield* users.usersAfter("paged-", 3)).toEqual(ids.slice(0, 3))
        expect(yield* users.usersAfter(ids[2]!, 2)).toEqual(ids.slice(3, 5))
        expect((yield* users.usersAfter("", 100_000)).filter((id) => id.startsWith("paged-"))).toEqual(ids)
      }))

    it("an erasure leaves a tombstone, and late writes do not succeed", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const record: Stored = { ...one("erased"), erased_at: 0, erased_to: null, generation: 0 }
        const neighbour = one("erased.neighbour")
        yield* users.save([insert(record), insert(neighbour)])
        const ledgerId = "0123456789abcdef".repeat(2)
        const inLedger = [record, neighbour].map(({ generation, user_id }) =>
          entry(user_id, generation, ledgerId),
        )
        yield* users.saveToLedger("applied", inLedger)

        expect(yield* users.erase(record.user_id, { erased_at: 1000, erased_to: 2 ** 40 })).toBe(true)
        const tombstone = {
          user_id: record.user_id,
          version: 2,
          generation: 2,
          archived: 0,
          erased_at: 1000,
          erased_to: 2 ** 40,
        }
        expect(bits(yield* load(record.user_id))).toStrictEqual({
          ...tombstone,
          applied: "",
          embedding: undefined,
        })
        expect(yield* users.save([update(next(record))])).toEqual([false])
        expect(yield* users.save([insert(record)])).toEqual([false])
        expect((yield* load(record.user_id))?.embedding).toBeUndefined()

        const ledger = yield* users.findInLedger("applied", inLedger)
        expect(ledger.get(record.user_id)?.size ?? 0).toBe(0)
        expect(ledger.get(neighbour.user_id)).toEqual(new Set([ledgerId]))
        expect(bits(yield* load(neighbour.user_id))).toStrictEqual(bits(neighbour))
      }))

    it("a second erasure returns false, and never sets an earlier time or row", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const user = "never-seen"
        expect(yield* users.erase(user, { erased_at: 1000, erased_to: 5 })).toBe(false)
        const first = yield* load(user)
        expect(first).toMatchObject({ erased_at: 1000, erased_to: 5, generation: 1 })
        expect(yield* users.erase(user, { erased_at: 2000, erased_to: 9 })).toBe(false)
        expect(yield* load(user)).toMatchObject({ erased_at: 2000, erased_to: 9, generation: 2 })
        expect(yield* users.erase(user, { erased_at: 1500, erased_to: 7 })).toBe(false)
        expect(yield* load(user)).toMatchObject({ erased_at: 2000, erased_to: 9, version: 3, generation: 3 })
      }))

    it("a new record of an erased user replaces the tombstone", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const record = one("back")
        yield* users.save([insert({ ...record, erased_at: 0, erased_to: null, generation: 0 })])
        yield* users.erase(record.user_id, erasure(5000))
        const anew: Stored = { ...record, version: 3, generation: 2, ...erasure(5000) }
        expect(yield* users.save([update(anew)])).toEqual([true])
        expect(bits(yield* load(record.user_id))).toStrictEqual(bits(anew))
      }))

    it("a write that began before an erasure does not survive it", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        for (const record of records("torn", 20)) {
          yield* users.save([insert(record)])
          const [written] = yield* Effect.all(
            [users.save([update(next(record))]), users.erase(record.user_id, erasure(1))],
            { concurrency: "unbounded" },
          )
          const left = yield* load(record.user_id)
          expect(left?.embedding).toBeUndefined()
          expect(left?.version).toBe(written[0] ? 3 : 2)
        }
      }))

    it("counts users with an embedding, and streams all records in the order of user ids", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const before = yield* users.count
        const many = records("stream", 300)
        yield* users.save(many.toReversed().map(insert))
        yield* users.erase(many[0]!.user_id, erasure(9))
        expect(yield* users.count).toBe(before + 299)
        const all = Chunk.toReadonlyArray(yield* Stream.runCollect(users.stream))
        const ids = all.map(({ user_id }) => user_id)
        expect(ids).toEqual(ids.toSorted((a, b) => (a < b ? -1 : a > b ? 1 : 0)))
        const streamed = all.filter(({ user_id }) => user_id.startsWith("stream-"))
        expect(streamed.map(bits).slice(1)).toStrictEqual(many.map(bits).slice(1))
        expect(streamed[0]?.embedding).toBeUndefined()
      }))

    it("counts users whose embedding is in another space, without tombstones", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const before = yield* users.countInOtherSpaces("this-space")
        const [here, there, gone] = records("elsewhere", 3)
        const inSpace = (record: Stored, space: string): Stored => ({
          ...record,
          embedding: { ...record.embedding, space },
        })
        yield* users.save(
          [inSpace(here!, "this-space"), inSpace(there!, "that-space"), inSpace(gone!, "that-space")].map(
            insert,
          ),
        )
        yield* users.erase(gone!.user_id, erasure(Date.now()))
        expect(yield* users.countInOtherSpaces("this-space")).toBe(before + 1)
      }))

    it("returns the last writes of users that have an embedding", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const many = records("last", 3)
        yield* users.save(many.map(insert))
        yield* users.erase(many[2]!.user_id, erasure(99_999_999_999_999))
        const found = yield* users.lastWrites([...many.map(({ user_id }) => user_id), "last-nobody"])
        expect(
          Array.from(found, ([user, write]) => [user, hex(write.applied), write.updated_at]).toSorted(),
        ).toEqual(many.slice(0, 2).map((one) => [one.user_id, hex(one.applied), one.embedding.updated_at]))
        expect((yield* users.lastWrites([])).size).toBe(0)
      }))

    it("streams bookkeeping without vectors, with tombstones, in the order of user ids", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const many = records("books", 450)
        yield* users.save(many.toReversed().map(insert))
        yield* users.erase(many[0]!.user_id, { erased_at: 99_999_999_999_999, erased_to: 2 ** 53 - 1 })
        const all = [...(yield* Stream.runCollect(users.bookkeeping))]
        const ids = all.map(({ user_id }) => user_id)
        expect(ids).toEqual(ids.toSorted((a, b) => (a < b ? -1 : a > b ? 1 : 0)))
        const own = all
          .filter(({ user_id }) => user_id.startsWith("books-"))
          .map(({ applied, ...rest }) => ({ ...rest, applied: hex(applied) }))
        expect(own[0]).toEqual({
          user_id: many[0]!.user_id,
          version: 2,
          applied: "",
          archived: 0,
          generation: 2,
          erased_at: 99_999_999_999_999,
          erased_to: 2 ** 53 - 1,
          event_count: 0,
        })
        expect(own.slice(1)).toEqual(
          many.slice(1).map(({ applied, embedding, ...rest }) => ({
            ...rest,
            applied: hex(applied),
            event_count: embedding.event_count,
          })),
        )
      }))

    it("lists the applied overflow of the given users only", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const ids = Array.from({ length: 650 }, (_, index) => index.toString(16).padStart(32, "0"))
        // User ids with a common prefix, with characters that sort before and after the `|` of a key or are special in a
        // pattern.
        const few = ["liste", "listed.", "listed.not", "listed_", "listed-:x", "listedz", "Listed"]
        yield* users.saveToLedger("applied", [
          entry("listed", 0, ...ids),
          ...few.map((user, index) => entry(user, 0, ...ids.slice(0, index + 1))),
        ])
        const list = (...wanted: ReadonlyArray<string>) =>
          Effect.map(Stream.runCollect(users.overflow(wanted.map((user) => entry(user, 0)))), (pages) => {
            const entries = Map.groupBy([...pages].flat(), ({ user_id }) => user_id)
            const idsOf = (own: ReadonlyArray<Pick<LedgerEntry, "ids">>) =>
              own.flatMap(({ ids }) => ids).toSorted()
            return Object.fromEntries(Array.from(entries, ([user, own]) => [user, idsOf(own)]))
          })
        expect(yield* list("listed")).toEqual({ listed: ids })
        for (const [index, user] of few.entries())
          expect(yield* list(user)).toEqual({ [user]: ids.slice(0, index + 1) })
        expect(yield* list("listed.", "nobody", "listed", "liste")).toEqual({
          "listed.": ids.slice(0, 2),
          listed: ids,
          liste: ids.slice(0, 1),
        })
        expect(yield* list("listedxnot", "nobody")).toEqual({})
        expect(yield* list()).toEqual({})
      }))

    it("awaitDurable writes no new version", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        const record = one("settled")
        yield* users.save([insert(record)])
        yield* users.awaitDurable
        yield* Effect.all([users.awaitDurable, users.awaitDurable], { concurrency: "unbounded" })
        expect((yield* load(record.user_id))?.version).toBe(1)
      }))
  })
