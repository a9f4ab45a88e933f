/**
 * Step: InteractionLog → UserEmbeddings, for one user or all of them. UserRebuild.ts computes each embedding. Waits while
 * a store or the embedder is out.
 */
import { Context, Effect, Layer, Option, Schedule, Stream } from "effect"
import type { UserId } from "../model/Interaction.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import * as Telemetry from "../Telemetry.ts"
import { ownerOf } from "../update/People.ts"
import { type RebuildError, rebuildUser, type Services, services } from "../update/UserRebuild.ts"

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

export class Rebuilder extends Context.Tag("user-embeddings/Rebuilder")<
  Rebuilder,
  { readonly rebuild: (options: RebuildOptions) => Effect.Effect<RebuildReport> }
>() {}

export const mostFailures = 1_000
const usersAtOnce = 4
/** Users are listed and completed in pages. */
const usersPerPage = 100
/** For stores and embedders that are out for the moment. */
const outageRetry = RetryPolicies.reconnectRetry.pipe(Schedule.upTo("5 minutes"))

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
    rebuildUser(services, user_id, { allowMissing, ifAny: user === undefined }, patiently).pipe(
      Effect.matchEffect({
        onSuccess: () => Effect.suspend(() => progress(++rebuilt)),
        onFailure: (error) => {
          if (!isOfUser(error)) return Effect.fail(error)
          if (failed++ < mostFailures) failures.push({ user_id, reason: error.message })
          return Effect.void
        },
      }),
    )
  const pages =
    user === undefined
      ? usersAfter(services, after ?? "")
      : Stream.fromEffect(Effect.map(patiently(ownerOf(services.users, user)), ({ user_id }) => [user_id]))
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
