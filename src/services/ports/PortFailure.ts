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

/** A failed call of a driver. Every adapter classifies the errors of its driver as this. */
export type PortFailure = Schema.Struct.Type<typeof portFailure>

/** Makes the error of a port: `Effect.mapError(call, portError(DeadLettersError))`. */
export const portError =
  <E>(PortError: new (failure: PortFailure) => E) =>
  ({ cause, operation, reason }: PortFailure): E =>
    new PortError({ cause, operation, reason })

export const describeFailure = (port: string, { cause, operation, reason }: PortFailure): string =>
  `${port}: ${operation}: ${reason}: ${cause instanceof Error ? cause.message : String(cause)}`
