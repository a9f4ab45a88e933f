/** The fields that the errors of all ports to the outside share. */
import { Schema } from "effect"

export const portFailure = {
  /**
   * `unavailable`: can't be reached or lost in between. `timeout`: no answer in time, the outcome is open.
   * `not_set_up`: a table, collection, exchange or queue is missing. `rejected`: it answered with an error.
   */
  reason: Schema.Literal("unavailable", "timeout", "not_set_up", "rejected"),
  /** What was tried, as `append` or `bulkWrite user_embeddings`. */
  operation: Schema.String,
  cause: Schema.Defect,
}

export const describeFailure = (
  port: string,
  failure: { readonly reason: string; readonly operation: string; readonly cause: unknown },
): string => {
  const cause = failure.cause instanceof Error ? failure.cause.message : String(failure.cause)
  return `${port}: ${failure.operation}: ${failure.reason}: ${cause}`
}
