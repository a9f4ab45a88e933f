/** Which interactions of the log are applied: their ids are on the user's record or in the overflow. */
import { Effect, Stream } from "effect"
import { type Alias, type Links, ledgersOf } from "../model/Aliases.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import type { MessageId, UserId } from "../model/Interaction.ts"
import type { UserEmbeddings, UserEmbeddingsError } from "../ports/UserEmbeddings.ts"

/** What a user's record says of applied interactions, read at one instant. */
export interface AppliedState {
  readonly onRecord: ReadonlySet<string>
  /** Where the other ids are. */
  readonly ledgers: ReadonlyArray<Alias>
}

export const appliedState = (
  record: Alias & { readonly applied: AppliedIds.AppliedIds; readonly links?: Links },
): AppliedState => ({ onRecord: AppliedIds.toSet(record.applied), ledgers: ledgersOf(record) })

/** Which of these ids are in the overflow, by user. `wanted` has the prefixes for each user. */
export const findInOverflow = Effect.fnUntraced(function* (
  users: UserEmbeddings["Type"],
  wanted: ReadonlyMap<UserId, ReadonlyArray<string>>,
  ledgersOfUser: (user: UserId) => ReadonlyArray<Alias>,
) {
  const entries = Array.from(wanted, ([user, ids]) =>
    ledgersOfUser(user).map(({ generation, user_id }) => ({ user, user_id, generation, ids })),
  ).flat()
  const found = new Map<UserId, Set<string>>()
  if (entries.length === 0) return found
  const inLedger = yield* users.findInLedger("applied", entries)
  for (const { user, user_id } of entries)
    found.set(user, (found.get(user) ?? new Set()).union(inLedger.get(user_id) ?? new Set()))
  return found
})

/** Prefixes of the applied interactions. `user_id` is the user whose record may have them. */
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
    else if (record !== undefined) {
      const ids = toLookUp.get(user_id) ?? []
      ids.push(id)
      toLookUp.set(user_id, ids)
    }
  }
  const overflow = yield* findInOverflow(users, toLookUp, (user) => records.get(user)?.ledgers ?? [])
  for (const ids of overflow.values()) for (const id of ids) found.add(id)
  return found
})

/**
 * Ids in the overflow, without those still on the record: a lost compare-and-swap leaves such ids behind. So they may also be
 * in the ledgers of two ids of a person.
 */
export const overflowIds = (
  users: UserEmbeddings["Type"],
  { ledgers, onRecord }: AppliedState,
): Stream.Stream<ReadonlyArray<string>, UserEmbeddingsError> =>
  Stream.suspend(() => {
    if (ledgers.length === 0) return Stream.empty
    const known = ledgers.length === 1 ? undefined : new Set<string>()
    const isNew = (id: string) => known === undefined || (!known.has(id) && known.add(id))
    return Stream.map(users.overflow(ledgers), (entries) =>
      entries.flatMap(({ ids }) => ids.filter((id) => !onRecord.has(id) && isNew(id))),
    )
  })

export const countApplied = (users: UserEmbeddings["Type"], record: AppliedState) =>
  Stream.runFold(overflowIds(users, record), record.onRecord.size, (sum, ids) => sum + ids.length)
