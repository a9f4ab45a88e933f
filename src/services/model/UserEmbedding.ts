/** A user's embedding: what the document of a user holds, apart from the bookkeeping of applied interactions. */
import { Schema } from "effect"
import type { EventType } from "./EventTypes.ts"
import type { Interaction, UserId } from "./Interaction.ts"

export const History = Schema.Literal("cumulative", "recency")
export type History = typeof History.Type

/** An interaction on the user's document: enough to find its vector again. */
export type RecentEvent = Pick<
  Interaction,
  "event_type" | "search_phrase" | "product_id" | "occurred_at" | "message_id"
>

/** Fields as stored; instants are Unix milliseconds. */
export interface UserEmbedding {
  readonly user_id: UserId
  /** Unit length, float32. */
  readonly embedding: Float32Array
  /** Greatest `occurred_at` of all folded interactions. */
  readonly last_updated: number
  readonly event_count: number
  readonly last_event_type: EventType
  readonly last_event_id: string
  /** Length of the decayed sum behind the unit vector at `last_updated`; always 1 in recency history. */
  readonly mass: number
  /** Sum of all weights, decayed to `last_updated`. Negative when negative weights prevail. */
  readonly total_weight: number
  /** Name of the vector space, as `openai:text-embedding-3-small:1536`. */
  readonly space: string
  readonly history: History
  readonly created_at: number
  readonly updated_at: number
  /** Newest 10, newest first. */
  readonly recent: ReadonlyArray<RecentEvent>
  readonly metadata: {
    /** Events by type. */
    readonly [counter: `${string}_count`]: number
    readonly decay_lambda: number
    /** When a rebuild last computed the vector from the log. */
    readonly last_recalculation: number
    /** The weights of all folds since then, `mixed` if they or λ changed. Left out by release 0.1.0. */
    readonly weights?: string
  }
}
