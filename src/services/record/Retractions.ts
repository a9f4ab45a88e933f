/** Finds the interactions that requests take back, and makes the retractions. */
import { Effect, Either } from "effect"
import { prefix } from "../model/AppliedIds.ts"
import { type Interaction, type MessageId, retract } from "../model/Interaction.ts"
import type { InteractionLog, LoggedInteraction } from "../ports/InteractionLog.ts"
import type { Submission } from "./InteractionRecorder.ts"
import type { Requested, RetractionRequest } from "./Submission.ts"

/** Why an interaction can't be taken back. `field` is that of a bulk item. */
export interface Refusal {
  readonly status: 404 | 410 | 422
  readonly field: "reference" | "occurred_at"
  readonly detail: string
}

export const isRequest = (item: Requested): item is RetractionRequest => "reference" in item

const toSubmission = (
  { idempotencyKey, metadata, occurred_at, user_id }: RetractionRequest,
  taken: Interaction | undefined,
  isPruned: boolean,
): Either.Either<Submission, Refusal> => {
  if (taken === undefined && isPruned)
    return Either.left({
      status: 410,
      field: "reference",
      detail: "is pruned from the log, so it can't be taken back any more",
    })
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

/** What items take back: what the log has of it, and the prefixes of what is pruned. */
export interface FoundReferences {
  readonly found: ReadonlyMap<MessageId, LoggedInteraction>
  readonly pruned: ReadonlySet<string>
}

export const find = Effect.fnUntraced(function* (
  log: InteractionLog["Type"],
  items: ReadonlyArray<Requested>,
) {
  const requests = items.filter(isRequest)
  const found = yield* log.find(requests.map(({ reference }) => reference))
  const missing = requests.filter(({ reference }) => !found.has(reference))
  const pruned = yield* log.pruned.among(
    missing.map(({ reference, user_id }) => ({ user_id, message_id: reference })),
  )
  return { found, pruned } satisfies FoundReferences
})

/** An item may take back what stands before it. */
export const resolve = (
  items: ReadonlyArray<Requested>,
  { found, pruned }: FoundReferences,
): ReadonlyArray<Either.Either<Submission, Refusal>> => {
  const before = new Map<MessageId, Interaction>()
  return items.map((item) => {
    if (isRequest(item))
      return toSubmission(
        item,
        before.get(item.reference) ?? found.get(item.reference)?.interaction,
        pruned.has(prefix(item.reference)),
      )
    before.set(item.interaction.message_id, item.interaction)
    return Either.right(item)
  })
}

export const userOf = (item: Requested) => (isRequest(item) ? item.user_id : item.interaction.user_id)
