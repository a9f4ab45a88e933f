/** One person under several ids: what the record of a user says about the other ids. */
import type { Recorded } from "./Erasure.ts"
import type { MessageId, UserId } from "./Interaction.ts"

/** An id whose record this user has taken. Its ids in the ledger stay under its own keys. */
export interface Alias {
  readonly user_id: UserId
  readonly generation: number
  readonly archived: number
}

/** The merge that a frozen record waits for. */
export interface Merging extends Recorded {
  /** The user of the merge, which takes the record. */
  readonly user_id: UserId
  readonly message_id: MessageId
}

export interface Links {
  /** On a frozen record: only the merge may write it. */
  readonly merging_into?: Merging
  /** On the record of an alias: where to find what it had. It has nothing else. */
  readonly alias_of?: UserId
  /** All aliases of this user, also those of its aliases. */
  readonly aliases?: ReadonlyArray<Alias>
}

/** Whether the record has all that the record of this id had. */
export const hasAlias = ({ links }: { readonly links?: Links }, user: UserId): boolean =>
  links?.aliases?.some(({ user_id }) => user_id === user) === true

/** Keys under which the ledger may hold applied ids of a person. */
export const ledgersOf = (record: Alias & { readonly links?: Links }): ReadonlyArray<Alias> =>
  [record, ...(record.links?.aliases ?? [])].filter(({ archived }) => archived > 0)
