/** Decides what an append to the interaction log writes and answers. Pure: it needs no database. */
import { type Interaction, type Metadata, referenceOf } from "../../services/model/Interaction.ts"
import type { Appended, NewInteraction } from "../../services/ports/InteractionLog.ts"
import { keyOf, type Row, toRow } from "./InteractionRows.ts"

/** Equal for equal metadata, whatever the order of the properties. */
const canonical = (metadata: Metadata): string => JSON.stringify(metadata, Object.keys(metadata).toSorted())

/** Whether the interaction is the stored one again, rather than another one under the same key. */
const isReplay = ({ interaction, occurredAtGiven }: NewInteraction, stored: Interaction): boolean =>
  interaction.event_type === stored.event_type &&
  referenceOf(interaction) === referenceOf(stored) &&
  (!occurredAtGiven || interaction.occurred_at === stored.occurred_at) &&
  canonical(interaction.metadata) === canonical(stored.metadata)

/** An interaction that is in the log or earlier in the same batch. */
export interface ExistingRow {
  readonly interaction: Interaction
  /** The row to insert; `undefined` for an interaction that is already in the log. */
  readonly row: Row | undefined
  key: string | null
}

/** An {@link Appended} whose row has no id yet. */
type Planned = Pick<Exclude<Appended, { readonly _tag: "Refused" }>, "_tag" | "interaction">

export type KeyUpdate = Pick<Row, "message_id" | "idempotency_key">

/**
 * The inserts, key updates and answers of an append, given all rows of the log with a message id or a key of these
 * entries. The key is compared first. When only the message id matches, a row without a key gets the entry's key.
 * `keysToRead`: an answer holds only if the log has no row with the entry's key, and no write will find that out.
 */
export const plan = (entries: ReadonlyArray<NewInteraction>, stored: ReadonlyArray<ExistingRow>) => {
  const byId = new Map<string, ExistingRow>()
  const byKey = new Map<string, ExistingRow>()
  const register = (existing: ExistingRow) => {
    byId.set(existing.interaction.message_id, existing)
    if (existing.key !== null) byKey.set(`${existing.interaction.user_id}|${existing.key}`, existing)
  }
  for (const existing of stored) register(existing)
  const inserts: Array<Row> = []
  const keyUpdates: Array<KeyUpdate> = []
  let keysToRead = false
  const answers = entries.map((entry): Planned => {
    const { interaction } = entry
    const key = keyOf(entry)
    const sameKey = key === null ? undefined : byKey.get(`${interaction.user_id}|${key}`)
    if (sameKey !== undefined)
      return {
        _tag: isReplay(entry, sameKey.interaction) ? "Duplicate" : "KeyReused",
        interaction: sameKey.interaction,
      }
    const sameMessage = byId.get(interaction.message_id)
    if (sameMessage === undefined) {
      const row = toRow(entry)
      register({ interaction, row, key })
      inserts.push(row)
      return { _tag: "Recorded", interaction }
    }
    if (key !== null && sameMessage.key === null && isReplay(entry, sameMessage.interaction)) {
      sameMessage.key = key
      register(sameMessage)
      if (sameMessage.row === undefined)
        keyUpdates.push({ message_id: interaction.message_id, idempotency_key: key })
      else sameMessage.row.idempotency_key = key
    } else if (key !== null) keysToRead = true
    return { _tag: "Duplicate", interaction: sameMessage.interaction }
  })
  // All writers insert in the same order, which avoids most deadlocks.
  const sorted = inserts.toSorted((a, b) => (a.message_id < b.message_id ? -1 : 1))
  return { answers, keyUpdates, inserts: sorted, keysToRead }
}
