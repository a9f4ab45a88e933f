/**
 * Computes one user's embedding from nothing: in order, with the configured history, space, weights and λ. It takes exactly
 * the interactions that are applied already, without those that are taken back; the others arrive as messages. If a worker
 * changes the record meanwhile, the version check fails and the rebuild starts again.
 */
import { Array as Arr, Chunk, Clock, Effect, Either, Exit, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { type Erasure, isErased } from "../model/Erasure.ts"
import { counterOf } from "../model/EventTypes.ts"
import { addCounters, asOf, type Event, type FoldSettings, fold, withRecent } from "../model/Fold.ts"
import {
  type Interaction,
  isRetraction,
  type MessageId,
  type Retraction,
  type UserId,
} from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import { InteractionLog, type LogRow } from "../ports/InteractionLog.ts"
import { postedUnder } from "../ports/PrunedRows.ts"
import {
  LockConflict,
  UserEmbeddings,
  type UserEmbeddingsError,
  type UserRecord,
} from "../ports/UserEmbeddings.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as AppliedInteractions from "./AppliedInteractions.ts"
import { EventVectors } from "./EventVectors.ts"
import * as PrunedEvents from "./PrunedEvents.ts"

/** A rebuild would lose something, so the embedding stays as it is. */
export class CannotRebuild extends Schema.TaggedError<CannotRebuild>()("CannotRebuild", {
  user_id: Schema.String,
  detail: Schema.String,
}) {
  override get message() {
    return `user ${this.user_id}: ${this.detail}`
  }
}

const page = 500

export const services = Effect.all({
  log: InteractionLog,
  users: UserEmbeddings,
  vectors: EventVectors,
  config: EmbeddingConfig,
})
export type Services = Effect.Effect.Success<typeof services>

export interface UserRebuildOptions {
  /** Skips interactions whose vector or row is gone. */
  readonly allowMissing?: boolean
  /** Retractions to apply with the rebuild. Those that the log has are applied in any case. */
  readonly retractions?: ReadonlyArray<Retraction>
  /** Succeeds without effect if the user has no embedding: all events may be taken back or erased since the user was listed. */
  readonly ifAny?: boolean
  /** What the record is to be before its vector is computed; `undefined`: it changed meanwhile. */
  readonly change?: (record: UserRecord) => UserRecord | undefined
}

/** Keeps the order of the log among those of one instant. */
const byInstant = (a: Interaction, b: Interaction): number =>
  a.occurred_at < b.occurred_at ? -1 : a.occurred_at > b.occurred_at ? 1 : 0

/** Vectors in the order of the interactions; `Left` where the vector is gone. */
const resolve = ({ vectors }: Services, interactions: ReadonlyArray<Interaction>) =>
  vectors
    .resolve(interactions)
    .pipe(
      Effect.flatMap((found) =>
        Effect.forEach(found, (one) =>
          Either.isLeft(one) && !RetryPolicies.isFinal(one.left)
            ? Effect.fail(one.left)
            : Effect.succeed(one),
        ),
      ),
    )

/** What the attempts to rebuild a user may have left behind. */
interface Traces {
  /** The attempts. */
  tries: number
  /** The generation of the record that the first attempt read. */
  generation: number
  /** Their vectors may have been stored. */
  readonly phrases: Set<string>
}

/** The user may have been erased after an attempt had read the log, and before it stored the vectors of phrases. */
const removeTraces = ({ users, vectors }: Services, user_id: UserId, { generation, phrases }: Traces) =>
  Effect.flatMap(users.load([user_id]), (records) =>
    (records.get(user_id)?.generation ?? 0) === generation ? Effect.void : vectors.forget([...phrases]),
  )

const orAllowMissing = (user_id: UserId, detail: string) =>
  new CannotRebuild({ user_id, detail: `${detail}; use --allow-missing to rebuild without` })

/** Interactions with their vectors, and those that can't be folded, if these may be left out. */
const findEvents = Effect.fnUntraced(function* (
  services: Services,
  user_id: UserId,
  interactions: ReadonlyArray<Interaction>,
  allowMissing: boolean,
) {
  const found = yield* resolve(services, interactions)
  const events: Array<Event> = []
  const notFolded: Array<Interaction> = []
  for (const [index, interaction] of interactions.entries()) {
    const vector = found[index]!
    const { event_type, message_id } = interaction
    const isKnown = services.config.eventTypes.has(event_type)
    // It may have been posted under an alias.
    if (isKnown && Either.isRight(vector))
      events.push({ interaction: { ...interaction, user_id }, vector: vector.right })
    else if (allowMissing) notFolded.push(interaction)
    else
      return yield* orAllowMissing(
        user_id,
        isKnown && Either.isLeft(vector)
          ? `${message_id}: ${vector.left.message}`
          : `${message_id}: EVENT_WEIGHTS has no event type ${event_type} any more`,
      )
  }
  return { events, notFolded }
})

/** The erasures of the record's ids: that of the id under which a row was posted decides on the row. */
const erasuresOf = (users: UserEmbeddings["Type"], record: UserRecord) => {
  const aliases = (record.links?.aliases ?? []).map(({ user_id }) => user_id)
  const found: Effect.Effect<ReadonlyMap<UserId, Erasure>, UserEmbeddingsError> = aliases.length === 0
    ? Effect.succeed(new Map())
    : users.load(aliases)
  return Effect.map(found, (records) => new Map<UserId, Erasure>([...records, [record.user_id, record]]))
}

/** Of a page of the log: the applied rows, and the retractions that are not applied yet although their events are. */
const readPage = Effect.fnUntraced(function* (
  users: UserEmbeddings["Type"],
  user_id: UserId,
  state: AppliedInteractions.AppliedState,
  erasures: ReadonlyMap<UserId, Erasure>,
  rows: ReadonlyArray<LogRow>,
) {
  const wanted = rows.flatMap(({ interaction: { message_id, reference } }) =>
    reference === null ? [message_id] : [message_id, reference],
  )
  const ids = yield* AppliedInteractions.findApplied(
    users,
    wanted.map((message_id) => ({ user_id, message_id })),
    new Map([[user_id, state]]),
  )
  const isApplied = (id: string) => ids.has(AppliedIds.prefix(id))
  const applied: Array<Interaction> = []
  const retractions: Array<Retraction> = []
  for (const { id: logId, interaction, recordedAt } of rows) {
    const erasure = erasures.get(interaction.user_id)
    if (isApplied(interaction.message_id)) applied.push(interaction)
    else if (
      isRetraction(interaction) &&
      isApplied(interaction.reference) &&
      !(erasure !== undefined && isErased(erasure, { logId, recordedAt }))
    )
      retractions.push(interaction)
  }
  return { applied, retractions }
})

const settingsOf = ({ config, vectors }: Services): FoldSettings => ({
  lambda: config.lambda,
  weights: config.eventTypes.weights,
  history: config.history,
  space: vectors.space,
})

const loadPruned = (
  log: InteractionLog["Type"],
  record: UserRecord,
  settings: FoldSettings,
  allowMissing: boolean,
  now: number,
) =>
  Effect.filterOrFail(
    PrunedEvents.load(log, record, settings, now),
    ({ leftOut }) => allowMissing || leftOut.length === 0,
    ({ leftOutCount }) =>
      orAllowMissing(
        record.user_id,
        `${leftOutCount} events are pruned from the log, and their sum is of another space, λ, weights or history`,
      ),
  )

/**
 * Compares the applied ids with the log and the pruned ids. `gone`: applied, and in neither. `stale`: in the overflow, though
 * the record did not move them there. `unapplied`: pruned ids that are not applied, because MongoDB was restored from a
 * backup that is older than the prune. A rebuild applies them, because their events are in the sums.
 */
const compareIds = Effect.fnUntraced(function* (
  users: UserEmbeddings["Type"],
  user_id: UserId,
  state: AppliedInteractions.AppliedState,
  pruned: Effect.Effect.Success<ReturnType<typeof PrunedEvents.load>>,
  inLog: number,
) {
  const total = yield* AppliedInteractions.countApplied(users, state)
  const archived = state.ledgers.reduce((sum, ledger) => sum + ledger.archived, 0)
  const stale = Math.max(0, total - state.onRecord.size - archived)
  const gone = total - inLog - stale - pruned.rows
  const prunedIds: Array<string> = []
  if (stale > 0 || gone < 0)
    yield* Stream.runForEach(pruned.ids, (ids) => Effect.sync(() => void prunedIds.push(...ids)))
  const states = new Map([[user_id, state]])
  const applied = yield* AppliedInteractions.findApplied(users, postedUnder([user_id], prunedIds), states)
  return {
    gone,
    unapplied: prunedIds.filter((id) => !applied.has(id)),
    overflow: stale > 0 ? prunedIds.filter((id) => applied.has(id) && !state.onRecord.has(id)) : undefined,
  }
})

/**
 * How many of these applied interactions have no row. They are taken back, so nothing is lost: an erasure during the
 * retraction has deleted their rows.
 */
const countTakenBack = Effect.fnUntraced(function* (
  { log, users }: Services,
  user_id: UserId,
  state: AppliedInteractions.AppliedState,
  pruned: Effect.Effect.Success<ReturnType<typeof PrunedEvents.load>>,
  references: ReadonlySet<MessageId>,
) {
  const all = Array.from(references, AppliedIds.prefix)
  const existing = (yield* log.existingIds(all)).union(yield* pruned.among(all))
  const withoutRow = postedUnder(
    [user_id],
    all.filter((id) => !existing.has(id)),
  )
  return (yield* AppliedInteractions.findApplied(users, withoutRow, new Map([[user_id, state]]))).size
})

/**
 * Computes the embedding from the sums of pruned events and the log; `undefined` if all events are taken back. `notFolded`
 * has the applied interactions whose vector is gone, or whose type is no longer configured. `newlyApplied` has the ids that
 * are applied now.
 * `overflow` has the ids that the overflow should have, if it has more than the record moved there: release 0.1.0 could
 * leave ids from before an erasure.
 */
const compute = Effect.fnUntraced(function* (
  services: Services,
  record: UserRecord,
  { allowMissing = false, retractions = [] }: UserRebuildOptions,
  now: number,
  traces: Traces,
) {
  const { user_id } = record
  const { log, users, vectors } = services
  const settings = settingsOf(services)
  const state = AppliedInteractions.appliedState(record)
  const erasures = yield* erasuresOf(users, record)
  const notFolded: Array<Interaction> = []
  const pruned = yield* loadPruned(log, record, settings, allowMissing, now)
  let embedding = pruned.sum
  /** Retractions of pruned events. */
  const ofPruned: Array<Retraction> = []
  const retracted = new Set(retractions.map(({ reference }) => reference))
  const before = yield* AppliedInteractions.findApplied(users, retractions, new Map([[user_id, state]]))
  const newlyApplied = new Set(
    retractions.map(({ message_id }) => message_id).filter((id) => !before.has(AppliedIds.prefix(id))),
  )

  /** A retraction and its interaction occurred at the same instant, so they are in the same page. */
  const foldPage = Effect.fnUntraced(function* (all: ReadonlyArray<Interaction>) {
    for (const interaction of all) if (isRetraction(interaction)) retracted.add(interaction.reference)
    const interactions = all.filter(
      ({ message_id, reference }) => reference === null && !retracted.has(message_id),
    )
    if (interactions.length === 0) return
    for (const { search_phrase } of interactions)
      if (search_phrase !== null) traces.phrases.add(search_phrase)
    const found = yield* findEvents(services, user_id, interactions, allowMissing)
    notFolded.push(...found.notFolded)
    // The embedding began in this space, so the fold cannot find another one.
    if (found.events.length > 0) embedding = yield* Effect.orDie(fold(embedding, found.events, settings, now))
  })
  let inLog = 0
  const overflow: Array<string> = []
  /** Interactions of the last instant read: the next page may hold more of the same instant, to be folded together. */
  let last: ReadonlyArray<Interaction> = []
  yield* log.stream({ user: user_id }).pipe(
    Stream.grouped(page),
    Stream.runForEach((chunk) =>
      Effect.gen(function* () {
        const { rows, takesBack } = yield* pruned.withoutPruned(Chunk.toReadonlyArray(chunk))
        const read = yield* readPage(users, user_id, state, erasures, rows)
        inLog += read.applied.length
        const ids = read.applied.map(({ message_id }) => AppliedIds.prefix(message_id))
        overflow.push(...ids.filter((id) => !state.onRecord.has(id)))
        for (const { message_id } of read.retractions) newlyApplied.add(message_id)
        const [taken, undone] = Arr.partition([...read.applied, ...read.retractions], takesBack)
        ofPruned.push(...undone)
        const all = [...last, ...taken.sort(byInstant)]
        const instant = all.at(-1)?.occurred_at
        const cut = all.findIndex(({ occurred_at }) => occurred_at === instant)
        last = all.slice(cut)
        yield* foldPage(all.slice(0, cut))
      }),
    ),
  )
  yield* foldPage(last)
  if (yield* pruned.isOutdated) return yield* new LockConflict({ user_id, tries: 1 })
  const left = embedding && (yield* PrunedEvents.takeBack(vectors, embedding, ofPruned, settings, now))
  if (left === undefined && embedding !== undefined && !allowMissing)
    return yield* orAllowMissing(user_id, "a pruned event cannot be taken back")
  embedding = left ?? embedding
  const ids = yield* compareIds(users, user_id, state, pruned, inLog)
  const gone =
    ids.gone > 0 ? ids.gone - (yield* countTakenBack(services, user_id, state, pruned, retracted)) : 0
  if (gone > 0 && !allowMissing)
    return yield* orAllowMissing(user_id, `${gone} applied interactions are no longer in the log`)
  if (embedding === undefined && (notFolded.length > 0 || retracted.size === 0))
    return yield* new CannotRebuild({ user_id, detail: "no applied interaction has both a row and a vector" })
  return {
    embedding,
    notFolded,
    newlyApplied: [...newlyApplied, ...ids.unapplied],
    overflow: ids.overflow && [...overflow, ...ids.overflow],
    pruned,
    ofPruned,
  }
})

/** What stays of the embedding before the rebuild. Of pruned events, that is where the newest are kept. */
const completed = Effect.fnUntraced(function* (
  before: UserEmbedding,
  computed: UserEmbedding,
  { notFolded, ofPruned, pruned }: Effect.Effect.Success<ReturnType<typeof compute>>,
) {
  const counters = addCounters([computed, ...pruned.leftOut])
  for (const { event_type } of notFolded) {
    const counter = counterOf(event_type)
    counters[counter] = (counters[counter] ?? 0) + 1
  }
  const prunedIds = yield* pruned.among(before.recent.map(({ message_id }) => message_id))
  const retracted = new Set(ofPruned.map(({ reference }) => reference))
  const recent = before.recent.filter(
    ({ message_id }) => prunedIds.has(AppliedIds.prefix(message_id)) && !retracted.has(message_id),
  )
  const embedding: UserEmbedding = {
    // An event that is taken back may have been the newest. In recency history a later `last_updated` would change how
    // the next event counts.
    ...(computed.history === "cumulative" ? asOf(computed, before.last_updated) : computed),
    event_count: computed.event_count + notFolded.length + pruned.leftOutCount,
    created_at: before.created_at,
    metadata: { ...computed.metadata, ...counters },
  }
  return recent.length === 0 ? embedding : withRecent(embedding, [...computed.recent, ...recent])
})

/** The ids in the ledgers of aliases are now in that of the record. */
const withoutLedgers = ({ links }: UserRecord): Pick<UserRecord, "links"> =>
  links?.aliases === undefined
    ? {}
    : { links: { ...links, aliases: links.aliases.map((alias) => ({ ...alias, archived: 0 })) } }

const rebuildOnce = Effect.fnUntraced(function* (
  services: Services,
  user_id: UserId,
  options: UserRebuildOptions,
  traces: Traces,
) {
  const { users } = services
  const loaded = (yield* users.load([user_id])).get(user_id)
  if (traces.tries++ === 0) traces.generation = loaded?.generation ?? 0
  const record = loaded && options.change !== undefined ? options.change(loaded) : loaded
  if (loaded !== undefined && record === undefined) return yield* new LockConflict({ user_id, tries: 1 })
  // Its events are those of another user now, or about to be.
  if (loaded?.links?.alias_of !== undefined || loaded?.links?.merging_into !== undefined) return
  if (record?.embedding === undefined) {
    // A worker that asks for a rebuild may have read an older record.
    if (options.retractions !== undefined || options.ifAny === true) return
    return yield* new CannotRebuild({ user_id, detail: "has no embedding" })
  }
  const now = yield* Clock.currentTimeMillis
  const computed = yield* compute(services, record, options, now, traces)
  const { embedding, newlyApplied, overflow } = computed
  const { archive, kept } = AppliedIds.append(record.applied, newlyApplied)
  const ids = [...(overflow ?? []), ...archive]
  // Greater than the generation of the record, and smaller than that of an erasure which wins against this write.
  const generation = overflow === undefined ? record.generation : record.version
  if (ids.length > 0) yield* users.saveToLedger("applied", [{ user_id, generation, ids }])
  const [saved] = yield* users.save([
    {
      record: {
        ...record,
        embedding: embedding && (yield* completed(record.embedding, embedding, computed)),
        version: record.version + 1,
        applied: kept,
        archived: overflow === undefined ? record.archived + archive.length : ids.length,
        generation,
        ...(overflow && withoutLedgers(record)),
      },
      expected: record.version,
    },
  ])
  if (saved !== true) return yield* new LockConflict({ user_id, tries: 1 })
  if (overflow) yield* users.removeStaleLedger(user_id)
})

export type RebuildError = Effect.Effect.Error<ReturnType<typeof rebuildOnce>>

/** `around` wraps all attempts, for example with retries. */
export const rebuildUser = <E2>(
  services: Services,
  user_id: UserId,
  options: UserRebuildOptions,
  around: (attempts: Effect.Effect<void, RebuildError>) => Effect.Effect<void, E2>,
) =>
  Effect.suspend(() => {
    const traces: Traces = { tries: 0, generation: 0, phrases: new Set() }
    return rebuildOnce(services, user_id, options, traces).pipe(
      Effect.retry({
        schedule: RetryPolicies.conflictRetry,
        while: ({ _tag }) => _tag === "LockConflict" && options.change === undefined,
      }),
      around,
      // A write that succeeds at once proves that nobody erased the user meanwhile.
      Effect.onExit((exit) =>
        (Exit.isSuccess(exit) && traces.tries === 1) || traces.phrases.size === 0
          ? Effect.void
          : Effect.ignoreLogged(removeTraces(services, user_id, traces)),
      ),
    )
  })
