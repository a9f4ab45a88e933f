/**
 * Step: messages → event vectors → fold → UserEmbeddings → one outcome per message. A batch needs one load, one
 * look-up of vectors and one write. Each interaction is applied exactly once: new ids change in the same
 * compare-and-swap write as the vector, and interactions whose ids are already stored are dropped.
 */
import { Array as Arr, Clock, Context, Effect, Either, Layer } from "effect"
import { identity } from "effect/Function"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import { ledgersOf } from "../model/Aliases.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { isErased, isLater, type Recorded } from "../model/Erasure.ts"
import { type FoldSettings, fold, requireSpace } from "../model/Fold.ts"
import {
  type Interaction,
  isMerge,
  isRetraction,
  type Merge,
  maxFutureMillis,
  type Retraction,
  type UserId,
} from "../model/Interaction.ts"
import { notInTheFuture } from "../model/UpdateMessage.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import { content } from "../ports/DeadLetters.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { Ack, type Delivery, type Settlement } from "../ports/InteractionQueue.ts"
import { ProductEmbeddings } from "../ports/ProductEmbeddings.ts"
import {
  LockConflict,
  loadReadable,
  UserEmbeddings,
  UserEmbeddingsError,
  type UserRecord,
  type Write,
} from "../ports/UserEmbeddings.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"
import { appliedState, findInOverflow } from "./AppliedInteractions.ts"
import { EventVectors } from "./EventVectors.ts"
import * as Merges from "./Merges.ts"
import type { DecodedMessage } from "./ReceivedMessage.ts"
import { takeBack } from "./Retractions.ts"
import * as UserRebuild from "./UserRebuild.ts"
import { UserRecordCache } from "./UserRecordCache.ts"

export type Outcome =
  | { readonly _tag: "Settle"; readonly settlement: Settlement }
  /** A dependency is out. The message may wait; `settlement` is for a message that does not wait. */
  | { readonly _tag: "Outage"; readonly error: RetryPolicies.UpdateError; readonly settlement: Settlement }

export class EmbeddingUpdater extends Context.Tag("user-embeddings/EmbeddingUpdater")<
  EmbeddingUpdater,
  {
    /** Applies messages; answers in their order. The write of a message with outcome `Ack` is durable. */
    readonly update: (messages: ReadonlyArray<DecodedMessage>) => Effect.Effect<ReadonlyArray<Outcome>>
    /** Whether an interaction has to wait for the embedder. A retraction may need all vectors of its user. */
    readonly needsEmbedder: (interaction: Interaction) => boolean
  }
>() {}

/** An interaction on its way through the batch. */
interface Item extends Recorded {
  readonly delivery: Delivery
  /** The id under which it was posted. */
  readonly posted_as: UserId
  /** As one of the user to whom that id leads. */
  interaction: Interaction
  vector: Float32Array | undefined
  outcome: Outcome | undefined
}

/** What all batches of an updater share. */
interface Updater {
  readonly users: UserEmbeddings["Type"]
  readonly vectors: EventVectors["Type"]
  readonly takeBack: (
    ...args: Parameters<typeof takeBack>
  ) => Effect.Effect<UserEmbedding | undefined, Effect.Effect.Error<ReturnType<typeof takeBack>>>
  readonly rebuild: (
    user: UserId,
    retractions: ReadonlyArray<Retraction>,
  ) => Effect.Effect<void, UserRebuild.RebuildError>
  /** Follows ids that are aliases, or about to become some. */
  readonly settle: (user: UserId) => ReturnType<typeof Merges.settle>
  readonly applyMerge: (merge: Merge, at: Recorded) => ReturnType<typeof Merges.applyMerge>
  readonly cache: UserRecordCache
  readonly foldSettings: FoldSettings
  /** Delays between attempts, in ms. */
  readonly delays: ReadonlyArray<number>
}

const settle = (settlement: Settlement): Outcome => ({ _tag: "Settle", settlement })
const acked = settle(Ack)
const staleMillis = 90 * 86_400_000

const outcomeOf = ({ delays }: Updater, error: RetryPolicies.UpdateError, { retryCount }: Delivery) => {
  const settlement = RetryPolicies.settlementOf(error, retryCount, delays)
  return RetryPolicies.classify(error)._tag === "Outage"
    ? ({ _tag: "Outage", error, settlement } as const)
    : settle(settlement)
}

