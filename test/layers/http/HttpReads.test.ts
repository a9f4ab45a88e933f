/** Reading vectors over HTTP: stored and as taste, as JSON and as float32, one and many, and again with an ETag. */
import { describe, expect, test } from "bun:test"
import { HttpServer } from "@effect/platform"
import { Clock, Effect, Layer } from "effect"
import fc from "fast-check"
import { connect } from "../../../src/layers/http/HttpClient.ts"
import { hasMatch, prefersFloat32 } from "../../../src/layers/http/HttpRepresentation.ts"
import { decodeVectors, encodeVectors } from "../../../src/services/api/VectorRows.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import * as Catalogue from "../../../src/services/recommend/Catalogue.ts"
import { type Read, readVectors } from "../../../src/services/recommend/EmbeddingReads.ts"
import { EventVectors } from "../../../src/services/update/EventVectors.ts"
import { apiAndWorker, call } from "../../support/api.ts"
import { layerSuite } from "../../support/effect.ts"
import { drained } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

describe("the form that a client prefers", () => {
  test.each([
    [undefined, false],
    ["*/*", false],
    ["application/json", false],
    ["application/octet-stream", true],
    ["Application/Octet-Stream", true],
    ["application/octet-stream, */*", true],
    ["application/octet-stream;q=0.5, */*", false],
    ["application/octet-stream;q=0.5, application/json", false],
    ["application/json;q=0.5, application/octet-stream;q=0.9", true],
    ["application/octet-stream, application/json", false],
    ["application/octet-stream;q=0", false],
    ["application/*", false],
    [" , ;q=, application/octet-stream ; q = 0.1 , application/json;q=0", true],
  ])("Accept: %p", (accept, expected) => expect(prefersFloat32(accept)).toBe(expected))

  test("no header makes it fail", () => {
    fc.assert(fc.property(fc.string(), (accept) => typeof prefersFloat32(accept) === "boolean"))
  })
})

test.each([
  [undefined, false],
  ["", false],
  ['"1-a"', true],
  ['W/"1-a"', true],
  ['"x", W/"1-a"', true],
  ['"x","1-a"', true],
  ["*", true],
  [" * ", true],
  ["1-a", false],
  ['"1-A"', false],
  ['"1-a', false],
])("If-None-Match: %p", (header, expected) => {
  for (const etag of ['"1-a"', 'W/"1-a"']) expect(hasMatch(header, etag)).toBe(expected)
})

test("rows in float32 are decoded as they were encoded, whatever the length of their line", () => {
  const vector = fc.float32Array({ minLength: 3, maxLength: 3, noNaN: true })
  const asked = fc.array(fc.record({ user_id: fc.stringMatching(/^[a-z]{1,9}$/), vector: fc.option(vector) }))
  fc.assert(
    fc.property(asked, (users) => {
      const byId = new Map(users.map(({ user_id, vector }) => [user_id, vector]))
      const facts = { read: "stored", space: "s", dimension_count: 3 } as const
      const wanted = users.map(({ user_id }) => {
        const embedding = byId.get(user_id)
        return embedding ? { user_id, space: "s", version: 7, embedding } : null
      })
      const bytes = encodeVectors(
        facts,
        wanted.filter((one) => one !== null),
      )
      expect((bytes.indexOf(10) + 1) % 4).toBe(0)
      expect(decodeVectors(bytes, [...users.map(({ user_id }) => user_id), "?"])).toEqual([...wanted, null])
    }),
  )
})

interface Options extends RequestInit {
  readonly headers?: Record<string, string>
}
const address = Effect.map(HttpServer.HttpServer, ({ address }) =>
  address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : "",
)
const request = (path: string, options: Options = {}) =>
  Effect.flatMap(address, (url) =>
    Effect.promise(async () => {
      const response = await fetch(url + path, options)
      const bytes = new Uint8Array(await response.arrayBuffer())
      return { status: response.status, headers: response.headers, bytes }
    }),
  )
