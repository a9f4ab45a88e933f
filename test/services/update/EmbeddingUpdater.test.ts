/** The updater over stores in memory, whose failures, lost writes and races the test controls. */
import { describe, expect, test } from "bun:test"
import { ConfigProvider, Duration, Effect, Either, Layer, Stream } from "effect"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import * as AppliedIds from "../../../src/services/model/AppliedIds.ts"
import type { EmbeddingChange } from "../../../src/services/model/EmbeddingChange.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import * as UpdateMessage from "../../../src/services/model/UpdateMessage.ts"
import { EmbeddingFeed, EmbeddingFeedError } from "../../../src/services/ports/EmbeddingFeed.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import type { Delivery } from "../../../src/services/ports/InteractionQueue.ts"
import { PhraseEmbedderError } from "../../../src/services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings, ProductMissing } from "../../../src/services/ports/ProductEmbeddings.ts"
import {
  type LedgerEntry,
  UserEmbeddings,
  UserEmbeddingsError,
  type UserRecord,
  type Write,
} from "../../../src/services/ports/UserEmbeddings.ts"
import { announcing } from "../../../src/services/update/AnnouncedEmbeddings.ts"
import * as EmbeddingUpdater from "../../../src/services/update/EmbeddingUpdater.ts"
import { type EventVectorError, EventVectors } from "../../../src/services/update/EventVectors.ts"
import { decoded, delivery } from "../../support/delivery.ts"

const dimensions = 4
const axis = (i: number) =>
  Float32Array.from({ length: dimensions }, (_, k) => (k === i % dimensions ? 1 : 0))

const search = (user_id: string, search_phrase: string, second = 0) =>
  Interaction.make({
    user_id,
    event_type: "search",
    search_phrase,
    occurred_at: new Date(Date.UTC(2026, 1, 10, 0, 0, second)).toISOString(),
    metadata: {},
  })

const of = (interaction: Interaction.Interaction, more: Partial<Delivery> = {}) =>
  delivery(UpdateMessage.encodeMessage(interaction), more)

/** A store in memory. `before` runs before each save and may change the records, as another worker would. */
const store = () => {
  const records = new Map<string, UserRecord>()
  /** Keys of {@link keys}. */
  const ledger = new Set<string>()
  const state = {
    records,
    ledger,
    /** Users whose stale entries were to be removed. */
    cleaned: [] as Array<string>,
    announced: [] as Array<string>,
    saves: 0,
    /** The users of each load. */
    reads: [] as Array<ReadonlyArray<string>>,
    /** Waits for durability. */
    waits: 0,
    before: (_writes: ReadonlyArray<Write>): void => {},
    failure: undefined as UserEmbeddingsError | undefined,
    /** A user whose record the store refuses. The other writes of the same save succeed. */
    refused: undefined as string | undefined,
    /** A user whose record cannot be read. */
    unreadable: "",
  }
  const invalid = new UserEmbeddingsError({
    reason: "invalid_data",
    operation: "save",
    cause: new Error("no"),
  })
  const guard = <A>(run: () => A) =>
    Effect.suspend(() => (state.failure ? Effect.fail(state.failure) : Effect.succeed(run())))
  const keys = (kind: AppliedIds.LedgerKind, { generation, ids, user_id }: LedgerEntry) =>
    ids.map((id) => [kind, user_id, generation, id].join("|"))
  const layer = Layer.succeed(UserEmbeddings, {
    load: (users) => {
      if (users.length > 0) state.reads.push(users)
      if (users.includes(state.unreadable)) return Effect.fail(invalid)
      return guard(
        () => new Map(users.flatMap((user) => (records.has(user) ? [[user, records.get(user)!]] : []))),
      )
    },
    save: (writes) =>
      guard(() => {
        state.before(writes)
        state.saves += 1
        return writes.map(({ expected, record }) => {
          if (records.get(record.user_id)?.version !== expected) return false
          if (record.user_id === state.refused) return true
          records.set(record.user_id, record)
          return true
        })
      }).pipe(
        Effect.filterOrFail(
          () => writes.every(({ record }) => record.user_id !== state.refused),
          () => invalid,
        ),
      ),
    saveToLedger: (kind, entries) =>
      guard(() => {
        for (const entry of entries) for (const key of keys(kind, entry)) ledger.add(key)
      }),
    findInLedger: (kind, entries) =>
      guard(
        () =>
          new Map(
            entries.map((entry) => [
              entry.user_id,
              new Set(entry.ids.filter((_, index) => ledger.has(keys(kind, entry)[index]!))),
            ]),
          ),
      ),
    removeStaleLedger: (user) => Effect.sync(() => void state.cleaned.push(user)),
    unreadable: Stream.empty,
    usersAfter: () => Effect.succeed([]),
    awaitDurable: guard(() => {
      state.waits += 1
    }),
    announce: (users) => Effect.sync(() => void state.announced.push(...users)),
    versions: Stream.empty,
    erase: () => Effect.succeed(false),
    count: Effect.succeed(0),
    countInOtherSpaces: () => Effect.succeed(0),
    stream: Stream.empty,
    bookkeeping: Stream.empty,
    overflow: () => Stream.empty,
    lastWrites: () => Effect.succeed(new Map()),
  })
  return { state, layer }
}

