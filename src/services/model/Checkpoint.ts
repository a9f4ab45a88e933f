/**
 * What is kept of a user's rows that are pruned from the log: which ids they had, and the sums S and W of their events (see
 * Fold.ts). Sums of the same space, λ and weights add up, in any order.
 */
import { Either } from "effect"
import * as AppliedIds from "./AppliedIds.ts"
import { counterOf } from "./EventTypes.ts"
import { Fingerprint } from "./Fingerprint.ts"
import { combine, decay, describeWeights, type Event, type FoldSettings, fold, weightOf } from "./Fold.ts"
import { type EventType, type Interaction, isRetraction, type ProductId, type UserId } from "./Interaction.ts"
import { orderOf } from "./Orders.ts"
import type { UserEmbedding } from "./UserEmbedding.ts"

export interface PrunedIds {
  readonly user_id: UserId
  /** The number of pruned rows, retractions included. */
  readonly rows: number
  readonly retractions: number
  /** XOR of the first 16 bytes of their message ids, in hex. */
  readonly fingerprint: string
}

export interface Checkpoint extends PrunedIds {
  /** The pruned events alone, folded; `undefined` if all of them are taken back. `recent` is empty. */
  readonly sums: UserEmbedding | undefined
}

/**
 * A user's pruned events of one type with one product, without those that are taken back. Those have an entry of the type
 * `retraction` with no events, which says how old the newest of them is: they, too, may be posted again.
 */
export interface PrunedProduct {
  readonly user_id: UserId
  readonly product_id: ProductId
  readonly event_type: EventType
  readonly events: number
  /** Σ exp(−λ · days before the newest). */
  readonly decayed: number
  /** When the newest occurred, in Unix ms. */
  readonly newest: number
}

/** A pruned purchase of an order. */
export interface PrunedPurchase {
  readonly order_id: string
  readonly product_id: ProductId
  readonly taken_back: boolean
}

/** Rows of one user that are pruned together. */
export interface PrunedPart {
  readonly user_id: UserId
  /** Of all rows. */
  readonly interactions: ReadonlyArray<Interaction>
  /** The events that are not taken back. */
  readonly events: ReadonlyArray<Event>
}

/** The checkpoint with the rows of one more part. `now` in Unix ms. */
export const add = (
  before: Checkpoint | undefined,
  { events, interactions, user_id }: PrunedPart,
  settings: FoldSettings,
  now: number,
): Checkpoint => {
  const ids = new Fingerprint(AppliedIds.pack(interactions.map(({ message_id }) => message_id)))
  if (before !== undefined) ids.addSet(before.rows, before.fingerprint)
  // The sums are of these settings, so the fold cannot find another space.
  const folded =
    events.length === 0 ? before?.sums : Either.getOrThrow(fold(before?.sums, events, settings, now))
  return {
    user_id,
    rows: ids.count,
    retractions:
      (before?.retractions ?? 0) + interactions.filter(({ reference }) => reference !== null).length,
    fingerprint: ids.toHex(),
    sums: folded && { ...folded, recent: [] },
  }
}

export const purchasesOf = ({ interactions }: PrunedPart): ReadonlyArray<PrunedPurchase> => {
  const retracted = new Set(interactions.map(({ reference }) => reference))
  return interactions.flatMap((one) => {
    const { message_id, product_id } = one
    const order_id = orderOf(one)
    return order_id === undefined || product_id === null
      ? []
      : [{ order_id, product_id, taken_back: retracted.has(message_id) }]
  })
}

export const productsOf = (
  { events, interactions, user_id }: PrunedPart,
  lambda: number,
): ReadonlyArray<PrunedProduct> => {
  const countAs = (count: 0 | 1, { occurred_at, product_id }: Interaction, event_type: string) => {
    const newest = Date.parse(occurred_at)
    return product_id === null
      ? []
      : [{ user_id, product_id, event_type, events: count, decayed: count, newest }]
  }
  return addProducts(
    [
      ...events.flatMap(({ interaction }) => countAs(1, interaction, interaction.event_type)),
      ...interactions.filter(isRetraction).flatMap((one) => countAs(0, one, one.event_type)),
    ],
    lambda,
  )
}

/** One entry for each user, product and type. */
export const addProducts = (
  some: ReadonlyArray<PrunedProduct>,
  lambda: number,
): ReadonlyArray<PrunedProduct> => {
  const sums = new Map<string, PrunedProduct>()
  for (const one of some) {
    const key = `${one.user_id} ${one.product_id} ${one.event_type}`
    const sum = sums.get(key)
    const newest = Math.max(one.newest, sum?.newest ?? 0)
    const asOfNewest = ({ decayed, newest: at }: PrunedProduct) => decayed * decay(lambda, newest, at)
    sums.set(key, {
      ...one,
      newest,
      events: one.events + (sum?.events ?? 0),
      decayed: asOfNewest(one) + (sum ? asOfNewest(sum) : 0),
    })
  }
  return [...sums.values()]
}

/** Whether a rebuild with these settings would give the pruned events the weights that they have in the sums. */
export const isUsable = (sums: UserEmbedding, { history, lambda, space, weights }: FoldSettings): boolean => {
  const summed = new Map(
    (sums.metadata.weights ?? "").split(",").map((pair) => {
      const [type = "", weight] = pair.split(":")
      return [type, Number(weight)]
    }),
  )
  return (
    history === "cumulative" &&
    sums.space === space &&
    sums.metadata.decay_lambda === lambda &&
    [...summed].every(
      ([type, weight]) => !(sums.metadata[counterOf(type)]! > 0) || weightOf(weights, type) === weight,
    )
  )
}

/** Adds sums that are usable with these settings; `undefined` for none. */
export const total = (
  user_id: UserId,
  all: ReadonlyArray<UserEmbedding>,
  { weights }: FoldSettings,
  now: number,
): UserEmbedding | undefined => {
  const [first, ...others] = all
  if (first === undefined) return undefined
  const sum = others.reduce((sum, one) => combine(sum, one, now), first)
  return { ...sum, user_id, metadata: { ...sum.metadata, weights: describeWeights(weights) } }
}