const fail = (updater: Updater, items: ReadonlyArray<Item>, error: RetryPolicies.UpdateError) => {
  for (const item of items) item.outcome = outcomeOf(updater, error, item.delivery)
}

const toItem = (updater: Updater, { decoded, delivery }: DecodedMessage, now: number) => {
  const latest = Math.max(now, delivery.publishedAt ?? now) + maxFutureMillis
  const checked = Either.flatMap(decoded, (interaction) => notInTheFuture(interaction, latest))
  return Either.mapBoth(checked, {
    onLeft: (error) => outcomeOf(updater, error, delivery),
    onRight: (interaction): Item => ({
      delivery,
      posted_as: interaction.user_id,
      interaction,
      logId: delivery.logId,
      recordedAt: delivery.recordedAt ?? Date.parse(interaction.occurred_at),
      vector: undefined,
      outcome: undefined,
    }),
  })
}

/** The ids under which the items were posted, and those to which they lead. */
const usersOf = (items: ReadonlyArray<Item>): ReadonlyArray<UserId> => [
  ...new Set(items.flatMap(({ interaction, posted_as }) => [posted_as, interaction.user_id])),
]

/** An erasure of a person covers each id, so the record of the id under which an item was posted decides. */
const isErasedIn = (records: ReadonlyMap<UserId, UserRecord>) => (item: Item) => {
  const record = records.get(item.posted_as)
  return record !== undefined && isErased(record, item)
}

/**
 * Separates new interactions from those that were applied before (`done`) or are behind the user's erasure. `isApplied`
 * also knows the interactions that the new ones take back.
 */
const separate = Effect.fnUntraced(function* (
  { users }: Updater,
  items: ReadonlyArray<Item>,
  records: ReadonlyMap<UserId, UserRecord>,
) {
  const [counting, erased] = Arr.partition(items, isErasedIn(records))
  const isOnRecord = (user: UserId, id: string) => {
    const record = records.get(user)
    return record !== undefined && AppliedIds.has(record.applied, id)
  }
  const ledgersOfUser = (user: UserId) => {
    const record = records.get(user)
    return record === undefined ? [] : ledgersOf(record)
  }
  const toLookUp = new Map<UserId, Array<string>>()
  for (const { interaction } of counting) {
    const { message_id, user_id } = interaction
    if (ledgersOfUser(user_id).length === 0) continue
    for (const id of isRetraction(interaction) ? [message_id, interaction.reference] : [message_id]) {
      if (isOnRecord(user_id, id)) continue
      const ids = toLookUp.get(user_id) ?? []
      ids.push(AppliedIds.prefix(id))
      toLookUp.set(user_id, ids)
    }
  }
  const overflow = yield* findInOverflow(users, toLookUp, ledgersOfUser)
  const isApplied = (user: UserId, id: string) =>
    isOnRecord(user, id) || overflow.get(user)?.has(AppliedIds.prefix(id)) === true
  const [fresh, done] = Arr.partition(counting, ({ interaction: { message_id, user_id } }) =>
    isApplied(user_id, message_id),
  )
  return { fresh, done, erased, isApplied }
})

/** Loads the records that are not cached. Items of an alias become those of the user to whom it leads. */
const loadRecords = Effect.fnUntraced(function* (
  { settle, users }: Updater,
  items: ReadonlyArray<Item>,
  cached: ReadonlyMap<UserId, UserRecord>,
) {
  const wanted = [...new Set(items.map(({ posted_as }) => posted_as))]
  const loaded = yield* users.load(wanted.filter((user) => !cached.has(user)))
  const records = new Map([...cached, ...loaded])
  const owners = new Map<UserId, UserId>()
  for (const [user, { links }] of loaded) {
    if (links?.alias_of === undefined && links?.merging_into === undefined) continue
    const { first, record, user_id } = yield* settle(user)
    if (first !== undefined) records.set(user, first)
    if (record !== undefined) records.set(user_id, record)
    owners.set(user, user_id)
  }
  for (const item of items) {
    const user_id = owners.get(item.posted_as) ?? item.posted_as
    if (item.interaction.user_id !== user_id) item.interaction = { ...item.interaction, user_id }
  }
  return records
})

