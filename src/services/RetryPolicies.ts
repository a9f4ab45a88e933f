/** All schedules by name, and what each failure means: skip, dead letter, retry, or outage of a dependency. */
import { Chunk, Duration, Effect, Schedule } from "effect"
import type { SpaceMismatch } from "./model/Fold.ts"
import type { InvalidMessage } from "./model/UpdateMessage.ts"
import type { InteractionLogError } from "./ports/InteractionLog.ts"
import { Ack, DeadLetter, type Failure, Retry, type Settlement } from "./ports/InteractionQueue.ts"
import type { PhraseEmbedderError } from "./ports/PhraseEmbedder.ts"
import type { ProductVectorError } from "./ports/ProductEmbeddings.ts"
import type { LockConflict, UserEmbeddingsError } from "./ports/UserEmbeddings.ts"
import type { AliasCircle, AliasTaken } from "./update/Merges.ts"
import type { CannotRebuild } from "./update/UserRebuild.ts"

/** The longest delay of a retry queue, and the longest Retry-After that retry queues can wait for. */
export const maxRetryDelay = Duration.seconds(60)

/** Delays between attempts: exponential, ×2 from `first`, at most 60 s, `retries` times. */
export const retrySchedule = (first: Duration.Duration, retries: number) =>
  Schedule.exponential(first, 2).pipe(
    Schedule.modifyDelay((_, delay) => Duration.min(delay, maxRetryDelay)),
    Schedule.intersect(Schedule.recurs(retries)),
  )

/** These delays in ms, in the order of attempts. Each distinct value has a retry queue. */
export const retryDelays = (first: Duration.Duration, retries: number): ReadonlyArray<number> =>
  Effect.runSync(
    Schedule.run(
      Schedule.delays(retrySchedule(first, retries)),
      0,
      Array.from({ length: retries }, () => undefined),
    ),
  ).pipe(Chunk.toReadonlyArray, (delays) => delays.map(Duration.toMillis))

/** Reconnecting: 200 ms doubling to 5 s, for ever. Jitter keeps workers from reconnecting at the same moment. */
export const reconnectRetry = Schedule.exponential("200 millis", 2).pipe(
  Schedule.union(Schedule.spaced("5 seconds")),
  Schedule.jittered,
)

/** Reading a record again after a lost compare-and-swap: soon, with jitter. It does not count as an attempt. */
export const conflictRetry = Schedule.exponential("2 millis", 2).pipe(
  Schedule.union(Schedule.spaced("100 millis")),
  Schedule.jittered,
  Schedule.intersect(Schedule.recurs(20)),
)

/** Repeating a statement after a deadlock: the same, for at most 5 s. */
export const deadlockRetry = conflictRetry.pipe(Schedule.upTo("5 seconds"))

/**
 * Delay before the next probe of a dependency that is out: 1 s doubling to 10 s. Work must continue within 30 s after
 * the dependency is back, and a probe that started just before may take the other 10 s to fail.
 */
export const probeDelay = (failedProbes: number): Duration.Duration =>
  Duration.seconds(Math.min(10, 2 ** failedProbes))

/** Draining the outbox publishes rows that were not published right after their commit. */
export const drainInterval = Schedule.spaced("2 seconds")
/** Draining leaves a row alone for this time: the process that committed it publishes it. */
export const drainGrace = Duration.seconds(2)

export type UpdateError =
  | InvalidMessage
  | ProductVectorError
  | PhraseEmbedderError
  | UserEmbeddingsError
  | InteractionLogError
  | SpaceMismatch
  | CannotRebuild
  | AliasCircle
  | AliasTaken
  | LockConflict

/** What an error means for the message that failed with it. */
export type FailureClass =
  /** There is nothing to fold: the message is acknowledged and counted. */
  | { readonly _tag: "Skip" }
  | { readonly _tag: "Unrecoverable" }
  | { readonly _tag: "Retryable"; readonly notBefore?: Duration.Duration }
  /** A dependency is out: messages wait while it is probed. */
  | { readonly _tag: "Outage" }

/** Only invalid data is the message's own fault. With any other error answer, all messages would fail alike. */
const classifyStoreFailure = (reason: UserEmbeddingsError["reason"]): FailureClass => {
  if (reason === "invalid_data") return { _tag: "Unrecoverable" }
  return reason === "conflict" ? { _tag: "Retryable" } : { _tag: "Outage" }
}

/** The table from error to class. */
export const classify = (error: UpdateError): FailureClass => {
  switch (error._tag) {
    case "InvalidMessage":
    case "SpaceMismatch":
    case "CannotRebuild":
    case "AliasCircle":
    case "AliasTaken":
    case "UnusableVector":
      return { _tag: "Unrecoverable" }
    case "ProductMissing":
      return { _tag: "Skip" }
    case "LockConflict":
      return { _tag: "Retryable" }
    case "UserEmbeddingsError":
    case "InteractionLogError":
      return classifyStoreFailure(error.reason)
    case "ProductEmbeddingsError":
      // Messages only read products, so an unreadable product is not the fault of a message.
      return error.reason === "invalid_data" ? { _tag: "Retryable" } : classifyStoreFailure(error.reason)
    case "PhraseEmbedderError":
      switch (error.reason) {
        case "invalid_input":
        case "bad_vector":
          return { _tag: "Unrecoverable" }
        case "no_embedder":
          return { _tag: "Skip" }
        case "unauthorized":
        case "quota_exhausted":
        case "misconfigured":
          return { _tag: "Outage" }
        default:
          if (error.retryAfter === undefined) return { _tag: "Retryable" }
          return Duration.greaterThan(error.retryAfter, maxRetryDelay)
            ? { _tag: "Outage" }
            : { _tag: "Retryable", notBefore: error.retryAfter }
      }
  }
}

/** Whether no retry can succeed. */
export const isFinal = (error: UpdateError): boolean => {
  const { _tag } = classify(error)
  return _tag === "Skip" || _tag === "Unrecoverable"
}

/** The `x-error` header names the kind of failure, so that dead letters can be grouped. */
export const failureOf = (error: UpdateError): Failure => {
  const kind = error._tag
    .replace(/Error$/, "")
    .replace(/(?<=[a-z])[A-Z]/g, (capital) => `_${capital}`)
    .toLowerCase()
  return {
    error:
      error._tag === "InvalidMessage" ? error.reason : "reason" in error ? `${kind}_${error.reason}` : kind,
    message: error.message,
  }
}

/**
 * The settlement of a message that has now failed after `retryCount` earlier failures: the next delay of `delays`
 * ({@link retryDelays}), or a longer one if Retry-After demands it. After the last delay it is a dead letter.
 */
export const settlementOf = (
  error: UpdateError,
  retryCount: number,
  delays: ReadonlyArray<number>,
): Settlement => {
  const failureClass = classify(error)
  const failure = failureOf(error)
  if (failureClass._tag === "Skip") return Ack
  const delay = delays[retryCount]
  if (failureClass._tag === "Unrecoverable" || delay === undefined) return DeadLetter(failure)
  const retryAfter =
    failureClass._tag === "Retryable" && failureClass.notBefore
      ? Duration.toMillis(failureClass.notBefore)
      : 0
  return Retry(
    delay >= retryAfter ? delay : (delays.find((longer) => longer >= retryAfter) ?? Math.max(...delays)),
    failure,
  )
}