const accept = "application/octet-stream"
const float32 = (path: string) => request(path, { headers: { accept } })
const many = (body: unknown) => call("POST", "/api/embeddings", body)
const manyRows = (body: object) =>
  request("/api/embeddings", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, format: "float32" }),
  })
const etagOf = (path: string, headers: Record<string, string> = {}) =>
  Effect.map(request(path, { headers }), (answer) => answer.headers.get("etag") ?? "")

/** In the process, as the library reads. */
const readHere = (user_ids: ReadonlyArray<string>, read: Read) =>
  Effect.provide(readVectors(user_ids, read), Catalogue.layer)

const variables = {
  API_PORT: "0",
  WORKER_PORT: "0",
  RATE_LIMIT_PER_USER: "0",
  EMBEDDING_DIMENSIONS: "384",
  API_CORS_ORIGINS: "https://shop.example",
}
const products = ["tent for two", "desk lamp", "hiking boots", "wireless headphones"]

/** Two users, and a guest who became one of them. */
const shop = Effect.gen(function* () {
  for (const [index, text] of products.entries())
    yield* call("PUT", `/api/product/p-${index}/embedding`, { text })
  yield* call("POST", "/api/user/u-1/product/p-0/purchase", {})
  yield* call("POST", "/api/user/u-1/search", { query: "boots" })
  yield* call("POST", "/api/user/guest-1/product/p-2/view", {})
  yield* call("POST", "/api/user/u-2/product/p-1/click", {})
  yield* drained
  yield* call("POST", "/api/user/u-1/merge", { from: "guest-1" })
  yield* drained
})