/** Reads the records of a batch, from the cache where possible, and separates its items. */
const readRecords = Effect.fnUntraced(function* (updater: Updater, items: ReadonlyArray<Item>) {
  const cached = updater.cache.take(usersOf(items))
  const records = yield* loadRecords(updater, items, cached)
  const separated = yield* separate(updater, items, records)
  // Finished items will be acknowledged without a write, so no version check would notice a recent erasure.
  // Read their records again instead of trusting the cache.
  const toReload = usersOf([...separated.done, ...separated.erased]).filter((user) => cached.delete(user))
  if (toReload.length === 0) return { records, cached, ...separated }
  const reloaded = yield* loadRecords(updater, items, cached)
  return { records: reloaded, cached, ...(yield* separate(updater, items, reloaded)) }
})

/** Sets the vectors of items that have none; an item without one gets its outcome. */
const findVectors = Effect.fnUntraced(function* (updater: Updater, items: ReadonlyArray<Item>) {
  const wanted = items.filter(({ vector }) => vector === undefined)
  if (wanted.length === 0) return
  const skipped: Array<Item> = []
  const found = yield* updater.vectors.resolve(wanted.map(({ interaction }) => interaction))
  for (const [index, item] of wanted.entries())
    Either.match(found[index]!, {
      onLeft: (error) => {
        if (RetryPolicies.classify(error)._tag === "Skip") skipped.push(item)
        else item.outcome = outcomeOf(updater, error, item.delivery)
      },
      onRight: (vector) => {
        item.vector = vector
      },
    })
  if (skipped.length === 0) return
  // The audit tells skipped interactions from lost ones, even if the product gets an embedding later. No write checks
  // the version of a skipped item's record, which may be older than an erasure. So it is read again.
  const records = yield* updater.users.load(usersOf(skipped))
  const counting = skipped.filter((item) => !isErasedIn(records)(item))
  yield* updater.users.saveToLedger(
    "skipped",
    counting.map(({ interaction: { message_id, user_id } }) => ({
      user_id,
      generation: records.get(user_id)?.generation ?? 0,
      ids: [AppliedIds.prefix(message_id)],
    })),
  )
  for (const item of skipped) item.outcome = settle(Ack)
  Telemetry.count(Telemetry.skippedInteractions, skipped.length)
})

/**
 * An attempt before the erasure, in this or another worker, may have stored the phrase's vector or ids in the ledger after
 * the erasure had removed them.
 */
const removeTraces = Effect.fnUntraced(function* ({ users, vectors }: Updater, erased: ReadonlyArray<Item>) {
  if (erased.length === 0) return
  yield* vectors
    .forget([...new Set(erased.flatMap(({ interaction }) => interaction.search_phrase ?? []))])
    .pipe(
      Effect.mapError(
        ({ cause, operation, reason }) => new UserEmbeddingsError({ cause, operation, reason }),
      ),
    )
  yield* Effect.forEach(usersOf(erased), users.removeStaleLedger, { discard: true })
})

interface PlannedWrite {
  readonly write: Write
  readonly items: ReadonlyArray<Item>
  /** Ids that leave the record with this write. */
  readonly overflow: ReadonlyArray<string>
}

/** The write of an embedding, with the ids that it applies. */
const toWrite = (
  user_id: UserId,
  items: ReadonlyArray<Item>,
  ids: ReadonlyArray<string>,
  record: UserRecord | undefined,
  embedding: UserEmbedding | undefined,
): PlannedWrite => {
  const { archive: overflow, kept } = AppliedIds.append(record?.applied ?? AppliedIds.none, ids)
  return {
    items,
    overflow,
    write: {
      expected: record?.version,
      record: {
        user_id,
        embedding,
        version: (record?.version ?? 0) + 1,
        applied: kept,
        archived: (record?.archived ?? 0) + overflow.length,
        erased_at: record?.erased_at ?? 0,
        erased_to: record?.erased_to ?? null,
        generation: record?.generation ?? 0,
        ...(record?.links && { links: record.links }),
      },
    },
  }
}

const foldItems = (
  items: ReadonlyArray<Item>,
  current: UserEmbedding | undefined,
  settings: FoldSettings,
  now: number,
) => {
  const events = items.map(({ interaction, vector }) => ({ interaction, vector: vector! }))
  return Either.map(fold(current, events, settings, now), (embedding) => {
    const newest = current?.last_updated ?? 0
    if (current && embedding.last_updated - newest > staleMillis) Telemetry.count(Telemetry.staleFolds)
    const late = items.filter(({ interaction }) => Date.parse(interaction.occurred_at) < newest)
    if (late.length > 0) Telemetry.count(Telemetry.lateFolds, late.length)
    return embedding
  })
}