/** Phrases `fail:…` fail with the error of this table. The vector of another phrase is the axis of its length. */
const failures: Record<string, EventVectorError> = {
  "fail:missing": new ProductMissing({ product_id: "p", space: "test" }),
  "fail:429": new PhraseEmbedderError({
    reason: "rate_limited",
    detail: "slow down",
    retryAfter: Duration.seconds(30),
  }),
  "fail:429 long": new PhraseEmbedderError({
    reason: "rate_limited",
    detail: "later",
    retryAfter: Duration.minutes(5),
  }),
  "fail:500": new PhraseEmbedderError({ reason: "server_error", detail: "500" }),
  "fail:401": new PhraseEmbedderError({ reason: "unauthorized", detail: "401" }),
  "fail:quota": new PhraseEmbedderError({ reason: "quota_exhausted", detail: "quota" }),
  "fail:400": new PhraseEmbedderError({ reason: "invalid_input", detail: "400" }),
  "fail:zero": new PhraseEmbedderError({ reason: "bad_vector", detail: "zero" }),
}
/** Phrases that were to be forgotten. */
const forgotten: Array<string> = []
const vectors = Layer.succeed(EventVectors, {
  space: "test",
  resolve: (interactions) =>
    Effect.succeed(
      interactions.map(({ search_phrase }) => {
        const failure = failures[search_phrase ?? ""]
        return failure ? Either.left(failure) : Either.right(axis((search_phrase ?? "").length))
      }),
    ),
  remembers: () => true,
  forget: (phrases) => Effect.sync(() => forgotten.push(...phrases)),
  ofTexts: () => Effect.succeed([]),
})

/** Only retractions of folded events read them. */
const unread = Layer.merge(
  Layer.succeed(InteractionLog, {} as InteractionLog["Type"]),
  Layer.succeed(ProductEmbeddings, {} as ProductEmbeddings["Type"]),
)

const config = EmbeddingConfig.layer({ dimensions }).pipe(
  Layer.provide(Layer.setConfigProvider(ConfigProvider.fromMap(new Map()))),
)
type Batch = ReadonlyArray<Delivery>
/** Updates batches, one after the other, with one updater. A function is called just before its batch. */
const run = (layer: Layer.Layer<UserEmbeddings>, ...batches: ReadonlyArray<Batch | (() => Batch)>) =>
  Effect.gen(function* () {
    const updater = yield* EmbeddingUpdater.EmbeddingUpdater
    return yield* Effect.forEach(batches, (batch) =>
      updater.update((typeof batch === "function" ? batch() : batch).map(decoded)),
    )
  }).pipe(
    Effect.provide(EmbeddingUpdater.layer.pipe(Layer.provide([layer, vectors, config, unread]))),
    Effect.runPromise,
  )
const tags = (outcomes: ReadonlyArray<EmbeddingUpdater.Outcome>) =>
  outcomes.map((outcome) => (outcome._tag === "Outage" ? "Outage" : outcome.settlement._tag))

