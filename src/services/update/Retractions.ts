/**
 * Takes folded events back. In cumulative history an event is subtracted, which leaves exactly the sum of the others. That
 * needs the vector and the weight that were folded. Where these may have changed, the user is rebuilt from the log.
 */
import { Effect } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import { maxClockDifference } from "../model/Erasure.ts"
import { canUnfold, type FoldSettings, recentEvents, unfold, withRecent } from "../model/Fold.ts"
import type { Retraction, UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { ProductEmbeddings } from "../ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../ports/UserEmbeddings.ts"
import { type AppliedState, findApplied } from "./AppliedInteractions.ts"

const services = Effect.all({ log: InteractionLog, products: ProductEmbeddings, users: UserEmbeddings })

/** A retraction of a folded event, with the event's vector of today if it was found. */
export interface Undone {
  readonly retraction: Retraction
  readonly vector: Float32Array | undefined
}

/** Whether the products had their vectors long before the events were recorded, so that these were folded. */
const areUnchanged = Effect.fnUntraced(function* (undone: ReadonlyArray<Undone>) {
  const { log, products } = yield* services
  const ofProducts = undone.flatMap(({ retraction: { product_id, reference } }) =>
    product_id === null ? [] : [{ product_id, reference }],
  )
  if (ofProducts.length === 0) return true
  const rows = yield* log.find(ofProducts.map(({ reference }) => reference))
  const since = yield* products.vectorsSince([...new Set(ofProducts.map(({ product_id }) => product_id))])
  return ofProducts.every(({ product_id, reference }) => {
    const changed = since.get(product_id) ?? 0
    const recorded = rows.get(reference)?.recordedAt ?? 0
    return changed > 0 && changed + maxClockDifference < recorded
  })
})

/** The newest of the folded events, newest first. The log knows which of its rows are taken back. */
const newestFolded = Effect.fnUntraced(function* (
  user: UserId,
  state: AppliedState,
  retracted: ReadonlySet<string>,
) {
  const { log, users } = yield* services
  for (let limit = 2 * recentEvents; ; limit *= 4) {
    const newest = yield* log.newest(user, limit)
    const interactions = newest.map(({ interaction }) => interaction)
    const ids = interactions.map(({ message_id }) => ({ user_id: user, message_id }))
    const applied = yield* findApplied(users, ids, new Map([[user, state]]))
    const folded = interactions.filter(
      ({ message_id }) => applied.has(AppliedIds.prefix(message_id)) && !retracted.has(message_id),
    )
    if (folded.length >= recentEvents || newest.length < limit) return folded
  }
})

/** The embedding without these events; `undefined` if the user must be rebuilt. `state` is that of the next record. */
export const takeBack = Effect.fnUntraced(function* (
  embedding: UserEmbedding,
  undone: ReadonlyArray<Undone>,
  state: AppliedState,
  settings: FoldSettings,
  now: number,
) {
  if (!canUnfold(embedding, settings) || !(yield* areUnchanged(undone))) return undefined
  let left: UserEmbedding | undefined = embedding
  for (const { retraction, vector } of undone)
    left = left && vector && unfold(left, retraction, vector, settings, now)
  if (left === undefined || left.recent.length >= Math.min(recentEvents, left.event_count)) return left
  const retracted = new Set(undone.map(({ retraction }) => retraction.reference))
  // The log may no longer have all events that are on the document.
  return withRecent(left, [...left.recent, ...(yield* newestFolded(embedding.user_id, state, retracted))])
})
