/**
 * Step: InteractionLog → UserEmbeddings, from nothing. A user's vector is computed anew, in order, from exactly those
 * interactions that are applied already; the rest arrives by its messages. It moves to the configured history, space,
 * weights and λ. The write compares and swaps, so a worker that was faster only makes it start again.
 */
import { Chunk, Clock, Context, Effect, Either, Layer, Schedule, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { counterOf } from "../model/EventTypes.ts"
import type { Interaction, UserId } from "../model/Interaction.ts"
import { type FoldSettings, fold, type UserEmbedding } from "../model/UserEmbedding.ts"
import { InteractionLog, type InteractionLogError } from "../ports/InteractionLog.ts"
import {
  LockConflict,
  UserEmbeddings,
  type UserEmbeddingsError,
  type UserRecord,
} from "../ports/UserEmbeddings.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import { type EventVectorError, EventVectors } from "../update/EventVectors.ts"
import * as AppliedInteractions from "./AppliedInteractions.ts"

/** The vector can't be computed anew without losing something; it stays as it is. */
export class CannotRebuild extends Schema.TaggedError<CannotRebuild>()("CannotRebuild", {
  user_id: Schema.String,
  detail: Schema.String,
}) {
  override get message() {
    return `user ${this.user_id}: ${this.detail}`
  }
}

export interface RebuildReport {
  /** Users whose embedding was computed anew. */
  readonly rebuilt: number
  /** Users whose embedding stays as it was; at most {@link mostFailures} are named. */
  readonly failed: number
  readonly failures: ReadonlyArray<{ readonly user_id: UserId; readonly reason: string }>
}

type PortError = InteractionLogError | UserEmbeddingsError | EventVectorError

export class Rebuilder extends Context.Tag("user-embeddings/Rebuilder")<
  Rebuilder,
  {
    /**
     * Rebuilds one user, or all who have an embedding. `allowMissing`: goes on without interactions whose vector or row
     * is gone. Those without a vector still count as applied, and weigh again after a rebuild once it is back.
     */
    readonly rebuild: (options: {
      readonly user?: UserId | undefined
      readonly allowMissing?: boolean
      readonly progress?: (users: number) => Effect.Effect<void>
    }) => Effect.Effect<RebuildReport, PortError>
  }
>() {}

export const mostFailures = 1_000
const page = 500
const usersAtOnce = 4
/** How often vectors are asked for that can't be had just now. */
const vectorRetry = Schedule.intersect(RetryPolicies.reconnectRetry, Schedule.recurs(8))

/** The vector will not be there however often it is asked for. */
const isGone = (error: EventVectorError): boolean => {
  const { _tag } = RetryPolicies.classify(error)
  return _tag === "Skip" || _tag === "Unrecoverable"
}

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const vectors = yield* EventVectors
  const config = yield* EmbeddingConfig
  const settings: FoldSettings = {
    lambda: config.lambda,
    weights: config.eventTypes.weights,
    history: config.history,
    space: vectors.space,
  }

  /** Vectors in the order of interactions, `Left` where there is none any more. */
  const resolve = (interactions: ReadonlyArray<Interaction>) =>
    vectors.resolve(interactions).pipe(
      Effect.flatMap((found) =>
        Effect.forEach(found, (one) =>
          Either.isLeft(one) && !isGone(one.left) ? Effect.fail(one.left) : Effect.succeed(one),
        ),
      ),
      Effect.retry(vectorRetry),
    )

  /** The embedding from nothing, and the interactions that are applied but have no vector any more. */
  const compute = Effect.fnUntraced(function* (record: UserRecord, allowMissing: boolean, now: number) {
    const { user_id } = record
    const fail = (detail: string) =>
      new CannotRebuild({ user_id, detail: `${detail}; --allow-missing goes on without` })
    const records = new Map([[user_id, AppliedInteractions.appliedState(record)]])
    const without: Array<Interaction> = []
    let embedding: UserEmbedding | undefined
    /** The last instant of a page may go on in the next one. */
    let held: ReadonlyArray<Interaction> = []

    const take = Effect.fnUntraced(function* (interactions: ReadonlyArray<Interaction>) {
      if (interactions.length === 0) return
      const found = yield* resolve(interactions)
      const events: Array<{ interaction: Interaction; vector: Float32Array }> = []
      for (const [index, interaction] of interactions.entries()) {
        const vector = found[index]!
        if (Either.isRight(vector)) events.push({ interaction, vector: vector.right })
        else if (allowMissing) without.push(interaction)
        else return yield* fail(`${interaction.message_id}: ${vector.left.message}`)
      }
      // It began with nothing, so its space can't be another one.
      if (events.length > 0) embedding = yield* Effect.orDie(fold(embedding, events, settings, now))
    })

    let inLog = 0
    yield* log.stream({ user: user_id }).pipe(
      Stream.map(({ interaction }) => interaction),
      Stream.grouped(page),
      Stream.runForEach((chunk) =>
        Effect.gen(function* () {
          const rows = Chunk.toReadonlyArray(chunk)
          const ids = yield* AppliedInteractions.findApplied(users, rows, records)
          const own = rows.filter(({ message_id }) => ids.has(AppliedIds.prefix(message_id)))
          inLog += own.length
          const all = [...held, ...own]
          const last = all.at(-1)?.occurred_at
          const cut = all.findIndex(({ occurred_at }) => occurred_at === last)
          held = all.slice(cut)
          yield* take(all.slice(0, cut))
        }),
      ),
    )
    yield* take(held)

    const forgotten = (yield* AppliedInteractions.countApplied(users, user_id, records.get(user_id)!)) - inLog
    if (forgotten > 0 && !allowMissing)
      return yield* fail(`${forgotten} applied interactions are not in the log any more`)
    if (embedding === undefined)
      return yield* new CannotRebuild({ user_id, detail: "nothing that is applied has a row and a vector" })
    return { embedding, without }
  })

  const once = Effect.fnUntraced(function* (user_id: UserId, allowMissing: boolean) {
    const record = (yield* users.load([user_id])).get(user_id)
    if (record?.embedding === undefined)
      return yield* new CannotRebuild({ user_id, detail: "has no embedding" })
    const now = yield* Clock.currentTimeMillis
    const { embedding, without } = yield* compute(record, allowMissing, now)
    const counters: Record<`${string}_count`, number> = { ...embedding.metadata }
    for (const { event_type } of without) {
      const counter = counterOf(event_type)
      counters[counter] = (counters[counter] ?? 0) + 1
    }
    const { decay_lambda } = embedding.metadata
    const metadata = { ...counters, decay_lambda, last_recalculation: now }
    const written: UserEmbedding = {
      ...embedding,
      event_count: embedding.event_count + without.length,
      created_at: record.embedding.created_at,
      metadata,
    }
    const [saved] = yield* users.save([
      { record: { ...record, embedding: written, version: record.version + 1 }, expected: record.version },
    ])
    if (saved !== true) return yield* new LockConflict({ user_id, tries: 1 })
  })

  const one = (user_id: UserId, allowMissing: boolean) =>
    once(user_id, allowMissing).pipe(
      Effect.retry({ schedule: RetryPolicies.conflictRetry, while: ({ _tag }) => _tag === "LockConflict" }),
    )

  const rebuild: Rebuilder["Type"]["rebuild"] = Effect.fn("Rebuilder.rebuild")(function* (options) {
    const { allowMissing = false, progress = () => Effect.void, user } = options
    const failures: Array<{ user_id: UserId; reason: string }> = []
    let rebuilt = 0
    let failed = 0
    const wanted =
      user === undefined
        ? users.bookkeeping.pipe(
            Stream.filter(({ event_count }) => event_count > 0),
            Stream.map(({ user_id }) => user_id),
          )
        : Stream.make(user)
    yield* Stream.runDrain(
      Stream.mapEffect(
        wanted,
        (user_id) =>
          one(user_id, allowMissing).pipe(
            Effect.matchEffect({
              onSuccess: () => Effect.suspend(() => progress(++rebuilt)),
              onFailure: (error) => {
                if (error._tag !== "CannotRebuild" && error._tag !== "LockConflict") return Effect.fail(error)
                if (failed++ < mostFailures) failures.push({ user_id, reason: error.message })
                return Effect.void
              },
            }),
          ),
        { concurrency: usersAtOnce, unordered: true },
      ),
    )
    return { rebuilt, failed, failures }
  })

  return { rebuild }
})

export const layer = Layer.effect(Rebuilder, make)
