/** What a user bought, from the rows of the log and from what is kept of pruned rows. */
import { Array as Arr, Chunk, Effect, Stream } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import { decay } from "../model/Fold.ts"
import {
  type Interaction,
  isRetraction,
  type MessageId,
  type ProductId,
  type Retraction,
  retractedType,
  type UserId,
} from "../model/Interaction.ts"
import type { InteractionLog } from "../ports/InteractionLog.ts"
import { postedUnder } from "../ports/PrunedRows.ts"

const purchase = "product_purchase"

interface Bought {
  /** The decayed number of purchases. */
  readonly score: number
  readonly purchases: number
  /** When the newest occurred, in Unix ms. */
  readonly last: number
}

/**
 * By product, without purchases that are taken back. A pruned purchase that is posted again has a row, which does not count
 * a second time. One that is taken back while it is pruned has a row of its retraction alone.
 */
export const purchasesOf = Effect.fnUntraced(function* (
  log: InteractionLog["Type"],
  user: UserId,
  lambda: number,
  now: number,
) {
  const { ids } = yield* log.person(user)
  const [pruned, others] = Arr.partition(
    yield* log.pruned.products(ids),
    ({ event_type }) => event_type !== purchase,
  )
  const takenBack = others.filter(({ event_type }) => event_type === "retraction")
  const newestPruned = Math.max(...[...pruned, ...takenBack].map(({ newest }) => newest))
  const prunedAmong = (some: ReadonlyArray<Interaction>, idOf: (one: Interaction) => MessageId | null) => {
    const old = some.filter(({ occurred_at }) => Date.parse(occurred_at) <= newestPruned).map(idOf)
    return old.length === 0
      ? Effect.succeed<ReadonlySet<string>>(new Set())
      : log.pruned.among(
          postedUnder(
            ids,
            old.filter((id) => id !== null),
          ),
        )
  }

  const bought = new Map<ProductId, Bought>()
  const add = (product: ProductId, more: Bought) => {
    const { last, purchases, score } = bought.get(product) ?? { score: 0, purchases: 0, last: more.last }
    const sum = { score: score + more.score, purchases: purchases + more.purchases }
    if (sum.purchases > 0) bought.set(product, { ...sum, last: Math.max(last, more.last) })
    else bought.delete(product)
  }
  /** One purchase more, or one fewer with `sign` −1. */
  const addOne = (sign: 1 | -1, { occurred_at, product_id }: Interaction) => {
    const last = Date.parse(occurred_at)
    add(product_id!, { score: sign * decay(lambda, now, last), purchases: sign, last })
  }

  for (const { decayed, events, newest, product_id } of pruned)
    add(product_id, { score: decayed * decay(lambda, now, newest), purchases: events, last: newest })

  const retractions: Array<Retraction> = []
  yield* Stream.runForEach(log.stream({ user, type: "retraction" }), ({ interaction }) =>
    Effect.sync(() => {
      if (isRetraction(interaction) && retractedType(interaction) === purchase) retractions.push(interaction)
    }),
  )
  const retracted = new Set<string>(retractions.map(({ reference }) => reference))
  yield* Stream.runForEachChunk(log.stream({ user, type: purchase }), (rows) =>
    Effect.gen(function* () {
      const interactions = Chunk.toReadonlyArray(rows).map(({ interaction }) => interaction)
      const again = yield* prunedAmong(interactions, ({ message_id }) => message_id)
      for (const one of interactions)
        if (!retracted.has(one.message_id) && !again.has(AppliedIds.prefix(one.message_id))) addOne(1, one)
    }),
  )
  const undone = yield* prunedAmong(retractions, ({ reference }) => reference)
  for (const one of retractions) if (undone.has(AppliedIds.prefix(one.reference))) addOne(-1, one)
  return bought
})
