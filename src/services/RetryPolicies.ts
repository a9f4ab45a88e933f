/** Every schedule, by name, and which failure is tried again, gives up, or means that a service is out. */
import { Chunk, Duration, Effect, Schedule } from "effect"
import type { InvalidMessage } from "./model/UpdateMessage.ts"
import type { SpaceMismatch } from "./model/UserEmbedding.ts"
import {
  Ack,
  DeadLetter,
  type Delivery,
  type Failure,
  Quarantine,
  Retry,
  type Settlement,
} from "./ports/InteractionQueue.ts"
import type { LockConflict, UserEmbeddingsError } from "./ports/UserEmbeddings.ts"
import type { EventVectorError } from "./update/EventVectors.ts"

/** Greatest delay of a rung, and the longest Retry-After that the ladder waits for. */
export const maxRetryDelay = Duration.seconds(60)

/** The retry ladder: exponential, ×2 from `first`, capped at 60 s, `retries` rungs. */
export const retrySchedule = (first: Duration.Duration, retries: number) =>
  Schedule.exponential(first, 2).pipe(
    Schedule.modifyDelay((_, delay) => Duration.min(delay, maxRetryDelay)),
    Schedule.intersect(Schedule.recurs(retries)),
  )

/** The delays of the ladder in ms, in the order of attempts; the rungs are its distinct values. The schedule is pure. */
export const retryDelays = (first: Duration.Duration, retries: number): ReadonlyArray<number> =>
  Effect.runSync(
    Schedule.run(
      Schedule.delays(retrySchedule(first, retries)),
      0,
      Array.from({ length: retries }, () => undefined),
    ),
  ).pipe(Chunk.toReadonlyArray, (delays) => delays.map(Duration.toMillis))

/** Reconnecting: 200 ms doubling to 5 s, for ever, with jitter so that workers don't come back in step. */
export const reconnectRetry = Schedule.exponential("200 millis", 2).pipe(
  Schedule.union(Schedule.spaced("5 seconds")),
  Schedule.jittered,
)

/** Another reading after a lost compare-and-swap: soon, with jitter, not counted as an attempt. */
export const conflictRetry = Schedule.exponential("2 millis", 2).pipe(
  Schedule.union(Schedule.spaced("100 millis")),
  Schedule.jittered,
  Schedule.intersect(Schedule.recurs(20)),
)

/** A statement again after a deadlock: the same, for at most 5 s. */
export const deadlockRetry = conflictRetry.pipe(Schedule.upTo("5 seconds"))

/**
 * Probing a dependency that is out: 1 s doubling to 20 s. Less than the 30 s within which work must go on after its
 * return, because a probe may have begun just before and takes its time to fail.
 */
export const probeDelay = (failedProbes: number): Duration.Duration =>
  Duration.seconds(Math.min(20, 2 ** failedProbes))

/** Sweeping the outbox for rows that were not published right after their commit. */
export const sweepInterval = Schedule.spaced("1 second")
/** How long a row is left to the process that committed it. */
export const sweepGrace = Duration.seconds(2)

/** Redeliveries without an answer from which on a message is suspected of killing its worker. */
export const quarantineAfterRedeliveries = 3
/** Times a suspect is handled alone before it is a dead letter `crash_loop`. */
export const maxQuarantineAttempts = 10

/**
 * What is to become of a message that may kill its worker, before anything is done with it, or when its batch threw
 * what nobody expected: then `redeliveries` are enough for suspicion.
 */
export const quarantineDecision = (
  delivery: Pick<Delivery, "quarantined" | "quarantineAttempts" | "redeliveries">,
  redeliveries = delivery.redeliveries,
): Settlement | undefined => {
  const { quarantined: isolated, quarantineAttempts: isolatedAttempts } = delivery
  // The ladder brings everything back to the main queue; a suspect goes on to where it is alone.
  if (!isolated)
    return redeliveries >= quarantineAfterRedeliveries || isolatedAttempts > 0 ? Quarantine : undefined
  if (redeliveries === 0) return undefined
  if (isolatedAttempts < maxQuarantineAttempts) return Quarantine
  return DeadLetter({
    error: "crash_loop",
    message: `its worker died ${isolatedAttempts} times while handling it alone`,
  })
}

export type UpdateError =
  | InvalidMessage
  | EventVectorError
  | UserEmbeddingsError
  | SpaceMismatch
  | LockConflict

/** What a failure means for its message. */
export type FailureClass =
  /** Not an error of the message: acknowledged, counted. */
  | { readonly _tag: "Skip" }
  | { readonly _tag: "Unrecoverable" }
  | { readonly _tag: "Retryable"; readonly notBefore?: Duration.Duration }
  /** The dependency itself is out: messages wait while it is probed. */
  | { readonly _tag: "Outage" }

const classifyStoreFailure = (reason: UserEmbeddingsError["reason"]): FailureClass =>
  reason === "rejected" ? { _tag: "Retryable" } : { _tag: "Outage" }

/** The table of spec "Guarantees": error → class. */
export const classify = (error: UpdateError): FailureClass => {
  switch (error._tag) {
    case "InvalidMessage":
    case "SpaceMismatch":
    case "UnusableVector":
      return { _tag: "Unrecoverable" }
    case "ProductMissing":
      return { _tag: "Skip" }
    case "LockConflict":
      return { _tag: "Retryable" }
    case "UserEmbeddingsError":
    case "ProductEmbeddingsError":
      return classifyStoreFailure(error.reason)
    case "PhraseEmbedderError":
      switch (error.reason) {
        case "invalid_input":
        case "bad_vector":
          return { _tag: "Unrecoverable" }
        case "unauthorized":
        case "quota_exhausted":
          return { _tag: "Outage" }
        default:
          if (error.retryAfter === undefined) return { _tag: "Retryable" }
          return Duration.greaterThan(error.retryAfter, maxRetryDelay)
            ? { _tag: "Outage" }
            : { _tag: "Retryable", notBefore: error.retryAfter }
      }
  }
}

/** `x-error`: one word per kind of failure, for grouping. */
export const failureOf = (error: UpdateError): Failure => {
  const kind = error._tag.replace(/Error$/, "").replace(/(?<=[a-z])[A-Z]/g, (letter) => `_${letter}`)
  const word = kind.toLowerCase()
  return {
    error:
      error._tag === "InvalidMessage" ? error.reason : "reason" in error ? `${word}_${error.reason}` : word,
    message: error.message,
  }
}

/**
 * The settlement of a failed message that has failed `retryCount` times before: the next rung (a longer one when
 * the service asked for it), or `failed` when the ladder is climbed. `delays` = {@link retryDelays}.
 */
export const settlementOf = (
  error: UpdateError,
  retryCount: number,
  delays: ReadonlyArray<number>,
): Settlement => {
  const judged = classify(error)
  const failure = failureOf(error)
  if (judged._tag === "Skip") return Ack
  const delay = delays[retryCount]
  if (judged._tag === "Unrecoverable" || delay === undefined) return DeadLetter(failure)
  const least = judged._tag === "Retryable" && judged.notBefore ? Duration.toMillis(judged.notBefore) : 0
  return Retry(
    delay >= least ? delay : (delays.find((delay) => delay >= least) ?? Math.max(...delays)),
    failure,
  )
}
