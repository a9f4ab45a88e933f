/** Finds the interactions that requests take back, and makes the retractions. */
import { Effect, Either } from "effect"
import { type Interaction, type MessageId, retract } from "../model/Interaction.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import type { Submission } from "./InteractionRecorder.ts"
import type { Requested, RetractionRequest } from "./Submission.ts"

/** Why an interaction can't be taken back. `field` is that of a bulk item. */
export interface Refusal {
  readonly status: 404 | 422
  readonly field: "reference" | "occurred_at"
  readonly detail: string
}

const isRequest = (item: Requested): item is RetractionRequest => "reference" in item

const toSubmission = (
  { idempotencyKey, metadata, occurred_at }: RetractionRequest,
  taken: Interaction | undefined,
): Either.Either<Submission, Refusal> => {
  if (taken === undefined)
    return Either.left({ status: 404, field: "reference", detail: "is no interaction of this user" })
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
      const isOwn =
        taken?.user_id === item.user_id ||
        (taken !== undefined && (yield* log.person(item.user_id)).ids.includes(taken.user_id))
      resolved.push(toSubmission(item, isOwn ? taken : undefined))
    } else {
      before.set(item.interaction.message_id, item.interaction)
      resolved.push(Either.right(item))
    }
  }
  return resolved
})

export const userOf = (item: Requested) => (isRequest(item) ? item.user_id : item.interaction.user_id)
