/** The columns of the interaction log, and conversions between rows and interactions. They suit every dialect. */
import type { Interaction, Metadata } from "../../services/model/Interaction.ts"
import type { LogRow, NewInteraction } from "../../services/ports/InteractionLog.ts"

export const tableName = "user_interactions"

/** `2026-02-10T12:34:56.789Z` is stored as `2026-02-10 12:34:56.789`, in UTC. */
export const toColumn = (timestamp: string): string => `${timestamp.slice(0, 10)} ${timestamp.slice(11, 23)}`
const fromColumn = (text: string): string => `${text.slice(0, 10)}T${text.slice(11)}Z`
export const columnOfMillis = (millis: number): string => toColumn(new Date(millis).toISOString())
export const millisOfColumn = (text: string): number => Date.parse(fromColumn(text))

/** A longer `tracestate` is dropped, as W3C Trace Context allows. */
const maxTracestateLength = 512

/** Keys that differ only in trailing spaces are equal, because the collations of MySQL ignore these spaces. */
export const keyOf = ({ idempotencyKey }: NewInteraction): string | null => idempotencyKey?.trimEnd() ?? null

/** The values that an append writes. */
export const toRow = (entry: NewInteraction) => {
  const { interaction, trace, recordedAt } = entry
  const tracestate = trace?.tracestate ?? null
  return {
    message_id: interaction.message_id,
    user_id: interaction.user_id,
    event_type: interaction.event_type,
    search_phrase: interaction.search_phrase,
    product_id: interaction.product_id,
    reference: interaction.reference,
    occurred_at: toColumn(interaction.occurred_at),
    metadata: JSON.stringify(interaction.metadata),
    traceparent: trace?.traceparent ?? null,
    tracestate: tracestate !== null && tracestate.length > maxTracestateLength ? null : tracestate,
    created_at: columnOfMillis(recordedAt),
    idempotency_key: keyOf(entry),
  }
}

export type Row = ReturnType<typeof toRow>

const writtenColumns = [
  "message_id",
  "user_id",
  "event_type",
  "search_phrase",
  "product_id",
  "reference",
  "occurred_at",
  "metadata",
  "traceparent",
  "tracestate",
  "created_at",
  "idempotency_key",
] as const satisfies ReadonlyArray<keyof Row>
const placeholders = `(${writtenColumns.map(() => "?").join(", ")})`
/** Built without the statement builder, which allocates a fragment for every value. */
export const insertStatement = (rows: number): string =>
  `INSERT INTO ${tableName} (${writtenColumns.join(", ")}) VALUES ${new Array(rows).fill(placeholders).join(", ")}`

/** The parameters of {@link insertStatement}. */
export const insertParameters = (rows: ReadonlyArray<Row>) =>
  rows.flatMap((row) => writtenColumns.map((column) => row[column]))

/** A row as read. All writers decode interactions, so each event type has its columns. */
export type StoredRow = Interaction extends infer Type
  ? Type extends Interaction
    ? Omit<Type, "metadata"> & {
        readonly id: number
        readonly metadata: string
        readonly traceparent: string | null
        readonly tracestate: string | null
        readonly created_at: string
        readonly idempotency_key: string | null
        readonly processed_to_queue: number
      }
    : never
  : never

export const columns = ["id", ...writtenColumns, "processed_to_queue"] as const satisfies ReadonlyArray<
  keyof StoredRow
>

export const fromRow = (row: StoredRow): LogRow => {
  const { id, idempotency_key: _, processed_to_queue, created_at, traceparent, tracestate, ...stored } = row
  // Other programs insert rows, too, and may write a null.
  const metadata: Metadata = JSON.parse(stored.metadata) ?? {}
  return {
    id,
    interaction: { ...stored, occurred_at: fromColumn(stored.occurred_at), metadata },
    trace: traceparent === null ? null : { traceparent, tracestate },
    recordedAt: millisOfColumn(created_at),
    published: processed_to_queue === 1,
  }
}
