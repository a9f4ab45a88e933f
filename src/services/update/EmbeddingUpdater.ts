/**
 * Step: deliveries → event vectors → fold → UserEmbeddings → one outcome per delivery. Everything is done in bulk,
 * per batch: one load, one look-up of vectors, one write. Applying is exactly once: ids found on the record
 * or in the ledger are dropped, and the new ids change in the same compare-and-swap write as the vector.
 */
import { Array as Arr, Clock, Context, Effect, Either, Layer } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { type Interaction, maxFutureMillis, type UserId } from "../model/Interaction.ts"
import { decodeMessage, notInTheFuture, phraseIn } from "../model/UpdateMessage.ts"
import { fold } from "../model/UserEmbedding.ts"
import { Ack, type Delivery, type Settlement } from "../ports/InteractionQueue.ts"
import { LockConflict, UserEmbeddings, type UserRecord, type Write } from "../ports/UserEmbeddings.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"
import { EventVectors } from "./EventVectors.ts"
import { UserRecordCache } from "./UserRecordCache.ts"

/** What became of a delivery. */
export type Outcome =
  | { readonly _tag: "Settle"; readonly settlement: Settlement }
  /** A dependency is out: the message failed through no fault of its own and may wait. */
  | { readonly _tag: "Outage"; readonly error: RetryPolicies.UpdateError; readonly settlement: Settlement }

export class EmbeddingUpdater extends Context.Tag("user-embeddings/EmbeddingUpdater")<
  EmbeddingUpdater,
  {
    /** Takes deliveries in and answers in their order. What is to be acknowledged is durable by then. */
    readonly update: (deliveries: ReadonlyArray<Delivery>) => Effect.Effect<ReadonlyArray<Outcome>>
    /** Whether it has to wait for the embedder, as far as a look at its body tells. */
    readonly needsEmbedder: (delivery: Delivery) => boolean
  }
>() {}

/** One delivery on its way through the batch. */
interface Item {
  readonly delivery: Delivery
  readonly interaction: Interaction
  /** Unix ms. */
  readonly recordedAt: number
  vector: Float32Array | undefined
  outcome: Outcome | undefined
}

const settle = (settlement: Settlement): Outcome => ({ _tag: "Settle", settlement })
const acked = settle(Ack)
const staleMillis = 90 * 86_400_000

