/**
 * Reading a taste: long and short memory, mixed when a recommendation is requested. Pure. docs/concepts.md works an
 * example by hand.
 *
 *     centre(v) = unit(v − μ)                                  μ = mean of the catalogue's unit-length vectors
 *     long      = unit(mass · embedding − total · μ)           recency history: unit(embedding − μ)
 *     short     = unit(Σ weight_r · 0.5^r · centre(v_r))       r = 0 the newest of the newest 10 events
 *     b         = 0.3 + 0.4 · 2^(−hours since the newest event / 24)
 *     taste     = unit((1 − b) · long + b · short)
 */
import { Number } from "effect"
import { decay, type Weights, weightOf } from "./Fold.ts"
import type { RecentEvent, UserEmbedding } from "./UserEmbedding.ts"
import * as Vector from "./Vector.ts"

/** One of the newest ten events, with its unit-length vector if it was found. */
export interface RememberedEvent {
  readonly event: RecentEvent
  readonly vector: Float32Array | undefined
}

/** An event's part of the taste: `factor · (v − μ)`, of long memory and of short memory. */
interface Part {
  readonly event: RecentEvent
  readonly vector: Float32Array
  readonly factor: number
}

export interface Taste {
  /** Unit length. */
  readonly direction: Float32Array
  readonly b: number
  readonly events: ReadonlyArray<Part>
  readonly mean: Float32Array
}

const hourMillis = 3_600_000

/** A difference of unit vectors shorter than this is a rounding error and has no direction. */
export const noDirection = 1e-6

/** Weight of short memory: 0.7 right after an event, towards 0.3 later. */
export const shortWeight = (hours: number): number => 0.3 + 0.4 * 2 ** (-Math.max(0, hours) / 24)

/** `factor · v − share · μ`. */
const difference = (factor: number, v: Float32Array, share: number, mean: Float32Array): Float64Array => {
  const sum = new Float64Array(v.length)
  Vector.addScaled(sum, factor, v)
  Vector.addScaled(sum, -share, mean)
  return sum
}

/** The unit-length vector from the mean to `v`; `undefined` when `v` is the mean. */
export const centre = (v: Float32Array, mean: Float32Array): Float32Array | undefined => {
  const sum = difference(1, v, 1, mean)
  const length = Vector.norm(sum)
  return length < noDirection ? undefined : Vector.divide(sum, length)
}

/** Long memory: how the stored vector differs from the catalogue's mean; `undefined` without a direction. */
export const longMemory = ({ embedding, history, mass, total_weight }: UserEmbedding, mean: Float32Array) => {
  const [factor, share] = history === "cumulative" ? [mass, total_weight] : [1, 1]
  const sum = difference(factor, embedding, share, mean)
  return Vector.norm(sum) > noDirection * (factor + Math.abs(share)) ? sum : undefined
}

/** The user's taste at `now` (Unix ms); `undefined` when neither memory has a direction. `recent`: newest first. */
export const read = (
  user: UserEmbedding,
  recent: ReadonlyArray<RememberedEvent>,
  mean: Float32Array,
  weights: Weights,
  now: number,
): Taste | undefined => {
  // A sum of weight / ‖v − μ‖ · (v − μ) needs no centred vectors.
  const events = recent.flatMap(({ event, vector }, rank) => {
    if (vector === undefined) return []
    const weight = weightOf(weights, event.event_type)
    const distance = Vector.distance(vector, mean)
    const inShort = distance < noDirection ? 0 : weight * 0.5 ** rank
    return [{ event, vector, weight, inShort, perDistance: inShort / (distance || 1) }]
  })
  const shortSum = new Float64Array(mean.length)
  for (const { perDistance, vector } of events) Vector.addScaled(shortSum, perDistance, vector)
  Vector.addScaled(shortSum, -Number.sumAll(events.map(({ perDistance }) => perDistance)), mean)
  const shortLength = Vector.norm(shortSum)
  const summands = Number.sumAll(events.map(({ inShort }) => Math.abs(inShort)))
  const long = longMemory(user, mean)
  const longLength = long === undefined ? 0 : Vector.norm(long)
  const b = shortWeight((now - Date.parse(recent[0]?.event.occurred_at ?? "")) / hourMillis || 0)
  // A memory without a direction is left out.
  const longFactor = longLength === 0 ? 0 : (1 - b) / longLength
  const shortFactor = shortLength > noDirection * summands ? b / shortLength : 0

  const mixed = new Float64Array(mean.length)
  for (let i = 0; i < mixed.length; i++) mixed[i] = longFactor * (long?.[i] ?? 0) + shortFactor * shortSum[i]!
  const length = Vector.norm(mixed)
  if (length < noDirection) return undefined

  const parts = events.map(({ event, perDistance, vector, weight }): Part => {
    // In recency history the part of one event in the stored vector is unknown, so it counts in the rest.
    const kept =
      user.history === "cumulative"
        ? weight * decay(user.metadata.decay_lambda, user.last_updated, Date.parse(event.occurred_at))
        : 0
    return { event, vector, factor: (longFactor * kept + shortFactor * perDistance) / length }
  })
  return { direction: Vector.divide(mixed, length), b, events: parts, mean }
}

/** An event and its share of the reasons for a product. */
export interface Reason {
  readonly event: RecentEvent
  readonly share: number
}

/**
 * Why a product is recommended. The taste is a sum over events, so the similarity is one too, and so are other terms:
 *
 *     part_e     = factor_e · (v_e − μ) · centre(product)
 *                  + what the event adds to other terms of the score
 *     part_rest  = similarity and other terms − Σ part_e     all older events together
 *     share      = part / Σ |part|                           of the events and the rest
 *
 * A negative share speaks against the product. The absolute values of the shares and of `rest` add up to 1. The share
 * with the largest absolute value is the first.
 */
export const explain = (
  { events, mean }: Taste,
  product: Float32Array,
  similarity: number,
  other: { readonly total: number; readonly of: (event: RecentEvent) => number } = { total: 0, of: () => 0 },
) => {
  const onMean = Vector.dot(mean, product)
  const parts = events.map(({ event, factor, vector }) => ({
    event,
    part: factor * (Vector.dot(vector, product) - onMean) + other.of(event),
  }))
  const rest = similarity + other.total - parts.reduce((sum, { part }) => sum + part, 0)
  // A rest this small is a rounding error.
  const others = Math.abs(rest) < noDirection ? 0 : rest
  const counted = parts.filter(({ part }) => part !== 0)
  const total = counted.reduce((sum, { part }) => sum + Math.abs(part), Math.abs(others))
  return {
    because: counted
      .map(({ event, part }) => ({ event, share: part / total }))
      .sort((a, b) => Math.abs(b.share) - Math.abs(a.share)),
    rest: others === 0 ? 0 : others / total,
  }
}

/** Popularity's part of a score: `weight · log(1 + n) / log(1 + most)`; `most` = n of the most popular product. */
export const popularityPart = (weight: number, n: number, most: number): number =>
  most <= 0 ? 0 : weight * (Math.log1p(n) / Math.log1p(most))
