/** The rows of the interaction log: columns, and what they say in both dialects. */
import type { Interaction, Metadata } from "../../services/model/Interaction.ts"
import type { LogRow, NewInteraction } from "../../services/ports/InteractionLog.ts"

export const table = "user_interactions"

/** `2026-02-10T12:34:56.789Z` as both dialects keep it: `2026-02-10 12:34:56.789`, UTC. */
export const toColumn = (timestamp: string): string => `${timestamp.slice(0, 10)} ${timestamp.slice(11, 23)}`
const fromColumn = (text: string): string => `${text.slice(0, 10)}T${text.slice(11)}Z`
export const columnOfMillis = (millis: number): string => toColumn(new Date(millis).toISOString())
export const millisOfColumn = (text: string): number => Date.parse(fromColumn(text))

/** The W3C's limit; a longer state is dropped whole, as it advises. */
const longestTracestate = 512

/** Blanks at the end don't tell keys apart: the collations of MySQL ignore them. */
export const keyOf = ({ idempotencyKey }: NewInteraction): string | null => idempotencyKey?.trimEnd() ?? null

/** The columns that an append writes. */
export const toRow = (entry: NewInteraction) => {
  const { interaction, trace, recordedAt } = entry
  const tracestate = trace?.tracestate ?? null
  return {
    message_id: interaction.message_id,
    user_id: interaction.user_id,
    event_type: interaction.event_type,
    search_phrase: interaction.search_phrase,
    product_id: interaction.product_id,
    occurred_at: toColumn(interaction.occurred_at),
    metadata: JSON.stringify(interaction.metadata),
    traceparent: trace?.traceparent ?? null,
    tracestate: tracestate !== null && tracestate.length > longestTracestate ? null : tracestate,
    created_at: columnOfMillis(recordedAt),
    idempotency_key: keyOf(entry),
  }
}

export type Row = ReturnType<typeof toRow>

/** In the order of {@link toRow}. */
const written = [
  "message_id",
  "user_id",
  "event_type",
  "search_phrase",
  "product_id",
  "occurred_at",
  "metadata",
  "traceparent",
  "tracestate",
  "created_at",
  "idempotency_key",
] as const satisfies ReadonlyArray<keyof Row>
const placeholders = `(${written.map(() => "?").join(", ")})`
/** Made by hand, for the statement builder makes a fragment of every value. */
export const insertOf = (rows: number): string =>
  `INSERT INTO ${table} (${written.join(", ")}) VALUES ${new Array(rows).fill(placeholders).join(", ")}`

/** The parameters of such an INSERT. */
export const valuesOf = (rows: ReadonlyArray<Row>) =>
  rows.flatMap((row) => written.map((column) => row[column]))

/** A row as it is read; the checks of the table keep the kinds apart. */
export type StoredRow = Interaction extends infer Kind
  ? Kind extends Interaction
    ? Omit<Kind, "metadata"> & {
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

export const columns = ["id", ...written, "processed_to_queue"] as const satisfies ReadonlyArray<
  keyof StoredRow
>

export const fromRow = (row: StoredRow): LogRow => {
  const {
    id: _,
    idempotency_key: __,
    processed_to_queue,
    created_at,
    traceparent,
    tracestate,
    ...stored
  } = row
  const metadata: Metadata = JSON.parse(stored.metadata)
  return {
    interaction: { ...stored, occurred_at: fromColumn(stored.occurred_at), metadata },
    trace: traceparent === null ? null : { traceparent, tracestate },
    recordedAt: millisOfColumn(created_at),
    published: processed_to_queue === 1,
  }
}
