/** How the smaller tables beside the log run their statements. */
import type { SqlError } from "@effect/sql/SqlError"
import { Effect } from "effect"
import { InteractionLogError } from "../../services/ports/InteractionLog.ts"
import { deadlockRetry } from "../../services/RetryPolicies.ts"
import { untraced } from "../../services/Telemetry.ts"
import { type SqlDialect, SqlServerName } from "./SqlDialect.ts"

/** Runs statements of the port's `operation`, again after a deadlock, and converts their errors. */
export const statementsOf = (dialect: SqlDialect) =>
  Effect.map(
    SqlServerName,
    (server) =>
      (operation: string) =>
      <A>(statements: Effect.Effect<A, SqlError>): Effect.Effect<A, InteractionLogError> =>
        statements.pipe(
          untraced,
          Effect.retry({ schedule: deadlockRetry, while: dialect.isConflict }),
          Effect.mapError(
            (error) =>
              new InteractionLogError({
                reason: dialect.failureReason(error),
                operation,
                cause: error.cause,
                server,
              }),
          ),
        ),
  )