const planWrite = (
  user_id: UserId,
  items: ReadonlyArray<Item>,
  record: UserRecord | undefined,
  settings: FoldSettings,
  now: number,
) =>
  Either.map(foldItems(items, record?.embedding, settings, now), (embedding) =>
    toWrite(
      user_id,
      items,
      items.map(({ interaction }) => interaction.message_id),
      record,
      embedding,
    ),
  )

/**
 * Plans the write of a user who takes events back. An event that is not applied yet will not be: its id is written without
 * folding it. An event that was folded is taken out of the sum. `undefined`: the user was rebuilt instead, and what else
 * is to be written needs the new record.
 */
const planRetractions = Effect.fnUntraced(function* (
  updater: Updater,
  user_id: UserId,
  group: ReadonlyArray<Item>,
  record: UserRecord | undefined,
  isApplied: (user: UserId, id: string) => boolean,
  now: number,
) {
  const { foldSettings, rebuild, takeBack } = updater
  const retractions = group.flatMap(({ interaction, vector }) =>
    isRetraction(interaction) ? [{ retraction: interaction, vector }] : [],
  )
  const retracted = new Set(retractions.map(({ retraction }) => retraction.reference))
  const events = group.filter(
    ({ interaction: { message_id, reference } }) => reference === null && !retracted.has(message_id),
  )
  const ids = new Set([
    ...[...retracted].filter((id) => !isApplied(user_id, id)),
    ...group.map(({ interaction }) => interaction.message_id),
  ])
  const current = record?.embedding
  yield* requireSpace(current, foldSettings)
  const folded = events.length === 0 ? current : yield* foldItems(events, current, foldSettings, now)
  const undone = retractions.filter(({ retraction }) => isApplied(user_id, retraction.reference))
  const plan = (embedding: UserEmbedding | undefined) => toWrite(user_id, group, [...ids], record, embedding)
  if (undone.length === 0 || record === undefined || folded === undefined) return plan(folded)
  if (folded.event_count <= undone.length) return plan(undefined)
  const state = appliedState(record)
  const next = { ...state, onRecord: state.onRecord.union(new Set([...ids].map(AppliedIds.prefix))) }
  const left = yield* takeBack(folded, undone, next, foldSettings, now)
  if (left !== undefined) return plan(left)
  yield* rebuild(
    user_id,
    undone.map(({ retraction }) => retraction),
  )
  return undefined
})

/** Writes records; answers in their order whether each was written. Ids reach the ledger before they leave a record. */
const save = Effect.fnUntraced(function* ({ users }: Updater, plans: ReadonlyArray<PlannedWrite>) {
  const overflow = plans.flatMap(({ overflow: ids, write: { record } }) =>
    ids.length > 0 ? [{ user_id: record.user_id, generation: record.generation, ids }] : [],
  )
  if (overflow.length > 0) yield* users.saveToLedger("applied", overflow)
  return plans.length > 0 ? yield* users.save(plans.map(({ write }) => write)) : []
})

/**
 * Finds the vectors of the events to be folded, and of applied events to be taken back: without one of the latter, the user
 * is rebuilt. An event that the same batch takes back needs none. Answers the items that can be written, and the users who
 * take something back.
 */
const findAllVectors = Effect.fnUntraced(function* (
  updater: Updater,
  fresh: ReadonlyArray<Item>,
  isApplied: (user: UserId, id: string) => boolean,
) {
  const [events, retractions] = Arr.partition(fresh, ({ interaction }) => isRetraction(interaction))
  const retracted = new Set(retractions.map(({ interaction }) => interaction.reference))
  yield* findVectors(
    updater,
    events.filter(({ interaction }) => !retracted.has(interaction.message_id)),
  )
  const undone = retractions.filter(({ interaction }) =>
    isApplied(interaction.user_id, interaction.reference!),
  )
  const found =
    undone.length === 0 ? [] : yield* updater.vectors.resolve(undone.map(({ interaction }) => interaction))
  for (const [index, item] of undone.entries())
    Either.match(found[index]!, {
      onLeft: (error) => {
        const { _tag } = RetryPolicies.classify(error)
        if (_tag === "Retryable" || _tag === "Outage") item.outcome = outcomeOf(updater, error, item.delivery)
      },
      onRight: (vector) => {
        item.vector = vector
      },
    })
  return {
    retracting: new Set(usersOf(retractions)),
    ready: fresh.filter(
      ({ interaction: { message_id, reference }, outcome, vector }) =>
        outcome === undefined && (vector !== undefined || reference !== null || retracted.has(message_id)),
    ),
  }
})

