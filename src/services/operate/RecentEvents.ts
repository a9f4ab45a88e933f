/** The events recorded last, to answer "has it arrived, and is it applied?". */
import { Effect, Schema } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import { referenceOf } from "../model/Interaction.ts"
import { InteractionLog } from "../ports/InteractionLog.ts"
import { loadReadable, UserEmbeddings } from "../ports/UserEmbeddings.ts"
import * as AppliedInteractions from "../update/AppliedInteractions.ts"
import { ownersOf } from "../update/People.ts"

/** An index for every filter would cost every INSERT. */
const rowsSearched = 1_000

export const RecentEvent = Schema.Struct({
  message_id: Schema.String,
  user_id: Schema.String,
  event_type: Schema.String,
  /** The product, the search phrase, or what a retraction or merge refers to. */
  reference: Schema.String,
  occurred_at: Schema.String,
  recorded_at: Schema.String,
  /** `false`: the event waits, is dead, or was skipped because its product has no embedding. */
  applied: Schema.Boolean,
  trace_id: Schema.NullOr(Schema.String),
})

export interface EventFilter {
  /** Any id of the person. */
  readonly user?: string | undefined
  readonly product?: string | undefined
  readonly type?: string | undefined
  readonly limit: number
}

/** Those of the newest 1,000 rows that match, newest first. */
export const recentEvents = Effect.fn("recentEvents")(function* ({
  limit,
  product,
  type,
  user,
}: EventFilter) {
  const users = yield* UserEmbeddings
  const log = yield* InteractionLog
  const ids = user === undefined ? undefined : (yield* log.person(user)).ids
  const rows = yield* log.lastRecorded(rowsSearched)
  const found = rows
    .filter(
      ({ interaction: { event_type, product_id, user_id } }) =>
        (ids === undefined || ids.includes(user_id)) &&
        (product === undefined || product_id === product) &&
        (type === undefined || event_type === type),
    )
    .slice(0, limit)
  const owners = yield* ownersOf(
    (ids) => loadReadable(users, ids),
    found.map(({ interaction: { user_id } }) => user_id),
  )
  const states = new Map<string, AppliedInteractions.AppliedState>()
  for (const { record, user_id } of owners.values())
    if (record !== undefined) states.set(user_id, AppliedInteractions.appliedState(record))
  const applied = yield* AppliedInteractions.findApplied(
    users,
    found.map(({ interaction: { message_id, user_id } }) => ({
      user_id: owners.get(user_id)?.user_id ?? user_id,
      message_id,
    })),
    states,
  )
  return found.map(({ interaction, recordedAt, trace }) => ({
    message_id: interaction.message_id,
    user_id: interaction.user_id,
    event_type: interaction.event_type,
    reference: referenceOf(interaction),
    occurred_at: interaction.occurred_at,
    recorded_at: new Date(recordedAt).toISOString(),
    applied: applied.has(AppliedIds.prefix(interaction.message_id)),
    trace_id: trace?.traceparent.split("-")[1] ?? null,
  }))
})