describe("exactly once", () => {
  test("copies in the same batch, in a later batch and after 1,000 other events change nothing", async () => {
    const { layer, state } = store()
    const first = search("u", "a")
    const others = Array.from({ length: 1_000 }, (_, i) => search("u", "b".repeat((i % 7) + 1), i + 1))
    const batches = [
      [of(first), of(first)],
      ...others.map((other) => [of(other)]),
      [of(first)],
      [of(others[0]!)],
    ]
    const answers = await run(layer, ...batches)
    expect(new Set(answers.flatMap(tags))).toEqual(new Set(["Ack"]))
    const record = state.records.get("u")!
    expect(record.embedding?.event_count).toBe(1_001)
    expect(record.version).toBe(1_001)
    expect(AppliedIds.count(record.applied)).toBeLessThanOrEqual(AppliedIds.keptIds + 64)
    expect(record.archived + AppliedIds.count(record.applied)).toBe(1_001)
    expect(state.ledger.size).toBe(record.archived)
  })

  test("a user id may be the name of a property that every object has", async () => {
    const { layer, state } = store()
    await run(layer, [of(search("__proto__", "a")), of(search("constructor", "bb", 1))])
    expect([...state.records.keys()].toSorted()).toEqual(["__proto__", "constructor"])
  })

  test("a write that could not be announced is announced when its message comes again", async () => {
    const { layer, state } = store()
    const told: Array<EmbeddingChange> = []
    let isDown = true
    const feed = Layer.succeed(EmbeddingFeed, {
      mode: "ids",
      publish: (changes) => {
        if (isDown)
          return new EmbeddingFeedError({ reason: "unavailable", operation: "publish", cause: "down" })
        return Effect.sync(() => void told.push(...changes))
      },
      subscribe: () => Effect.never,
    })
    const announced = announcing(layer).pipe(Layer.provide(feed))
    const batch = [of(search("u", "a"))]
    const again = () => {
      isDown = false
      return batch
    }
    const [first, second] = await run(announced, batch, again)
    expect([tags(first!), tags(second!), state.saves]).toEqual([["Outage"], ["Ack"], 1])
    expect(told.map(({ type, user_id, version }) => ({ type, user_id, version }))).toEqual([
      { type: "updated", user_id: "u", version: 1 },
    ])
  })

  test("a duplicate is acknowledged only after the earlier write is durable", async () => {
    const { layer, state } = store()
    await run(layer, [of(search("u", "a"))], [of(search("u", "a"))])
    expect(state.saves).toBe(1)
    expect(state.waits).toBe(1)
  })

  test("a duplicate is not acknowledged if a write of the same batch fails", async () => {
    const { layer } = store()
    await run(layer, [of(search("u", "a"))])
    const failing = Layer.effect(
      UserEmbeddings,
      Effect.map(UserEmbeddings, (users) => ({
        ...users,
        save: () =>
          Effect.fail(
            new UserEmbeddingsError({ reason: "timeout", operation: "save", cause: new Error("late") }),
          ),
      })),
    ).pipe(Layer.provide(layer))
    const [answer] = await run(failing, [of(search("u", "a")), of(search("v", "bb", 1))])
    expect(tags(answer!)).toEqual(["Outage", "Outage"])
  })

  test("of two copies, one recorded before an erasure and one after it, the latter counts", async () => {
    const { layer, state } = store()
    const erased_at = Date.UTC(2026, 1, 11)
    state.records.set("u", {
      user_id: "u",
      embedding: undefined,
      version: 1,
      applied: AppliedIds.none,
      archived: 0,
      erased_at,
      erased_to: null,
      generation: 1,
    })
    const same = search("u", "a")
    const [answer] = await run(layer, [
      of(same, { recordedAt: erased_at - 1 }),
      of(same, { recordedAt: erased_at + 1 }),
    ])
    expect(tags(answer!)).toEqual(["Ack", "Ack"])
    expect(state.records.get("u")?.embedding?.event_count).toBe(1)
  })

  test("after a lost compare-and-swap the events are folded into the record of the winner", async () => {
    const { layer, state } = store()
    let losses = 5
    state.before = ([write]) => {
      const stored = state.records.get("u")
      if (losses-- > 0 && write)
        state.records.set("u", { ...(stored ?? write.record), version: (stored?.version ?? 0) + 1 })
    }
    const [answer] = await run(layer, [of(search("u", "a")), of(search("u", "bb", 1))])
    expect(tags(answer!)).toEqual(["Ack", "Ack"])
    expect(state.records.get("u")?.embedding?.event_count).toBe(2)
  })

  test("records that the updater wrote are not read again, until another worker writes the same users", async () => {
    const { layer, state } = store()
    const batch = (second: number) => [of(search("u", "a", second)), of(search("v", "aa", second))]
    state.before = (writes) => {
      const u = state.records.get("u")
      if (state.saves !== 2 || u === undefined) return
      // Another worker writes first, and applies an event that this worker also gets.
      state.before = () => {}
      const { kept } = AppliedIds.append(u.applied, [search("u", "a", 2).message_id])
      const embedding = { ...u.embedding!, event_count: u.embedding!.event_count + 1 }
      state.records.set("u", { ...u, embedding, applied: kept, version: u.version + 1 })
      expect(writes.map(({ record }) => record.user_id)).toEqual(["u", "v"])
    }
    const outcomes = await run(layer, batch(0), batch(1), batch(2), batch(3))
    expect(outcomes.flatMap(tags)).toEqual(Array.from({ length: 8 }, () => "Ack"))
    // The second and third batch read nothing. After the lost write its user is read, and in the next batch both.
    expect(state.reads).toEqual([["u", "v"], ["u"], ["u", "v"]])
    for (const user of ["u", "v"]) {
      expect(state.records.get(user)?.embedding?.event_count).toBe(4)
      expect(AppliedIds.count(state.records.get(user)!.applied)).toBe(4)
    }
  })

  test("an interaction posted again after an erasure counts, also if the updater has the old record in its cache", async () => {
    const { layer, state } = store()
    const same = search("u", "a")
    const erasing = () => {
      const version = state.records.get("u")!.version + 1
      const nothing = { embedding: undefined, applied: AppliedIds.none, archived: 0 }
      state.records.set("u", {
        user_id: "u",
        ...nothing,
        version,
        erased_at: 10,
        erased_to: null,
        generation: version,
      })
      return [of(same, { recordedAt: 11 })]
    }
    const outcomes = await run(layer, [of(same, { recordedAt: 9 })], erasing)
    expect(outcomes.map(tags)).toEqual([["Ack"], ["Ack"]])
    expect(state.records.get("u")).toMatchObject({ erased_at: 10, embedding: { event_count: 1 } })
  })

  test("endless conflicts send the message to a retry queue", async () => {
    const { layer, state } = store()
    state.before = () => {
      const stored = state.records.get("u")
      if (stored) state.records.set("u", { ...stored, version: stored.version + 1 })
    }
    await run(layer, [of(search("u", "a"))])
    const [answer] = await run(layer, [of(search("u", "bb", 1))])
    expect(answer).toMatchObject([
      { settlement: { _tag: "Retry", delayMillis: 5_000, failure: { error: "lock_conflict" } } },
    ])
  })

  test("interactions recorded before an erasure do not count, later ones do", async () => {
    const { layer, state } = store()
    const erased_at = Date.UTC(2026, 1, 10, 0, 0, 5)
    state.records.set("u", {
      user_id: "u",
      embedding: undefined,
      version: 3,
      applied: AppliedIds.none,
      archived: 0,
      erased_at,
      erased_to: null,
      generation: 1,
    })
    await run(layer, [
      of(search("u", "a"), { recordedAt: erased_at }),
      of(search("u", "bb", 9), { recordedAt: erased_at + 1 }),
    ])
    expect(state.records.get("u")).toMatchObject({ version: 4, erased_at, embedding: { event_count: 1 } })
  })
})

