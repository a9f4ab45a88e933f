/** Segment's API: its real library for Node posts the calls of a shopping tour. */
import { expect } from "bun:test"
import { gzipSync } from "node:zlib"
import { HttpServer } from "@effect/platform"
import { Analytics, type HTTPFetchFn } from "@segment/analytics-node"
import { Chunk, Effect, Layer, Stream } from "effect"
import * as Api from "../../src/programs/Api.ts"
import * as Worker from "../../src/programs/Worker.ts"
import * as Pruner from "../../src/services/operate/Pruner.ts"
import { InteractionLog, type LogFilter } from "../../src/services/ports/InteractionLog.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as Telemetry from "../../src/services/Telemetry.ts"
import { layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import { layerSuite } from "../support/effect.ts"
import { drained, eventually, storeProduct } from "../support/pipeline.ts"
import { embedded } from "../support/stacks.ts"

/** Runs once, after purchases of an order were looked for. */
let meanwhile: Effect.Effect<unknown> = Effect.void
const looking = Layer.effect(
  InteractionLog,
  Effect.map(InteractionLog, (log) => ({
    ...log,
    stream: (filter: LogFilter) => {
      if (filter.type !== "product_purchase") return log.stream(filter)
      const once = Effect.suspend(() => {
        const run = meanwhile
        meanwhile = Effect.void
        return run
      })
      return Stream.concat(log.stream(filter), Stream.drain(Stream.fromEffect(once)))
    },
  })),
)

const system = Layer.mergeAll(Api.layer.pipe(Layer.provide(looking)), Worker.layer, Pruner.layer).pipe(
  Layer.provideMerge(eventVectors),
  Layer.provideMerge(
    embedded({
      API_PORT: "0",
      WORKER_PORT: "0",
      API_HOST: "127.0.0.1",
      API_CORS_ORIGINS: "https://shop.example",
      API_TOKENS: "write=browser,write+person=server,read=reader",
      EVENT_WEIGHTS: "add_to_cart:0.8",
    }),
  ),
)

const address = Effect.map(HttpServer.HttpServer, ({ address }) =>
  address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : "",
)
const basic = (token: string) => ({ authorization: `Basic ${btoa(`${token}:`)}` })
const post = (call: string, sent: unknown, headers: Record<string, string> = basic("browser")) =>
  Effect.flatMap(address, (base) =>
    Effect.promise(async () => {
      const response = await fetch(`${base}/v1/${call}`, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: sent instanceof Uint8Array ? Buffer.from(sent) : JSON.stringify(sent),
      })
      const body: Record<string, unknown> = Object(await response.json())
      return { status: response.status, body }
    }),
  )
const rowsOf = (user: string) =>
  Effect.flatMap(InteractionLog, (log) =>
    Effect.map(Stream.runCollect(log.stream({ user })), (rows) =>
      Chunk.toReadonlyArray(rows).map(({ interaction }) => interaction),
    ),
  )
const subjects = (user: string) =>
  Effect.map(rowsOf(user), (rows) =>
    rows.map(({ event_type, product_id, search_phrase }) => `${event_type} ${product_id ?? search_phrase}`),
  )

/**
 * Makes calls of the library. Succeeds with the answers of the API; fails if the library reports an error. The first answer may
 * get lost.
 */
const withLibrary = (make: (analytics: Analytics) => void, losesFirst = false) =>
  Effect.flatMap(address, (host) =>
    Effect.promise(async () => {
      const answers: Array<unknown> = []
      const httpClient: HTTPFetchFn = async (url, options) => {
        const response = await fetch(url, options as RequestInit)
        answers.push(await response.clone().json())
        if (losesFirst && answers.length === 1) throw new Error("the connection is lost")
        return response
      }
      const errors: Array<unknown> = []
      const analytics = new Analytics({ writeKey: "server", host, flushAt: 5, httpClient })
      analytics.on("error", (error) => errors.push(error))
      make(analytics)
      await analytics.closeAndFlush({ timeout: 10_000 })
      expect(errors).toEqual([])
      return answers as ReadonlyArray<{
        readonly recorded: number
        readonly duplicates: number
        readonly ignored: object
      }>
    }),
  )
/** Of the user, once as many events count. */
const embeddingOf = (user: string, events: number) =>
  eventually(
    Effect.flatMap(UserEmbeddings, (users) =>
      Effect.map(users.load([user]), (records) => {
        const embedding = records.get(user)?.embedding
        return embedding?.event_count === events ? embedding : undefined
      }),
    ),
  )

