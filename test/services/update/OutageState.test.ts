/** The transitions between the states of a worker. */
import { expect, test } from "bun:test"
import { PhraseEmbedderError } from "../../../src/services/ports/PhraseEmbedder.ts"
import { UserEmbeddingsError } from "../../../src/services/ports/UserEmbeddings.ts"
import * as OutageState from "../../../src/services/update/OutageState.ts"

const store = new UserEmbeddingsError({ reason: "unavailable", operation: "load", cause: new Error("gone") })
const embedder = new PhraseEmbedderError({ reason: "unauthorized", detail: "401" })
const { afterFailure, afterProbe, intakeOf, reasonOf, stop, working } = OutageState
const now = 10_000
const noProbe = { now, probe: false }

test("a failure of the store makes all messages wait, and a failure of the embedder only searches", () => {
  const probing = { since: now, failedProbes: 0, nextProbe: now + 1_000 }
  const waitForStore = { _tag: "ProbingAll", reason: store.message, ...probing } as const
  const waitForEmbedder = { _tag: "ProbingSearches", reason: embedder.message, ...probing } as const
  expect(afterFailure(working, [store], noProbe)).toEqual(waitForStore)
  expect(afterFailure(working, [embedder, embedder], noProbe)).toEqual(waitForEmbedder)
  expect(afterFailure(working, [store, embedder], noProbe)).toEqual({
    ...waitForStore,
    reason: embedder.message,
  })
})

test("each failed probe delays the next one, and a batch that began before the outage does not", () => {
  let state = afterFailure(working, [store], noProbe)
  for (const seconds of [2, 4, 8, 10, 10]) {
    state = afterFailure(state, [store], { now: now + 1, probe: true })
    expect(state).toMatchObject({ _tag: "ProbingAll", since: now, nextProbe: now + 1 + 1_000 * seconds })
  }
  expect(afterFailure(state, [store], noProbe)).toEqual(state)
  expect(afterFailure(state, [embedder], noProbe)).toEqual(state)
  const searches = afterFailure(state, [embedder], { now, probe: true })
  expect(searches).toMatchObject({ _tag: "ProbingSearches", failedProbes: 6 })
  expect(afterFailure(searches, [embedder], noProbe)).toEqual(searches)
  // The store is out too, which is news.
  expect(afterFailure(searches, [store], noProbe)).toMatchObject({ _tag: "ProbingAll", failedProbes: 0 })
})

test("a worker receives what it can handle, and one message for each probe", () => {
  const due = now + 1_000
  const everything = { main: "all", setAside: "all" } as const
  const nothing = { main: "none", setAside: "none" } as const
  expect(intakeOf(working, now)).toEqual(everything)
  const forStore = afterFailure(working, [store], noProbe)
  expect(intakeOf(forStore, due - 1)).toEqual(nothing)
  expect(intakeOf(forStore, due)).toEqual({ main: "one", setAside: "one" })
  const forEmbedder = afterFailure(working, [embedder], noProbe)
  expect(intakeOf(forEmbedder, due - 1)).toEqual({ main: "all", setAside: "none" })
  expect(intakeOf(forEmbedder, due)).toEqual({ main: "all", setAside: "one" })
  expect(intakeOf(stop(working), due)).toEqual(nothing)
})

test("a probe that gets through ends the outage", () => {
  for (const error of [store, embedder])
    expect(afterProbe(afterFailure(working, [error], noProbe))).toEqual(working)
})

test("a worker that stops knows whether there is an outage, and keeps stopping whatever happens", () => {
  const stopping = stop(working)
  const stoppingInOutage = stop(afterFailure(working, [store], noProbe))
  expect(stopping).toEqual({ _tag: "Stopping", reason: undefined })
  expect(stoppingInOutage).toEqual({ _tag: "Stopping", reason: store.message })
  expect(afterFailure(stopping, [store], noProbe)).toEqual(stoppingInOutage)
  expect(afterProbe(stoppingInOutage)).toEqual(stopping)
  expect(stop(stoppingInOutage)).toEqual(stoppingInOutage)
})

test("the reason of an outage is the message of its last error", () => {
  expect(reasonOf(working)).toBeUndefined()
  expect(reasonOf(afterFailure(working, [store, embedder], noProbe))).toBe(embedder.message)
})
