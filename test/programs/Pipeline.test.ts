/** The pipeline on both stacks: every recorded interaction becomes part of the user's embedding, exactly once. */
import { expect } from "bun:test"
import { Effect, Stream } from "effect"
import * as Interaction from "../../src/services/model/Interaction.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import { DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import { InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { EventVectors } from "../../src/services/update/EventVectors.ts"
import { layerSuite } from "../support/effect.ts"
import {
  embeddingWith,
  eventually,
  message,
  pipeline,
  product,
  record,
  search,
  storeProduct,
} from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

/** Bodies that can never be processed, each with the error of its dead letter. */
const badBodies = (good: Interaction.Interaction): ReadonlyArray<readonly [string, string | Uint8Array]> => {
  const { message_id: _, ...facts } = { ...good, version: "1.0" }
  const signed = (change: object) => {
    const changed = { ...facts, ...change }
    return JSON.stringify({ ...changed, message_id: Interaction.messageId(changed) })
  }
  return [
    ["not_json", ""],
    ["not_json", '{"user_id": "u", "version": "1.0"'],
    ["not_json", Uint8Array.of(0xff, 0xfe, 0x00)],
    ["schema_violation", "null"],
    ["schema_violation", "[]"],
    ["schema_violation", '"text"'],
    ["schema_violation", '{"version": "1.0"}'],
    ["schema_violation", signed({ user_id: "two words" })],
    ["schema_violation", signed({ user_id: "x".repeat(65) })],
    ["unknown_event_type", signed({ event_type: "product_wish" })],
    ["schema_violation", signed({ product_id: "456" })],
    ["schema_violation", signed({ search_phrase: "   " })],
    ["schema_violation", signed({ search_phrase: "a\u0007b" })],
    ["schema_violation", signed({ occurred_at: "2026-02-30T10:00:00Z" })],
    ["schema_violation", signed({ occurred_at: "2026-02-10 10:00" })],
    ["schema_violation", signed({ metadata: { nested: {} } })],
    ["schema_violation", signed({ version: 1 })],
    ["unsupported_version", signed({ version: "2.0" })],
    ["message_id_mismatch", JSON.stringify({ ...facts, message_id: "0".repeat(64) })],
    ["in_the_future", signed({ occurred_at: "2199-01-01T00:00:00.000Z" })],
    ["too_large", signed({ extra: "x".repeat(300_000) })],
  ]
}

