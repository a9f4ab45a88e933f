/** Which interactions of the log are applied: their ids are on the user's record or in the overflow. */
import { Effect, Stream } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import type { MessageId, UserId } from "../model/Interaction.ts"
import type { UserEmbeddings, UserEmbeddingsError, UserRecord } from "../ports/UserEmbeddings.ts"

/** What a user's record says of applied interactions, read at one instant. */
export interface AppliedState extends Pick<UserRecord, "archived" | "generation"> {
  readonly onRecord: ReadonlySet<string>
}

export const appliedState = ({
  applied,
  archived,
  generation,
}: Pick<UserRecord, "applied" | "archived" | "generation">): AppliedState => ({
  onRecord: AppliedIds.toSet(applied),
  archived,
  generation,
})

/** Prefixes of the applied interactions. Ids that are not on the record are looked up in the overflow. */
export const findApplied = Effect.fnUntraced(function* (
  users: UserEmbeddings["Type"],
  interactions: ReadonlyArray<{ readonly user_id: UserId; readonly message_id: MessageId }>,
  records: ReadonlyMap<UserId, AppliedState>,
) {
  const found = new Set<string>()
  const toLookUp = new Map<UserId, Array<string>>()
  for (const { message_id, user_id } of interactions) {
    const id = AppliedIds.prefix(message_id)
    const record = records.get(user_id)
    if (record?.onRecord.has(id)) found.add(id)
    else if (record !== undefined && record.archived > 0) {
      const ids = toLookUp.get(user_id) ?? []
      ids.push(id)
      toLookUp.set(user_id, ids)
    }
  }
  if (toLookUp.size === 0) return found
  const overflow = yield* users.findInLedger(
    "applied",
    Array.from(toLookUp, ([user_id, ids]) => ({
      user_id,
      generation: records.get(user_id)?.generation ?? 0,
      ids,
    })),
  )
  for (const ids of overflow.values()) for (const id of ids) found.add(id)
  return found
})

/** Ids in the overflow, without those still on the record: a lost compare-and-swap leaves such ids behind. */
export const overflowIds = (
  users: UserEmbeddings["Type"],
  user: UserId,
  { archived, generation, onRecord }: AppliedState,
): Stream.Stream<ReadonlyArray<string>, UserEmbeddingsError> =>
  archived === 0
    ? Stream.empty
    : Stream.map(users.overflow([{ user_id: user, generation }]), (entries) =>
        entries.flatMap(({ ids }) => ids.filter((id) => !onRecord.has(id))),
      )

export const countApplied = (users: UserEmbeddings["Type"], user: UserId, record: AppliedState) =>
  Stream.runFold(overflowIds(users, user, record), record.onRecord.size, (sum, ids) => sum + ids.length)
