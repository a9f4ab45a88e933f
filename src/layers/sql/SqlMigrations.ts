/**
 * Numbered migrations of a SQL database. A migration is recorded after it has run, unlike with `Migrator` of
 * `@effect/sql`: MySQL commits at every DDL statement, so what is recorded before would count as done after a
 * crash in between. Each must therefore bear being run again, and callers keep other processes out meanwhile.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Effect } from "effect"

export interface Migrations {
  /** The table that says which of them have run. */
  readonly table: string
  /** By name, in the order of their numbers: `0001_what_it_creates`. */
  readonly steps: Record<string, Effect.Effect<unknown, SqlError, SqlClient.SqlClient>>
}

/** The names of those that have not run yet, in order. */
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

/** Runs what is pending, answers its names. One process at a time: see {@link Migrations}. */
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
