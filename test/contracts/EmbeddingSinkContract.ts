/** What every sink promises. `dimensions` are those of the sink. */
import { expect } from "bun:test"
import { Chunk, Effect, type Layer, Stream } from "effect"
import fc from "fast-check"
import { EmbeddingSink, type SinkChanges, type SinkRow } from "../../src/services/ports/EmbeddingSink.ts"
import { layerSuite } from "../support/effect.ts"

const dimensions = 4
const vector = (seed: number) => Float32Array.from({ length: dimensions }, (_, i) => Math.sin(seed + i) || 1)
const row = (user_id: string, version: number): SinkRow => ({
  user_id,
  version,
  space: "test:4",
  updated_at: "2026-01-01T00:00:00.123Z",
  event_count: version,
  embedding: vector(version),
})
const removal = (user_id: string, version: number) => ({ user_id, version })

const connected = Effect.gen(function* () {
  const connection = yield* (yield* EmbeddingSink).connect
  yield* connection.prepare
  return connection
})
const all = Effect.flatMap(connected, ({ versions }) =>
  Effect.map(Stream.runCollect(versions), (found) =>
    Chunk.toArray(found).map(({ user_id, version }) => [user_id, version]),
  ),
)
const emptied = Effect.gen(function* () {
  const connection = yield* connected
  yield* connection.forget((yield* all).map(([user]) => String(user)))
  return connection
})

export const suite = (name: string, sink: Layer.Layer<EmbeddingSink>) =>
  layerSuite(name, sink, (it) => {
    it("keeps rows with their vectors, in the order of ids, byte by byte", () =>
      Effect.gen(function* () {
        const connection = yield* emptied
        yield* connection.apply({
          rows: ["b", "B", "a.1", "a", "a_1"].map((user) => row(user, 3)),
          removals: [],
        })
        expect(yield* all).toEqual(["B", "a", "a.1", "a_1", "b"].map((user) => [user, 3]))
        const loaded = yield* connection.load(["a", "nobody"])
        expect([...loaded.keys()]).toEqual(["a"])
        expect(loaded.get("a")).toEqual({ version: 3, embedding: vector(3) })
      }))

    it("may be prepared and indexed again at any time", () =>
      Effect.gen(function* () {
        const connection = yield* emptied
        yield* connection.apply({ rows: [row("i", 1)], removals: [] })
        for (const _ of [1, 2]) {
          yield* connection.prepare
          expect(yield* connection.index).toBeUndefined()
        }
        expect(yield* all).toEqual([["i", 1]])
      }))

    it("forgets users altogether, so that any version may come", () =>
      Effect.gen(function* () {
        const connection = yield* emptied
        yield* connection.apply({ rows: [row("f", 9)], removals: [] })
        yield* connection.forget(["f", "nobody"])
        expect(yield* all).toEqual([])
        yield* connection.apply({ rows: [row("f", 1)], removals: [] })
        expect(yield* all).toEqual([["f", 1]])
      }))

    it("ends with the greatest version of each user, in whatever order and however often changes come", () => {
      let round = 0
      const change = fc.record({
        user: fc.constantFrom("u", "v", "w"),
        version: fc.integer({ min: 1, max: 6 }),
        batch: fc.nat({ max: 9 }),
      })
      // A version of a user always says the same: every third one is a removal.
      const isRemoval = (version: number) => version % 3 === 0
      return Effect.gen(function* () {
        const connection = yield* connected
        for (const changes of fc.sample(fc.array(change, { minLength: 1, maxLength: 24 }), 25)) {
          const prefix = `r${round++}-`
          const greatest = new Map<string, number>()
          for (const batch of Map.groupBy(changes, ({ batch }) => batch).values()) {
            const newest = new Map<string, number>()
            for (const { user, version } of batch)
              newest.set(prefix + user, Math.max(version, newest.get(prefix + user) ?? 0))
            const told: SinkChanges = {
              rows: [...newest].flatMap(([user, version]) =>
                isRemoval(version) ? [] : [row(user, version)],
              ),
              removals: [...newest].flatMap(([user, version]) =>
                isRemoval(version) ? [removal(user, version)] : [],
              ),
            }
            yield* connection.apply(told)
            for (const [user, version] of newest)
              greatest.set(user, Math.max(version, greatest.get(user) ?? 0))
          }
          const expected = [...greatest].filter(([, version]) => !isRemoval(version)).toSorted()
          const found = (yield* all).filter(([user]) => String(user).startsWith(prefix))
          expect(found).toEqual(expected)
          const loaded = yield* connection.load(expected.map(([user]) => user))
          for (const [user, version] of expected) expect(loaded.get(user)?.embedding).toEqual(vector(version))
        }
      })
    })
  })
