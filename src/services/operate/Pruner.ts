/**
 * Step: deletes old rows of the log, and keeps their sums in checkpoints. Rows are taken in slices by id. A row that some
 * program still needs stays: it waits in the outbox, is not applied or counted, or cannot be summed. Each slice is one transaction of
 * the log, so the command may be stopped or killed at any time, and started again.
 */
import { Array as Arr, Context, Effect, Either, Layer, Schema } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import type { PrunedPart } from "../model/Checkpoint.ts"
import type { FoldSettings } from "../model/Fold.ts"
import type { UserId } from "../model/Interaction.ts"
import { InteractionLog, InteractionLogError, type LogRow } from "../ports/InteractionLog.ts"
import type { ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { ProductTally } from "../ports/ProductTally.ts"
import type { PruneSlice } from "../ports/PrunedRows.ts"
import {
  loadReadable,
  UserEmbeddings,
  type UserEmbeddingsError,
  type UserRecord,
} from "../ports/UserEmbeddings.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as PairCounter from "../recommend/PairCounter.ts"
import { appliedState, findApplied } from "../update/AppliedInteractions.ts"
import { type EventVectorError, EventVectors } from "../update/EventVectors.ts"

/** Why a row is old enough, and stays in the log. */
type Reason =
  | "unpublished"
  | "not_applied"
  | "not_counted"
  | "recency_history"
  | "unknown_event_type"
  | "without_vector"

export interface PruneReport {
  /** Canonical timestamp. */
  readonly before: string
  /** Deleted rows of events. In a dry run, those that would be deleted if their vectors are found. */
  readonly events: number
  /** Deleted rows that took some of these events back. */
  readonly retractions: number
  /** Events that stay in the log. */
  readonly kept: Readonly<Partial<Record<Reason, number>>>
}

/** In recency history every event counts against all that went before, so a sum cannot stand for events. */
export class NotCumulative extends Schema.TaggedError<NotCumulative>()("NotCumulative", {}) {
  override get message() {
    return "only cumulative history can be pruned, because recency history depends on every single event: set EMBEDDING_HISTORY=cumulative and run user-embeddings rebuild --all first"
  }
}

export interface PruneOptions {
  /** Canonical timestamp: rows of events that occurred before are pruned. */
  readonly before: string
  readonly dryRun?: boolean
  /** Receives the number of events pruned so far, and how far the slices reach in the log. */
  readonly progress?: (reached: {
    readonly count: number
    readonly done: number
    readonly total: number
  }) => Effect.Effect<void>
}

export type PruneError =
  | InteractionLogError
  | ProductEmbeddingsError
  | UserEmbeddingsError
  | EventVectorError
  | NotCumulative

export class Pruner extends Context.Tag("user-embeddings/Pruner")<
  Pruner,
  { readonly prune: (options: PruneOptions) => Effect.Effect<PruneReport, PruneError> }
>() {}

/** Records loaded, and vectors looked up, together. */
const page = 500
/** Attempts to prune a slice that other programs change meanwhile. */
const mostTries = 20

const services = Effect.all({
  counter: PairCounter.PairCounter,
  log: InteractionLog,
  users: UserEmbeddings,
  vectors: EventVectors,
  config: EmbeddingConfig,
  tally: ProductTally,
})
type Services = Effect.Effect.Success<typeof services>

/** An event of a slice, with what takes it back. */
interface Candidate {
  readonly event: LogRow
  readonly retraction: LogRow | undefined
}

/** What one slice comes to. */
interface Plan {
  readonly candidates: ReadonlyArray<Candidate>
  /** Rows of events that were pruned before and posted again. */
  readonly again: ReadonlyArray<LogRow>
  readonly kept: Map<Reason, number>
}

const keep = (kept: Map<Reason, number>, reason: Reason) => kept.set(reason, (kept.get(reason) ?? 0) + 1)

/** The record of each of these ids, or of the user that the id is an alias of. */
const loadRecords = Effect.fnUntraced(function* (
  users: UserEmbeddings["Type"],
  wanted: ReadonlyArray<UserId>,
) {
  const records = new Map<UserId, UserRecord>()
  for (let left = wanted.map((user) => ({ user, owner: user })); left.length > 0; ) {
    const owners = [...new Set(left.map(({ owner }) => owner))]
    const pages = yield* Effect.forEach(Arr.chunksOf(owners, page), (some) => loadReadable(users, some))
    const found = new Map(pages.flatMap((page) => [...page]))
    left = left.flatMap(({ owner, user }) => {
      const record = found.get(owner)
      if (record?.links?.alias_of !== undefined) return [{ user, owner: record.links.alias_of }]
      if (record !== undefined) records.set(user, record)
      return []
    })
  }
  return records
})

/** Sorts out the rows that must stay. */
const plan = Effect.fnUntraced(function* (
  { config, log, users }: Services,
  { events, retractions }: PruneSlice,
  countedUpTo: number,
) {
  const kept = new Map<Reason, number>()
  const ids = events.map(({ interaction }) => interaction)
  const again = yield* log.pruned.among(ids)
  const erasing = yield* log.pruned.erasing
  const records = yield* loadRecords(users, [...new Set(ids.map(({ user_id }) => user_id))])
  const states = new Map([...records].map(([user, record]) => [user, appliedState(record)]))
  const applied = yield* findApplied(
    users,
    [...events, ...retractions].map(({ interaction }) => interaction),
    states,
  )
  const isApplied = ({ interaction: { message_id } }: LogRow) => applied.has(AppliedIds.prefix(message_id))
  const retractionOf = new Map(retractions.map((row) => [row.interaction.reference, row]))
  const [first, repeated] = Arr.partition(events, ({ interaction }) =>
    again.has(AppliedIds.prefix(interaction.message_id)),
  )
  const candidates = first.flatMap((event): ReadonlyArray<Candidate> => {
    const { event_type, message_id, user_id } = event.interaction
    const retraction = retractionOf.get(message_id)
    const rows = retraction === undefined ? [event] : [event, retraction]
    const reason = ((): Reason | undefined => {
      if (!rows.every(({ published }) => published)) return "unpublished"
      if (erasing.has(user_id) || !rows.every(isApplied)) return "not_applied"
      if (!rows.every(({ id }) => id <= countedUpTo)) return "not_counted"
      if (records.get(user_id)?.embedding?.history === "recency") return "recency_history"
      return config.eventTypes.has(event_type) ? undefined : "unknown_event_type"
    })()
    if (reason === undefined) return [{ event, retraction }]
    keep(kept, reason)
    return []
  })
  const finished = repeated.filter(
    ({ interaction, published }) => published && !erasing.has(interaction.user_id),
  )
  return { candidates, again: finished, kept } satisfies Plan
})

/** The parts of each user, with the vectors of the events that are not taken back. An event without a vector stays. */
const toParts = Effect.fnUntraced(function* ({ vectors }: Services, { candidates, kept }: Plan) {
  const found = yield* Effect.map(
    Effect.forEach(Arr.chunksOf(candidates, page), (some) =>
      // Phrases of events that go need not be stored.
      vectors.resolve(
        some.flatMap(({ event, retraction }) => (retraction === undefined ? [event.interaction] : [])),
        { store: false },
      ),
    ),
    Arr.flatten,
  )
  let next = 0
  const ids: Array<number> = []
  const parts = new Map<
    UserId,
    { interactions: Array<LogRow["interaction"]>; events: Array<PrunedPart["events"][number]> }
  >()
  for (const { event, retraction } of candidates) {
    const { interaction } = event
    const part = parts.get(interaction.user_id) ?? { interactions: [], events: [] }
    if (retraction === undefined) {
      const vector = found[next++]!
      if (Either.isLeft(vector)) {
        if (!RetryPolicies.isFinal(vector.left)) return yield* vector.left
        keep(kept, "without_vector")
        continue
      }
      part.events.push({ interaction, vector: vector.right })
    }
    for (const row of retraction === undefined ? [event] : [event, retraction]) {
      part.interactions.push(row.interaction)
      ids.push(row.id)
    }
    parts.set(interaction.user_id, part)
  }
  return { ids, parts: Array.from(parts, ([user_id, part]) => ({ user_id, ...part })) }
})

/** Prunes one slice; again, if the log changed meanwhile. */
const pruneSlice = Effect.fnUntraced(function* (
  services: Services,
  settings: FoldSettings,
  options: Parameters<InteractionLog["Type"]["pruned"]["slice"]>[0],
  countedUpTo: number,
  dryRun: boolean,
) {
  const { log } = services
  for (let tries = 1; tries <= mostTries; tries++) {
    const slice = yield* log.pruned.slice(options)
    const planned = yield* plan(services, slice, countedUpTo)
    const { again, candidates, kept } = planned
    if (dryRun) {
      const retractions = candidates.filter(({ retraction }) => retraction !== undefined).length
      return { upTo: slice.upTo, events: candidates.length, retractions, kept }
    }
    const { ids, parts } = yield* toParts(services, planned)
    const pruning = { parts, ids, again: again.map(({ id }) => id), settings }
    const isDone = ids.length + again.length === 0 || (yield* log.pruned.prune(pruning))
    if (!isDone) continue
    const retractions = parts
      .flatMap(({ interactions }) => interactions)
      .filter(({ reference }) => reference !== null).length
    return { upTo: slice.upTo, events: ids.length - retractions, retractions, kept }
  }
  const cause = `the rows changed during each of ${mostTries} attempts to prune them`
  return yield* new InteractionLogError({ reason: "conflict", operation: "prune", cause })
})

/** The last row whose pairs of products are counted. A row that is pruned before would never be counted. */
const countPairs = ({ config, counter, tally }: Services, dryRun: boolean) => {
  if (config.togetherWeight === 0) return Effect.succeed(Number.POSITIVE_INFINITY)
  return dryRun ? tally.settled : counter.finish
}

const prune = Effect.fn("Pruner.prune")(function* (
  services: Services,
  { before, dryRun = false, progress = () => Effect.void }: PruneOptions,
) {
  const { config, log, vectors } = services
  const { eventTypes, history, lambda } = config
  if (history !== "cumulative") return yield* new NotCumulative()
  const settings: FoldSettings = { lambda, weights: eventTypes.weights, history, space: vectors.space }
  const kept: Partial<Record<Reason, number>> = {}
  let events = 0
  let retractions = 0
  const countedUpTo = yield* countPairs(services, dryRun)
  const end = yield* log.maxId
  for (let after = 0; after < end; ) {
    const done = yield* pruneSlice(services, settings, { before, after, end }, countedUpTo, dryRun)
    after = done.upTo
    events += done.events
    retractions += done.retractions
    for (const [reason, count] of done.kept) kept[reason] = (kept[reason] ?? 0) + count
    yield* progress({ count: events, done: after, total: end })
  }
  return { before, events, retractions, kept }
})

export const layer = Layer.effect(
  Pruner,
  Effect.map(services, (services) => ({ prune: (options: PruneOptions) => prune(services, options) })),
).pipe(Layer.provide(PairCounter.layer))
