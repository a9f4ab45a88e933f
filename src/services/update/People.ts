/** Finds the record of a person by any id. */
import { Effect } from "effect"
import type { UserId } from "../model/Interaction.ts"
import type { UserEmbeddings } from "../ports/UserEmbeddings.ts"

/** The id that the id leads to as an alias, else itself, and its record. */
export const ownerOf = Effect.fnUntraced(function* (users: UserEmbeddings["Type"], user: UserId) {
  for (let user_id = user; ; ) {
    const record = (yield* users.load([user_id])).get(user_id)
    const owner = record?.links?.alias_of
    if (owner === undefined) return { user_id, record }
    user_id = owner
  }
})
