/** Finds the interactions that requests take back, and makes the retractions. */
import { Effect, Either } from "effect"
import { prefix } from "../model/AppliedIds.ts"
import { type Interaction, type MessageId, retract } from "../model/Interaction.ts"
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

/**
 * Looks up what items take back. An item may take back what stands before it, and what was posted under another id of the
 * same person.
 */
export const resolve = Effect.fnUntraced(function* (items: ReadonlyArray<Requested>) {
  const references = items.flatMap((item) => (isRequest(item) ? [item.reference] : []))
  if (references.length === 0) return items.flatMap((item) => (isRequest(item) ? [] : [Either.right(item)]))
  const log = yield* InteractionLog
  const found = yield* log.find(references)
  const before = new Map<MessageId, Interaction>()
  const resolved: Array<Either.Either<Submission, Refusal>> = []
  for (const item of items) {
    if (isRequest(item)) {
      const taken = before.get(item.reference) ?? found.get(item.reference)?.interaction
      const ids = taken?.user_id === item.user_id ? [item.user_id] : (yield* log.person(item.user_id)).ids
      if (taken !== undefined && ids.includes(taken.user_id)) resolved.push(toSubmission(item, taken))
      else {
        const isPruned = (yield* log.pruned.among(postedUnder(ids, [item.reference]))).has(
          prefix(item.reference),
        )
        resolved.push(Either.left(isPruned ? pruned : notFound))
      }
    } else {
      before.set(item.interaction.message_id, item.interaction)
      resolved.push(Either.right(item))
    }
  }
  return resolved
})

export const userOf = (item: Requested) => (isRequest(item) ? item.user_id : item.interaction.user_id)
