/** The dependency-free client, against a server that refuses, is slow, or breaks connections. */
import { afterEach, describe, expect, test } from "bun:test"
import { createClient, Problem } from "../../src/client/index.ts"

interface Seen {
  readonly method: string
  readonly path: string
  readonly key: string | null
  readonly authorization: string | null
  // biome-ignore lint/suspicious/noExplicitAny: the bodies have many shapes
  readonly body: any
}
const servers: Array<Bun.Server<undefined>> = []
afterEach(() => {
  for (const server of servers.splice(0)) server.stop(true)
})

/** A client of a server that gives these answers one after the other, and what the server has seen. */
const clientOf = (answer: (attempt: number, seen: Seen) => Response | Promise<Response>, options = {}) => {
  const seen: Array<Seen> = []
  const server = Bun.serve({
    port: 0,
    fetch: async (request) => {
      const { pathname, search } = new URL(request.url)
      const text = await request.text()
      seen.push({
        method: request.method,
        path: pathname + search,
        key: request.headers.get("idempotency-key"),
        authorization: request.headers.get("authorization"),
        body: text === "" ? undefined : JSON.parse(text),
      })
      return answer(seen.length, seen.at(-1)!)
    },
  })
  servers.push(server)
  return { client: createClient({ url: `${server.url}`, token: "secret", ...options }), seen }
}
const problem = (status: number, headers = {}) =>
  Response.json(
    {
      type: "about:blank",
      title: "",
      status,
      detail: "because",
      errors: [{ field: "query", detail: "is bad" }],
    },
    { status, headers: { "content-type": "application/problem+json", ...headers } },
  )
const soon = { "retry-after": "0.02" }

describe("the client", () => {
  test("repeats a request after 503, 429 and a slow answer, as the same interaction", async () => {
    const { client, seen } = clientOf(
      async (attempt) => {
        if (attempt === 1) return problem(503, soon)
        if (attempt === 2) return problem(429, soon)
        if (attempt === 3) await Bun.sleep(400)
        return Response.json({ message_id: "m" }, { status: 201 })
      },
      { timeout: 200 },
    )
    expect(await client.search("a/b", { query: "x" })).toMatchObject({ message_id: "m" })
    expect(seen).toHaveLength(4)
    expect(new Set(seen.map(({ key }) => key)).size).toBe(1)
    expect(seen[0]).toMatchObject({
      key: expect.stringMatching(/^[0-9a-f-]{36}$/),
      path: "/api/user/a%2Fb/search",
      authorization: "Bearer secret",
      body: { query: "x" },
    })
  })

  test("gives up after as many repetitions as it may make, with the problem", async () => {
    const { client, seen } = clientOf(() => problem(503, soon), { retries: 2 })
    const refused = await client.merge("u", "guest").catch((error: unknown) => error)
    expect(refused).toBeInstanceOf(Problem)
    expect(refused).toMatchObject({ status: 503, detail: "because", errors: [{ field: "query" }] })
    expect(seen).toHaveLength(3)
  })

  test("does not repeat what can never succeed, and understands answers of proxies", async () => {
    const { client, seen } = clientOf((attempt) =>
      attempt === 1 ? problem(422) : new Response("<h1>Bad Gateway</h1>", { status: 502 }),
    )
    const failure = (error: unknown) => String(error)
    expect(await client.getProduct("p").catch(failure)).toBe("Problem: 422: because")
    expect(await client.removeProduct("p").catch(failure)).toBe("Problem: 502: <h1>Bad Gateway</h1>")
    expect(seen.map(({ method }) => method)).toEqual(["GET", "DELETE"])
  })

  test("sends any number of items, 1,000 at once, each with a time, and adds the reports up", async () => {
    const { client, seen } = clientOf((_, { body }) =>
      Response.json({
        accepted: body.length - 1,
        duplicates: 0,
        rejected: 1,
        results: [{ index: body.length - 1, status: 422 }],
      }),
    )
    const items = Array.from({ length: 2_500 }, (_, n) => ({
      user_id: `u-${n}`,
      event_type: "search" as const,
      search_phrase: "x",
    }))
    const report = await client.record(items)
    expect(report).toMatchObject({ accepted: 2_497, rejected: 3 })
    expect(report.results.map(({ index }) => index)).toEqual([999, 1_999, 2_499])
    expect(seen.map(({ body }) => body.length)).toEqual([1_000, 1_000, 500])
    expect(Date.parse(seen[2]!.body[0].occurred_at)).toBeCloseTo(Date.now(), -4)
    expect(items[0]).not.toHaveProperty("occurred_at")
  })

  test("sends a retraction without a time, because it has that of what it takes back", async () => {
    const results = [{ index: 0, status: 201 }]
    const { client, seen } = clientOf(() => Response.json({ accepted: 1, results }))
    const taken = { user_id: "u", event_type: "retraction" as const, reference: "a".repeat(64) }
    await client.record([taken])
    expect(seen[0]!.body).toEqual([taken])
  })

  test("reads a vector as float32", async () => {
    const { client, seen } = clientOf(() => new Response(Float32Array.of(0.6, -0.8)))
    expect(await client.vector("u")).toEqual(Float32Array.of(0.6, -0.8))
    expect(seen[0]!.path).toBe("/api/user/u/embedding?read=taste")
  })
})
