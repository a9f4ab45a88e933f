/**
 * Step: completes erasures. An INSERT that began before an erasure may become visible after it, and a worker may leave
 * ids or a dead letter behind. So the users erased in the last minutes are looked at again, by every process that
 * publishes: the one that erased may have died.
 */
import { Duration, Effect, Layer, Schedule } from "effect"
import { unlessReported } from "../Outages.ts"
import { DeadLetters } from "../ports/DeadLetters.ts"
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

/** Publishes rows that survived an erasure. Completes erasures that were finished longer ago than `after`. */
export const sweep = Effect.fnUntraced(function* (after: Duration.Duration = watched) {
  const log = yield* InteractionLog
  const erasures = yield* log.finishedErasures
  let renewed = 0
  for (const { hasSurvivors, user_id } of erasures)
    if (hasSurvivors) renewed += yield* log.renewSurvivors(user_id)
  yield* complete(erasures.filter(({ ageMillis }) => ageMillis >= Duration.toMillis(after)))
  return renewed
}, Telemetry.untraced)

/** Sweeps for the lifetime of the scope. */
export const sweeping = Layer.scopedDiscard(
  sweep().pipe(
    Effect.catchAll((error) =>
      unlessReported(
        error,
        Effect.annotateLogs(Effect.logWarning("erasure.sweep_failed"), Telemetry.described(error)),
      ),
    ),
    Effect.repeat(Schedule.spaced(interval)),
    Effect.forkScoped,
  ),
)
