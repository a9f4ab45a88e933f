/** The interaction log as one table, on MySQL, MariaDB or SQLite. */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Array as Arr, Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import { type Interaction, type Metadata, reference } from "../services/Interaction.ts"
import {
  type Appended,
  InteractionLog,
  InteractionLogError,
  type LogFilter,
  type LoggedInteraction,
  type NewInteraction,
} from "../services/InteractionLog.ts"
import { deadlockRetry } from "../services/RetryPolicies.ts"
import { attribute } from "../services/Telemetry.ts"
import * as Mysql from "./Mysql.ts"
import * as Sqlite from "./Sqlite.ts"

const table = "user_interactions"

/** Rows of one INSERT, which is one commit; the largest bulk request. */
const rowsPerInsert = 1_000
/** Prepared INSERTs are cheaper to run, but the server keeps one for each number of rows. */
const rowsPrepared = 16
/** Rows read or marked by one statement. */
const page = 500
/** How often an append plans anew, because others write the same interactions at the same time. */
const mostRounds = 20

// ---------------------------------------------------------------------------------------------------------
// Rows

/** `2026-02-10T12:34:56.789Z` as both dialects keep it: `2026-02-10 12:34:56.789`, UTC. */
const toColumn = (timestamp: string): string => `${timestamp.slice(0, 10)} ${timestamp.slice(11, 23)}`
const fromColumn = (text: string): string => `${text.slice(0, 10)}T${text.slice(11)}Z`
const columnOfMillis = (millis: number): string => toColumn(new Date(millis).toISOString())
const millisOfColumn = (text: string): number => Date.parse(fromColumn(text))

/** The W3C's limit; a longer state is dropped whole, as it advises. */
const longestTracestate = 512

/** Blanks at the end don't tell keys apart: the collations of MySQL ignore them. */
const keyOf = ({ idempotencyKey }: NewInteraction): string | null => idempotencyKey?.trimEnd() ?? null