const suite = (name: string, stack: typeof embedded) =>
  layerSuite(name, Layer.provideMerge(Layer.effectDiscard(shop), apiAndWorker(stack(variables))), (it) => {
    it("the taste that is read gives the similarities of the recommendations", () =>
      Effect.gen(function* () {
        const taste = Vector.fromBytes((yield* float32("/api/user/u-1/embedding?read=taste")).bytes)
        const mean = Vector.fromBytes((yield* float32("/api/catalogue/mean")).bytes)
        expect(taste).toHaveLength(384)
        expect(Vector.norm(taste)).toBeCloseTo(1, 6)
        const { json } = yield* call("GET", "/api/user/u-1/recommendations?exclude=none")
        const { load } = yield* ProductEmbeddings
        const { space } = yield* EventVectors
        expect(json.items).toHaveLength(products.length)
        for (const { product_id, similarity } of json.items) {
          const product = (yield* load([product_id], space)).get(product_id)!
          const centred = Vector.normalise(Vector.normalise(product).map((x, i) => x - mean[i]!))
          expect(Vector.dot(taste, centred)).toBeCloseTo(similarity, 5)
        }
      }))

    it("one user as JSON and as float32, stored and as taste", () =>
      Effect.gen(function* () {
        const { load } = yield* UserEmbeddings
        const { embedding, version } = (yield* load(["u-1"])).get("u-1")!
        const stored = embedding!.embedding
        const binary = yield* float32("/api/user/u-1/embedding")
        expect(binary.status).toBe(200)
        expect(Object.fromEntries(binary.headers)).toMatchObject({
          "content-type": "application/octet-stream",
          "content-length": String(4 * 384),
          "x-space": "local:minilm-words:384",
          "x-version": String(version),
          vary: "Accept, Origin",
        })
        expect(Vector.fromBytes(binary.bytes)).toEqual(stored.slice())
        const path = "/api/user/u-1/embedding"
        expect((yield* call("GET", path)).json.embedding).toBeUndefined()
        const withVector = (yield* call("GET", `${path}?vector=true`)).json
        expect(Float32Array.from(withVector.embedding)).toEqual(stored.slice())
        expect(withVector).toMatchObject({ user_id: "u-1", version, dimension_count: 384, event_count: 3 })
        const taste = Vector.fromBytes((yield* float32(`${path}?read=taste`)).bytes)
        const json = (yield* call("GET", `${path}?read=taste`)).json
        expect(json).toMatchObject({ user_id: "u-1", version, read: "taste" })
        expect(Vector.dot(Float32Array.from(json.embedding), taste)).toBeCloseTo(1, 6)
        expect(Vector.dot(stored, taste)).toBeLessThan(0.999)
        expect((yield* call("GET", `${path}?read=taste&vector=false`)).json.embedding).toBeUndefined()
        const head = yield* request(path, { method: "HEAD", headers: { accept } })
        expect([head.status, head.bytes.length, head.headers.get("x-version")]).toEqual([
          200,
          0,
          String(version),
        ])
        expect(head.headers.get("etag")).toBe(binary.headers.get("etag"))
      }))

    it("many users in the order asked: guests as their owners, null where there is none", () =>
      Effect.gen(function* () {
        const user_ids = ["u-2", "nobody", "guest-1", "u-1", "u-2"]
        for (const read of ["stored", "taste"] as const) {
          const single = (user: string) =>
            Effect.map(float32(`/api/user/${user}/embedding?read=${read}`), ({ bytes }) =>
              Vector.fromBytes(bytes),
            )
          const [one, two] = [yield* single("u-1"), yield* single("u-2")]
          const expected = [two, null, one, one, two]
          const { json, status } = yield* many({ user_ids, read })
          expect(status).toBe(200)
          expect(json).toMatchObject({ read, space: "local:minilm-words:384", dimension_count: 384 })
          const client = connect({ url: yield* address })
          const byClient = yield* Effect.promise(() => client.vectors(user_ids, { read }))
          const inProcess = yield* readHere(user_ids, read)
          for (const [index, vector] of expected.entries()) {
            const item = json.embeddings[index]
            if (vector === null) {
              expect([item, byClient[index], inProcess[index]]).toEqual([null, null, null])
              continue
            }
            expect(item.user_id).toBe(user_ids[index])
            expect(byClient[index]).toMatchObject({ user_id: user_ids[index]!, version: item.version })
            for (const found of [
              Float32Array.from(item.embedding),
              byClient[index]!.embedding,
              inProcess[index]!.embedding,
            ])
              expect(Vector.dot(found, vector)).toBeCloseTo(1, 6)
          }
          const rows = yield* manyRows({ user_ids, read })
          expect(rows.headers.get("content-type")).toBe("application/octet-stream")
          expect(rows.headers.get("x-space")).toBe("local:minilm-words:384")
          const end = rows.bytes.indexOf(10)
          expect(JSON.parse(Buffer.from(rows.bytes.subarray(0, end)).toString())).toEqual({
            read,
            space: "local:minilm-words:384",
            dimension_count: 384,
            user_ids: ["u-2", "guest-1", "u-1", "u-2"],
            versions: [0, 2, 3, 4].map((index) => json.embeddings[index].version),
          })
          expect(rows.bytes.length - end - 1).toBe(4 * 4 * 384)
        }
      }))

    it("an ETag holds until the answer changes", () =>
      Effect.gen(function* () {
        const [stored, taste, mean] = [
          "/api/user/u-2/embedding",
          "/api/user/u-2/embedding?read=taste",
          "/api/catalogue/mean",
        ] as const
        for (const path of [stored, taste, mean]) {
          const etag = yield* etagOf(path, { accept })
          for (const header of [etag, `W/"x", ${etag}`, "*"]) {
            const again = yield* request(path, { headers: { accept, "if-none-match": header } })
            expect([path, header, again.status, again.bytes.length]).toEqual([path, header, 304, 0])
            expect(again.headers.get("etag")).toBe(etag)
          }
          // The other form of the answer is another one.
          const other = yield* request(path, { headers: { "if-none-match": etag } })
          expect([path, other.status]).toEqual([path, 200])
        }
        const [before, tasteBefore] = [yield* etagOf(stored), yield* etagOf(taste)]
        expect(tasteBefore).toStartWith("W/")
        expect(yield* etagOf("/api/user/guest-9/embedding")).toBe("")
        yield* call("POST", "/api/user/u-2/product/p-3/view", {})
        yield* drained
        const after = yield* etagOf(stored)
        expect(after).not.toBe(before)
        expect(yield* etagOf(taste)).not.toBe(tasteBefore)
        // μ moved, and the user's own version did not.
        const tasteAfter = yield* etagOf(taste)
        yield* call("PUT", "/api/product/p-9/embedding", { text: "garden hose" })
        expect(yield* etagOf(taste)).not.toBe(tasteAfter)
        expect(yield* etagOf(stored)).toBe(after)
        // An alias answers as its owner, from the merge on.
        yield* call("POST", "/api/user/guest-9/product/p-1/view", {})
        yield* drained
        const guest = yield* etagOf("/api/user/guest-9/embedding")
        yield* call("POST", "/api/user/u-2/merge", { from: "guest-9" })
        yield* drained
        const merged = yield* etagOf("/api/user/guest-9/embedding")
        expect(merged).not.toBe(guest)
        expect(merged).toBe(yield* etagOf(stored))
      }))

    it("a thousand users are read at once, and aliases in one more read", () =>
      Effect.gen(function* () {
        const users = yield* UserEmbeddings
        let loads = 0
        const counted = UserEmbeddings.of({
          ...users,
          load: (ids) => {
            loads += 1
            return users.load(ids)
          },
        })
        const read = (user_ids: ReadonlyArray<string>) =>
          Effect.provideService(readHere(user_ids, "taste"), UserEmbeddings, counted)
        const found = yield* read(Array.from({ length: 1_000 }, (_, i) => `u-${i}`))
        expect(found.filter((one) => one !== null).map(({ user_id }) => user_id)).toEqual(["u-1", "u-2"])
        expect(loads).toBe(1)
        const guests = yield* read(["guest-1", "u-2"])
        expect(guests.map((one) => one?.user_id)).toEqual(["guest-1", "u-2"])
        expect(loads).toBe(3)
      }))
    it("erased users have no vector", () =>
      Effect.gen(function* () {
        yield* call("DELETE", "/api/user/u-1")
        yield* drained
        for (const read of ["stored", "taste"]) {
          expect((yield* request(`/api/user/guest-1/embedding?read=${read}`)).status).toBe(404)
          expect((yield* many({ user_ids: ["u-1", "guest-1"], read })).json.embeddings).toEqual([null, null])
        }
        const nothing = yield* manyRows({ user_ids: ["u-1"] })
        expect(JSON.parse(Buffer.from(nothing.bytes).toString())).toMatchObject({
          user_ids: [],
          versions: [],
        })
      }))
  })

