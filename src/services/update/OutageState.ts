/**
 * Whether a worker's dependencies work, as a pure state machine:
 *
 *     Working ── a message fails because a dependency is out ──> ProbingAll | ProbingSearches
 *     ProbingAll | ProbingSearches ── a probe succeeds ──> Working
 *     any state ── the worker stops ──> Stopping
 */
import { Duration } from "effect"
import * as RetryPolicies from "../RetryPolicies.ts"

interface Outage {
  readonly reason: string
  readonly failedProbes: number
  /** Unix ms. */
  readonly nextProbe: number
}

export type OutageState =
  | { readonly _tag: "Working" }
  /** A store is out: all messages wait, and one at a time probes the store. */
  | ({ readonly _tag: "ProbingAll" } & Outage)
  /** Only the embedder is out: searches wait, and one at a time probes it. Product events are handled. */
  | ({ readonly _tag: "ProbingSearches" } & Outage)
  /** The worker finishes what it holds. If there is an outage, it tries one batch and gives the rest back. */
  | { readonly _tag: "Stopping"; readonly reason: string | undefined }

export const working: OutageState = { _tag: "Working" }

/** Why messages can't be handled; `undefined` without an outage. */
export const reasonOf = (state: OutageState): string | undefined =>
  state._tag === "Working" ? undefined : state.reason

/** Messages of a batch failed with `errors`, because a dependency is out. Each failed probe delays the next one. */
export const afterFailure = (
  state: OutageState,
  errors: ReadonlyArray<RetryPolicies.UpdateError>,
  { now, probe }: { readonly now: number; readonly probe: boolean },
): OutageState => {
  const reason = errors.at(-1)?.message ?? ""
  if (state._tag === "Stopping") return { ...state, reason }
  const failedProbes = probe && state._tag !== "Working" ? state.failedProbes + 1 : 0
  return {
    _tag: errors.every(({ _tag }) => _tag === "PhraseEmbedderError") ? "ProbingSearches" : "ProbingAll",
    reason,
    failedProbes,
    nextProbe: now + Duration.toMillis(RetryPolicies.probeDelay(failedProbes)),
  }
}

export const afterProbe = (state: OutageState): OutageState =>
  state._tag === "Stopping" ? { ...state, reason: undefined } : working

export const stop = (state: OutageState): OutageState => ({ _tag: "Stopping", reason: reasonOf(state) })
