/** The tables that only the embedded stack has. */
import type { Migrations } from "../SqlMigrations.ts"

export const embedded: Migrations = { table: "migrations_embedded", steps: {} }
