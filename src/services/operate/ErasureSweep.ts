/**
 * Step: completes erasures. An INSERT that began before an erasure may become visible after it, and a worker may leave
 * ids or a dead letter behind. So the users erased in the last minutes are looked at again, by every process that
 * publishes: the one that erased may have died.
 */
import { Duration, Effect, Layer, Schedule } from "effect"
import { warning } from "../Outages.ts"
import { DeadLetters } from "../ports/DeadLetters.ts"
import { EmbeddingFeed } from "../ports/EmbeddingFeed.ts"
import { type FinishedErasure, InteractionLog } from "../ports/InteractionLog.ts"
import { loadReadable, UserEmbeddings } from "../ports/UserEmbeddings.ts"
import * as Telemetry from "../Telemetry.ts"
import { isErasedDeadLetter } from "./Eraser.ts"

const interval = Duration.seconds(5)
/** Longer than any statement, and than a worker holds a message before it looks for the user's record. */
const watched = Duration.minutes(10)

/** Removes what workers may have left behind, and ends the watch. */
const complete = Effect.fnUntraced(function* (erasures: ReadonlyArray<FinishedErasure>) {
  if (erasures.length === 0) return
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const deadLetters = yield* DeadLetters
  const records = yield* loadReadable(
    users,
    erasures.map(({ user_id }) => user_id),
  )
  if ((yield* deadLetters.count) > 0) yield* deadLetters.remove(isErasedDeadLetter(records))
  for (const erasure of erasures)
    yield* Effect.zipRight(users.removeStaleLedger(erasure.user_id), log.forgetErasure(erasure)).pipe(
      // A record that cannot be read keeps its own erasure waiting, and no other.
      Effect.catchIf(
        (error) => error._tag === "UserEmbeddingsError" && error.reason === "invalid_data",
        () => Effect.void,
      ),
    )
})

/**
 * Announces erasures on the feed: an erasure itself doesn't wait for the broker. Its note in the log is the outbox, which
 * is removed by a process that has announced it. Each publishing process announces each erasure once, which is harmless.
 */
const announce = Effect.fnUntraced(function* (
  erasures: ReadonlyArray<FinishedErasure>,
  announced: Set<string>,
) {
  const feed = yield* EmbeddingFeed
  if (feed.mode === "off") return
  const keyOf = ({ token, user_id }: FinishedErasure) => `${user_id}|${token}`
  const keys = new Set(erasures.map(keyOf))
  for (const key of announced) if (!keys.has(key)) announced.delete(key)
  const left = erasures.filter((erasure) => !announced.has(keyOf(erasure)))
  if (left.length === 0) return
  const records = yield* loadReadable(
    yield* UserEmbeddings,
    left.map(({ user_id }) => user_id),
  )
  yield* feed.publish(
    // The generation of a record is the version of its tombstone. The user may have a newer embedding already.
    [...records.values()].map(({ generation, user_id }) => ({
      type: "erased",
      user_id,
      version: generation,
    })),
  )
  for (const erasure of left) announced.add(keyOf(erasure))
})

/**
 * Publishes rows that survived an erasure. Completes erasures that were finished longer ago than `after`. `announced`: the
 * erasures that this process has announced, as `user|token`.
 */
export const sweep = Effect.fnUntraced(function* (
  after: Duration.Duration = watched,
  announced: Set<string> = new Set(),
) {
  const log = yield* InteractionLog
  const erasures = yield* log.finishedErasures
  let renewed = 0
  for (const { hasSurvivors, user_id } of erasures)
    if (hasSurvivors) renewed += yield* log.renewSurvivors(user_id)
  yield* announce(erasures, announced)
  yield* complete(erasures.filter(({ ageMillis }) => ageMillis >= Duration.toMillis(after)))
  return renewed
}, Telemetry.untraced)

/** Sweeps for the lifetime of the scope. */
export const sweeping = Layer.scopedDiscard(
  sweep(watched, new Set()).pipe(
    warning("erasure.sweep_failed"),
    Effect.repeat(Schedule.spaced(interval)),
    Effect.forkScoped,
  ),
)
