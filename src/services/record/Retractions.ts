/** Finds the interactions that requests take back, and makes the retractions. */
import { Either } from "effect"
import { type Interaction, type MessageId, retract } from "../model/Interaction.ts"
import type { LoggedInteraction } from "../ports/InteractionLog.ts"
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
  { idempotencyKey, metadata, occurred_at, user_id }: RetractionRequest,
  taken: Interaction | undefined,
): Either.Either<Submission, Refusal> => {
  if (taken?.user_id !== user_id)
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

/** The message ids to be found in the log for {@link resolve}. */
export const references = (items: ReadonlyArray<Requested>): ReadonlyArray<MessageId> =>
  items.flatMap((item) => (isRequest(item) ? [item.reference] : []))

/** An item may take back what stands before it. `found`: those of the {@link references} that the log has. */
export const resolve = (
  items: ReadonlyArray<Requested>,
  found: ReadonlyMap<MessageId, LoggedInteraction>,
): ReadonlyArray<Either.Either<Submission, Refusal>> => {
  const before = new Map<MessageId, Interaction>()
  return items.map((item) => {
    if (isRequest(item))
      return toSubmission(item, before.get(item.reference) ?? found.get(item.reference)?.interaction)
    before.set(item.interaction.message_id, item.interaction)
    return Either.right(item)
  })
}

export const userOf = (item: Requested) => (isRequest(item) ? item.user_id : item.interaction.user_id)
