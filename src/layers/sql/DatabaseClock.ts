/** The clock of the database: processes on several machines agree on no other. */
import type { SqlClient } from "@effect/sql/SqlClient"

/** `now` is a value of a time column. `ageOf` is the age of such a column in ms. */
export const databaseClock = (sql: SqlClient) =>
  sql.onDialectOrElse({
    mysql: () => ({
      now: sql.literal("UTC_TIMESTAMP(3)"),
      ageOf: (column: string) =>
        sql.literal(`TIMESTAMPDIFF(MICROSECOND, ${column}, UTC_TIMESTAMP(3)) DIV 1000`),
    }),
    orElse: () => ({
      now: sql.literal("strftime('%Y-%m-%d %H:%M:%f', 'now')"),
      ageOf: (column: string) =>
        sql.literal(`CAST(ROUND((julianday('now') - julianday(${column})) * 86400000) AS INTEGER)`),
    }),
  })