const sum = (answers: ReadonlyArray<{ readonly recorded: number; readonly duplicates: number }>) => ({
  recorded: answers.reduce((total, { recorded }) => total + recorded, 0),
  duplicates: answers.reduce((total, { duplicates }) => total + duplicates, 0),
})

layerSuite("Segment's API", system, (it) => {
  const began = Date.now() - 3_600_000
  const at = (minute: number) => new Date(began + minute * 60_000)
  const tour = (analytics: Analytics) => {
    const track = (minute: number, event: string, properties: Record<string, unknown>) =>
      analytics.track({
        userId: "tour",
        messageId: `tour-${minute}`,
        timestamp: at(minute),
        event,
        properties,
        context: { ip: "10.1.2.3" },
      })
    analytics.page({ userId: "tour", messageId: "tour-page", name: "Home" })
    track(1, "Products Searched", { query: "wireless headphones" })
    track(2, "Product List Viewed", { list_id: "audio", products: [{ product_id: "101" }] })
    track(3, "Product Clicked", { product_id: "101", position: 3 })
    track(4, "Product Viewed", {
      product_id: "101",
      price: 79.5,
      variant: { colour: "red" },
      note: "x".repeat(5_000),
    })
    track(5, "Product Added", { product_id: 102, cart_id: "c-1" })
    track(6, "Order Completed", {
      order_id: "o-1",
      total: 99,
      products: [
        { product_id: "101", quantity: 1 },
        { product_id: "102", quantity: 2 },
      ],
    })
    analytics.group({ userId: "tour", messageId: "tour-group", groupId: "g-1" })
  }

  it("the library's calls of a shopping tour are recorded as what they mean, and once", () =>
    Effect.gen(function* () {
      const first = yield* withLibrary(tour)
      expect(sum(first)).toEqual({ recorded: 6, duplicates: 0 })
      const rows = yield* rowsOf("tour")
      expect(yield* subjects("tour")).toEqual([
        "search wireless headphones",
        "product_click 101",
        "product_view 101",
        "add_to_cart 102",
        ...["product_purchase 101", "product_purchase 102"].toSorted(() =>
          rows[4]?.product_id === "101" ? 0 : -1,
        ),
      ])
      expect(rows.map(({ occurred_at }) => occurred_at)).toEqual(
        [1, 3, 4, 5, 6, 6].map((minute) => at(minute).toISOString()),
      )
      expect(rows[2]?.metadata).toEqual({ price: 79.5 })
      expect(
        rows.find(({ product_id, event_type }) => event_type === "product_purchase" && product_id === "102")
          ?.metadata,
      ).toEqual({
        order_id: "o-1",
        total: 99,
        quantity: 2,
      })
      expect(sum(yield* withLibrary(tour))).toEqual({ recorded: 0, duplicates: 6 })
      expect(yield* rowsOf("tour")).toEqual(rows)
    }))

  it("a batch that the library sends again, because the answer was lost, counts once", () =>
    Effect.gen(function* () {
      const calls = (analytics: Analytics) => {
        for (const minute of [1, 2, 3])
          analytics.track({
            anonymousId: "again",
            timestamp: at(minute),
            event: "Product Viewed",
            properties: { product_id: "101" },
          })
        analytics.identify({ userId: "twice", anonymousId: "again" })
      }
      const answers = yield* withLibrary(calls, true)
      expect(answers.map(({ duplicates, recorded }) => [recorded, duplicates])).toEqual([
        [4, 0],
        [0, 4],
      ])
      expect(yield* subjects("twice")).toHaveLength(4)
    }))

  it("a guest's tour, order, refund and login give the embedding of what is left", () =>
    Effect.gen(function* () {
      const left = [
        ["search", "a quiet train ride"],
        ["product_view", "tent"],
        ["add_to_cart", "tent"],
        ["product_purchase", "tent"],
      ] as const
      for (const id of ["tent", "boots", "lamp"]) yield* storeProduct(id, `a ${id} for the mountains`)
      const items = left.map(([event_type, subject], index) => ({
        user_id: "twin",
        event_type,
        [event_type === "search" ? "search_phrase" : "product_id"]: subject,
        occurred_at: at(10 + index).toISOString(),
      }))
      yield* Effect.flatMap(address, (base) =>
        Effect.promise(() =>
          fetch(`${base}/api/interactions`, {
            method: "POST",
            headers: { "content-type": "application/json", authorization: "Bearer browser" },
            body: JSON.stringify(items),
          }),
        ),
      )
      yield* withLibrary((analytics) => {
        const track = (
          minute: number,
          event: string,
          who: { userId: string } | { anonymousId: string },
          properties: object,
        ) => analytics.track({ ...who, timestamp: at(minute), event, properties })
        const guest = { anonymousId: "shy" }
        track(10, "Products Searched", guest, { query: "a quiet train ride" })
        track(11, "Product Viewed", guest, { product_id: "tent" })
        track(12, "Product Added", guest, { product_id: "tent" })
        analytics.identify({ userId: "member", anonymousId: "shy" })
        track(
          13,
          "Order Completed",
          { userId: "member" },
          { order_id: "o-9", products: ["tent", "boots", "lamp"].map((product_id) => ({ product_id })) },
        )
        track(
          14,
          "Order Refunded",
          { userId: "member" },
          { order_id: "o-9", products: [{ product_id: "boots" }, { product_id: "lamp" }] },
        )
      })
      const [member, twin] = [yield* embeddingOf("member", 4), yield* embeddingOf("twin", 4)]
      const distance = Math.max(
        ...member.embedding.map((value, index) => Math.abs(value - twin.embedding[index]!)),
      )
      expect(distance).toBeLessThan(1e-5)
      expect(member.metadata).toMatchObject({ purchase_count: 1, search_count: 1, add_to_cart_count: 1 })
    }))

  const viewed = (more: object) => ({
    type: "track",
    event: "Product Viewed",
    properties: { product_id: "1" },
    ...more,
  })

  const order = (more: object, products: ReadonlyArray<string> = ["1", "2"]) => ({
    type: "track",
    event: "Order Completed",
    properties: { order_id: 77, products: products.map((product_id) => ({ product_id })) },
    ...more,
  })

  it("what has no meaning is counted and answered 200", () =>
    Effect.gen(function* () {
      const { body, status } = yield* post("batch", {
        batch: [
          viewed({ userId: "none@shop.example" }),
          viewed({}),
          viewed({ userId: "u-1", properties: { product_id: "a b" } }),
          viewed({ userId: "u-1", messageId: "m-1" }),
          viewed({ userId: "u-1", messageId: "m-1", properties: { product_id: "2" } }),
          viewed({ userId: "u-1", event: "Coupon Entered" }),
          order({ userId: "u-1" }, Array(1_001).fill("1")),
          { type: "screen", userId: "u-1" },
          null,
          [],
          "text",
        ],
        sentAt: "2026-01-01T00:00:00Z",
      })
      expect([status, body]).toEqual([
        200,
        {
          success: true,
          recorded: 1,
          duplicates: 0,
          waiting: 0,
          ignored: { invalid: 4, no_meaning: 5, key_reused: 1 },
        },
      ])
      for (const call of ["page", "screen", "group"])
        expect((yield* post(call, { userId: "u-1" })).body).toMatchObject({ ignored: { no_meaning: 1 } })
      expect(yield* Telemetry.prometheus).toContain(
        'user_embeddings_segment_calls_total{outcome="key_reused"} 1',
      )
    }))

  it("a timestamp in the future becomes now, and the anonymous id stands for an unknown user", () =>
    Effect.gen(function* () {
      const before = Date.now()
      const call = viewed({
        anonymousId: "guest-7",
        messageId: "m-future",
        timestamp: new Date(before + 86_400_000).toISOString(),
      })
      expect((yield* post("track", call)).body).toMatchObject({ recorded: 1 })
      expect((yield* post("track", call)).body).toMatchObject({ duplicates: 1 })
      const [row] = yield* rowsOf("guest-7")
      expect(Date.parse(row!.occurred_at)).toBeWithin(before, Date.now() + 1)
    }))

  const refund = (more: object, products?: ReadonlyArray<string>) => ({
    type: "track",
    event: "Order Refunded",
    properties: {
      order_id: "77",
      ...(products && { products: products.map((product_id) => ({ product_id })) }),
    },
    ...more,
  })
  const server = basic("server")
  const refunded = (user: string) =>
    Effect.map(rowsOf(user), (rows) =>
      rows
        .flatMap(({ event_type, product_id }) => (event_type === "retraction" ? [product_id] : []))
        .toSorted(),
    )

  it("a refund takes the purchases of its order back, all or those that it names, and once", () =>
    Effect.gen(function* () {
      yield* post("track", order({ userId: "r-1", messageId: "o" }, ["1", "2", "3"]), server)
      yield* post(
        "track",
        {
          ...order({ userId: "r-1", messageId: "p" }),
          properties: { order_id: 78, products: [{ product_id: "1" }] },
        },
        server,
      )
      const part = refund({ userId: "r-1", messageId: "f-1" }, ["2"])
      expect((yield* post("track", part, server)).body).toMatchObject({ recorded: 1, waiting: 0 })
      expect(yield* refunded("r-1")).toEqual(["2"])
      expect((yield* post("track", part, server)).body).toMatchObject({ recorded: 0, duplicates: 1 })
      const all = { ...refund({ userId: "r-1", messageId: "f-2" }), event: "Order Cancelled" }
      expect((yield* post("track", all, server)).body).toMatchObject({ recorded: 2, duplicates: 1 })
      expect(yield* refunded("r-1")).toEqual(["1", "2", "3"])
    }))

  it("a refund waits for its order, until the user is erased", () =>
    Effect.gen(function* () {
      for (const user of ["r-2", "r-3"])
        expect((yield* post("track", refund({ userId: user }, ["2", "9"]), server)).body).toMatchObject({
          recorded: 0,
          waiting: 1,
        })
      expect((yield* post("track", order({ userId: "r-2", messageId: "o" }), server)).body).toMatchObject({
        recorded: 2,
      })
      yield* drained
      expect(yield* refunded("r-2")).toEqual(["2"])
      const log = yield* InteractionLog
      yield* log.erase("r-3", yield* log.maxId)
      expect((yield* post("track", order({ userId: "r-3", messageId: "o" }), server)).body).toMatchObject({
        recorded: 2,
      })
      yield* drained
      expect(yield* refunded("r-3")).toEqual([])
    }))

  it("a refund whose order arrives while it looks for purchases is found by the order", () =>
    Effect.gen(function* () {
      const who = { userId: "r-4" }
      meanwhile = Effect.provide(
        post("track", order({ ...who, messageId: "o" }), server),
        yield* Effect.context<HttpServer.HttpServer>(),
      )
      yield* post("track", refund({ ...who, messageId: "f" }), server)
      yield* drained
      expect(yield* refunded("r-4")).toEqual(["1", "2"])
    }))

  it("a refund finds the order of a guest who becomes the customer later, also while it looks for purchases", () =>
    Effect.gen(function* () {
      const login = (number: number) =>
        Effect.provide(
          post("identify", { userId: `r-${number}`, anonymousId: `shy-${number}` }, server),
          context,
        )
      const context = yield* Effect.context<HttpServer.HttpServer>()
      for (const number of [5, 6])
        yield* post("track", order({ anonymousId: `shy-${number}`, messageId: `o-${number}` }), server)
      yield* drained
      expect((yield* post("track", refund({ userId: "r-5" }), server)).body).toMatchObject({ waiting: 1 })
      yield* login(5)
      yield* drained
      meanwhile = login(6)
      expect((yield* post("track", refund({ userId: "r-6" }), server)).body).toMatchObject({ waiting: 1 })
      yield* drained
      for (const user of ["r-5", "r-6"]) expect(yield* refunded(user)).toEqual(["1", "2"])
    }))

  it("a refund of a pruned purchase is answered as such, and one that was taken back before is a duplicate", () =>
    Effect.gen(function* () {
      const timestamp = "2025-01-01T00:00:00Z"
      for (const id of ["1", "2"]) yield* storeProduct(id, `a book, volume ${id}`)
      yield* post("track", order({ anonymousId: "shy-7", messageId: "o-7", timestamp }), server)
      yield* post("track", refund({ anonymousId: "shy-7" }, ["2"]), server)
      yield* post("identify", { userId: "r-7", anonymousId: "shy-7" }, server)
      yield* drained
      const { prune } = yield* Pruner.Pruner
      expect(yield* prune({ before: "2025-02-01T00:00:00.000Z" })).toMatchObject({ events: 2 })
      const answer = (products?: ReadonlyArray<string>) =>
        Effect.map(post("track", refund({ userId: "r-7" }, products), server), ({ body }) => body)
      const none = { success: true, recorded: 0, duplicates: 0, waiting: 0, ignored: {} }
      expect(yield* answer()).toEqual({ ...none, duplicates: 1, ignored: { pruned: 1 } })
      expect(yield* answer(["1"])).toEqual({ ...none, ignored: { pruned: 1 } })
      expect(yield* answer(["2"])).toEqual({ ...none, duplicates: 1 })
      expect(yield* answer(["3"])).toEqual({ ...none, waiting: 1 })
      expect(yield* refunded("r-7")).toEqual([])
      const log = yield* InteractionLog
      yield* log.erase("shy-7", yield* log.maxId)
      expect(yield* log.pruned.purchases("shy-7", ["77"])).toEqual([])
    }))

  const owner = (user: string) =>
    Effect.flatMap(InteractionLog, (log) => Effect.map(log.person(user), ({ user_id }) => user_id))

  it("identify and alias make a guest the customer, once; a contradiction is counted", () =>
    Effect.gen(function* () {
      const answers = yield* withLibrary((analytics) => {
        analytics.identify({
          userId: "customer",
          anonymousId: "guest-1",
          traits: { email: "a@shop.example" },
        })
        analytics.identify({ userId: "customer", traits: { plan: "gold" } })
        analytics.identify({ userId: "customer", anonymousId: "customer" })
        analytics.alias({ userId: "customer", previousId: "guest-2" })
        analytics.identify({ userId: "customer", anonymousId: "guest-1" })
      })
      expect<unknown>(answers).toEqual([
        { success: true, recorded: 2, duplicates: 1, waiting: 0, ignored: { no_meaning: 2 } },
      ])
      for (const guest of ["guest-1", "guest-2"]) expect(yield* owner(guest)).toBe("customer")
      const other = { userId: "somebody", anonymousId: "guest-1" }
      expect((yield* post("identify", other, server)).body).toMatchObject({ ignored: { refused: 1 } })
      expect((yield* post("alias", { userId: "customer", previousId: "a b" }, server)).body).toMatchObject({
        ignored: { invalid: 1 },
      })
    }))

  it("a token with the scope write alone merges nobody and takes nothing back", () =>
    Effect.gen(function* () {
      const login = { type: "identify", userId: "victim", anonymousId: "guest-9" }
      yield* post("track", order({ userId: "victim", messageId: "o" }), server)
      for (const [call, body] of [
        ["identify", login],
        ["alias", { userId: "victim", previousId: "guest-9" }],
        ["track", refund({ userId: "victim" })],
      ] as const)
        expect([call, (yield* post(call, body)).status]).toEqual([call, 403])
      expect((yield* post("identify", { userId: "victim" })).status).toBe(200)
      const batch = { batch: [login, refund({ userId: "victim" }), viewed({ userId: "victim" })] }
      expect((yield* post("batch", batch)).body).toMatchObject({ recorded: 1, ignored: { missing_scope: 2 } })
      expect([yield* owner("guest-9"), yield* refunded("victim")]).toEqual(["guest-9", []])
    }))

  it("bodies, tokens and limits", () =>
    Effect.gen(function* () {
      const one = viewed({ userId: "u-2", messageId: "m-2" })
      expect((yield* post("track", one, {})).status).toBe(401)
      expect((yield* post("track", one, basic("unknown"))).status).toBe(401)
      expect((yield* post("track", one, basic("reader"))).status).toBe(403)
      expect((yield* post("track", one, { authorization: "Bearer browser" })).body.recorded).toBe(1)
      expect((yield* post("nothing", one)).status).toBe(422)
      expect((yield* post("batch", one)).status).toBe(422)
      expect((yield* post("batch", [])).status).toBe(422)
      const batch = {
        batch: Array.from({ length: 250 }, (_, i) =>
          viewed({ userId: "u-2", messageId: `z-${i}`, timestamp: at(i / 10).toISOString() }),
        ),
      }
      const zipped = { ...basic("browser"), "content-encoding": "gzip" }
      expect((yield* post("batch", gzipSync(JSON.stringify(batch)), zipped)).body.recorded).toBe(250)
      const large = { batch: [], padding: "x".repeat(500 * 1024) }
      expect((yield* post("batch", gzipSync(JSON.stringify(large)), zipped)).status).toBe(413)
      expect((yield* post("batch", large)).status).toBe(413)
    }))

  it("JSON may be sent as a form or as text, as RudderStack's library does, but not by a page of another origin", () =>
    Effect.gen(function* () {
      const send = (type: string, origin: Record<string, string> = {}) => {
        const zipped = gzipSync(JSON.stringify({ batch: [viewed({ userId: "u-3", messageId: "m-3" })] }))
        const headers = { ...basic("browser"), "content-type": type, "content-encoding": "gzip", ...origin }
        return Effect.map(post("batch", zipped, headers), ({ status }) => status)
      }
      for (const type of ["application/x-www-form-urlencoded", "text/plain"]) {
        expect([type, yield* send(type)]).toEqual([type, 200])
        expect([type, yield* send(type, { origin: "https://shop.example" })]).toEqual([type, 200])
        expect([type, yield* send(type, { origin: "https://other.example" })]).toEqual([type, 415])
      }
      expect(yield* send("multipart/form-data")).toBe(415)
    }))

  it("Basic is for Segment's API alone", () =>
    Effect.gen(function* () {
      const base = yield* address
      const { status } = yield* Effect.promise(() =>
        fetch(`${base}/api/user/1/product/2/view`, { method: "POST", headers: basic("browser") }),
      )
      expect(status).toBe(401)
    }))
})
