/** What an append to the interaction log writes, and what it answers: idempotency decided without a database. */
import { type Interaction, type Metadata, reference } from "../../services/model/Interaction.ts"
import type { Appended, NewInteraction } from "../../services/ports/InteractionLog.ts"
import { keyOf, type Row, toRow } from "./InteractionRows.ts"

const canonical = (metadata: Metadata): string => JSON.stringify(metadata, Object.keys(metadata).toSorted())

/** Whether an interaction with a known key is the one that the key stands for. */
const isReplay = ({ interaction, occurredAtGiven }: NewInteraction, stored: Interaction): boolean =>
  interaction.event_type === stored.event_type &&
  reference(interaction) === reference(stored) &&
  (!occurredAtGiven || interaction.occurred_at === stored.occurred_at) &&
  canonical(interaction.metadata) === canonical(stored.metadata)

/** An interaction of the log, or of the same batch: then with the row that is to be inserted. */
export interface ExistingRow {
  readonly interaction: Interaction
  readonly row: Row | undefined
  key: string | null
}

/**
 * What an append writes and answers, if the log holds exactly `stored` of what it speaks about. A key decides
 * before the message id. A key that comes with a known message id is bound to that row, if it has none.
 */
export const plan = (entries: ReadonlyArray<NewInteraction>, stored: ReadonlyArray<ExistingRow>) => {
  const byId = new Map<string, ExistingRow>()
  const byKey = new Map<string, ExistingRow>()
  const know = (known: ExistingRow) => {
    byId.set(known.interaction.message_id, known)
    if (known.key !== null) byKey.set(`${known.interaction.user_id}|${known.key}`, known)
  }
  for (const known of stored) know(known)
  const inserts: Array<Row> = []
  const bindings: Array<Pick<Row, "message_id" | "idempotency_key">> = []
  const answers = entries.map((entry): Appended => {
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
      know({ interaction, row, key })
      inserts.push(row)
      return { _tag: "Recorded", interaction }
    }
    if (key !== null && sameMessage.key === null && isReplay(entry, sameMessage.interaction)) {
      sameMessage.key = key
      know(sameMessage)
      if (sameMessage.row === undefined)
        bindings.push({ message_id: interaction.message_id, idempotency_key: key })
      else sameMessage.row.idempotency_key = key
    }
    return { _tag: "Duplicate", interaction: sameMessage.interaction }
  })
  // Everybody inserts in the same order: fewer deadlocks.
  return { answers, bindings, inserts: inserts.toSorted((a, b) => (a.message_id < b.message_id ? -1 : 1)) }
}
