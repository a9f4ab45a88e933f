/** Taking an interaction back, from the request to the recommendations, on both stacks. */
import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Pruner from "../../src/services/operate/Pruner.ts"
import { apiAndWorker, call } from "../support/api.ts"
import { layerSuite } from "../support/effect.ts"
import { drained, embeddingOf, eventually, storeProduct } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

/** With pairs of products, MySQL's rows would be pruned half a minute after their commit only. */
const variables = { API_PORT: "0", WORKER_PORT: "0", EVENT_WEIGHTS: "dislike:-0.4", TOGETHER_WEIGHT: "0" }

const post = (path: string, body: unknown = {}) => call("POST", path, body)
const messageIdOf = (path: string, body: unknown = {}) =>
  Effect.map(post(path, body), ({ json }): string => json.message_id)

const suite = (name: string, stack: typeof embedded) =>
  layerSuite(name, Layer.provideMerge(Pruner.layer, apiAndWorker(stack(variables))), (it) => {
    it("a purchase is taken back: 201, then 200; nothing of it is left in what the user gets", () =>
      Effect.gen(function* () {
        yield* storeProduct("tent", "tent for two")
        yield* storeProduct("lamp", "desk lamp")
        const bought = yield* messageIdOf("/api/user/u-1/product/tent/purchase", { price: 99 })
        yield* post("/api/user/u-1/product/lamp/dislike")
        yield* drained
        // The catalogue sees new products within a second.
        yield* eventually(
          Effect.map(call("GET", "/api/user/u-1/buy-again"), ({ json }) => json.items[0] as unknown),
        )

        const body = { message_id: bought, reason: "refund" }
        const first = yield* post("/api/user/u-1/retractions", body)
        expect(first).toMatchObject({ status: 201, json: { event_type: "retraction", duplicate: false } })
        const second = yield* post("/api/user/u-1/retractions", { message_id: bought })
        expect(second).toMatchObject({ status: 200, json: { ...first.json, duplicate: true } })
        yield* drained
        const { json } = yield* call("GET", "/api/user/u-1/embedding")
        expect(json).toMatchObject({
          event_count: 1,
          last_event_type: "dislike",
          metadata: { purchase_count: 0, dislike_count: 1 },
        })
        expect(json.total_weight).toBeCloseTo(-0.4, 6)
        const profile = yield* call("GET", "/api/user/u-1/profile")
        expect(profile.json.events).toMatchObject([{ event_type: "dislike", share: -1 }])
        expect((yield* call("GET", "/api/user/u-1/buy-again")).json.items).toEqual([])
        const { consistent, extra, missing, users } = yield* (yield* Auditor.Auditor).audit({})
        expect({ consistent, extra, missing, users }).toEqual({
          consistent: 1,
          extra: 0,
          missing: 0,
          users: 1,
        })
      }))

    it("a user whose events are all taken back has no embedding, and gets popular products", () =>
      Effect.gen(function* () {
        const bought = yield* messageIdOf("/api/user/u-2/product/tent/purchase")
        yield* drained
        expect((yield* call("GET", "/api/user/u-2/recommendations?exclude=none")).json.source).toBe("taste")
        yield* post("/api/user/u-2/retractions", { message_id: bought })
        yield* drained
        expect((yield* call("GET", "/api/user/u-2/embedding")).status).toBe(404)
        const { json } = yield* call("GET", "/api/user/u-2/recommendations?exclude=seen")
        expect(json.source).toBe("popular")
        yield* post("/api/user/u-2/product/tent/purchase", { occurred_at: "2026-01-01T00:00:00Z" })
        yield* drained
        expect((yield* embeddingOf("u-2"))?.event_count).toBe(1)
      }))

    it("what can't be taken back is refused by name: 404 or 422", () =>
      Effect.gen(function* () {
        const bought = yield* messageIdOf("/api/user/u-3/product/tent/purchase")
        const retract = (user: string, body: unknown) => post(`/api/user/${user}/retractions`, body)
        const errors = [{ field: "message_id", detail: "is no interaction of this user" }]
        expect(yield* retract("u-4", { message_id: bought })).toMatchObject({
          status: 404,
          json: { errors },
        })
        const unknown = { message_id: "a".repeat(64) }
        expect(yield* retract("u-3", unknown)).toMatchObject({ status: 404, json: { errors } })
        const retraction = (yield* retract("u-3", { message_id: bought })).json.message_id
        const refused = yield* retract("u-3", { message_id: retraction })
        expect(refused.status).toBe(422)
        expect(refused.json.detail).toBe("message_id: is a retraction, which can't be taken back")
        for (const body of [{}, { message_id: "x" }, { message_id: bought, reason: {} }])
          expect((yield* retract("u-3", body)).status).toBe(422)
        const other = { message_id: bought, occurred_at: "2026-01-01T00:00:00Z" }
        expect((yield* retract("u-3", other)).json.errors[0].field).toBe("occurred_at")
      }))

    it("an event that is pruned from the log can't be taken back: 410", () =>
      Effect.gen(function* () {
        const before = "2025-06-01T00:00:00.000Z"
        const occurred_at = "2025-05-31T23:59:59.999Z"
        const old = yield* messageIdOf("/api/user/u-8/product/tent/purchase", { occurred_at })
        const recent = yield* messageIdOf("/api/user/u-8/product/lamp/purchase", { occurred_at: before })
        yield* drained
        const report = yield* (yield* Pruner.Pruner).prune({ before })
        expect(report).toEqual({ before, events: 1, retractions: 0, kept: {} })
        const refused = yield* post("/api/user/u-8/retractions", { message_id: old })
        expect(refused).toMatchObject({ status: 410, json: { errors: [{ field: "message_id" }] } })
        expect(refused.json.detail).toContain("pruned")
        expect((yield* post("/api/user/u-9/retractions", { message_id: old })).status).toBe(404)
        const item = { user_id: "u-8", event_type: "retraction", reference: old }
        expect((yield* post("/api/interactions", [item])).json.results[0]).toMatchObject({
          status: 410,
          error: { type: refused.json.type, errors: [{ field: "reference" }] },
        })
        expect(refused.json.type).toBe("/problems#pruned")
        // It stays so when it is posted again, in the same request or before it.
        const posted = { user_id: "u-8", event_type: "product_purchase", product_id: "tent", occurred_at }
        const [repeated, inOne] = (yield* post("/api/interactions", [posted, item])).json.results
        expect(repeated).toMatchObject({ status: 201, message_id: old })
        expect(inOne).toMatchObject({ status: 410 })
        expect((yield* post("/api/user/u-8/retractions", { message_id: old })).status).toBe(410)
        const again = yield* call("GET", "/api/user/u-8/buy-again")
        expect(again.json.items).toHaveLength(2)
        expect((yield* post("/api/user/u-8/retractions", { message_id: recent })).status).toBe(201)
        yield* drained
        expect((yield* call("GET", "/api/user/u-8/embedding")).json).toMatchObject({ event_count: 1 })
      }))

    it("items of the bulk route take back what the log has, or what stands before them", () =>
      Effect.gen(function* () {
        const view = { user_id: "u-5", event_type: "product_view", product_id: "tent" }
        const occurred_at = "2026-03-01T10:00:00.000Z"
        const { json } = yield* post("/api/interactions", [{ ...view, occurred_at }])
        const reference: string = json.results[0].message_id
        const item = { user_id: "u-5", event_type: "retraction", reference }
        const other = { user_id: "u-6", event_type: "product_view", product_id: "tent", occurred_at }
        const otherId = (yield* post("/api/interactions", [other])).json.results[0].message_id
        const answer = yield* post("/api/interactions", [
          { ...item, metadata: { reason: "wrong click" } },
          item,
          { ...item, user_id: "u-6" },
          { ...other, user_id: "u-7" },
          { user_id: "u-6", event_type: "retraction", reference: otherId, occurred_at },
        ])
        expect(answer.json).toMatchObject({ accepted: 3, duplicates: 1, rejected: 1 })
        expect(answer.json.results[2]).toMatchObject({
          status: 404,
          error: { type: "/problems#not-found", detail: "reference: is no interaction of this user" },
        })
        yield* drained
        for (const user of ["u-5", "u-6"]) expect(yield* embeddingOf(user)).toBeUndefined()
        expect((yield* embeddingOf("u-7"))?.event_count).toBe(1)
      }))
  })

suite("retractions on the embedded stack", embedded)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () => suite("retractions", external))
