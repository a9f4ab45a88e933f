/**
 * A user's embedding, and the fold: the pure function that adds interactions to it. An event with vector v and signed
 * weight w that is d days older than the newest event adds to two sums:
 *
 *     S = Σ w · exp(-λ d) · v          W = Σ w · exp(-λ d)
 *     embedding = S / ‖S‖              mass = ‖S‖ in cumulative history, 1 in recency history
 *     total_weight = W
 *
 * Cumulative history is forward decay (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009): the sums do
 * not depend on the order of arrival. docs/concepts.md works an example by hand.
 */
import { Either, Schema } from "effect"
import { counterOf, type EventType, zeroCounters } from "./EventTypes.ts"
import { chronological, type Interaction, type UserId } from "./Interaction.ts"
import * as Vector from "./Vector.ts"

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
  }
}

export type Weights = Readonly<Record<string, number>>

/** 0 for a type without a weight. A type may be called `constructor`, which every object seems to have. */
export const weightOf = (weights: Weights, type: EventType): number =>
  Object.hasOwn(weights, type) ? weights[type]! : 0

export interface FoldSettings {
  /** λ, per day. */
  readonly lambda: number
  /** By event type. A type without a weight adds nothing to the vector. */
  readonly weights: Weights
  /** History of new documents. */
  readonly history: History
  readonly space: string
}

/** An interaction with its unit-length event vector. */
export interface Event {
  readonly interaction: Interaction
  readonly vector: Float32Array
}

/** The user's embedding lives in another vector space; only a rebuild can move it. */
export class SpaceMismatch extends Schema.TaggedError<SpaceMismatch>()("SpaceMismatch", {
  user_id: Schema.String,
  stored: Schema.String,
  configured: Schema.String,
}) {
  override get message() {
    return `the embedding of user ${this.user_id} is in space ${this.stored}, not ${this.configured}: rebuild it (user-embeddings rebuild --user ${this.user_id})`
  }
}

const dayMillis = 86_400_000
const recentEvents = 10
/** A sum that is shorter than this part of its summands has cancelled out: float32 rounds at 6e-8. */
const cancelled = 1e-6

/** exp(−λ · days between the two instants). */
export const decay = (lambda: number, a: number, b: number): number =>
  Math.exp((-lambda * Math.abs(a - b)) / dayMillis)

interface State {
  direction: Float32Array
  mass: number
  total: number
  at: number
}

/** Adds one event. A sum that cancels out leaves the direction as it was; in cumulative history its mass is 0. */
const addEvent = (
  state: State,
  { interaction, vector }: Event,
  { lambda, weights }: FoldSettings,
  history: History,
): State => {
  const at = Date.parse(interaction.occurred_at)
  const faded = decay(lambda, at, state.at)
  const kept = state.mass * (at > state.at ? faded : 1)
  const take = weightOf(weights, interaction.event_type) * (at < state.at ? faded : 1)
  const rest = { total: state.total * (at > state.at ? faded : 1) + take, at: Math.max(at, state.at) }
  // The event's own vector, exactly: nothing else is in the sum.
  if (kept === 0)
    return {
      direction: take < 0 ? Vector.negate(vector) : vector,
      mass: history === "recency" ? 1 : Math.abs(take),
      ...rest,
    }
  const sum = Vector.beginSum(state.direction, kept)
  Vector.addScaled(sum, take, vector)
  const length = Vector.norm(sum)
  const isCancelled = !(length > cancelled * (kept + Math.abs(take)))
  return {
    direction: isCancelled ? state.direction : Vector.divide(sum, length),
    mass: history === "recency" ? 1 : isCancelled ? 0 : length,
    ...rest,
  }
}

/** The state of a user without events, as of the first event. The first event with a weight replaces the direction. */
const beforeFirst = ({ interaction, vector }: Event): State => ({
  direction: vector,
  mass: 0,
  total: 0,
  at: Date.parse(interaction.occurred_at),
})

/**
 * Adds all events to the sum before one normalisation, which is exact in cumulative history. `undefined`: the sum
 * cancels out, so the direction depends on the single steps.
 */
const addAll = (start: State, events: ReadonlyArray<Event>, { lambda, weights }: FoldSettings) => {
  const at = Math.max(start.at, Date.parse(events[events.length - 1]!.interaction.occurred_at))
  const keep = decay(lambda, at, start.at)
  const sum = Vector.beginSum(start.direction, start.mass * keep)
  let total = start.total * keep
  let summands = start.mass * keep
  for (const { interaction, vector } of events) {
    const take =
      weightOf(weights, interaction.event_type) * decay(lambda, at, Date.parse(interaction.occurred_at))
    Vector.addScaled(sum, take, vector)
    total += take
    summands += Math.abs(take)
  }
  const length = Vector.norm(sum)
  return length > cancelled * summands
    ? { direction: Vector.divide(sum, length), mass: length, total, at }
    : undefined
}

const stateOf = (current: UserEmbedding): State => ({
  direction: current.embedding,
  mass: current.mass,
  total: current.total_weight,
  at: current.last_updated,
})

/**
 * Folds interactions into an embedding, or makes the first one. They are folded oldest first, ties by message id. An
 * interaction older than `last_updated` gets the weight that it would have had in time. An existing embedding keeps its
 * history and space. `now` in Unix ms. At least one event; vectors are unit length and of the right dimension.
 */
export const fold = (
  current: UserEmbedding | undefined,
  events: ReadonlyArray<Event>,
  settings: FoldSettings,
  now: number,
): Either.Either<UserEmbedding, SpaceMismatch> => {
  if (current !== undefined && current.space !== settings.space)
    return Either.left(
      new SpaceMismatch({ user_id: current.user_id, stored: current.space, configured: settings.space }),
    )
  const ordered = events.toSorted((a, b) => chronological(a.interaction, b.interaction))
  const history = current?.history ?? settings.history
  const start = current === undefined ? beforeFirst(ordered[0]!) : stateOf(current)
  const state =
    (history === "cumulative" && (current !== undefined || ordered.length > 1)
      ? addAll(start, ordered, settings)
      : undefined) ?? ordered.reduce((state, event) => addEvent(state, event, settings, history), start)

  const added = ordered.slice(-recentEvents).map(({ interaction }) => remember(interaction))
  const recent = [...added, ...(current?.recent ?? [])]
    .sort((a, b) => chronological(b, a))
    .slice(0, recentEvents)
  const counters: Record<`${string}_count`, number> = { ...zeroCounters, ...current?.metadata }
  for (const { interaction } of ordered) {
    const counter = counterOf(interaction.event_type)
    counters[counter] = (counters[counter] ?? 0) + 1
  }
  return Either.right({
    user_id: ordered[0]!.interaction.user_id,
    embedding: state.direction,
    last_updated: state.at,
    event_count: (current?.event_count ?? 0) + ordered.length,
    last_event_type: recent[0]!.event_type,
    last_event_id: recent[0]!.message_id,
    mass: state.mass,
    total_weight: state.total,
    space: settings.space,
    history,
    created_at: current?.created_at ?? now,
    updated_at: now,
    recent,
    metadata: {
      ...counters,
      decay_lambda: settings.lambda,
      last_recalculation: current?.metadata.last_recalculation ?? now,
    },
  })
}

const remember = (interaction: Interaction): RecentEvent => {
  const { event_type, search_phrase, product_id, occurred_at, message_id } = interaction
  return { event_type, search_phrase, product_id, occurred_at, message_id }
}
