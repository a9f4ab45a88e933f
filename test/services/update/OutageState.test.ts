/** The transitions between the states of a worker. */
import { expect, test } from "bun:test"
import { PhraseEmbedderError } from "../../../src/services/ports/PhraseEmbedder.ts"
import { UserEmbeddingsError } from "../../../src/services/ports/UserEmbeddings.ts"
import * as OutageState from "../../../src/services/update/OutageState.ts"

const store = new UserEmbeddingsError({ reason: "unavailable", operation: "load", cause: new Error("gone") })
const embedder = new PhraseEmbedderError({ reason: "unauthorized", detail: "401" })
const { afterFailure, afterProbe, reasonOf, stop, working } = OutageState
const now = 10_000
const noProbe = { now, probe: false }

test("a failure of the store makes all messages wait, and a failure of the embedder only searches", () => {
  const probing = { failedProbes: 0, nextProbe: now + 1_000 }
  const waitForStore = { _tag: "ProbingAll", reason: store.message, ...probing } as const
  const waitForEmbedder = { _tag: "ProbingSearches", reason: embedder.message, ...probing } as const
  expect(afterFailure(working, [store], noProbe)).toEqual(waitForStore)
  expect(afterFailure(working, [embedder, embedder], noProbe)).toEqual(waitForEmbedder)
  expect(afterFailure(working, [store, embedder], noProbe)).toEqual({
    ...waitForStore,
    reason: embedder.message,
  })
})

test("each failed probe delays the next one, and the failure of another batch starts anew", () => {
  let state = afterFailure(working, [store], noProbe)
  for (const seconds of [2, 4, 8, 16, 20, 20]) {
    state = afterFailure(state, [store], { now, probe: true })
    expect(state).toMatchObject({ _tag: "ProbingAll", nextProbe: now + 1_000 * seconds })
  }
  expect(afterFailure(state, [embedder], { now, probe: true })).toMatchObject({
    _tag: "ProbingSearches",
    failedProbes: 7,
  })
  expect(afterFailure(state, [store], noProbe)).toMatchObject({ failedProbes: 0, nextProbe: now + 1_000 })
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
