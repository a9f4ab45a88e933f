/**
 * A sink in PostgreSQL with pgvector. Beside the table of embeddings there is one with the versions at which users were
 * removed: without it, a late change would bring an erased user back.
 */
import { Duration, Effect, Layer, Option, Redacted, Stream } from "effect"
import pg from "pg"
import type { UserId } from "../../services/model/Interaction.ts"
import {
  EmbeddingSink,
  EmbeddingSinkError,
  type SinkChanges,
  type SinkConnection,
} from "../../services/ports/EmbeddingSink.ts"
import type { PortFailure } from "../../services/ports/PortFailure.ts"

export interface SinkTarget {
  readonly url: Redacted.Redacted
  /** `table` or `schema.table`. */
  readonly table: string
  readonly dimensions: number
}

/** Limits of pgvector: of the column, and of its HNSW index over `vector` and over `halfvec`. */
const mostDimensions = 16_000
const mostIndexed = 2_000
const mostIndexedHalf = 4_000

const connectMillis = 5_000
const queryMillis = 60_000
const closeDeadline = Duration.seconds(2)
const rowsPerPage = 5_000
/** Later changes than these cannot come: the queue of the feed expires after 7 days. */
const removalsKept = "8 days"

const codeOf = (cause: unknown): string =>
  typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : ""

const reasonOf = (cause: unknown): PortFailure["reason"] => {
  const code = codeOf(cause)
  if (cause instanceof Error && /timeout/i.test(cause.message) && code === "") return "timeout"
  // Without a code of five characters the connection failed. The others: connection, resources, shutdown, read-only.
  if (!/^[0-9A-Z]{5}$/.test(code) || /^(08|53|57P|25006)/.test(code)) return "unavailable"
  if (code === "3D000" || code === "42P01" || code === "42704") return "not_set_up"
  return code.startsWith("22") ? "invalid_data" : "rejected"
}

const failed = (server: string, operation: string) => (cause: unknown) =>
  new EmbeddingSinkError({ reason: reasonOf(cause), operation, cause, server })

interface Session {
  readonly target: SinkTarget
  readonly query: <Row extends pg.QueryResultRow>(
    operation: string,
    text: string,
    values?: ReadonlyArray<unknown>,
  ) => Effect.Effect<ReadonlyArray<Row>, EmbeddingSinkError>
}

const quoted = (name: string) => name.split(".").map(pg.escapeIdentifier).join(".")
/** The name without its schema, with an ending. */
const named = (table: string, ending: string) => `${table.split(".").at(-1)}${ending}`
const removalsOf = (table: string) => quoted(`${table}_removed`)

const toText = (vector: Float32Array) => `[${vector.join(",")}]`

/** User ids are compared byte by byte, as the stores of embeddings do. */
const prepare = ({ query, target: { dimensions, table } }: Session) =>
  Effect.gen(function* () {
    if (dimensions > mostDimensions)
      return yield* new EmbeddingSinkError({
        reason: "rejected",
        operation: "create table",
        cause: new Error(
          `pgvector has at most ${mostDimensions} dimensions, EMBEDDING_DIMENSIONS is ${dimensions}`,
        ),
      })
    const extensions = yield* query("look", "SELECT 1 FROM pg_extension WHERE extname = 'vector'")
    if (extensions.length === 0)
      yield* query("create extension", "CREATE EXTENSION IF NOT EXISTS vector").pipe(
        Effect.mapError(
          ({ cause, operation, reason, server }) =>
            new EmbeddingSinkError({
              reason,
              operation,
              server,
              cause: new Error(
                `${cause instanceof Error ? cause.message : cause} (install pgvector, and run CREATE EXTENSION vector as a superuser)`,
              ),
            }),
        ),
      )
    yield* query(
      "create table",
      `CREATE TABLE IF NOT EXISTS ${quoted(table)} (
         user_id text COLLATE "C" PRIMARY KEY,
         version bigint NOT NULL,
         space text NOT NULL,
         updated_at timestamptz NOT NULL,
         event_count bigint NOT NULL,
         embedding vector(${dimensions}) NOT NULL
       )`,
    )
    yield* query(
      "create table",
      `CREATE TABLE IF NOT EXISTS ${removalsOf(table)} (
         user_id text COLLATE "C" PRIMARY KEY,
         version bigint NOT NULL,
         removed_at timestamptz NOT NULL
       )`,
    )
    const [column] = yield* query<{ dimensions: number }>(
      "look",
      "SELECT atttypmod AS dimensions FROM pg_attribute WHERE attrelid = $1::regclass AND attname = 'embedding'",
      [quoted(table)],
    )
    if (column?.dimensions !== dimensions)
      return yield* new EmbeddingSinkError({
        reason: "rejected",
        operation: "create table",
        cause: new Error(
          `the table ${table} has vectors of ${column?.dimensions ?? 0} dimensions, EMBEDDING_DIMENSIONS is ${dimensions}: choose another --table, or drop this one`,
        ),
      })
    yield* query(
      "delete",
      `DELETE FROM ${removalsOf(table)} WHERE removed_at < now() - interval '${removalsKept}'`,
    )
  })