describe("an erasure", () => {
  const erasedUser = (erased_to: number | null): UserRecord => ({
    user_id: "u",
    embedding: undefined,
    version: 3,
    applied: AppliedIds.none,
    archived: 0,
    generation: 3,
    erased_at: Date.UTC(2026, 1, 10),
    erased_to,
  })
  const later = Date.UTC(2026, 1, 10) + 1

  test("covers messages by the ids of their rows, not by the time", async () => {
    const { layer, state } = store()
    state.records.set("u", erasedUser(100))
    const [answer] = await run(layer, [
      of(search("u", "a"), { logId: 100, recordedAt: later }),
      of(search("u", "bb", 1), { logId: 101, recordedAt: later - 1_000 }),
      of(search("u", "ccc", 2), { recordedAt: later }),
      of(search("u", "dddd", 3), { recordedAt: later - 1 }),
    ])
    expect(tags(answer!)).toEqual(["Ack", "Ack", "Ack", "Ack"])
    expect(state.records.get("u")).toMatchObject({ generation: 3, erased_to: 100 })
    expect(state.records.get("u")?.embedding?.recent.map(({ search_phrase }) => search_phrase)).toEqual([
      "ccc",
      "bb",
    ])
  })

  test("of two copies the one with the greater row id counts, whatever their times say", async () => {
    const { layer, state } = store()
    state.records.set("u", erasedUser(100))
    const same = search("u", "a")
    await run(layer, [
      of(same, { logId: 101, recordedAt: later - 9 }),
      of(same, { logId: 99, recordedAt: later }),
    ])
    expect(state.records.get("u")?.embedding?.event_count).toBe(1)
  })

  test("is followed by the removal of what an earlier attempt may have stored", async () => {
    const { layer, state } = store()
    state.records.set("u", erasedUser(100))
    forgotten.length = 0
    await run(layer, [
      of(search("u", "mine"), { logId: 100, recordedAt: later }),
      of(search("v", "others"), { logId: 99, recordedAt: later }),
    ])
    expect(forgotten).toEqual(["mine"])
    expect(state.cleaned).toEqual(["u"])
  })

  test("that wins against a write makes the ids that the write moved to the ledger worthless", async () => {
    const { layer, state } = store()
    const history = Array.from({ length: 330 }, (_, i) => search("u", "b".repeat((i % 7) + 1), i))
    const erase = () => {
      const version = state.records.get("u")!.version + 1
      state.before = () => {}
      state.records.set("u", { ...erasedUser(320), version, generation: version })
    }
    await run(
      layer,
      history.slice(0, 320).map((one, i) => of(one, { logId: i + 1, recordedAt: 1 })),
      () => {
        // The write of this batch moves 74 ids to the ledger, and then loses the compare-and-swap.
        state.before = erase
        return history.slice(320).map((one, i) => of(one, { logId: 400 + i, recordedAt: 1 }))
      },
    )
    expect(state.ledger.size).toBe(74)
    expect(state.records.get("u")).toMatchObject({ archived: 0, embedding: { event_count: 10 } })
    const again = history.slice(0, 320).map((one, i) => of(one, { logId: 1_000 + i, recordedAt: 1 }))
    for (let from = 0; from < 320; from += 80) await run(layer, again.slice(from, from + 80))
    expect(state.records.get("u")?.archived).toBeGreaterThan(0)
    await run(layer, again)
    expect(state.records.get("u")?.embedding?.event_count).toBe(330)
  })

  test("leaves no dead letters: an invalid message of the user is acknowledged", async () => {
    const { layer, state } = store()
    state.records.set("u", erasedUser(100))
    const invalid = (user_id: string) => Buffer.from(JSON.stringify({ version: "9.0", user_id }))
    const [answer] = await run(layer, [
      delivery(invalid("u"), { logId: 100, recordedAt: later }),
      delivery(invalid("u"), { logId: 101, recordedAt: later }),
      delivery(invalid("v"), { logId: 1, recordedAt: 1 }),
      delivery(Buffer.from("no JSON"), { logId: 1, recordedAt: 1 }),
    ])
    expect(tags(answer!)).toEqual(["Ack", "DeadLetter", "DeadLetter", "DeadLetter"])
  })
})

