/** The fields that the errors of all ports share. */
import { Schema } from "effect"

export const portFailure = {
  /**
   * `unavailable`: the connection failed. `timeout`: no answer in time, so the outcome is open. `not_set_up`: a table,
   * collection, exchange or queue is missing. `invalid_data`: the data itself cannot be stored or read. `conflict`: a
   * concurrent write won. `rejected`: any other error is the answer, such as a missing right or a full disk.
   */
  reason: Schema.Literal("unavailable", "timeout", "not_set_up", "invalid_data", "conflict", "rejected"),
  /** The operation that failed, such as `append` or `bulkWrite user_embeddings`. */
  operation: Schema.String,
  cause: Schema.Defect,
  /** The server that failed: `MongoDB at db.example:27017`. */
  server: Schema.optional(Schema.String),
}

/** A failed call of a driver. Every adapter classifies the errors of its driver as this. */
export type PortFailure = Schema.Struct.Type<typeof portFailure>

/** Makes the error of a port: `Effect.mapError(call, portError(DeadLettersError))`. */
export const portError =
  <E>(PortError: new (failure: PortFailure) => E) =>
  ({ cause, operation, reason, server }: PortFailure): E =>
    new PortError({ cause, operation, reason, server })

export const textOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

/** Names the server, if there is one: an operator has to look there. */
export const describeFailure = (port: string, { cause, operation, reason, server }: PortFailure): string =>
  `${server ?? port}: ${operation}: ${reason}: ${textOf(cause)}`
