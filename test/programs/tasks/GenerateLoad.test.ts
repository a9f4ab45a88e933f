/** Generated load: measured on the embedded stack, passed or failed by its limits. */
import { expect, test } from "bun:test"
import { HttpServer } from "@effect/platform"
import { BunContext } from "@effect/platform-bun"
import { Effect, Layer, Option } from "effect"
import * as Api from "../../../src/programs/Api.ts"
import { generateLoad, type LoadOptions, slices, toReport } from "../../../src/programs/tasks/GenerateLoad.ts"
import * as Worker from "../../../src/programs/Worker.ts"
import * as Auditor from "../../../src/services/operate/Auditor.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import { layerSuite } from "../../support/effect.ts"
import { embedded } from "../../support/stacks.ts"

const system = Layer.mergeAll(Api.layer, Worker.layer, Auditor.layer, BunContext.layer).pipe(
  Layer.provideMerge(embedded({ API_PORT: "0", API_TOKENS: "a-token", API_HOST: "127.0.0.1" })),
)

const generate = (change: Partial<LoadOptions>) =>
  Effect.gen(function* () {
    const { address } = yield* HttpServer.HttpServer
    return yield* generateLoad({
      users: 10,
      events: 20,
      rate: Option.none(),
      seed: 7,
      start: Option.none(),
      bulk: false,
      check: true,
      url: `http://127.0.0.1:${address._tag === "TcpAddress" ? address.port : 0}/`,
      token: "a-token",
      products: Option.none(),
      progress: () => Effect.void,
      ...change,
    })
  })
const start = Option.some("2026-02-10T12:00:00.000Z")

layerSuite("load on the embedded stack", system, (it) => {
  it(
    "one request per event: stores the sample catalogue when there is none, and counts every event once",
    () =>
      Effect.gen(function* () {
        const before = performance.now()
        const report = yield* generate({ start })
        const elapsed = (performance.now() - before) / 1_000
        expect(report).toMatchObject({ sent: 200, accepted: 200, duplicates: 0, embedded: 200, pass: true })
        expect(report.audit).toMatchObject({ users: 10, missing: 0, extra: 0, skipped: 0, in_flight: 0 })
        expect(yield* (yield* ProductEmbeddings).count).toBe(200)
        const { p50, p99 } = report.event_to_embedding_s
        expect(p50).toBeGreaterThan(0)
        expect(p99!).toBeGreaterThanOrEqual(p50!)
        expect(p99!).toBeLessThan(elapsed)
        expect(report.max_queue_depth).toBeGreaterThan(0)
        expect(report.max_queue_depth).toBeLessThanOrEqual(200)
      }),
    60_000,
  )

  it(
    "the same run again has no effect, and reports duplicates",
    () =>
      Effect.gen(function* () {
        for (const bulk of [false, true]) {
          const report = yield* generate({ start, bulk })
          expect(report).toMatchObject({ sent: 200, accepted: 0, duplicates: 200, embedded: 0, pass: true })
        }
        expect((yield* (yield* InteractionLog).backlog).total).toBe(200)
      }),
    60_000,
  )

  it(
    "in bulk: sends again what the rate limit refused, and keeps to --rate",
    () =>
      Effect.gen(function* () {
        const checks: Array<number> = []
        const report = yield* generate({
          users: 2,
          events: 150,
          bulk: true,
          progress: ({ embedded }) => Effect.sync(() => void checks.push(embedded)),
        })
        expect(report).toMatchObject({ sent: 300, accepted: 300, embedded: 300, pass: true })
        // 200 of the 300 events are of one user, and a user may send 100 per second.
        expect(report.seconds).toBeGreaterThan(0.9)
        expect(checks.at(-1)).toBe(300)
        const slow = yield* generate({ users: 3, events: 10, rate: Option.some(20), bulk: true })
        expect(slow.seconds).toBeGreaterThan(1.2)
        expect(slow.seconds).toBeLessThan(5)
      }),
    60_000,
  )

  it("quotes the response of an API that refuses", () =>
    Effect.gen(function* () {
      const refused = yield* Effect.flip(generate({ token: "another" }))
      expect(refused.message).toContain("401")
    }))
})

test("passes when all are accepted, 95 % within 30 s, depth below 5,000, nothing missing or extra", () => {
  const audit = {
    users: 1,
    consistent: 1,
    missing: 0,
    extra: 0,
    not_erased: 0,
    in_flight: 0,
    dead: 0,
    skipped: 0,
  }
  const waiting = (late: number, never: number) => [
    ...Array.from({ length: 100 - late - never }, () => 2),
    ...Array.from({ length: late }, () => 30.001),
    ...Array.from({ length: never }, () => Number.POSITIVE_INFINITY),
  ]
  const run = {
    sent: 100,
    accepted: 100,
    duplicates: 0,
    seconds: 4,
    waits: waiting(0, 0),
    maxDepth: 4_999,
    audit,
  }
  expect(toReport(run)).toEqual({
    sent: 100,
    accepted: 100,
    duplicates: 0,
    embedded: 100,
    seconds: 4,
    accepted_per_s: 25,
    event_to_embedding_s: { p50: 2, p95: 2, p99: 2 },
    embedded_in_time: 1,
    max_queue_depth: 4_999,
    audit,
    pass: true,
  })
  expect(toReport({ ...run, waits: waiting(3, 2) })).toMatchObject({
    pass: true,
    embedded: 98,
    embedded_in_time: 0.95,
  })
  expect(toReport({ ...run, waits: waiting(3, 2) }).event_to_embedding_s).toEqual({
    p50: 2,
    p95: 2,
    p99: null,
  })
  for (const change of [
    { waits: waiting(6, 0) },
    { waits: waiting(0, 6) },
    { maxDepth: 5_000 },
    { accepted: 99, waits: waiting(0, 0).slice(1) },
    { audit: { ...audit, missing: 1 } },
    { audit: { ...audit, extra: 1 } },
  ])
    expect(toReport({ ...run, ...change }).pass).toBe(false)
})

test("slices cover all events in order, and 200,000 of them are made at once", () => {
  expect([...slices([1, 2, 3, 4, 5], 2)]).toEqual([[1, 2], [3, 4], [5]])
  const events = Array.from({ length: 200_000 }, (_, index) => index)
  const before = performance.now()
  expect([...slices(events, 1)].length).toBe(events.length)
  // Arr.chunksOf takes a minute.
  expect(performance.now() - before).toBeLessThan(5_000)
})