describe("a skipped interaction", () => {
  test("is remembered in the generation of its user before it is acknowledged", async () => {
    const { layer, state } = store()
    const { message_id } = search("u", "fail:missing")
    const [answer] = await run(layer, [of(search("u", "fail:missing"))])
    expect(tags(answer!)).toEqual(["Ack"])
    expect([...state.ledger]).toEqual([`skipped|u|0|${message_id.slice(0, 32)}`])
    state.failure = new UserEmbeddingsError({ reason: "timeout", operation: "insert", cause: new Error() })
    const [failed] = await run(layer, [of(search("v", "fail:missing"))])
    expect(tags(failed!)).toEqual(["Outage"])
  })
})

describe("a failure", () => {
  const table: ReadonlyArray<readonly [string, number, unknown]> = [
    ["fail:missing", 0, { _tag: "Settle", settlement: { _tag: "Ack" } }],
    ["fail:429", 0, { _tag: "Settle", settlement: { _tag: "Retry", delayMillis: 40_000 } }],
    ["fail:429 long", 0, { _tag: "Outage", settlement: { _tag: "Retry", delayMillis: 5_000 } }],
    ["fail:500", 0, { _tag: "Settle", settlement: { _tag: "Retry", delayMillis: 5_000 } }],
    ["fail:500", 4, { _tag: "Settle", settlement: { _tag: "Retry", delayMillis: 60_000 } }],
    [
      "fail:500",
      5,
      { settlement: { _tag: "DeadLetter", failure: { error: "phrase_embedder_server_error" } } },
    ],
    ["fail:401", 0, { _tag: "Outage", settlement: { _tag: "Retry" } }],
    ["fail:401", 5, { _tag: "Outage", settlement: { _tag: "DeadLetter" } }],
    ["fail:quota", 0, { _tag: "Outage" }],
    ["fail:400", 0, { _tag: "Settle", settlement: { _tag: "DeadLetter" } }],
    ["fail:zero", 0, { _tag: "Settle", settlement: { _tag: "DeadLetter" } }],
  ]
  for (const [phrase, retryCount, expected] of table)
    test(`of a message (${phrase}, attempt ${retryCount + 1}) does not affect another message of the batch`, async () => {
      const { layer, state } = store()
      const [answer] = await run(layer, [of(search("bad", phrase), { retryCount }), of(search("good", "a"))])
      expect(answer?.[0]).toMatchObject(expected as object)
      expect(tags(answer!)[1]).toBe("Ack")
      expect([...state.records.keys()]).toEqual(["good"])
    })

  for (const reason of ["unavailable", "timeout", "rejected", "conflict"] as const)
    test(`of the store with "${reason}" is ${reason === "conflict" ? "retried" : "an outage"}`, async () => {
      const { layer, state } = store()
      state.failure = new UserEmbeddingsError({ reason, operation: "load", cause: new Error("no") })
      const [answer] = await run(layer, [of(search("u", "a"))])
      expect(tags(answer!)).toEqual([reason === "conflict" ? "Retry" : "Outage"])
    })

  test("of a record that cannot be stored makes dead letters of its own messages only", async () => {
    const { layer, state } = store()
    const events = Array.from({ length: 40 }, (_, i) => search(i % 20 === 7 ? "bad" : `u-${i}`, "a", i))
    state.refused = "bad"
    const [answer] = await run(
      layer,
      events.map((event) => of(event)),
    )
    expect(tags(answer!)).toEqual(events.map(({ user_id }) => (user_id === "bad" ? "DeadLetter" : "Ack")))
    expect([...state.records.values()].map(({ embedding }) => embedding?.event_count)).toEqual(
      Array.from({ length: 38 }, () => 1),
    )
  })

  test("because one stored record cannot be read makes dead letters of that user alone", async () => {
    const { layer, state } = store()
    const events = Array.from({ length: 40 }, (_, i) => search(i % 20 === 7 ? "bad" : `u-${i}`, "a", i))
    state.unreadable = "bad"
    const [answer] = await run(
      layer,
      events.map((event) => of(event)),
    )
    expect(tags(answer!)).toEqual(events.map(({ user_id }) => (user_id === "bad" ? "DeadLetter" : "Ack")))
  })

  test("because of an embedding in another space makes a dead letter whose text says rebuild", async () => {
    const { layer, state } = store()
    await run(layer, [of(search("u", "a"))])
    const record = state.records.get("u")!
    state.records.set("u", { ...record, embedding: { ...record.embedding!, space: "other" } })
    const [answer] = await run(layer, [of(search("u", "bb", 1))])
    expect(answer).toMatchObject([
      { settlement: { _tag: "DeadLetter", failure: { error: "space_mismatch" } } },
    ])
    expect(JSON.stringify(answer)).toContain("rebuild")
  })
})
