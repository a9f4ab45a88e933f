/**
 * The fold: the pure function that adds interactions to a user's embedding. An event with vector v and signed
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
import { chronological, type Interaction, type Retraction, retractedType } from "./Interaction.ts"
import type { History, RecentEvent, UserEmbedding } from "./UserEmbedding.ts"
import * as Vector from "./Vector.ts"

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
export const recentEvents = 10
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
const addAll = (
  start: State,
  events: ReadonlyArray<Event>,
  { lambda, weights }: FoldSettings,
): State | undefined => {
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

/** The weights in the form of `EVENT_WEIGHTS`, to tell whether they changed. */
export const describeWeights = (weights: Weights): string =>
  Object.entries(weights)
    .map(([type, weight]) => `${type}:${weight}`)
    .toSorted()
    .join(",")
const mixedWeights = "mixed"

const weightsAfterFold = (current: UserEmbedding | undefined, { lambda, weights }: FoldSettings): string => {
  const described = describeWeights(weights)
  const isSame =
    current === undefined ||
    (current.metadata.weights === described && current.metadata.decay_lambda === lambda)
  return isSame ? described : mixedWeights
}

/** The same sums as of a later instant; only in cumulative history do they mean the same. */
export const asOf = (embedding: UserEmbedding, at: number): UserEmbedding => {
  const { last_updated, mass, metadata, total_weight } = embedding
  if (at <= last_updated) return embedding
  const keep = decay(metadata.decay_lambda, at, last_updated)
  return { ...embedding, last_updated: at, mass: mass * keep, total_weight: total_weight * keep }
}

/** Whether the embeddings of two users can be added, so that no event has to be folded again. */
export const canCombine = (a: UserEmbedding, b: UserEmbedding): boolean =>
  a.space === b.space && a.history === "cumulative" && b.history === "cumulative"

/** The embedding of one person from those of two users. */
export const combine = (a: UserEmbedding, b: UserEmbedding, now: number): UserEmbedding => {
  const at = Math.max(a.last_updated, b.last_updated)
  const [left, right] = [asOf(a, at), asOf(b, at)]
  const sum = Vector.beginSum(left.embedding, left.mass)
  Vector.addScaled(sum, right.mass, right.embedding)
  const length = Vector.norm(sum)
  const isCancelled = !(length > cancelled * (left.mass + right.mass))
  const { decay_lambda, last_recalculation, weights } = a.metadata
  const isSame = weights === b.metadata.weights && decay_lambda === b.metadata.decay_lambda
  const combined: UserEmbedding = {
    ...left,
    embedding: isCancelled ? left.embedding : Vector.divide(sum, length),
    mass: isCancelled ? 0 : length,
    total_weight: left.total_weight + right.total_weight,
    event_count: a.event_count + b.event_count,
    created_at: Math.min(a.created_at, b.created_at),
    updated_at: now,
    metadata: {
      ...addCounters([a, b]),
      decay_lambda,
      last_recalculation: Math.min(last_recalculation, b.metadata.last_recalculation),
      ...(weights !== undefined && { weights: isSame ? weights : mixedWeights }),
    },
  }
  return withRecent(combined, [...a.recent, ...b.recent])
}

/** The counters of all types, added. */
export const addCounters = (all: ReadonlyArray<UserEmbedding>) => {
  const counters: Record<`${string}_count`, number> = {}
  for (const { metadata } of all)
    for (const [name, value] of Object.entries(metadata))
      if (isCounter(name)) counters[name] = (counters[name] ?? 0) + Number(value)
  return counters
}
const isCounter = (name: string): name is `${string}_count` => name.endsWith("_count")

const stateOf = (current: UserEmbedding): State => ({
  direction: current.embedding,
  mass: current.mass,
  total: current.total_weight,
  at: current.last_updated,
})

export const requireSpace = (
  current: UserEmbedding | undefined,
  { space }: FoldSettings,
): Either.Either<void, SpaceMismatch> =>
  current === undefined || current.space === space
    ? Either.void
    : Either.left(new SpaceMismatch({ user_id: current.user_id, stored: current.space, configured: space }))

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
  const space = requireSpace(current, settings)
  if (Either.isLeft(space)) return Either.left(space.left)
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
      weights: weightsAfterFold(current, settings),
    },
  })
}

/** Whether every event in the sum has the weight of these settings, so that it can be subtracted. */
export const canUnfold = ({ history, metadata }: UserEmbedding, { lambda, weights }: FoldSettings): boolean =>
  history === "cumulative" &&
  metadata.weights === describeWeights(weights) &&
  metadata.decay_lambda === lambda

/** A difference shorter than this part of its summands has lost digits: float32 rounds at 6e-8, and each step adds to it. */
const preciseShare = 0.8

/**
 * The sum without one of its events, as if that event had never been folded; `last_updated` stays. `undefined`: too little
 * is left to be exact. `recent` may need another event in place of this one.
 */
export const unfold = (
  current: UserEmbedding,
  retraction: Retraction,
  vector: Float32Array,
  { lambda, weights }: FoldSettings,
  now: number,
  leastShare = preciseShare,
): UserEmbedding | undefined => {
  const type = retractedType(retraction)
  const at = Date.parse(retraction.occurred_at)
  const take = weightOf(weights, type) * decay(lambda, at, current.last_updated)
  const sum = Vector.beginSum(current.embedding, current.mass)
  Vector.addScaled(sum, -take, vector)
  const length = Vector.norm(sum)
  if (!(length > leastShare * (current.mass + Math.abs(take)))) return undefined
  const counter = counterOf(type)
  const left = {
    ...current,
    embedding: Vector.divide(sum, length),
    mass: length,
    total_weight: current.total_weight - take,
    event_count: current.event_count - 1,
    updated_at: now,
    metadata: { ...current.metadata, [counter]: (current.metadata[counter] ?? 1) - 1 },
  }
  const isLeft = ({ message_id }: RecentEvent) => message_id !== retraction.reference
  return current.recent.every(isLeft) ? left : withRecent(left, current.recent.filter(isLeft))
}

/** With the newest of these events, which are in any order. There may be none, if the older ones are pruned. */
export const withRecent = (embedding: UserEmbedding, events: ReadonlyArray<RecentEvent>): UserEmbedding => {
  const distinct = new Map(events.map((event) => [event.message_id, remember(event)]))
  const recent = [...distinct.values()].sort((a, b) => chronological(b, a)).slice(0, recentEvents)
  const { event_type: last_event_type, message_id: last_event_id } = recent[0] ?? {
    event_type: embedding.last_event_type,
    message_id: embedding.last_event_id,
  }
  return { ...embedding, recent, last_event_type, last_event_id }
}

const remember = (event: RecentEvent): RecentEvent => {
  const { event_type, search_phrase, product_id, occurred_at, message_id } = event
  return { event_type, search_phrase, product_id, occurred_at, message_id }
}
