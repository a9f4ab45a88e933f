/** Finds the interactions that requests take back, and makes the retractions. */
import { Effect, Either } from "effect"
import { prefix } from "../model/AppliedIds.ts"
import { type Interaction, isMerge, type MessageId, retract, type UserId } from "../model/Interaction.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { postedUnder } from "../ports/PrunedRows.ts"
import type { Submission } from "./InteractionRecorder.ts"
import type { Requested, RetractionRequest } from "./Submission.ts"

/** Why an interaction can't be taken back. `field` is that of a bulk item. */
export interface Refusal {
  readonly status: 404 | 410 | 422
  readonly field: "reference" | "occurred_at"
  readonly detail: string
}

const isRequest = (item: Requested): item is RetractionRequest => "reference" in item

const notFound: Refusal = { status: 404, field: "reference", detail: "is no interaction of this user" }
const pruned: Refusal = {
  status: 410,
  field: "reference",
  detail: "is pruned from the log, so it can't be taken back any more",
}

const toSubmission = (
  { idempotencyKey, metadata, occurred_at }: RetractionRequest,
  taken: Interaction,
): Either.Either<Submission, Refusal> => {
  if (taken.reference !== null)
    return Either.left({
      status: 422,
      field: "reference",
      detail: `is a ${taken.event_type}, which can't be taken back`,
    })
  if (occurred_at !== undefined && occurred_at !== taken.occurred_at)
    return Either.left({
      status: 422,
      field: "occurred_at",
      detail: "must be left out, or be that of the interaction",
    })
  return Either.right({ interaction: retract(taken, metadata), idempotencyKey, occurredAtGiven: true })
}

/** Who is one person, in the log and by merges that are not recorded yet. */
const people = Effect.map(InteractionLog, (log) => {
  const merged = new Map<UserId, UserId>()
  const userOf = Effect.fnUntraced(function* (id: UserId) {
    let { user_id } = yield* log.person(id)
    for (let next = merged.get(user_id); next !== undefined; next = merged.get(user_id)) user_id = next
    return user_id
  })
  /** The log refuses a merge of an alias, and one that would close a circle. */
  const merge = Effect.fnUntraced(function* (from: UserId, into: UserId) {
    const user = yield* userOf(into)
    if (user !== from && (yield* userOf(from)) === from) merged.set(from, user)
  })
  return { userOf, merge }
})

/** Why the log has no such interaction of the person. */
const refusalOf = Effect.fnUntraced(function* ({ reference, user_id }: RetractionRequest) {
  const log = yield* InteractionLog
  const { ids } = yield* log.person(user_id)
  const found = yield* log.pruned.among(postedUnder(ids, [reference]))
  return found.has(prefix(reference)) ? pruned : notFound
})

type Resolved = ReadonlyArray<Either.Either<Submission, Refusal>>

/** The answer of {@link resolve} for items of which none takes anything back, else `undefined`. It needs no fiber. */
export const withoutRequests = (items: ReadonlyArray<Requested>): Resolved | undefined =>
  items.every((item): item is Submission => !isRequest(item))
    ? items.map((item) => Either.right(item))
    : undefined

/**
 * Looks up what items take back. An item may take back what stands before it, and what was posted under another id of the
 * same person, also of a merge that stands before it.
 */
export const resolve = Effect.fnUntraced(function* (items: ReadonlyArray<Requested>) {
  const asTheyAre = withoutRequests(items)
  if (asTheyAre !== undefined) return asTheyAre
  const log = yield* InteractionLog
  const references = new Set(items.flatMap((item) => (isRequest(item) ? [item.reference] : [])))
  const found = yield* log.find([...references])
  // A pruned event that is posted again has a row, but still can't be taken back.
  const gone = yield* log.pruned.among([
    ...Array.from(found.values(), ({ interaction }) => interaction),
    ...items.flatMap((item) =>
      !isRequest(item) && references.has(item.interaction.message_id) ? [item.interaction] : [],
    ),
  ])
  const { merge, userOf } = yield* people
  const before = new Map<MessageId, Interaction>()
  const resolved: Array<Resolved[number]> = []
  for (const item of items) {
    if (isRequest(item)) {
      const taken = before.get(item.reference) ?? found.get(item.reference)?.interaction
      const isTakeable =
        taken !== undefined &&
        !gone.has(prefix(taken.message_id)) &&
        (taken.user_id === item.user_id || (yield* userOf(taken.user_id)) === (yield* userOf(item.user_id)))
      resolved.push(isTakeable ? toSubmission(item, taken) : Either.left(yield* refusalOf(item)))
    } else {
      const { interaction } = item
      if (isMerge(interaction)) yield* merge(interaction.reference, interaction.user_id)
      before.set(interaction.message_id, interaction)
      resolved.push(Either.right(item))
    }
  }
  return resolved
})

export const userOf = (item: Requested) => (isRequest(item) ? item.user_id : item.interaction.user_id)
