/**
 * A user's embedding and the fold: the pure function that takes in interactions. Formulas: spec "Folding";
 * cumulative history is forward decay (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009).
 */
import { Either, Schema } from "effect"
import { chronological, type EventType, type Interaction, type UserId } from "./Interaction.ts"
import * as Vector from "./Vector.ts"

export const History = Schema.Literal("cumulative", "recency")
export type History = typeof History.Type

/** What an interaction is remembered as on the user's document: enough to look its vector up again. */
export type RecentEvent = Pick<
  Interaction,
  "event_type" | "search_phrase" | "product_id" | "occurred_at" | "message_id"
>

/** Fields as stored; instants are Unix milliseconds. */
export interface UserEmbedding {
  readonly user_id: UserId
  /** Unit length, float32. */
  readonly embedding: Float32Array
  /** Greatest `occurred_at` taken in. */
  readonly last_updated: number
  readonly event_count: number
  readonly last_event_type: EventType
  readonly last_event_id: string
  /** Length of the decayed sum behind the unit vector at `last_updated`; always 1 in recency history. */
  readonly mass: number
  /** Decayed weight of all interactions at `last_updated`. */
  readonly total_weight: number
  /** Name of the vector space, as `openai:text-embedding-3-small:1536`. */
  readonly space: string
  readonly history: History
  readonly created_at: number
  readonly updated_at: number
  /** Newest 10, newest first. */
  readonly recent: ReadonlyArray<RecentEvent>
  readonly metadata: {
    readonly search_count: number
    readonly view_count: number
    readonly click_count: number
    readonly purchase_count: number
    readonly decay_lambda: number
    /** When the vector was last computed from nothing. */
    readonly last_recalculation: number
  }
}

export interface FoldSettings {
  /** λ, per day. */
  readonly lambda: number
  readonly weights: Readonly<Record<EventType, number>>
  /** History of documents that are created. */
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
/** Which counter of the metadata an event type raises. */
export const counter = {
  search: "search_count",
  product_view: "view_count",
  product_click: "click_count",
  product_purchase: "purchase_count",
} as const

/** Below this length per unit of weight a sum has cancelled out and names no direction. */
const cancelled = 1e-9

/** exp(−λ · days between the two instants). */
export const decay = (lambda: number, a: number, b: number): number =>
  Math.exp((-lambda * Math.abs(a - b)) / dayMillis)

interface State {
  direction: Float32Array
  mass: number
  total: number
  at: number
}

/** One step of the formula: keep what is known, take the event in, normalise. */
const step = (
  state: State,
  vector: Float32Array,
  weight: number,
  at: number,
  s: FoldSettings,
  history: History,
): State => {
  const faded = decay(s.lambda, at, state.at)
  const keep = at > state.at ? faded : 1
  const take = weight * (at < state.at ? faded : 1)
  const sum = Vector.beginSum(state.direction, state.mass * keep)
  Vector.addScaled(sum, take, vector)
  const length = Vector.norm(sum)
  const total = state.total * keep + take
  const newest = Math.max(at, state.at)
  if (length < cancelled * weight)
    return { direction: state.direction, mass: history === "cumulative" ? 0 : 1, total, at: newest }
  const mass = history === "cumulative" ? length : 1
  return { direction: Vector.divide(sum, length), mass, total, at: newest }
}

const first = ({ interaction, vector }: Event, s: FoldSettings, history: History): State => {
  const weight = s.weights[interaction.event_type]
  return {
    direction: vector,
    mass: history === "cumulative" ? weight : 1,
    total: weight,
    at: Date.parse(interaction.occurred_at),
  }
}

const oneByOne = (
  start: State | undefined,
  events: ReadonlyArray<Event>,
  s: FoldSettings,
  history: History,
): State => {
  let state = start ?? first(events[0]!, s, history)
  for (const { interaction, vector } of start === undefined ? events.slice(1) : events)
    state = step(
      state,
      vector,
      s.weights[interaction.event_type],
      Date.parse(interaction.occurred_at),
      s,
      history,
    )
  return state
}

/**
 * In cumulative history mass · direction is the sum itself, so a batch is summed without normalising in
 * between. `undefined` when the sum cancels out: then the direction before matters, step by step.
 */
const allAtOnce = (
  start: State | undefined,
  events: ReadonlyArray<Event>,
  s: FoldSettings,
): State | undefined => {
  const newest = Date.parse(events[events.length - 1]!.interaction.occurred_at)
  const at = Math.max(start?.at ?? newest, newest)
  const keep = start === undefined ? 0 : decay(s.lambda, at, start.at)
  const sum = Vector.beginSum(start?.direction ?? events[0]!.vector, (start?.mass ?? 0) * keep)
  let total = (start?.total ?? 0) * keep
  let heaviest = 0
  for (const { interaction, vector } of events) {
    const weight = s.weights[interaction.event_type]
    const take = weight * decay(s.lambda, at, Date.parse(interaction.occurred_at))
    Vector.addScaled(sum, take, vector)
    total += take
    heaviest = Math.max(heaviest, weight)
  }
  const length = Vector.norm(sum)
  return length < cancelled * heaviest
    ? undefined
    : { direction: Vector.divide(sum, length), mass: length, total, at }
}

/**
 * Folds interactions into an embedding, or makes the first one. Oldest first, ties by message id; an
 * interaction older than `last_updated` is weighed as if it had come in time. An existing embedding keeps its
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
  const start: State | undefined = current && {
    direction: current.embedding,
    mass: current.mass,
    total: current.total_weight,
    at: current.last_updated,
  }
  const state =
    (history === "cumulative" && ordered.length + (start ? 1 : 0) > 1
      ? allAtOnce(start, ordered, settings)
      : undefined) ?? oneByOne(start, ordered, settings, history)

  const added = ordered.slice(-recentEvents).map(({ interaction }) => remember(interaction))
  const recent = [...added, ...(current?.recent ?? [])]
    .sort((a, b) => chronological(b, a))
    .slice(0, recentEvents)
  const counts = { search_count: 0, view_count: 0, click_count: 0, purchase_count: 0, ...current?.metadata }
  for (const { interaction } of ordered) counts[counter[interaction.event_type]] += 1
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
      ...counts,
      decay_lambda: settings.lambda,
      last_recalculation: current?.metadata.last_recalculation ?? now,
    },
  })
}

const remember = (interaction: Interaction): RecentEvent => {
  const { event_type, search_phrase, product_id, occurred_at, message_id } = interaction
  return { event_type, search_phrase, product_id, occurred_at, message_id }
}
