/**
 * Step: InteractionLog → UserEmbeddings. Computes a user's vector from nothing, in order, with the configured history,
 * space, weights and λ. It takes exactly the interactions that are applied already; the others arrive as messages. If a
 * worker changes the record meanwhile, the version check fails and the rebuild of that user starts again.
 */
import { Chunk, Clock, Context, Effect, Either, Exit, Layer, Option, Schedule, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { counterOf } from "../model/EventTypes.ts"
import { type FoldSettings, fold } from "../model/Fold.ts"
import type { Interaction, UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import { InteractionLog, type InteractionLogError } from "../ports/InteractionLog.ts"
import type { UserEmbeddingsError, UserRecord } from "../ports/UserEmbeddings.ts"
import { LockConflict, UserEmbeddings } from "../ports/UserEmbeddings.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"
import { type EventVectorError, EventVectors } from "../update/EventVectors.ts"
import * as AppliedInteractions from "./AppliedInteractions.ts"

/** A rebuild would lose something, so the embedding stays as it is. */
export class CannotRebuild extends Schema.TaggedError<CannotRebuild>()("CannotRebuild", {
  user_id: Schema.String,
  detail: Schema.String,
}) {
  override get message() {
    return `user ${this.user_id}: ${this.detail}`
  }
}

export interface RebuildReport {
  readonly rebuilt: number
  /** Users whose embedding stays as it was; at most {@link mostFailures} are named. */
  readonly failed: number
  readonly failures: ReadonlyArray<{ readonly user_id: UserId; readonly reason: string }>
  /** A store or the embedder was out for longer than the retries. */
  readonly stopped?: {
    readonly reason: string
    /** All users up to this one are done; `null` if none are for certain. */
    readonly after: UserId | null
  }
}

interface RebuildOptions {
  /** Rebuilds only this user; default: all users who have an embedding. */
  readonly user?: UserId | undefined
  /** Begins after this user, in the order of user ids. */
  readonly after?: UserId | undefined
  /**
   * Skips interactions whose vector or row is gone. An interaction without a vector still counts as applied; a rebuild
   * after the vector is back gives it weight again.
   */
  readonly allowMissing?: boolean
  readonly progress?: (users: number) => Effect.Effect<void>
  /** Receives the user up to whom all are done. */
  readonly completed?: (upTo: UserId) => void
}

type PortError = InteractionLogError | UserEmbeddingsError | EventVectorError

export class Rebuilder extends Context.Tag("user-embeddings/Rebuilder")<
  Rebuilder,
  { readonly rebuild: (options: RebuildOptions) => Effect.Effect<RebuildReport> }
>() {}

export const mostFailures = 1_000
const page = 500
const usersAtOnce = 4
/** Users are listed and completed in pages. */
const usersPerPage = 100
/** For stores and embedders that are out for the moment. */
const outageRetry = RetryPolicies.reconnectRetry.pipe(Schedule.upTo("5 minutes"))

const services = Effect.all({
  log: InteractionLog,
  users: UserEmbeddings,
  vectors: EventVectors,
  config: EmbeddingConfig,
})
type Services = Effect.Effect.Success<typeof services>

/** No retry will find the vector. */
const isGone = (error: EventVectorError): boolean => {
  const { _tag } = RetryPolicies.classify(error)
  return _tag === "Skip" || _tag === "Unrecoverable"
}

/** Vectors in the order of the interactions; `Left` where the vector is gone. */
const resolve = ({ vectors }: Services, interactions: ReadonlyArray<Interaction>) =>
  vectors
    .resolve(interactions)
    .pipe(
      Effect.flatMap((found) =>
        Effect.forEach(found, (one) =>
          Either.isLeft(one) && !isGone(one.left) ? Effect.fail(one.left) : Effect.succeed(one),
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

/**
 * Computes the embedding from nothing. `notFolded` has the applied interactions whose vector is gone, or whose type is
 * no longer configured. `overflow` has the ids that the overflow should have, if it has more than the record moved
 * there: release 0.1.0 could leave ids from before an erasure.
 */
const compute = Effect.fnUntraced(function* (
  services: Services,
  record: UserRecord,
  allowMissing: boolean,
  now: number,
  traces: Traces,
) {
  const { user_id } = record
  const { config, log, users, vectors } = services
  const { eventTypes, history, lambda } = config
  const settings: FoldSettings = { lambda, weights: eventTypes.weights, history, space: vectors.space }
  const fail = (detail: string) =>
    new CannotRebuild({ user_id, detail: `${detail}; use --allow-missing to rebuild without` })
  const state = AppliedInteractions.appliedState(record)
  const states = new Map([[user_id, state]])
  const notFolded: Array<Interaction> = []
  let embedding: UserEmbedding | undefined

  const foldPage = Effect.fnUntraced(function* (interactions: ReadonlyArray<Interaction>) {
    if (interactions.length === 0) return
    for (const { search_phrase } of interactions)
      if (search_phrase !== null) traces.phrases.add(search_phrase)
    const found = yield* resolve(services, interactions)
    const events: Array<{ interaction: Interaction; vector: Float32Array }> = []
    for (const [index, interaction] of interactions.entries()) {
      const vector = found[index]!
      const { event_type, message_id } = interaction
      if (!eventTypes.has(event_type)) {
        if (!allowMissing)
          return yield* fail(`${message_id}: EVENT_WEIGHTS has no event type ${event_type} any more`)
        notFolded.push(interaction)
        continue
      }
      if (Either.isRight(vector)) events.push({ interaction, vector: vector.right })
      else if (allowMissing) notFolded.push(interaction)
      else return yield* fail(`${message_id}: ${vector.left.message}`)
    }
    // The embedding began in this space, so the fold cannot find another one.
    if (events.length > 0) embedding = yield* Effect.orDie(fold(embedding, events, settings, now))
  })

  let inLog = 0
  const overflow: Array<string> = []
  /** Interactions of the last instant read: the next page may hold more of the same instant, to be folded together. */
  let last: ReadonlyArray<Interaction> = []
  yield* log.stream({ user: user_id }).pipe(
    Stream.map(({ interaction }) => interaction),
    Stream.grouped(page),
    Stream.runForEach((chunk) =>
      Effect.gen(function* () {
        const rows = Chunk.toReadonlyArray(chunk)
        const ids = yield* AppliedInteractions.findApplied(users, rows, states)
        const applied = rows.filter(({ message_id }) => ids.has(AppliedIds.prefix(message_id)))
        inLog += applied.length
        for (const { message_id } of applied) {
          const id = AppliedIds.prefix(message_id)
          if (!state.onRecord.has(id)) overflow.push(id)
        }
        const all = [...last, ...applied]
        const instant = all.at(-1)?.occurred_at
        const cut = all.findIndex(({ occurred_at }) => occurred_at === instant)
        last = all.slice(cut)
        yield* foldPage(all.slice(0, cut))
      }),
    ),
  )
  yield* foldPage(last)

  const total = yield* AppliedInteractions.countApplied(users, user_id, state)
  const stale = Math.max(0, total - state.onRecord.size - record.archived)
  const gone = total - inLog - stale
  if (gone > 0 && !allowMissing) return yield* fail(`${gone} applied interactions are no longer in the log`)
  if (embedding === undefined)
    return yield* new CannotRebuild({ user_id, detail: "no applied interaction has both a row and a vector" })
  return { embedding, notFolded, overflow: stale > 0 ? overflow : undefined }
})

const rebuildOnce = Effect.fnUntraced(function* (
  services: Services,
  user_id: UserId,
  allowMissing: boolean,
  traces: Traces,
) {
  const record = (yield* services.users.load([user_id])).get(user_id)
  if (traces.tries++ === 0) traces.generation = record?.generation ?? 0
  if (record?.embedding === undefined)
    return yield* new CannotRebuild({ user_id, detail: "has no embedding" })
  const now = yield* Clock.currentTimeMillis
  const { embedding, notFolded, overflow } = yield* compute(services, record, allowMissing, now, traces)
  const counters: Record<`${string}_count`, number> = { ...embedding.metadata }
  for (const { event_type } of notFolded) {
    const counter = counterOf(event_type)
    counters[counter] = (counters[counter] ?? 0) + 1
  }
  const { decay_lambda } = embedding.metadata
  const rebuilt: UserEmbedding = {
    ...embedding,
    event_count: embedding.event_count + notFolded.length,
    created_at: record.embedding.created_at,
    metadata: { ...counters, decay_lambda, last_recalculation: now },
  }
  const version = record.version + 1
  // Greater than the generation of the record, and smaller than that of an erasure which wins against this write.
  const generation = record.version
  const begun = overflow && { generation, archived: overflow.length }
  if (overflow) yield* services.users.saveToLedger("applied", [{ user_id, generation, ids: overflow }])
  const [saved] = yield* services.users.save([
    { record: { ...record, ...begun, embedding: rebuilt, version }, expected: record.version },
  ])
  if (saved !== true) return yield* new LockConflict({ user_id, tries: 1 })
  if (overflow) yield* services.users.removeStaleLedger(user_id)
})

type RebuildError = PortError | CannotRebuild | LockConflict

/** The user's embedding stays as it is, and the rebuild goes on. */
const isOfUser = (error: RebuildError): boolean =>
  error._tag === "CannotRebuild" ||
  error._tag === "LockConflict" ||
  ("reason" in error && error.reason === "invalid_data")

/** Tries again for a while if a store or the embedder is out; logs that once. */
const patiently = <A, E extends RebuildError>(effect: Effect.Effect<A, E>) =>
  Effect.suspend(() => {
    let isLogged = false
    const isOutage = (error: E) => !isOfUser(error) && !("reason" in error && error.reason === "not_set_up")
    const log = (error: E) =>
      Effect.suspend(() => {
        if (isLogged || !isOutage(error)) return Effect.void
        isLogged = true
        return Effect.annotateLogs(Effect.logWarning("rebuild.waiting"), Telemetry.described(error))
      })
    return effect.pipe(Effect.tapError(log), Effect.retry({ schedule: outageRetry, while: isOutage }))
  })

const rebuildUser = (services: Services, user_id: UserId, allowMissing: boolean) =>
  Effect.suspend(() => {
    const traces: Traces = { tries: 0, generation: 0, phrases: new Set() }
    return rebuildOnce(services, user_id, allowMissing, traces).pipe(
      Effect.retry({ schedule: RetryPolicies.conflictRetry, while: ({ _tag }) => _tag === "LockConflict" }),
      patiently,
      // A write that succeeds at once proves that nobody erased the user meanwhile.
      Effect.onExit((exit) =>
        (Exit.isSuccess(exit) && traces.tries === 1) || traces.phrases.size === 0
          ? Effect.void
          : Effect.ignoreLogged(removeTraces(services, user_id, traces)),
      ),
    )
  })

/** Pages of users who have an embedding. */
const usersAfter = ({ users }: Services, after: UserId) =>
  Stream.paginateEffect(after, (last) =>
    Effect.map(patiently(users.usersAfter(last, usersPerPage)), (page) => [
      page,
      page.length < usersPerPage ? Option.none() : Option.fromNullable(page.at(-1)),
    ]),
  )

const rebuild = Effect.fn("Rebuilder.rebuild")(function* (services: Services, options: RebuildOptions) {
  const { allowMissing = false, completed = () => {}, progress = () => Effect.void, user } = options
  const failures: Array<{ user_id: UserId; reason: string }> = []
  let rebuilt = 0
  let failed = 0
  let after = options.after ?? null
  const rebuildOne = (user_id: UserId) =>
    rebuildUser(services, user_id, allowMissing).pipe(
      Effect.matchEffect({
        onSuccess: () => Effect.suspend(() => progress(++rebuilt)),
        onFailure: (error) => {
          if (!isOfUser(error)) return Effect.fail(error)
          if (failed++ < mostFailures) failures.push({ user_id, reason: error.message })
          return Effect.void
        },
      }),
    )
  const pages = user === undefined ? usersAfter(services, after ?? "") : Stream.make([user])
  const stopped = yield* pages.pipe(
    Stream.runForEach((page) =>
      Effect.gen(function* () {
        yield* Effect.forEach(page, rebuildOne, { concurrency: usersAtOnce, discard: true })
        after = page.at(-1) ?? after
        if (after !== null) completed(after)
      }),
    ),
    Effect.match({
      onFailure: ({ message }) => ({ stopped: { reason: message, after } }),
      onSuccess: () => ({}),
    }),
  )
  return { rebuilt, failed, failures, ...stopped }
})

export const layer = Layer.effect(
  Rebuilder,
  Effect.map(services, (services) => ({ rebuild: (options: RebuildOptions) => rebuild(services, options) })),
)
