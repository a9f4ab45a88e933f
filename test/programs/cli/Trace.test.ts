/** `trace` with a stand-in for Jaeger's query API. */
import { afterAll, beforeAll, expect, test } from "bun:test"
import { bundledProgram } from "../../support/bundledProgram.ts"

const main = await bundledProgram("src/programs/main.ts")
const traceId = "4bf92f3577b34da6a3ce929d0e0e4736"
const messageId = "0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4"
const t0 = 1_770_000_000_000_000
const tag = (key: string, value: unknown) => ({ key, value })
/** A span in Jaeger's format. If a span both has a parent and links to it, Jaeger answers only the link. */
const span = (
  id: string,
  parent: string | null,
  name: string,
  from: number,
  took: number,
  processID: string,
  ...tags: object[]
) => ({
  traceID: traceId,
  spanID: id,
  operationName: name,
  references:
    parent === null
      ? []
      : name === "process"
        ? [
            { refType: "FOLLOWS_FROM", traceID: "f".repeat(32), spanID: "99" },
            { refType: "FOLLOWS_FROM", traceID: traceId, spanID: parent },
          ]
        : [{ refType: "CHILD_OF", traceID: traceId, spanID: parent }],
  startTime: t0 + from,
  duration: took,
  tags,
  processID,
})
const trace = {
  traceID: traceId,
  // The spans are not in order, and the span of the client is missing.
  spans: [
    span("5", "4", "bulkWrite user_embeddings", 41_000, 3_000, "p2", tag("span.kind", "client")),
    span("1", "00", "POST /api/user/{userId}/search", 0, 9_000, "p1", tag("span.kind", "server")),
    span("2", "1", "INSERT user_interactions", 1_000, 6_500, "p1", tag("span.kind", "client")),
    span(
      "6",
      "1",
      "publish user_events:user.embedding.search",
      10_000,
      2_000,
      "p1",
      tag("span.kind", "producer"),
    ),
    span(
      "3",
      "6",
      "process",
      15_000,
      4_000,
      "p2",
      tag("span.kind", "consumer"),
      tag("error", true),
      tag("error.type", "UserEmbeddingsError.timeout"),
    ),
    span(
      "4",
      "6",
      "process",
      40_000,
      5_000,
      "p2",
      tag("span.kind", "consumer"),
      tag("user_embeddings.attempt", 2),
    ),
  ],
  processes: { p1: { serviceName: "user-embeddings-api" }, p2: { serviceName: "user-embeddings-worker" } },
}

let asked: Array<URL> = []
let server: ReturnType<typeof Bun.serve>
beforeAll(() => {
  server = Bun.serve({
    port: 0,
    fetch: (request) => {
      const url = new URL(request.url)
      asked.push(url)
      if (url.pathname === "/api/services")
        return Response.json({ data: ["user-embeddings-api", "user-embeddings-worker"] })
      if (url.pathname === `/api/traces/${traceId}`) return Response.json({ data: [trace] })
      if (url.pathname.startsWith("/api/traces/")) return Response.json({ data: null }, { status: 404 })
      const tags: Record<string, string> = JSON.parse(url.searchParams.get("tags") ?? "{}")
      return Response.json({ data: tags["messaging.message.id"] === messageId ? [trace] : [] })
    },
  })
})
afterAll(() => server.stop(true))

const run = async (args: ReadonlyArray<string>, url = server.url.href) => {
  asked = []
  const child = Bun.spawn([process.execPath, main, "trace", ...args], {
    env: { ...process.env, JAEGER_URL: url },
    stdout: "pipe",
    stderr: "pipe",
  })
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { out, err, code }
}

const tree = `trace ${traceId}: 6 spans, 45.0 ms
SPAN                                              SERVICE                 KIND      START ms  TOOK ms
POST /api/user/{userId}/search                    user-embeddings-api     server        +0.0      9.0
├─ INSERT user_interactions                       user-embeddings-api     client        +1.0      6.5
└─ publish user_events:user.embedding.search      user-embeddings-api     producer     +10.0      2.0
   ├─ process                                     user-embeddings-worker  consumer     +15.0      4.0  failed: UserEmbeddingsError.timeout
   └─ process                                     user-embeddings-worker  consumer     +40.0      5.0  attempt 2
      └─ bulkWrite user_embeddings                user-embeddings-worker  client       +41.0      3.0
`

test("prints a trace as a tree in the order of time, with attempts and failures", async () => {
  const { code, out } = await run([traceId])
  const squeezed = (text: string) => text.replace(/(?<=\S) {2,}/g, "  ")
  expect(squeezed(out)).toBe(squeezed(tree))
  expect(code).toBe(0)
})

test("finds a message by its id in every service and prints its trace once", async () => {
  const { code, out } = await run([messageId])
  expect(out.match(/^trace /gm)).toHaveLength(1)
  const [list, ...searched] = asked.map(({ searchParams }) => searchParams.get("service"))
  expect(list).toBeNull()
  expect(searched.toSorted()).toEqual(["user-embeddings-api", "user-embeddings-worker"])
  expect(code).toBe(0)
})

test("prints every span with its times and attributes as JSON", async () => {
  const { out } = await run([traceId, "--json"])
  const [found] = JSON.parse(out)
  expect(found).toMatchObject({ trace_id: traceId, duration_ms: 45 })
  expect(found.spans.map(({ span_id }: { span_id: string }) => span_id)).toEqual([
    "1",
    "2",
    "6",
    "3",
    "4",
    "5",
  ])
  expect(found.spans[3]).toEqual({
    span_id: "3",
    parent_id: "6",
    name: "process",
    service: "user-embeddings-worker",
    kind: "consumer",
    start_ms: 15,
    duration_ms: 4,
    error: "UserEmbeddingsError.timeout",
    attributes: { "span.kind": "consumer", error: true, "error.type": "UserEmbeddingsError.timeout" },
  })
})

test("an unknown trace or an unreachable Jaeger is a failure", async () => {
  const unknown = await run(["0".repeat(31).concat("1")])
  expect([unknown.code, unknown.err]).toEqual([1, expect.stringContaining("knows no trace")])
  const away = await run([traceId], "http://127.0.0.1:9")
  expect([away.code, away.err]).toEqual([1, expect.stringContaining("JAEGER_URL")])
})