const suite = (name: string, stack: Parameters<typeof pipeline>[0]) =>
  layerSuite(name, pipeline(stack), (it) => {
    it("the first search of a user gives the phrase's vector, with unit length", () =>
      Effect.gen(function* () {
        const [appended] = yield* record(search("new-1", "wireless headphones", "2026-02-10T12:34:56.789Z"))
        expect(appended?._tag).toBe("Recorded")
        const embedding = yield* embeddingWith("new-1", 1)
        const vectors = yield* EventVectors
        const [phrase] = yield* vectors.ofTexts(["wireless headphones"])
        expect(Vector.cosine(embedding.embedding, yield* phrase!)).toBeCloseTo(1, 6)
        expect(Math.abs(Vector.norm(embedding.embedding) - 1)).toBeLessThan(1e-6)
        expect(embedding.event_count).toBe(1)
        expect(embedding.mass).toBe(0.7)
      }))

    it("a purchase outweighs an earlier view, according to the formula", () =>
      Effect.gen(function* () {
        const viewed = yield* storeProduct("p-view", "a garden hose with nozzle")
        const bought = yield* storeProduct("p-buy", "a mystery novel set in Venice")
        yield* record(product("buyer", "product_view", "p-view", "2026-02-01T00:00:00.000Z"))
        yield* embeddingWith("buyer", 1)
        yield* record(product("buyer", "product_purchase", "p-buy", "2026-03-03T00:00:00.000Z"))
        const { embedding, total_weight } = yield* embeddingWith("buyer", 2)
        const faded = 0.3 * Math.exp(-0.023 * 30)
        const sum = Float64Array.from(bought)
        Vector.addScaled(sum, faded, viewed)
        const expected = Vector.divide(sum, Vector.norm(sum))
        expect(Vector.cosine(embedding, expected)).toBeCloseTo(1, 6)
        expect(total_weight).toBeCloseTo(1 + faded, 6)
        expect(Vector.cosine(embedding, bought)).toBeGreaterThan(Vector.cosine(embedding, viewed))
      }))

    it("an interaction that is posted twice and delivered five times counts once", () =>
      Effect.gen(function* () {
        const twice = search("repeat", "espresso machine", "2026-02-10T10:00:00.000Z")
        const last = search("repeat", "coffee beans", "2026-02-11T10:00:00.000Z")
        const [first, second] = yield* record(twice, twice)
        expect([first?._tag, second?._tag]).toEqual(["Recorded", "Duplicate"])
        const queue = yield* InteractionQueue
        const copies = Array.from({ length: 5 }, () => message(twice))
        expect(yield* queue.publish(copies)).toEqual(copies.map(() => "confirmed"))
        yield* record(last)
        yield* eventually(
          Effect.map(queue.depths, ({ main }) => (main.ready + main.unacked === 0 ? true : undefined)),
        )
        expect((yield* embeddingWith("repeat", 2)).event_count).toBe(2)
      }))

    it("an event of a product without embedding is skipped, and counts when it is published again later", () =>
      Effect.gen(function* () {
        const early = product("early-bird", "product_click", "p-late", "2026-02-10T10:00:00.000Z")
        yield* record(early, search("early-bird", "tent", "2026-02-10T11:00:00.000Z"))
        expect((yield* embeddingWith("early-bird", 1)).metadata.click_count).toBe(0)
        yield* storeProduct("p-late", "a two-person tent")
        const queue = yield* InteractionQueue
        yield* queue.publish([message(early)])
        expect((yield* embeddingWith("early-bird", 2)).metadata.click_count).toBe(1)
      }))

    it("bad messages become dead letters at once, byte for byte, and the good messages beside them count", () =>
      Effect.gen(function* () {
        const queue = yield* InteractionQueue
        const deadLetters = yield* DeadLetters
        const good = (index: number) => search(`beside-${index}`, "yoga mat", "2026-02-10T10:00:00.000Z")
        const bad = badBodies(good(0)).map(([reason, body]) => ({ reason, body: Buffer.from(body) }))
        const mixed = bad.flatMap(({ body }, index) => [message(good(index), body), message(good(index))])
        expect(new Set(yield* queue.publish(mixed))).toEqual(new Set(["confirmed"]))
        for (const index of bad.keys()) yield* embeddingWith(`beside-${index}`, 1)
        const found = yield* eventually(
          Effect.map(Stream.runCollect(deadLetters.list), (all) =>
            all.length >= bad.length ? [...all] : undefined,
          ),
        )
        expect(found.length).toBe(bad.length)
        for (const { body, reason } of bad) {
          const deadLetter = found.find((one) => Buffer.from(one.body).equals(body))
          expect([deadLetter?.error, deadLetter?.attempts, deadLetter?.originalRoutingKey]).toEqual([
            reason,
            1,
            "user.embedding.search",
          ])
        }
      }))

    it(
      "2,000 interactions of 50 users, in any order, give the vectors computed from the log and leave nothing waiting",
      () =>
        Effect.gen(function* () {
          const phrases = ["running shoes", "red wine", "board games", "cordless drill", "baby blanket"]
          const many = Array.from({ length: 2_000 }, (_, i) =>
            search(
              `many-${i % 50}`,
              phrases[(i * 7) % phrases.length]!,
              new Date(Date.UTC(2026, 0, 1 + ((i * 37) % 60), 0, 0, 0, i)).toISOString(),
            ),
          )
          yield* Effect.forEach(
            Array.from({ length: 40 }, (_, chunk) => many.slice(chunk * 50, chunk * 50 + 50)),
            (chunk) => record(...chunk, ...chunk.slice(0, 5)),
            { concurrency: 8 },
          )
          const vectors = yield* EventVectors
          const known = new Map<string, Float32Array>()
          for (const [index, vector] of (yield* vectors.ofTexts(phrases)).entries())
            known.set(phrases[index]!, yield* vector)
          for (let user = 0; user < 50; user++) {
            const own = many.filter(({ user_id }) => user_id === `many-${user}`)
            const embedding = yield* embeddingWith(`many-${user}`, own.length)
            expect(embedding.event_count).toBe(own.length)
            const newest = Math.max(...own.map(({ occurred_at }) => Date.parse(occurred_at)))
            const sum = new Float64Array(embedding.embedding.length)
            for (const { occurred_at, search_phrase } of own) {
              const days = (newest - Date.parse(occurred_at)) / 86_400_000
              Vector.addScaled(sum, 0.7 * Math.exp(-0.023 * days), known.get(search_phrase!)!)
            }
            expect(embedding.mass).toBeCloseTo(Vector.norm(sum), 3)
            const expected = Vector.divide(sum, Vector.norm(sum))
            for (let i = 0; i < expected.length; i++)
              if (Math.abs(expected[i]! - embedding.embedding[i]!) > 1e-4)
                throw new Error(
                  `many-${user}: component ${i} is ${embedding.embedding[i]}, not ${expected[i]}`,
                )
          }
          const queue = yield* InteractionQueue
          const log = yield* InteractionLog
          yield* eventually(
            Effect.map(Effect.all([queue.depths, log.backlog]), ([{ main }, { unpublished }]) =>
              main.ready + main.unacked + unpublished === 0 ? true : undefined,
            ),
          )
        }),
      60_000,
    )
  })

suite("the pipeline on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "the pipeline on real servers", () => {
  suite("with one worker", external())
  suite("in message batches", external({ EVENTS_PER_MESSAGE: "7" }))
})