suite("reads, embedded", embedded)
withServers(["rabbitmq", "mysql", "mongodb"], "reads, servers", () => suite("reads, servers", external))

layerSuite(
  "what is refused",
  apiAndWorker(embedded({ ...variables, API_TOKENS: "read=r,write=w" })),
  (it) => {
    const authorised = (token: string, path: string, body?: unknown) =>
      Effect.map(
        request(path, {
          method: body === undefined ? "GET" : "POST",
          headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
          ...(body !== undefined && { body: JSON.stringify(body) }),
        }),
        ({ bytes, headers, status }) => ({ status, headers, text: Buffer.from(bytes).toString() }),
      )

    it("a token of scope read is enough, and needed", () =>
      Effect.gen(function* () {
        for (const [path, body, status] of [
          ["/api/embeddings", { user_ids: ["u"] }, 200],
          ["/api/catalogue/mean", undefined, 200],
          ["/api/user/u/embedding?read=taste", undefined, 404],
        ] as const) {
          expect((yield* authorised("r", path, body)).status).toBe(status)
          expect((yield* authorised("w", path, body)).status).toBe(403)
        }
      }))

    it("bad input is named", () =>
      Effect.gen(function* () {
        const ids = (count: number) => Array.from({ length: count }, (_, i) => `u-${i}`)
        const full = ids(1_000).map((id) => id.padEnd(64, "x"))
        expect((yield* authorised("r", "/api/embeddings", { user_ids: full })).status).toBe(200)
        expect((yield* authorised("r", "/api/embeddings", { user_ids: ["u", "u", 42] })).status).toBe(200)
        for (const [path, body, field] of [
          ["/api/user/u/embedding?raed=taste", undefined, "raed"],
          ["/api/user/u/embedding?read=tastes", undefined, "read"],
          ["/api/user/u/embedding?read=", undefined, "read"],
          ["/api/catalogue/mean?read=taste", undefined, "read"],
          ["/api/embeddings?read=taste", { user_ids: ["u"] }, "read"],
          ["/api/embeddings", {}, "user_ids"],
          ["/api/embeddings", { user_ids: [] }, "user_ids"],
          ["/api/embeddings", { user_ids: ids(1_001) }, "user_ids"],
          ["/api/embeddings", { user_ids: "u-1" }, "user_ids"],
          ["/api/embeddings", { user_ids: ["u-1", null] }, "user_ids.1"],
          ["/api/embeddings", { user_ids: ["u-1", "a b"] }, "user_ids.1"],
          ["/api/embeddings", { user_ids: ["u"], read: "both" }, "read"],
          ["/api/embeddings", { user_ids: ["u"], format: "npy" }, "format"],
          ["/api/embeddings", { user_ids: ["u"], vector: true }, "vector"],
        ] as const) {
          const { status, text } = yield* authorised("r", path, body)
          expect([path, body, status]).toEqual([path, body, 422])
          expect(JSON.parse(text).errors.map((issue: { field: string }) => issue.field)).toEqual([field])
        }
      }))

    it("without products the mean is zero, and a page of another origin may read the headers", () =>
      Effect.gen(function* () {
        const answer = yield* request("/api/catalogue/mean", {
          headers: { authorization: "Bearer r", origin: "https://shop.example", accept },
        })
        expect(Vector.fromBytes(answer.bytes)).toEqual(new Float32Array(384))
        for (const name of ["etag", "x-space", "x-version"])
          expect(answer.headers.get("access-control-expose-headers")).toContain(name)
      }))
  },
)

