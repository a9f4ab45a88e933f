/**
 * Stored counts of the events with each product, so that a start does not read the whole log. Any process may bring them
 * up to date. The counts always equal those of the log's rows up to `countedUpTo`, and of all pruned rows.
 */
import { Context, type Effect } from "effect"
import type { EventType, ProductId } from "../model/Interaction.ts"
import type { InteractionLogError } from "./InteractionLog.ts"

export interface TallyState {
  /** The id of the last counted row of the log. */
  readonly countedUpTo: number
  /** The greatest id up to which no row can still be committed. */
  readonly settledUpTo: number
  /** The λ of the decayed counts. */
  readonly lambda: string
  /** Changes with every erasure and every slice of pruned rows. */
  readonly erasures: number
}

export interface ProductTotal {
  readonly product_id: ProductId
  readonly interactions: number
  /** Each interaction weighted by exp(−λ · days since the day it occurred). */
  readonly decayed: number
}

/** Days are numbered since 1970-01-01 in UTC. */
export class ProductTally extends Context.Tag("user-embeddings/ProductTally")<
  ProductTally,
  {
    readonly state: Effect.Effect<TallyState, InteractionLogError>
    /** `settledUpTo` as of now. */
    readonly settled: Effect.Effect<number, InteractionLogError>
    /** Counts the next rows that are settled. Another λ than the stored one begins from the first row. */
    readonly advance: (lambda: number, today: number) => Effect.Effect<TallyState, InteractionLogError>
    /** The totals of these event types, with the id up to which rows are counted. */
    readonly totals: (
      types: ReadonlyArray<EventType>,
      lambda: number,
      today: number,
    ) => Effect.Effect<
      { readonly state: TallyState; readonly products: ReadonlyArray<ProductTotal> },
      InteractionLogError
    >
  }
>() {}