const index = ({ query, target: { dimensions, table } }: Session) =>
  Effect.gen(function* () {
    if (dimensions > mostIndexedHalf)
      return `there is no index: pgvector indexes at most ${mostIndexedHalf} dimensions, and these are ${dimensions}`
    const column =
      dimensions > mostIndexed
        ? `(embedding::halfvec(${dimensions})) halfvec_cosine_ops`
        : "embedding vector_cosine_ops"
    yield* query(
      "create index",
      `CREATE INDEX IF NOT EXISTS ${pg.escapeIdentifier(named(table, "_embedding"))}
         ON ${quoted(table)} USING hnsw (${column})`,
    )
    return undefined
  })

/** One statement, so that it is one transaction. */
const upsert = ({ query, target: { table } }: Session, { removals, rows }: SinkChanges) => {
  const target = quoted(table)
  const removed = removalsOf(table)
  return query(
    "upsert",
    `WITH gone AS (SELECT * FROM unnest($1::text[], $2::bigint[]) AS gone (user_id, version)),
       noted AS (
         INSERT INTO ${removed} AS old (user_id, version, removed_at)
           SELECT user_id, version, now() FROM gone
         ON CONFLICT (user_id) DO UPDATE SET version = excluded.version, removed_at = excluded.removed_at
           WHERE old.version < excluded.version
       ),
       deleted AS (
         DELETE FROM ${target} AS old USING gone
           WHERE old.user_id = gone.user_id AND old.version < gone.version
       )
     INSERT INTO ${target} AS old (user_id, version, space, updated_at, event_count, embedding)
       SELECT new.user_id, new.version, new.space, new.updated_at, new.event_count, new.embedding::vector
       FROM unnest($3::text[], $4::bigint[], $5::text[], $6::timestamptz[], $7::bigint[], $8::text[])
         AS new (user_id, version, space, updated_at, event_count, embedding)
       WHERE NOT EXISTS (
         SELECT 1 FROM ${removed} AS later WHERE later.user_id = new.user_id AND later.version >= new.version
       )
     ON CONFLICT (user_id) DO UPDATE SET version = excluded.version, space = excluded.space,
       updated_at = excluded.updated_at, event_count = excluded.event_count, embedding = excluded.embedding
       WHERE old.version < excluded.version`,
    [
      removals.map(({ user_id }) => user_id),
      removals.map(({ version }) => version),
      rows.map(({ user_id }) => user_id),
      rows.map(({ version }) => version),
      rows.map(({ space }) => space),
      rows.map(({ updated_at }) => updated_at),
      rows.map(({ event_count }) => event_count),
      rows.map(({ embedding }) => toText(embedding)),
    ],
  )
}

/**
 * After an outage most changes of the feed are older than what the fill has written. Versions never fall, so they are left
 * out before their vectors are sent, which is most of the work.
 */
