/** The delays of the retry queues, the bounds of the schedules, and the settlement of failed messages. */
import { describe, expect, test } from "bun:test"
import { Array as Arr, Chunk, Duration, Effect, Schedule } from "effect"
import fc from "fast-check"
import { SpaceMismatch } from "../../src/services/model/Fold.ts"
import { InvalidMessage } from "../../src/services/model/UpdateMessage.ts"
import { Ack, DeadLetter, Retry } from "../../src/services/ports/InteractionQueue.ts"
import { PhraseEmbedderError } from "../../src/services/ports/PhraseEmbedder.ts"
import {
  ProductEmbeddingsError,
  ProductMissing,
  UnusableVector,
} from "../../src/services/ports/ProductEmbeddings.ts"
import { LockConflict, UserEmbeddingsError } from "../../src/services/ports/UserEmbeddings.ts"
import * as RetryPolicies from "../../src/services/RetryPolicies.ts"
import { effectTest } from "../support/effect.ts"

describe("the delays of the retry queues", () => {
  const delays = (millis: number, retries: number) =>
    RetryPolicies.retryDelays(Duration.millis(millis), retries)

  test("double from the first delay up to 60 s", () => {
    expect(delays(5000, 5)).toEqual([5000, 10_000, 20_000, 40_000, 60_000])
    expect(delays(200, 5)).toEqual([200, 400, 800, 1600, 3200])
    expect(delays(1, 3)).toEqual([1, 2, 4])
    expect(delays(30_000, 4)).toEqual([30_000, 60_000, 60_000, 60_000])
    expect(delays(90_000, 2)).toEqual([60_000, 60_000])
  })

  test("are as many as there are retries, also for none and one", () => {
    expect(delays(5000, 0)).toEqual([])
    expect(delays(5000, 1)).toEqual([5000])
  })

  test("are whole numbers that never fall, for every accepted setting", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100_000 }), fc.integer({ min: 0, max: 20 }), (first, retries) => {
        expect(delays(first, retries)).toEqual(
          Array.from({ length: retries }, (_, i) => Math.min(60_000, first * 2 ** i)),
        )
      }),
    )
  })
})

describe("schedules", () => {
  const delaysOf = (schedule: Schedule.Schedule<unknown>, inputs: number) =>
    Schedule.run(
      Schedule.delays(schedule),
      0,
      Arr.makeBy(inputs, () => undefined),
    ).pipe(Effect.map((delays) => Chunk.toReadonlyArray(delays).map(Duration.toMillis)))
  /** Jitter is between 80 and 120 %. */
  const around = (delay: number | undefined, millis: number) => {
    expect(delay).toBeGreaterThanOrEqual(0.8 * millis)
    expect(delay).toBeLessThanOrEqual(1.2 * millis)
  }

  effectTest("reconnecting never gives up, and backs off from 200 ms to 5 s", () =>
    Effect.gen(function* () {
      const delays = yield* delaysOf(RetryPolicies.reconnectRetry, 200)
      expect(delays).toHaveLength(200)
      for (const [i, delay] of delays.entries()) around(delay, Math.min(5000, 200 * 2 ** i))
      expect(new Set(delays.slice(10)).size).toBeGreaterThan(100)
    }),
  )

  effectTest("a lost compare-and-swap is tried again 20 times, soon", () =>
    Effect.gen(function* () {
      const delays = yield* delaysOf(RetryPolicies.conflictRetry, 100)
      // The last output is the one with which the schedule ends.
      expect(delays).toHaveLength(21)
      for (const [i, delay] of delays.slice(0, 20).entries()) around(delay, Math.min(100, 2 * 2 ** i))
    }),
  )

  test("the delay of probes doubles from 1 s to 10 s, and stays there", () => {
    const seconds = [0, 1, 2, 3, 4, 5, 6, 5000].map((failed) =>
      Duration.toSeconds(RetryPolicies.probeDelay(failed)),
    )
    expect(seconds).toEqual([1, 2, 4, 8, 10, 10, 10, 10])
  })
})