/** The columns that an append writes. */
const toRow = (entry: NewInteraction) => {
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

type Row = ReturnType<typeof toRow>

/** A row as it is read; the checks of the table keep the kinds apart. */
type StoredRow = Interaction extends infer Kind
  ? Kind extends Interaction
    ? Omit<Kind, "metadata"> & {
        readonly id: number
        readonly metadata: string
        readonly traceparent: string | null
        readonly tracestate: string | null
        readonly created_at: string
        readonly idempotency_key: string | null
      }
    : never
  : never

const columns = [
  "id",
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
] as const satisfies ReadonlyArray<keyof StoredRow>

const fromRow = (row: StoredRow): LoggedInteraction => {
  const { id: _, traceparent, tracestate, created_at, idempotency_key: __, ...stored } = row
  const metadata: Metadata = JSON.parse(stored.metadata)
  return {
    interaction: { ...stored, occurred_at: fromColumn(stored.occurred_at), metadata },
    trace: traceparent === null ? null : { traceparent, tracestate },
    recordedAt: millisOfColumn(created_at),
  }
}

// ---------------------------------------------------------------------------------------------------------
// Appending

const canonical = (metadata: Metadata): string => JSON.stringify(metadata, Object.keys(metadata).toSorted())

/** Whether an interaction with a known key is the one that the key stands for. */
const isReplay = ({ interaction, occurredAtGiven }: NewInteraction, stored: Interaction): boolean =>
  interaction.event_type === stored.event_type &&
  reference(interaction) === reference(stored) &&
  (!occurredAtGiven || interaction.occurred_at === stored.occurred_at) &&
  canonical(interaction.metadata) === canonical(stored.metadata)

/** An interaction of the log, or of the same batch: then with the row that is to be inserted. */
interface Known {
  readonly interaction: Interaction
  readonly row: Row | undefined
  key: string | null
}

/**
 * What an append writes and answers, if the log holds exactly `stored` of what it speaks about. A key decides
 * before the message id. A key that comes with a known message id is bound to that row, if it has none.
 */
const plan = (entries: ReadonlyArray<NewInteraction>, stored: ReadonlyArray<Known>) => {
  const byId = new Map<string, Known>()
  const byKey = new Map<string, Known>()
  const know = (known: Known) => {
    byId.set(known.interaction.message_id, known)
    if (known.key !== null) byKey.set(`${known.interaction.user_id}|${known.key}`, known)
  }
  for (const known of stored) know(known)
  const inserts: Array<Row> = []
  const bindings: Array<Pick<Row, "message_id" | "idempotency_key">> = []
  const answers = entries.map((entry): Appended => {
    const { interaction } = entry
    const key = keyOf(entry)
    const owner = key === null ? undefined : byKey.get(`${interaction.user_id}|${key}`)
    if (owner !== undefined)
      return {
        _tag: isReplay(entry, owner.interaction) ? "Duplicate" : "KeyReused",
        interaction: owner.interaction,
      }
    const twin = byId.get(interaction.message_id)
    if (twin === undefined) {
      const row = toRow(entry)
      know({ interaction, row, key })
      inserts.push(row)
      return { _tag: "Recorded", interaction }
    }
    if (key !== null && twin.key === null && isReplay(entry, twin.interaction)) {
      twin.key = key
      know(twin)
      if (twin.row === undefined) bindings.push({ message_id: interaction.message_id, idempotency_key: key })
      else twin.row.idempotency_key = key
    }
    return { _tag: "Duplicate", interaction: twin.interaction }
  })
  // Everybody inserts in the same order: fewer deadlocks.
  return { answers, bindings, inserts: inserts.toSorted((a, b) => (a.message_id < b.message_id ? -1 : 1)) }
}

/** mysql2 says `affectedRows`, bun:sqlite `changes`. */
const affectedRows = (answer: unknown): number => {
  const { affectedRows, changes }: { affectedRows?: unknown; changes?: unknown } = Object(answer)
  return Number(affectedRows ?? changes ?? 0)
}

// ---------------------------------------------------------------------------------------------------------

const make = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const dialect = sql.onDialectOrElse({
    mysql: () => ({ ...Mysql, system: "mysql", force: (index: string) => sql`FORCE INDEX (${sql(index)})` }),
    orElse: () => ({ ...Sqlite, system: "sqlite", force: (_: string) => sql`` }),
  })
  const log = sql(table)
  const fields = sql.literal(columns.join(", "))

  const toLogError = (operation: string) => (error: SqlError) => {
    const reason = dialect.failureReason(error)
    const cause =
      reason === "not_set_up"
        ? new Error(`the table ${table} is missing or old: run \`user-embeddings setup\``, {
            cause: error.cause,
          })
        : error.cause
    return new InteractionLogError({ reason, operation, cause })
  }

  /** One statement on the table: its span, and another try after a deadlock. */
  const statement =
    (operation: "INSERT" | "SELECT" | "UPDATE" | "DELETE") =>
    <A>(run: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> =>
      run.pipe(
        Effect.retry({ schedule: deadlockRetry, while: dialect.isConflict }),
        Effect.withSpan(`${operation} ${table}`, {
          kind: "client",
          captureStackTrace: false,
          attributes: {
            [attribute.dbSystem]: dialect.system,
            [attribute.dbOperation]: operation,
            [attribute.dbCollection]: table,
          },
        }),
      )

  const insert = (rows: ReadonlyArray<Row>) => {
    if (rows.length === 0) return Effect.void
    const into = sql`INSERT INTO ${log} ${sql.insert(rows)}`
    return statement("INSERT")(rows.length <= rowsPrepared ? into : into.unprepared)
  }

  const bind = ({ message_id, idempotency_key }: Pick<Row, "message_id" | "idempotency_key">) =>
    statement("UPDATE")(
      sql`UPDATE ${log} SET idempotency_key = ${idempotency_key}
        WHERE message_id = ${message_id} AND idempotency_key IS NULL`,
    )

  /** The rows with a message id or a key of these entries. */
  const known = Effect.fnUntraced(function* (entries: ReadonlyArray<NewInteraction>) {
    const conditions = Arr.chunksOf(entries, page).flatMap((some) => {
      const ids = sql.in(
        "message_id",
        some.map(({ interaction }) => interaction.message_id),
      )
      const keys = some.flatMap((entry) => {
        const key = keyOf(entry)
        return key === null ? [] : sql`(user_id = ${entry.interaction.user_id} AND idempotency_key = ${key})`
      })
      return keys.length === 0 ? [ids] : [ids, sql.or(keys)]
    })
    const rows = yield* Effect.forEach(conditions, (condition) =>
      statement("SELECT")(sql<StoredRow>`SELECT ${fields} FROM ${log} WHERE ${condition}`.unprepared),
    )
    return rows.flat().map((row): Known => ({ ...fromRow(row), row: undefined, key: row.idempotency_key }))
  })

  /**
   * Inserts as if nothing were known; when a unique key says otherwise, reads what is and plans again. Nothing
   * is answered as recorded but by the INSERT that ends this.
   */
  const appendPart = (
    entries: ReadonlyArray<NewInteraction>,
    stored: ReadonlyArray<Known> = [],
    rounds = 1,
  ): Effect.Effect<ReadonlyArray<Appended>, SqlError> => {
    const { answers, bindings, inserts } = plan(entries, stored)
    return Effect.forEach(bindings, bind, { discard: true }).pipe(
      Effect.zipRight(insert(inserts)),
      Effect.as(answers),
      Effect.catchIf(
        (error) => dialect.isDuplicateKey(error) && rounds < mostRounds,
        () => Effect.flatMap(known(entries), (stored) => appendPart(entries, stored, rounds + 1)),
      ),
    )
  }

  const append = (entries: ReadonlyArray<NewInteraction>) =>
    Effect.forEach(Arr.chunksOf(entries, rowsPerInsert), (part) => appendPart(part)).pipe(
      Effect.map(Arr.flatten),
      Effect.mapError(toLogError("append")),
    )

  const unpublished = (options: { readonly limit: number; readonly recordedBy: number }) =>
    sql<StoredRow>`
      SELECT ${fields} FROM ${log} ${dialect.force("user_interactions_outbox")}
      WHERE processed_to_queue = FALSE AND created_at <= ${columnOfMillis(options.recordedBy)}
      ORDER BY id LIMIT ${options.limit}`.unprepared.pipe(
      statement("SELECT"),
      Effect.map(Arr.map(fromRow)),
      Effect.mapError(toLogError("unpublished")),
    )

  const markPublished = (ids: ReadonlyArray<string>, at: number) =>
    Effect.forEach(
      Arr.chunksOf(ids.toSorted(), page),
      (some) =>
        statement("UPDATE")(
          sql`UPDATE ${log} SET processed_to_queue = TRUE, published_at = ${columnOfMillis(at)}
            WHERE ${sql.in("message_id", some)}`.unprepared,
        ),
      { discard: true },
    ).pipe(Effect.mapError(toLogError("markPublished")))

  const stream = ({ user, type, since, until }: LogFilter) =>
    Stream.paginateChunkEffect(0, (after) =>
      sql<StoredRow>`
        SELECT ${fields} FROM ${log} ${user === undefined ? sql`` : dialect.force("user_interactions_history")}
        WHERE ${sql.and([
          sql`id > ${after}`,
          ...(user === undefined ? [] : [sql`user_id = ${user}`]),
          ...(type === undefined ? [] : [sql`event_type = ${type}`]),
          ...(since === undefined ? [] : [sql`occurred_at >= ${toColumn(since)}`]),
          ...(until === undefined ? [] : [sql`occurred_at < ${toColumn(until)}`]),
        ])}
        ORDER BY id LIMIT ${page}`.unprepared.pipe(
        statement("SELECT"),
        Effect.map((rows) => {
          const last = rows.length === page ? rows.at(-1) : undefined
          return [
            Chunk.map(Chunk.unsafeFromArray(rows), fromRow),
            Option.map(Option.fromNullable(last), ({ id }) => id),
          ] as const
        }),
        Effect.mapError(toLogError("stream")),
      ),
    )

  const newest = (user: string, limit: number) =>
    sql<StoredRow>`
      SELECT ${fields} FROM ${log} WHERE user_id = ${user}
      ORDER BY occurred_at DESC, message_id DESC LIMIT ${limit}`.unprepared.pipe(
      statement("SELECT"),
      Effect.map(Arr.map(fromRow)),
      Effect.mapError(toLogError("newest")),
    )

  const backlog = Effect.gen(function* () {
    const [counted] = yield* sql<{ total: number; unpublished: number; oldest: string | null }>`
      SELECT (SELECT COUNT(*) FROM ${log}) AS total,
        (SELECT COUNT(*) FROM ${log} WHERE processed_to_queue = FALSE) AS unpublished,
        (SELECT created_at FROM ${log} WHERE processed_to_queue = FALSE ORDER BY id LIMIT 1) AS oldest`.pipe(
      statement("SELECT"),
      Effect.mapError(toLogError("backlog")),
    )
    const { total, unpublished, oldest } = counted ?? { total: 0, unpublished: 0, oldest: null }
    const age = oldest === null ? null : (yield* Clock.currentTimeMillis) - millisOfColumn(oldest)
    return { total, unpublished, oldestUnpublishedSeconds: age === null ? null : Math.max(0, age / 1_000) }
  })

  const erase = (user: string) =>
    sql`DELETE FROM ${log} WHERE user_id = ${user}`.raw.pipe(
      statement("DELETE"),
      Effect.map(affectedRows),
      Effect.mapError(toLogError("erase")),
    )

  const whileElected = <E, R>(effect: Effect.Effect<void, E, R>) =>
    Effect.exit(effect).pipe(
      dialect.exclusively("relay"),
      Effect.provideService(SqlClient.SqlClient, sql),
      Effect.mapError(toLogError("whileElected")),
      Effect.flatMap(Option.match({ onNone: () => Effect.succeed(false), onSome: Effect.as(true) })),
    )

  return { append, unpublished, markPublished, stream, newest, backlog, erase, whileElected }
})

export const layer: Layer.Layer<InteractionLog, never, SqlClient.SqlClient> = Layer.effect(
  InteractionLog,
  make,
)