let ahead = 0
const clock = (real: Clock.Clock): Clock.Clock => {
  const millis = () => real.unsafeCurrentTimeMillis() + ahead
  return {
    ...real,
    [Clock.ClockTypeId]: Clock.ClockTypeId,
    unsafeCurrentTimeMillis: millis,
    currentTimeMillis: Effect.sync(millis),
    currentTimeNanos: real.currentTimeNanos,
    unsafeCurrentTimeNanos: () => real.unsafeCurrentTimeNanos(),
    sleep: (duration) => real.sleep(duration),
  }
}
const movable = Layer.unwrapEffect(Effect.clockWith((real) => Effect.succeed(Layer.setClock(clock(real)))))

layerSuite("an hour later", Layer.provide(apiAndWorker(embedded(variables)), movable), (it) =>
  it("a taste has another ETag, a stored vector the same", () =>
    Effect.gen(function* () {
      for (const id of ["p-1", "p-2"]) yield* call("PUT", `/api/product/${id}/embedding`, { text: id })
      yield* call("POST", "/api/user/u-1/product/p-1/view", {})
      yield* drained
      const path = "/api/user/u-1/embedding"
      const [stored, taste] = [yield* etagOf(path), yield* etagOf(`${path}?read=taste`)]
      ahead = 3_600_000
      expect(yield* etagOf(path)).toBe(stored)
      const again = yield* request(`${path}?read=taste`, { headers: { "if-none-match": taste } })
      expect(again.status).toBe(200)
      expect(again.headers.get("etag")).not.toBe(taste)
    })),
)
