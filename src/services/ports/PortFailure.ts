/** The fields that the errors of all ports share. */
import { Schema } from "effect"

export const portFailure = {
  /**
   * `unavailable`: the connection failed. `timeout`: no answer in time, so the outcome is open. `not_set_up`: a table,
   * collection, exchange or queue is missing. `rejected`: the answer is an error.
   */
  reason: Schema.Literal("unavailable", "timeout", "not_set_up", "rejected"),
  /** The operation that failed, such as `append` or `bulkWrite user_embeddings`. */
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