const make = Effect.gen(function* () {
  const config = yield* EmbeddingConfig
  const users = yield* UserEmbeddings
  const vectors = yield* EventVectors
  const kept = new UserRecordCache()
  const delays = RetryPolicies.retryDelays(config.retryDelay, config.maxRetries)
  const settings = {
    lambda: config.lambda,
    weights: config.eventTypes.weights,
    history: config.history,
    space: vectors.space,
  }

  const failed = (error: RetryPolicies.UpdateError, { retryCount }: Delivery): Outcome => {
    const settlement = RetryPolicies.settlementOf(error, retryCount, delays)
    return RetryPolicies.classify(error)._tag === "Outage"
      ? { _tag: "Outage", error, settlement }
      : settle(settlement)
  }
  const fail = (items: ReadonlyArray<Item>, error: RetryPolicies.UpdateError) => {
    for (const item of items) item.outcome = failed(error, item.delivery)
  }

  /** Decodes, or says why this delivery can't be taken in. */
  const receive = (delivery: Delivery, now: number): Either.Either<Item, Outcome> => {
    const latest = Math.max(now, delivery.publishedAt ?? now) + maxFutureMillis
    const decoded = Either.flatMap(decodeMessage(delivery.body, config.eventTypes), (interaction) =>
      notInTheFuture(interaction, latest),
    )
    return Either.mapBoth(decoded, {
      onLeft: (error) => failed(error, delivery),
      onRight: (interaction) => ({
        delivery,
        interaction,
        recordedAt: delivery.recordedAt ?? Date.parse(interaction.occurred_at),
        vector: undefined,
        outcome: undefined,
      }),
    })
  }

  /** Tells items that are still to be folded from those that were applied before, or erased. */
  const partition = Effect.fnUntraced(function* (
    items: ReadonlyArray<Item>,
    records: ReadonlyMap<UserId, UserRecord>,
  ) {
    const [unknown, done] = Arr.partition(items, ({ interaction: { message_id, user_id }, recordedAt }) => {
      const record = records.get(user_id)
      if (record === undefined) return false
      return recordedAt <= record.erased_at || AppliedIds.has(record.applied, message_id)
    })
    const toLookUp = unknown.filter(
      ({ interaction }) => (records.get(interaction.user_id)?.archived ?? 0) > 0,
    )
    if (toLookUp.length === 0) return { fresh: unknown, done }
    const byUser = Map.groupBy(toLookUp, ({ interaction }) => interaction.user_id)
    const ledger = yield* users.archived(
      Array.from(byUser, ([user_id, group]) => ({
        user_id,
        ids: group.map(({ interaction }) => AppliedIds.prefix(interaction.message_id)),
      })),
    )
    const [fresh, archived] = Arr.partition(
      unknown,
      ({ interaction: { message_id, user_id } }) =>
        ledger.get(user_id)?.has(AppliedIds.prefix(message_id)) === true,
    )
    return { fresh, done: [...done, ...archived] }
  })

  const findVectors = Effect.fnUntraced(function* (items: ReadonlyArray<Item>) {
    const wanted = items.filter(({ vector }) => vector === undefined)
    if (wanted.length === 0) return
    const found = yield* vectors.resolve(wanted.map(({ interaction }) => interaction))
    for (const [index, item] of wanted.entries())
      Either.match(found[index]!, {
        onLeft: (error) => {
          item.outcome = failed(error, item.delivery)
          if (error._tag === "ProductMissing") Telemetry.count(Telemetry.skippedInteractions)
        },
        onRight: (vector) => {
          item.vector = vector
        },
      })
  })

  /** One round: load, drop what is applied, fold, write. Answers the items that lost the compare-and-swap. */
  const round = Effect.fnUntraced(function* (items: ReadonlyArray<Item>) {
    const wanted = [...new Set(items.map(({ interaction }) => interaction.user_id))]
    const remembered = kept.take(wanted)
    const read = yield* users.load(wanted.filter((user) => !remembered.has(user)))
    const records = new Map([...remembered, ...read])
    let { done, fresh } = yield* partition(items, records)
    // No write would find out that the user was erased since: what is to be acknowledged unapplied is read.
    const doubted = [...new Set(done.map(({ interaction }) => interaction.user_id))].filter((user) =>
      remembered.delete(user),
    )
    if (doubted.length > 0) {
      for (const user of doubted) records.delete(user)
      for (const [user, record] of yield* users.load(doubted)) records.set(user, record)
      ;({ done, fresh } = yield* partition(items, records))
    }
    yield* findVectors(fresh)
    const now = yield* Clock.currentTimeMillis

    const writes: Array<Write> = []
    const written: Array<ReadonlyArray<Item>> = []
    const archive: Array<{ user_id: UserId; ids: ReadonlyArray<string> }> = []
    const ready = fresh.filter(({ vector }) => vector !== undefined)
    for (const [user_id, group] of Map.groupBy(ready, (item) => item.interaction.user_id)) {
      const record = records.get(user_id)
      const events = group.map(({ interaction, vector }) => ({ interaction, vector: vector! }))
      const folded = fold(record?.embedding, events, settings, now)
      if (Either.isLeft(folded)) {
        fail(group, folded.left)
        continue
      }
      const ids = AppliedIds.append(
        record?.applied ?? AppliedIds.none,
        group.map(({ interaction }) => interaction.message_id),
      )
      if (ids.archive.length > 0) archive.push({ user_id, ids: ids.archive })
      if (record?.embedding && folded.right.last_updated - record.embedding.last_updated > staleMillis)
        Telemetry.count(Telemetry.staleFolds)
      const newest = record?.embedding?.last_updated ?? 0
      const late = group.filter(({ interaction }) => Date.parse(interaction.occurred_at) < newest)
      if (late.length > 0) Telemetry.count(Telemetry.lateFolds, late.length)
      writes.push({
        expected: record?.version,
        record: {
          user_id,
          embedding: folded.right,
          version: (record?.version ?? 0) + 1,
          applied: ids.kept,
          archived: (record?.archived ?? 0) + ids.archive.length,
          erased_at: record?.erased_at ?? 0,
        },
      })
      written.push(group)
    }
    if (archive.length > 0) yield* users.saveOverflow(archive)
    const saved = writes.length > 0 ? yield* users.save(writes) : []
    // A write of ours that is durable says so of all before it; without one that is asked for.
    if (done.length > 0 && !saved.includes(true)) yield* users.awaitDurable
    for (const item of done) item.outcome = acked
    for (const [index, { record }] of writes.entries())
      if (saved[index] !== true) kept.invalidate(remembered.get(record.user_id), now)
    return written.flatMap((group, index) => {
      if (saved[index] !== true) return group
      kept.put(writes[index]!.record, now)
      for (const item of group) item.outcome = acked
      return []
    })
  })

  const apply = Effect.fnUntraced(function* (items: ReadonlyArray<Item>) {
    let left = items
    let tries = 0
    const attempt = Effect.suspend(() => round(left)).pipe(
      Effect.flatMap((lost) => {
        left = lost
        tries += 1
        if (lost.length === 0) return Effect.void
        Telemetry.count(Telemetry.lockConflicts, lost.length)
        return Effect.fail(new LockConflict({ user_id: lost[0]!.interaction.user_id, tries }))
      }),
    )
    yield* attempt.pipe(
      Effect.retry({
        schedule: RetryPolicies.conflictRetry,
        while: (error) => error._tag === "LockConflict",
      }),
      Effect.catchAll((error) =>
        Effect.sync(() =>
          fail(
            items.filter(({ outcome }) => outcome === undefined),
            error,
          ),
        ),
      ),
    )
  })

  const update = Effect.fnUntraced(function* (deliveries: ReadonlyArray<Delivery>) {
    const now = yield* Clock.currentTimeMillis
    const received = deliveries.map((delivery) => receive(delivery, now))
    const items = Arr.getRights(received)
    // Copies share one outcome. The newest stands for them: what was posted anew after an erasure counts.
    const distinct = new Map<string, Item>()
    for (const item of items) {
      const other = distinct.get(item.interaction.message_id)
      if (other === undefined || other.recordedAt < item.recordedAt)
        distinct.set(item.interaction.message_id, item)
    }
    if (distinct.size > 0) yield* apply([...distinct.values()])
    const finished = yield* Clock.currentTimeMillis
    for (const { outcome, recordedAt } of distinct.values())
      if (outcome === acked) Telemetry.observe(Telemetry.eventToEmbedding, (finished - recordedAt) / 1000)
    return received.map((one) =>
      Either.isRight(one) ? distinct.get(one.right.interaction.message_id)!.outcome! : one.left,
    )
  })

  const needsEmbedder = ({ body }: Delivery): boolean => {
    const phrase = phraseIn(body)
    return phrase !== undefined && !vectors.remembers(phrase)
  }

  return { update, needsEmbedder }
})

export const layer = Layer.effect(EmbeddingUpdater, make)