/** One attempt: load, drop what is applied, fold, write. Answers the items that must be tried again. */
const attempt = Effect.fnUntraced(function* (updater: Updater, items: ReadonlyArray<Item>) {
  const { cache, foldSettings, users } = updater
  const { cached, done, erased, fresh, isApplied, records } = yield* readRecords(updater, items)
  const { ready, retracting } = yield* findAllVectors(updater, fresh, isApplied)
  const now = yield* Clock.currentTimeMillis

  const plans: Array<PlannedWrite> = []
  const again: Array<Item> = []
  for (const [user_id, group] of Map.groupBy(ready, ({ interaction }) => interaction.user_id)) {
    const record = records.get(user_id)
    const planned = retracting.has(user_id)
      ? yield* Effect.either(planRetractions(updater, user_id, group, record, isApplied, now))
      : planWrite(user_id, group, record, foldSettings, now)
    Either.match(planned, {
      onLeft: (error) => {
        // What else the user did does not fail with a retraction.
        const [others, undone] = Arr.partition(
          group,
          ({ interaction }) => isRetraction(interaction) && isApplied(user_id, interaction.reference),
        )
        fail(updater, undone.length > 0 ? undone : group, error)
        if (undone.length > 0) again.push(...others)
      },
      onRight: (plan) => void (plan === undefined ? again.push(...group) : plans.push(plan)),
    })
  }
  const saved = yield* save(updater, plans)
  // A durable write implies that all earlier writes are durable. Without one, wait explicitly.
  if (done.length + erased.length > 0 && !saved.includes(true)) yield* users.awaitDurable
  // A worker may have died between the write that applied these items and its announcement.
  if (done.length > 0) yield* users.announce([...new Set(done.map(({ interaction }) => interaction.user_id))])
  yield* removeTraces(updater, erased)

  for (const item of [...done, ...erased]) item.outcome = acked
  const [lost, written] = Arr.partition(plans, (_, index) => saved[index] === true)
  for (const { write } of lost) cache.invalidate(cached.get(write.record.user_id), now)
  for (const { items, write } of written) {
    cache.put(write.record, now)
    for (const item of items) item.outcome = acked
  }
  return [...again, ...lost.flatMap(({ items }) => items)]
})

/**
 * Applies items, again and again where other workers write the same users. Each item gets its outcome. One record that
 * cannot be stored fails the whole write: applying halves finds its items, and no other item fails with them.
 */
const apply = (updater: Updater, items: ReadonlyArray<Item>): Effect.Effect<void> => {
  let left = items
  let tries = 0
  const once = Effect.suspend(() => attempt(updater, left)).pipe(
    Effect.flatMap((lost) => {
      left = lost
      tries += 1
      if (lost.length === 0) return Effect.void
      Telemetry.count(Telemetry.lockConflicts, lost.length)
      return Effect.fail(new LockConflict({ user_id: lost[0]!.interaction.user_id, tries }))
    }),
  )
  const isConflict = ({ _tag }: Effect.Effect.Error<typeof once>) => _tag === "LockConflict"
  // Most batches meet no conflict: only one that does pays for the schedule.
  return Effect.catchIf(once, isConflict, () =>
    Effect.retry(once, { schedule: RetryPolicies.conflictRetry, while: isConflict }),
  ).pipe(
    Effect.catchAll((error) => {
      const unfinished = items.filter(({ outcome }) => outcome === undefined)
      if (unfinished.length < 2 || RetryPolicies.classify(error)._tag !== "Unrecoverable")
        return Effect.sync(() => fail(updater, unfinished, error))
      const [first, second] = Arr.splitAt(unfinished, unfinished.length >> 1)
      return Effect.zipRight(apply(updater, first), apply(updater, second))
    }),
  )
}

const applyOneMerge = (updater: Updater, item: Item, merge: Merge) =>
  updater.applyMerge(merge, item).pipe(
    Effect.retry({
      schedule: RetryPolicies.conflictRetry,
      while: ({ _tag }) => _tag === "LockConflict",
    }),
    Effect.match({
      onFailure: (error) => fail(updater, [item], error),
      onSuccess: () => {
        item.outcome = acked
      },
    }),
  )