describe("a failed message", () => {
  const delays = [5000, 10_000, 20_000, 40_000, 60_000]
  const cause = new Error("why")
  const invalid = new InvalidMessage({ reason: "message_id_mismatch", detail: "why" })
  const store = (reason: UserEmbeddingsError["reason"]) =>
    new UserEmbeddingsError({ reason, operation: "save", cause })
  const products = (reason: ProductEmbeddingsError["reason"]) =>
    new ProductEmbeddingsError({ reason, operation: "vectors", cause })
  const embedder = (reason: PhraseEmbedderError["reason"], seconds?: number) =>
    new PhraseEmbedderError({
      reason,
      detail: "why",
      ...(seconds === undefined ? {} : { retryAfter: Duration.seconds(seconds) }),
    })
  const mismatch = new SpaceMismatch({ user_id: "u", stored: "a", configured: "b" })
  const missing = new ProductMissing({ product_id: "p", space: "a" })
  const unusable = new UnusableVector({ product_id: "p", detail: "is a zero vector" })
  const conflict = new LockConflict({ user_id: "u", tries: 20 })

  const table: ReadonlyArray<
    readonly [RetryPolicies.UpdateError, RetryPolicies.FailureClass["_tag"], string]
  > = [
    [invalid, "Unrecoverable", "message_id_mismatch"],
    [mismatch, "Unrecoverable", "space_mismatch"],
    [unusable, "Unrecoverable", "unusable_vector"],
    [missing, "Skip", "product_missing"],
    [conflict, "Retryable", "lock_conflict"],
    [store("invalid_data"), "Unrecoverable", "user_embeddings_invalid_data"],
    [store("conflict"), "Retryable", "user_embeddings_conflict"],
    [store("rejected"), "Outage", "user_embeddings_rejected"],
    [store("unavailable"), "Outage", "user_embeddings_unavailable"],
    [store("timeout"), "Outage", "user_embeddings_timeout"],
    [store("not_set_up"), "Outage", "user_embeddings_not_set_up"],
    [products("invalid_data"), "Retryable", "product_embeddings_invalid_data"],
    [products("rejected"), "Outage", "product_embeddings_rejected"],
    [products("unavailable"), "Outage", "product_embeddings_unavailable"],
    [embedder("rate_limited"), "Retryable", "phrase_embedder_rate_limited"],
    [embedder("server_error"), "Retryable", "phrase_embedder_server_error"],
    [embedder("timeout"), "Retryable", "phrase_embedder_timeout"],
    [embedder("unreachable"), "Retryable", "phrase_embedder_unreachable"],
    [embedder("rate_limited", 60), "Retryable", "phrase_embedder_rate_limited"],
    [embedder("rate_limited", 61), "Outage", "phrase_embedder_rate_limited"],
    [embedder("unauthorized"), "Outage", "phrase_embedder_unauthorized"],
    [embedder("quota_exhausted"), "Outage", "phrase_embedder_quota_exhausted"],
    [embedder("misconfigured"), "Outage", "phrase_embedder_misconfigured"],
    [embedder("invalid_input"), "Unrecoverable", "phrase_embedder_invalid_input"],
    [embedder("bad_vector"), "Unrecoverable", "phrase_embedder_bad_vector"],
  ]
  for (const [error, expected, kind] of table)
    test(`with ${kind} is ${expected}`, () => {
      expect(RetryPolicies.classify(error)._tag).toBe(expected)
      expect(RetryPolicies.failureOf(error)).toEqual({ error: kind, message: error.message })
      const failure = { error: kind, message: error.message }
      const settled = (retryCount: number) => RetryPolicies.settlementOf(error, retryCount, delays)
      if (expected === "Skip") expect([settled(0), settled(5)]).toEqual([Ack, Ack])
      else if (expected === "Unrecoverable") expect(settled(0)).toEqual(DeadLetter(failure))
      else expect(settled(5)).toEqual(DeadLetter(failure))
    })

  test("goes through each retry queue once, also in an outage, then becomes a dead letter", () => {
    for (const error of [conflict, store("unavailable"), embedder("unauthorized")]) {
      const failure = RetryPolicies.failureOf(error)
      expect([0, 1, 2, 3, 4, 5, 6].map((count) => RetryPolicies.settlementOf(error, count, delays))).toEqual([
        ...delays.map((delay) => Retry(delay, failure)),
        DeadLetter(failure),
        DeadLetter(failure),
      ])
    }
    expect(RetryPolicies.settlementOf(conflict, 0, [])).toEqual(DeadLetter(RetryPolicies.failureOf(conflict)))
  })

  test("waits in the next retry queue, or in the shortest that is as long as Retry-After", () => {
    const delayOf = (seconds: number, retryCount: number, queues = delays) => {
      const settlement = RetryPolicies.settlementOf(embedder("rate_limited", seconds), retryCount, queues)
      return settlement._tag === "Retry" ? settlement.delayMillis : settlement._tag
    }
    expect(delayOf(3, 0)).toBe(5000)
    expect(delayOf(5, 0)).toBe(5000)
    expect(delayOf(6, 0)).toBe(10_000)
    expect(delayOf(45, 0)).toBe(60_000)
    expect(delayOf(1, 3)).toBe(40_000)
    expect(delayOf(45, 0, [200, 400])).toBe(400)
    expect(delayOf(1, 5)).toBe("DeadLetter")
  })
})
