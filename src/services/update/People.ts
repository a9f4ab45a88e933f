/** Finds the records of people by any of their ids. */
import { Effect } from "effect"
import type { UserId } from "../model/Interaction.ts"
import type { UserEmbeddings, UserRecord } from "../ports/UserEmbeddings.ts"

/** The id that the id leads to as an alias, else itself, and its record. */
export const ownerOf = Effect.fnUntraced(function* (users: UserEmbeddings["Type"], user: UserId) {
  for (let user_id = user; ; ) {
    const record = (yield* users.load([user_id])).get(user_id)
    const owner = record?.links?.alias_of
    if (owner === undefined) return { user_id, record }
    user_id = owner
  }
})

type Load<E> = (users: ReadonlyArray<UserId>) => Effect.Effect<ReadonlyMap<UserId, UserRecord>, E>

/** The same for several ids: all records in one read, and one more for each step from alias to alias. */
export const ownersOf = Effect.fnUntraced(function* <E>(load: Load<E>, ids: ReadonlyArray<UserId>) {
  const owners = new Map(ids.map((id) => [id, id]))
  const records = new Map<UserId, UserRecord>()
  for (let unknown = [...owners.keys()]; unknown.length > 0; ) {
    for (const [id, record] of yield* load(unknown)) records.set(id, record)
    const next = new Set<UserId>()
    for (const [id, owner] of owners) {
      const target = records.get(owner)?.links?.alias_of
      if (target === undefined) continue
      owners.set(id, target)
      next.add(target)
    }
    unknown = [...next]
  }
  return new Map(Array.from(owners, ([id, user_id]) => [id, { user_id, record: records.get(user_id) }]))
})