/** One item per interaction. Of several copies the one recorded last counts: it may have been posted after an erasure. */
const withoutCopies = (items: ReadonlyArray<Item>): ReadonlyMap<string, Item> => {
  const distinct = new Map<string, Item>()
  for (const item of items) {
    const other = distinct.get(item.interaction.message_id)
    if (other === undefined || isLater(item, other)) distinct.set(item.interaction.message_id, item)
  }
  return distinct
}

/**
 * A dead letter would keep the data of its user. So a message that would become one is acknowledged if its user was erased
 * meanwhile.
 */
const dropErased = Effect.fnUntraced(function* (
  { users }: Updater,
  messages: ReadonlyArray<DecodedMessage>,
  outcomes: ReadonlyArray<Outcome>,
  now: number,
) {
  const owners = messages.map(({ delivery }, index) =>
    outcomes[index]!.settlement._tag === "DeadLetter" ? content(delivery).user_id : null,
  )
  const known = [...new Set(owners.flatMap((user) => user ?? []))]
  if (known.length === 0) return outcomes
  const records = yield* Effect.orElseSucceed(loadReadable(users, known), () => new Map<UserId, UserRecord>())
  return outcomes.map((outcome, index) => {
    const record = records.get(owners[index] ?? "")
    const { logId, recordedAt } = messages[index]!.delivery
    return record !== undefined && isErased(record, { logId, recordedAt: recordedAt ?? now })
      ? acked
      : outcome
  })
})

const update = Effect.fnUntraced(function* (updater: Updater, messages: ReadonlyArray<DecodedMessage>) {
  const now = yield* Clock.currentTimeMillis
  const received = messages.map((message) => toItem(updater, message, now))
  const items = withoutCopies(Arr.getRights(received))
  const [events, merges] = Arr.partition([...items.values()], ({ interaction }) => isMerge(interaction))
  if (events.length > 0) yield* apply(updater, events)
  for (const item of merges)
    if (isMerge(item.interaction)) yield* applyOneMerge(updater, item, item.interaction)
  const finished = yield* Clock.currentTimeMillis
  for (const { outcome, recordedAt } of items.values())
    if (outcome === acked) Telemetry.observe(Telemetry.eventToEmbedding, (finished - recordedAt) / 1000)
  const outcomes = received.map((item) =>
    Either.isRight(item) ? items.get(item.right.interaction.message_id)!.outcome! : item.left,
  )
  return yield* dropErased(updater, messages, outcomes, now)
})

const make = Effect.gen(function* () {
  const { eventTypes, history, lambda, maxRetries, retryDelay } = yield* EmbeddingConfig
  const vectors = yield* EventVectors
  const rebuilding = yield* UserRebuild.services
  const stores = Context.make(UserEmbeddings, rebuilding.users).pipe(
    Context.add(InteractionLog, rebuilding.log),
    Context.add(ProductEmbeddings, yield* ProductEmbeddings),
  )
  const cache = new UserRecordCache()
  // A write beside the cache makes its record old.
  const save: UserEmbeddings["Type"]["save"] = (writes) => {
    cache.take(writes.map(({ record }) => record.user_id))
    return rebuilding.users.save(writes)
  }
  const uncached = { ...rebuilding, users: { ...rebuilding.users, save } }
  const updater: Updater = {
    users: rebuilding.users,
    vectors,
    takeBack: (...events) => Effect.provide(takeBack(...events), stores),
    rebuild: (user, retractions) => UserRebuild.rebuildUser(uncached, user, { retractions }, identity),
    settle: (user) => Merges.settle(uncached, user),
    applyMerge: (merge, at) => Merges.applyMerge(uncached, merge, at),
    cache,
    foldSettings: { lambda, weights: eventTypes.weights, history, space: vectors.space },
    delays: RetryPolicies.retryDelays(retryDelay, maxRetries),
  }
  return EmbeddingUpdater.of({
    update: (messages) => update(updater, messages),
    needsEmbedder: (interaction) =>
      isRetraction(interaction) ||
      (interaction.search_phrase !== null && !vectors.remembers(interaction.search_phrase)),
  })
})

export const layer = Layer.effect(EmbeddingUpdater, make)