const apply = (session: Session, { removals, rows }: SinkChanges) =>
  Effect.gen(function* () {
    const stale = yield* session.query<{ user_id: UserId }>(
      "select",
      `SELECT user_id FROM unnest($1::text[], $2::bigint[]) AS new (user_id, version)
         JOIN ${quoted(session.target.table)} AS old USING (user_id) WHERE old.version >= new.version`,
      [rows.map(({ user_id }) => user_id), rows.map(({ version }) => version)],
    )
    const old = new Set(stale.map(({ user_id }) => user_id))
    const newer = rows.filter(({ user_id }) => !old.has(user_id))
    if (newer.length + removals.length > 0) yield* upsert(session, { removals, rows: newer })
  })

const versions = ({ query, target: { table } }: Session) =>
  Stream.paginateEffect("", (after) =>
    Effect.map(
      query<{ user_id: UserId; version: string }>(
        "select",
        `SELECT user_id, version FROM ${quoted(table)} WHERE user_id > $1 ORDER BY user_id LIMIT ${rowsPerPage}`,
        [after],
      ),
      (found) => [
        found.map(({ user_id, version }) => ({ user_id, version: Number(version) })),
        found.length < rowsPerPage ? Option.none() : Option.fromNullable(found.at(-1)?.user_id),
      ],
    ),
  ).pipe(Stream.mapConcat((page) => page))

const load = ({ query, target: { table } }: Session, users: ReadonlyArray<UserId>) =>
  Effect.map(
    query<{ user_id: UserId; version: string; embedding: string }>(
      "select",
      `SELECT user_id, version, embedding::text AS embedding FROM ${quoted(table)} WHERE user_id = ANY ($1)`,
      [users],
    ),
    (found) =>
      new Map(
        found.map(({ embedding, user_id, version }) => [
          user_id,
          { version: Number(version), embedding: Float32Array.from(JSON.parse(embedding) as Array<number>) },
        ]),
      ),
  )

/** Host, port and database. */
const serverOf = (url: URL) =>
  `PostgreSQL at ${url.hostname || "localhost"}:${url.port || 5432}${url.pathname}`

const connect = (target: SinkTarget) =>
  Effect.gen(function* () {
    const address = Redacted.value(target.url)
    const server = serverOf(new URL(address))
    const client = new pg.Client({
      connectionString: address,
      application_name: "user-embeddings sink",
      connectionTimeoutMillis: connectMillis,
      keepAlive: true,
    })
    // Without a listener, a lost connection would end the process. The next query fails.
    client.on("error", () => {})
    yield* Effect.acquireRelease(
      Effect.tryPromise({ try: () => client.connect(), catch: failed(server, "connect") }),
      () =>
        Effect.promise(() => client.end().catch(() => {})).pipe(
          Effect.interruptible,
          Effect.timeoutOption(closeDeadline),
        ),
    )
    const query: Session["query"] = (operation, text, values = []) =>
      Effect.tryPromise({
        // An index of a large table takes hours.
        try: () =>
          client.query({
            text,
            values: [...values],
            ...(operation !== "create index" && { query_timeout: queryMillis }),
          }),
        catch: failed(server, operation),
      }).pipe(Effect.map(({ rows }) => rows))
    const session: Session = { target, query }
    return {
      prepare: prepare(session),
      index: index(session),
      apply: (changes) => apply(session, changes),
      forget: (users) =>
        Effect.asVoid(
          query("delete", `DELETE FROM ${quoted(target.table)} WHERE user_id = ANY ($1)`, [users]),
        ),
      versions: versions(session),
      load: (users) => load(session, users),
    } satisfies SinkConnection
  })

export const layer = (target: SinkTarget) => {
  const { host, pathname } = new URL(Redacted.value(target.url))
  return Layer.succeed(EmbeddingSink, {
    name: `postgres.${host}${pathname}.${target.table}`,
    connect: connect(target),
  })
}
