/**
 * Numbered migrations of a SQL database. A migration is marked as applied after it has run. `Migrator` of
 * `@effect/sql` marks it before, but MySQL commits at every DDL statement, so a crash in between would leave a marked
 * migration unapplied. Hence every migration must be safe to run twice, and callers must let only one process migrate.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Effect } from "effect"

export interface Migrations {
  /** The table that lists the applied migrations. */
  readonly table: string
  /** By name, which begins with the number: `0001_what_it_creates`. */
  readonly steps: Record<string, Effect.Effect<unknown, SqlError, SqlClient.SqlClient>>
}

/** The names of the migrations that have not run yet, in order. */
export const pending = Effect.fnUntraced(function* ({ table, steps }: Migrations) {
  const sql = yield* SqlClient.SqlClient
  const tables = sql.onDialectOrElse({
    sqlite: () => sql`SELECT name FROM sqlite_master WHERE type = 'table' AND name = ${table}`,
    orElse: () =>
      sql`SELECT table_name AS name FROM information_schema.tables
        WHERE table_schema = DATABASE() AND table_name = ${table}`,
  })
  const applied =
    (yield* tables).length === 0 ? [] : yield* sql<{ name: string }>`SELECT name FROM ${sql(table)}`
  const names = new Set(applied.map(({ name }) => name))
  return Object.keys(steps)
    .filter((name) => !names.has(name))
    .toSorted()
})

/** Runs the pending migrations and returns their names. Only one process may do so at a time. */
export const migrate = Effect.fnUntraced(function* (migrations: Migrations) {
  const sql = yield* SqlClient.SqlClient
  const table = sql(migrations.table)
  yield* sql`CREATE TABLE IF NOT EXISTS ${table} (
    name VARCHAR(64) NOT NULL PRIMARY KEY, applied_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)`
  const names = yield* pending(migrations)
  for (const name of names) {
    yield* migrations.steps[name] ?? Effect.void
    yield* sql`INSERT INTO ${table} (name) VALUES (${name})`
  }
  return names
})
