/** What a rebuild needs to know of events that are pruned from the log. */
import { Effect, Either } from "effect"
import * as Checkpoint from "../model/Checkpoint.ts"
import { type FoldSettings, unfold } from "../model/Fold.ts"
import type { MessageId, Retraction, UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import type { InteractionLog } from "../ports/InteractionLog.ts"
import type { EventVectors } from "./EventVectors.ts"

const none = new Set<string>()

export const load = Effect.fnUntraced(function* (
  log: InteractionLog["Type"],
  user_id: UserId,
  settings: FoldSettings,
) {
  const countRows = Effect.map(log.pruned.checkpoints(user_id), (checkpoints) =>
    checkpoints.reduce((sum, { rows }) => sum + rows, 0),
  )
  const checkpoints = yield* log.pruned.checkpoints(user_id)
  const rows = checkpoints.reduce((sum, checkpoint) => sum + checkpoint.rows, 0)
  const sums = checkpoints.flatMap(({ sums }) => sums ?? [])
  return {
    rows,
    /** Whether rows were pruned since. */
    isOutdated: Effect.map(countRows, (now) => now !== rows),
    /** The sum of the pruned events; `undefined` without any. */
    sum: Checkpoint.total(
      sums.filter((one) => Checkpoint.isUsable(one, settings)),
      settings,
    ),
    /** Sums in another space, or of another λ or other weights. */
    leftOut: sums.filter((one) => !Checkpoint.isUsable(one, settings)),
    /** The prefixes of those of these ids that are pruned. */
    among: (ids: ReadonlyArray<MessageId>) =>
      rows === 0
        ? Effect.succeed<ReadonlySet<string>>(none)
        : log.pruned.among(ids.map((message_id) => ({ user_id, message_id }))),
  }
})

/** A difference shorter than this part of its summands is no embedding. No later event will be folded into it, so few digits do. */
const leastShare = 1e-3

/**
 * Takes pruned events out of a sum, which happens if an event is pruned while it is taken back. `undefined`: the vector is
 * gone, or nothing is left.
 */
export const takeBack = Effect.fnUntraced(function* (
  vectors: EventVectors["Type"],
  sum: UserEmbedding,
  retractions: ReadonlyArray<Retraction>,
  settings: FoldSettings,
  now: number,
) {
  let left: UserEmbedding | undefined = sum
  const found = yield* vectors.resolve(retractions)
  for (const [index, retraction] of retractions.entries()) {
    const vector = found[index]!
    left =
      left && Either.isRight(vector)
        ? unfold(left, retraction, vector.right, settings, now, leastShare)
        : undefined
  }
  return left
})
