/** What a rebuild needs to know of events that are pruned from the log. */
import { Effect, Either } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import * as Checkpoint from "../model/Checkpoint.ts"
import { type FoldSettings, unfold } from "../model/Fold.ts"
import { type Interaction, isRetraction, type MessageId, type Retraction } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import type { InteractionLog, LogRow } from "../ports/InteractionLog.ts"
import { postedUnder } from "../ports/PrunedRows.ts"
import type { UserRecord } from "../ports/UserEmbeddings.ts"
import type { EventVectors } from "./EventVectors.ts"

/** Of the record's user and aliases. An id whose merge is recorded and not applied yet has a record of its own. */
export const load = Effect.fnUntraced(function* (
  log: InteractionLog["Type"],
  { links, user_id }: UserRecord,
  settings: FoldSettings,
  now: number,
) {
  const users = [user_id, ...(links?.aliases ?? []).map((alias) => alias.user_id)]
  const checkpoints = yield* log.pruned.checkpoints(users)
  const countRows = (some: ReadonlyArray<Checkpoint.Checkpoint>) =>
    some.reduce((sum, { rows }) => sum + rows, 0)
  const rows = countRows(checkpoints)
  const sums = checkpoints.flatMap(({ sums }) => sums ?? [])
  const leftOut = sums.filter((one) => !Checkpoint.isUsable(one, settings))
  const among = (ids: ReadonlyArray<MessageId>) =>
    rows === 0 ? Effect.succeed<ReadonlySet<string>>(new Set()) : log.pruned.among(postedUnder(users, ids))
  return {
    rows,
    ids: log.pruned.idsOf(users),
    /** Whether rows were pruned since. */
    isOutdated: Effect.map(log.pruned.checkpoints(users), (now) => countRows(now) !== rows),
    /** The sum of the pruned events; `undefined` without any. */
    sum: Checkpoint.total(
      user_id,
      sums.filter((one) => Checkpoint.isUsable(one, settings)),
      settings,
      now,
    ),
    /** Sums in another space, or of another λ or other weights, and the number of their events. */
    leftOut,
    leftOutCount: leftOut.reduce((sum, { event_count }) => sum + event_count, 0),
    /** The prefixes of those of these ids that are pruned. */
    among,
    /** Rows of the log without events that were pruned and posted again, and which retractions take back a pruned event. */
    withoutPruned: (all: ReadonlyArray<LogRow>) =>
      Effect.map(
        among(
          all.map(({ interaction }) =>
            isRetraction(interaction) ? interaction.reference : interaction.message_id,
          ),
        ),
        (pruned) => ({
          rows: all.filter(({ interaction }) => !pruned.has(AppliedIds.prefix(interaction.message_id))),
          takesBack: (one: Interaction): one is Retraction =>
            isRetraction(one) && pruned.has(AppliedIds.prefix(one.reference)),
        }),
      ),
  }
})

/** A difference shorter than this part of its summands is no embedding. No later event is folded into it, so few digits do. */
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
  if (retractions.length === 0) return sum
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
