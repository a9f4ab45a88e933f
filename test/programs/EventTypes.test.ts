/** Event types of a shop's own, by EVENT_WEIGHTS alone: from the request to the embedding, on both stacks. */
import { expect } from "bun:test"
import { Effect, Layer, Stream } from "effect"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import * as EventTypes from "../../src/services/model/EventTypes.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Replayer from "../../src/services/operate/Replayer.ts"
import { DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import { InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { apiAndWorker, call } from "../support/api.ts"
import { layerSuite } from "../support/effect.ts"
import {
  embeddingWith,
  eventually,
  message,
  product,
  record,
  recording,
  storeProduct,
  workedOff,
} from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const variables = { EVENT_WEIGHTS: "add_to_cart:0.8,dislike:-0.4,meh:-0.1", API_PORT: "0", WORKER_PORT: "0" }

const suite = (name: string, stack: typeof embedded) =>
  layerSuite(name, apiAndWorker(stack(variables)), (it) => {
    it("a route of its own, the bulk route, the counter, the audit", () =>
      Effect.gen(function* () {
        yield* storeProduct("tent", "tent for two")
        const lamp = yield* storeProduct("lamp", "desk lamp")
        const cart = yield* call("POST", "/api/user/u-1/product/tent/add_to_cart", {
          occurred_at: "2026-03-01T10:00:00Z",
        })
        expect(cart).toMatchObject({ status: 201, json: { event_type: "add_to_cart", duplicate: false } })
        const again = { user_id: "u-1", event_type: "add_to_cart", product_id: "tent" }
        const bulk = yield* call("POST", "/api/interactions", [
          { ...again, occurred_at: "2026-03-01T10:00:00Z" },
          { ...again, product_id: "lamp", event_type: "dislike", occurred_at: "2026-03-01T11:00:00Z" },
        ])
        expect(bulk).toMatchObject({ status: 200, json: { accepted: 1, duplicates: 1 } })
        const { embedding, metadata, total_weight } = yield* embeddingWith("u-1", 2)
        expect(metadata).toMatchObject({ add_to_cart_count: 1, dislike_count: 1, view_count: 0 })
        expect(total_weight).toBeCloseTo(0.4, 2)
        expect(Vector.dot(embedding, lamp)).toBeLessThan(0)
        const shown = yield* call("GET", "/api/user/u-1/embedding")
        expect(shown.json).toMatchObject({ last_event_type: "dislike", metadata: { add_to_cart_count: 1 } })
        const { consistent, extra, missing, users } = yield* (yield* Auditor.Auditor).audit({})
        expect({ consistent, extra, missing, users }).toEqual({
          consistent: 1,
          extra: 0,
          missing: 0,
          users: 1,
        })
      }))

    it("a type that is not configured is refused by every route, with the names of those that are", () =>
      Effect.gen(function* () {
        const { json, status } = yield* call("POST", "/api/user/u-2/product/tent/wishlist", {})
        expect(status).toBe(422)
        expect(json.detail).toBe("type: must be one of view, click, purchase, add_to_cart, dislike, meh")
        const bulk = yield* call("POST", "/api/interactions", [
          { user_id: "u-2", event_type: "wishlist", product_id: "tent" },
        ])
        expect(bulk).toMatchObject({ status: 207, json: { rejected: 1 } })
        expect(bulk.json.results[0].error.detail).toBe(
          "event_type: must be one of search, product_view, product_click, product_purchase, add_to_cart, dislike, meh, retraction, merge",
        )
      }))

    it("the API's document lists the configured types", () =>
      Effect.gen(function* () {
        const { json } = yield* call("GET", "/openapi.json")
        const products = [
          "product_view",
          "product_click",
          "product_purchase",
          "add_to_cart",
          "dislike",
          "meh",
        ]
        expect(json.components.schemas.EventType.anyOf[1].enum).toEqual(products)
        const own = json.paths["/api/user/{userId}/product/{productId}/{type}"].post.parameters
        expect(own).toContainEqual({
          name: "type",
          in: "path",
          required: true,
          schema: { type: "string", enum: ["add_to_cart", "dislike", "meh"] },
        })
      }))

    it("a product that the user's own events speak against is not recommended, and counts as no favourite", () =>
      Effect.gen(function* () {
        const post = (path: string) => call("POST", `/api/user/u-3/product/${path}`, {})
        yield* post("tent/view")
        yield* post("lamp/dislike")
        yield* embeddingWith("u-3", 2)
        const products = (exclude: string) =>
          Effect.map(
            call("GET", `/api/user/u-3/recommendations?exclude=${exclude}`),
            ({ json }): ReadonlyArray<string> =>
              json.items.map(({ product_id }: { product_id: string }) => product_id),
          )
        // Until the catalogue in memory has the new products.
        yield* eventually(
          Effect.map(products("none"), (ids) =>
            new Set(ids).symmetricDifference(new Set(["tent", "lamp"])).size === 0 ? true : undefined,
          ),
        )
        expect(yield* products("purchased")).toEqual(["tent"])
        expect(yield* products("seen")).toEqual([])
      }))
    it("a product whose weights add up to 0 is not left out", () =>
      Effect.gen(function* () {
        for (const key of ["1", "2", "3"])
          yield* call("POST", "/api/interactions", [
            { user_id: "u-5", event_type: "meh", product_id: "lamp", idempotency_key: key },
          ])
        yield* call("POST", "/api/user/u-5/product/lamp/view", {})
        yield* call("POST", "/api/user/u-5/product/tent/view", {})
        yield* embeddingWith("u-5", 5)
        const { json } = yield* call("GET", "/api/user/u-5/recommendations")
        const ids = json.items.map(({ product_id }: { product_id: string }) => product_id)
        expect(ids.toSorted()).toEqual(["lamp", "tent"])
      }))

    it("shares of a user's events are finite and signed, also if the weights add up to 0 or less", () =>
      Effect.gen(function* () {
        const occurred_at = "2026-03-01T10:00:00Z"
        const event = (user_id: string, event_type: string, product_id: string) => {
          return { user_id, event_type, product_id, occurred_at }
        }
        yield* call("POST", "/api/interactions", [
          event("zero", "add_to_cart", "tent"),
          event("zero", "dislike", "lamp"),
          { ...event("zero", "dislike", "lamp"), occurred_at: "2026-03-01T10:00:00.001Z" },
          event("minus", "product_view", "tent"),
          event("minus", "dislike", "lamp"),
        ])
        yield* embeddingWith("zero", 3)
        yield* embeddingWith("minus", 2)
        const shares = (user: string) =>
          Effect.map(call("GET", `/api/user/${user}/profile`), ({ json }) =>
            Object.fromEntries(
              json.events.map(({ event_type, share }: { event_type: string; share: number }) => [
                event_type,
                share,
              ]),
            ),
          )
        const zero = yield* shares("zero")
        expect(zero.add_to_cart).toBeCloseTo(0.5, 6)
        expect(zero.dislike).toBeCloseTo(-0.25, 6)
        const minus = yield* shares("minus")
        expect(minus.product_view).toBeCloseTo(3 / 7, 6)
        expect(minus.dislike).toBeCloseTo(-4 / 7, 6)
      }))

    it("the profile shows a row of another program as it is", () =>
      Effect.gen(function* () {
        const interaction = Interaction.make({
          user_id: "minus",
          event_type: "VIEW",
          product_id: "tent",
          occurred_at: "2026-03-02T10:00:00.000Z",
          metadata: {},
        })
        const facts = { idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt: Date.now() }
        yield* (yield* InteractionLog).append([{ interaction, ...facts }])
        const { json, status } = yield* call("GET", "/api/user/minus/profile")
        expect([status, json.events[0].event_type, json.events[0].share]).toEqual([200, "VIEW", null])
      }))
  })

const withWeights = (weights: Readonly<Record<string, number>>) =>
  EmbeddingConfig.layer({ eventTypes: EventTypes.make(weights) })

const unknownType = (name: string, stack: ReturnType<typeof embedded>) =>
  layerSuite(name, recording(stack), (it) => {
    it("a message of an unknown type is a dead letter; once the type is configured, a retry applies it", () =>
      Effect.gen(function* () {
        yield* storeProduct("tent", "tent for two")
        const wish = Interaction.make({
          user_id: "u-4",
          event_type: "wishlist",
          product_id: "tent",
          occurred_at: "2026-03-01T10:00:00.000Z",
          metadata: {},
        })
        yield* (yield* InteractionQueue).publish([message(wish)])
        yield* workedOff
        const deadLetters = yield* DeadLetters
        const [deadLetter] = yield* Stream.runCollect(deadLetters.list)
        expect(deadLetter?.error).toBe("unknown_event_type")
        expect(deadLetter?.message).toContain("add it to EVENT_WEIGHTS")
        expect(yield* deadLetters.retry(() => true)).toBe(1)
        yield* Effect.provide(workedOff, withWeights({ wishlist: 0.6 }))
        expect(yield* embeddingWith("u-4", 1)).toMatchObject({
          total_weight: 0.6,
          metadata: { wishlist_count: 1 },
        })
        expect(yield* deadLetters.count).toBe(0)
      }))

    it("a replay leaves out rows of a type that is no longer configured, and names it", () =>
      Effect.gen(function* () {
        const wish = Interaction.make({
          user_id: "u-6",
          event_type: "wishlist",
          product_id: "tent",
          occurred_at: "2026-03-01T10:00:00.000Z",
          metadata: {},
        })
        yield* record(wish, product("u-6", "product_view", "tent", "2026-03-02T10:00:00.000Z"))
        const replay = Effect.flatMap(Replayer.Replayer, ({ replay }) => replay({ user: "u-6" }))
        expect(yield* Effect.provide(replay, Replayer.layer)).toEqual({
          matched: 2,
          published: 1,
          unknown_event_types: { wishlist: 1 },
        })
        expect(
          yield* Effect.provide(replay, Layer.provide(Replayer.layer, withWeights({ wishlist: 0.6 }))),
        ).toEqual({ matched: 2, published: 2 })
      }))
  })

suite("event types of a shop's own on the embedded stack", embedded)
unknownType("an unknown event type on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () => {
  suite("event types of a shop's own", external)
  unknownType("an unknown event type", external())
})
