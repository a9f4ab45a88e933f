/** A guest who logs in, from the request to the recommendations and the erasure, on both stacks. */
import { expect } from "bun:test"
import { Array as Arr, Effect } from "effect"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import { userInFigures } from "../../src/services/operate/ShowUser.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { ownerOf } from "../../src/services/update/People.ts"
import { apiAndWorker, call } from "../support/api.ts"
import { layerSuite } from "../support/effect.ts"
import { drained, eventually, search, storeProduct } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"
import { expectSurvivors, phrases } from "../support/survivors.ts"

const isLong = process.env.FAILURES === "long"
const each = isLong ? 2_000 : 200

const variables = { API_PORT: "0", WORKER_PORT: "0", RATE_LIMIT_PER_USER: "0" }

const get = (path: string) => call("GET", path)
const post = (path: string, body: unknown = {}) => call("POST", path, body)

/** Scores change with time. */
const rounded = (json: unknown) =>
  JSON.stringify(json, (_, value) => (typeof value === "number" ? Math.round(value * 1_000) : value))

const consistent = Effect.gen(function* () {
  expect(yield* (yield* Auditor.Auditor).audit({})).toMatchObject({ extra: 0, missing: 0, not_erased: 0 })
})

const suite = (name: string, stack: typeof embedded) =>
  layerSuite(name, apiAndWorker(stack(variables)), (it) => {
    it("what the guest did counts for the customer, and both ids answer as the customer", () =>
      Effect.gen(function* () {
        for (const [id, text] of [
          ["tent", "tent for two"],
          ["lamp", "desk lamp"],
          ["boots", "hiking boots"],
        ] as const)
          yield* storeProduct(id, text)
        yield* post("/api/user/guest-1/product/tent/purchase")
        yield* post("/api/user/guest-1/search", { query: "hiking" })
        yield* post("/api/user/u-1/product/lamp/view")
        yield* drained

        const first = yield* post("/api/user/u-1/merge", { from: "guest-1" })
        expect(first).toMatchObject({
          status: 201,
          json: { user_id: "u-1", event_type: "merge", duplicate: false },
        })
        expect(yield* post("/api/user/u-1/merge", { from: "guest-1" })).toMatchObject({
          status: 200,
          json: { message_id: first.json.message_id, duplicate: true },
        })
        yield* drained
        // Of a late batch of the app.
        yield* post("/api/user/guest-1/product/boots/view")
        yield* drained

        // The API reads the catalogue anew at most once a second.
        yield* eventually(Effect.map(get("/api/user/u-1/buy-again"), ({ json }) => json.items[0] as unknown))
        const { json } = yield* get("/api/user/u-1/embedding")
        expect(json).toMatchObject({
          user_id: "u-1",
          event_count: 4,
          last_event_type: "product_view",
          metadata: { purchase_count: 1, search_count: 1, view_count: 2 },
        })
        expect((yield* get("/api/user/guest-1/embedding")).json).toEqual(json)
        const answers = ["recommendations?exclude=seen", "buy-again", "similar", "profile"]
        for (const path of answers) {
          const own = yield* get(`/api/user/u-1/${path}`)
          expect(own.json.user_id).toBe("u-1")
          expect(rounded((yield* get(`/api/user/guest-1/${path}`)).json)).toBe(rounded(own.json))
        }
        expect((yield* get("/api/user/guest-1/recommendations?exclude=seen")).json.items).toEqual([])
        expect((yield* get("/api/user/u-1/buy-again")).json.items).toMatchObject([{ product_id: "tent" }])
        expect((yield* post("/api/search", { query: "lamp", user: "guest-1" })).json.user_id).toBe("u-1")
        const { events } = yield* userInFigures("guest-1")
        expect(events.map(({ share }) => share)).not.toContain(null)
        expect(yield* (yield* UserEmbeddings).count).toBe(1)
        yield* consistent
      }))

    it("an event of the guest is taken back under either id", () =>
      Effect.gen(function* () {
        const bought = yield* post("/api/user/guest-2/product/tent/purchase")
        yield* post("/api/user/u-2/product/lamp/view")
        yield* post("/api/user/u-2/merge", { from: "guest-2" })
        yield* drained
        const body = { message_id: bought.json.message_id }
        const first = yield* post("/api/user/u-2/retractions", body)
        expect(first.status).toBe(201)
        expect(yield* post("/api/user/guest-2/retractions", body)).toMatchObject({
          status: 200,
          json: { message_id: first.json.message_id },
        })
        expect((yield* post("/api/user/u-1/retractions", body)).status).toBe(404)
        yield* drained
        const { json } = yield* get("/api/user/guest-2/embedding")
        expect(json).toMatchObject({ event_count: 1, metadata: { purchase_count: 0, view_count: 1 } })
        const retracted = yield* post("/api/user/u-2/retractions", { message_id: first.json.message_id })
        expect(retracted.status).toBe(422)
        yield* consistent
      }))

    it("one request may merge and then take back under the other id; a merge that is refused gives no right to do so", () =>
      Effect.gen(function* () {
        const occurred_at = "2026-02-10T12:34:56.789Z"
        const posted = (user_id: string) => ({
          user_id,
          event_type: "product_view",
          product_id: "tent",
          occurred_at,
        })
        const { json } = yield* post("/api/interactions", ["guest-23", "guest-24", "guest-25"].map(posted))
        const [third, fourth, fifth] = json.results.map((result: { message_id: string }) => result.message_id)
        yield* post("/api/user/u-24/merge", { from: "guest-24" })
        const merge = (user_id: string, reference: string) => ({ user_id, event_type: "merge", reference })
        const retraction = (user_id: string, reference: string) => ({
          user_id,
          event_type: "retraction",
          reference,
        })
        const answer = yield* post("/api/interactions", [
          merge("u-23", "guest-23"),
          retraction("u-23", third),
          merge("u-23", "guest-24"),
          retraction("u-23", fourth),
          retraction("u-25", fifth),
          merge("u-25", "u-23"),
          merge("u-23", "guest-25"),
          retraction("guest-23", fifth),
        ])
        const statuses = answer.json.results.map(({ status }: { status: number }) => status)
        expect(statuses).toEqual([201, 201, 409, 404, 404, 201, 201, 201])
        yield* drained
        expect((yield* get("/api/user/guest-25/embedding")).status).toBe(404)
        expect((yield* get("/api/user/guest-24/embedding")).json.event_count).toBe(1)
        yield* consistent
      }))

    it(
      `a guest with ${each} events is merged into a customer with ${each} while both act`,
      () =>
        Effect.gen(function* () {
          const acts = (user_id: string, from: number, count: number) =>
            Array.from({ length: count }, (_, i) => ({
              user_id,
              event_type: "search",
              search_phrase: phrases[(from + i) % phrases.length]!,
              occurred_at: new Date(Date.UTC(2026, 0, 1, 0, from + i)).toISOString(),
            }))
          const both = (from: number, count: number) => [
            ...acts("guest-3", from, count),
            ...acts("u-3", 10_000 + from, count),
          ]
          const before = both(0, each / 2)
          for (const some of Arr.chunksOf(before, 500)) yield* post("/api/interactions", some)
          yield* drained
          const during = both(each / 2, each / 2)
          const began = Date.now()
          yield* Effect.all(
            [
              Effect.forEach(Arr.chunksOf(during, 50), (some) => post("/api/interactions", some)),
              Effect.delay(post("/api/user/u-3/merge", { from: "guest-3" }), "50 millis"),
            ],
            { concurrency: 2 },
          )
          const posted = Date.now() - began
          yield* drained
          const { record } = yield* ownerOf(yield* UserEmbeddings, "guest-3")
          yield* expectSurvivors(
            record?.embedding,
            [...before, ...during].map(({ occurred_at, search_phrase, user_id }) =>
              search(user_id, search_phrase, occurred_at),
            ),
          )
          yield* consistent
          if (isLong)
            console.log(
              `${name}: ${during.length} events and the merge posted in ${posted} ms, applied after ${Date.now() - began} ms`,
            )
        }),
      120_000,
    )

    it("a merge that contradicts earlier ones is 409, one that makes no sense is 422", () =>
      Effect.gen(function* () {
        expect((yield* post("/api/user/u-4/merge", { from: "guest-4" })).status).toBe(201)
        const taken = yield* post("/api/user/u-5/merge", { from: "guest-4" })
        expect(taken).toMatchObject({ status: 409, json: { detail: "guest-4 is already an alias of u-4" } })
        const circle = yield* post("/api/user/guest-4/merge", { from: "u-4" })
        expect(circle).toMatchObject({
          status: 409,
          json: { detail: "guest-4 is already an alias of u-4" },
        })
        for (const body of [{ from: "u-4" }, { from: "no id" }, {}])
          expect(yield* post("/api/user/u-4/merge", body)).toMatchObject({
            status: 422,
            json: { errors: [{ field: "from" }] },
          })
        const item = (user_id: string, reference: string) => ({ user_id, event_type: "merge", reference })
        const bulk = yield* post("/api/interactions", [
          item("u-6", "guest-6"),
          item("u-6", "guest-6"),
          item("u-7", "guest-6"),
          item("u-6", "u-6"),
        ])
        expect(bulk).toMatchObject({ status: 207, json: { accepted: 1, duplicates: 1, rejected: 2 } })
        expect(bulk.json.results.map(({ status }: { status: number }) => status)).toEqual([
          201, 200, 409, 422,
        ])
        const types = bulk.json.results.map(({ error }: { error?: { type: string } }) => error?.type)
        expect(types.slice(2)).toEqual([taken.json.type, "/problems#invalid-input"])
        expect(taken.json.type).toBe("/problems#merge-refused")
        yield* drained
        yield* consistent
      }))

    it("an erasure under any id erases the person, and each id begins anew", () =>
      Effect.gen(function* () {
        yield* post("/api/user/guest-8/product/tent/view")
        yield* post("/api/user/guest-9/product/tent/view")
        yield* post("/api/user/u-8/product/lamp/view")
        yield* post("/api/user/u-8/merge", { from: "guest-8" })
        yield* post("/api/user/guest-8/merge", { from: "guest-9" })
        yield* drained
        expect((yield* get("/api/user/u-8/embedding")).json.event_count).toBe(3)
        // Recorded, and perhaps not applied yet.
        yield* post("/api/user/u-9/product/lamp/view")
        yield* post("/api/user/u-8/merge", { from: "u-9" })
        expect((yield* call("DELETE", "/api/user/guest-9")).status).toBe(204)
        yield* drained
        for (const id of ["guest-8", "guest-9", "u-8", "u-9"]) {
          expect((yield* get(`/api/user/${id}/embedding`)).status).toBe(404)
          expect((yield* get(`/api/user/${id}/buy-again`)).json).toEqual({ user_id: id, items: [] })
        }
        yield* consistent
        yield* post("/api/user/guest-8/product/tent/view")
        yield* post("/api/user/u-8/product/lamp/view")
        yield* drained
        expect((yield* get("/api/user/guest-8/embedding")).json).toMatchObject({
          user_id: "guest-8",
          event_count: 1,
        })
        expect((yield* get("/api/user/u-8/embedding")).json.event_count).toBe(1)
        expect((yield* post("/api/user/guest-8/merge", { from: "u-8" })).status).toBe(201)
        yield* drained
        expect((yield* get("/api/user/u-8/embedding")).json).toMatchObject({
          user_id: "guest-8",
          event_count: 2,
        })
        yield* consistent
      }))
  })

suite("guests who log in, on the embedded stack", embedded)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () => suite("guests who log in", external))
