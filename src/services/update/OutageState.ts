/**
 * Whether a worker's dependencies work, as a pure state machine:
 *
 *     Working ── a message fails because a dependency is out ──> ProbingAll | ProbingSearches
 *     ProbingAll | ProbingSearches ── a probe succeeds ──> Working
 *     any state ── the worker stops ──> Stopping
 */
import { Duration } from "effect"
import type { Intake } from "../ports/InteractionQueue.ts"
import * as RetryPolicies from "../RetryPolicies.ts"

interface Outage {
  readonly reason: string
  /** When it began, Unix ms. */
  readonly since: number
  readonly failedProbes: number
  /** Unix ms. */
  readonly nextProbe: number
}

export type OutageState =
  | { readonly _tag: "Working" }
  /** A store is out: all messages wait in the queue, and one at a time probes the store. */
  | ({ readonly _tag: "ProbingAll" } & Outage)
  /** Only the embedder or the log is out: searches and retractions are set aside, and one at a time probes it. */
  | ({ readonly _tag: "ProbingSearches" } & Outage)
  /** The worker finishes what it holds. If there is an outage, it gives everything back. */
  | { readonly _tag: "Stopping"; readonly reason: string | undefined }

/** Whether searches and retractions alone need what is out: the embedder, or the log for retractions. */
export const concernsSearches = ({ _tag }: RetryPolicies.UpdateError): boolean =>
  _tag === "PhraseEmbedderError" || _tag === "InteractionLogError"

export const working: OutageState = { _tag: "Working" }

/** Why messages can't be handled; `undefined` without an outage. */
export const reasonOf = (state: OutageState): string | undefined =>
  state._tag === "Working" ? undefined : state.reason

/** The outage, while its dependency is probed. */
export const outageOf = (state: OutageState): Outage | undefined => ("since" in state ? state : undefined)

/** Whether a probe is due. */
export const isProbeDue = (state: OutageState, now: number): boolean =>
  "nextProbe" in state && state.nextProbe <= now

/** What the worker receives. A message that waits for a dependency waits in a queue: brokers limit how long it is held. */
export const intakeOf = (state: OutageState, now: number): Intake => {
  const probe = isProbeDue(state, now) ? "one" : "none"
  switch (state._tag) {
    case "Working":
      return { main: "all", setAside: "all" }
    case "ProbingSearches":
      return { main: "all", setAside: probe }
    case "ProbingAll":
      return { main: probe, setAside: probe }
    case "Stopping":
      return { main: "none", setAside: "none" }
  }
}

/**
 * Messages of a batch failed with `errors`, because a dependency is out. Each failed probe delays the next one. A batch
 * that began before the outage was known does not.
 */
export const afterFailure = (
  state: OutageState,
  errors: ReadonlyArray<RetryPolicies.UpdateError>,
  { now, probe }: { readonly now: number; readonly probe: boolean },
): OutageState => {
  const reason = errors.at(-1)?.message ?? ""
  if (state._tag === "Stopping") return { ...state, reason }
  const onlySearches = errors.every(concernsSearches)
  if (!probe && (state._tag === "ProbingAll" || (state._tag === "ProbingSearches" && onlySearches)))
    return state
  const failedProbes = probe && state._tag !== "Working" ? state.failedProbes + 1 : 0
  return {
    _tag: onlySearches ? "ProbingSearches" : "ProbingAll",
    reason,
    since: "since" in state ? state.since : now,
    failedProbes,
    nextProbe: now + Duration.toMillis(RetryPolicies.probeDelay(failedProbes)),
  }
}

export const afterProbe = (state: OutageState): OutageState =>
  state._tag === "Stopping" ? { ...state, reason: undefined } : working

export const stop = (state: OutageState): OutageState => ({ _tag: "Stopping", reason: reasonOf(state) })
