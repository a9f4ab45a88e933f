/**
 * Traces as a collector receives them: API and worker are processes of their own, on both stacks. The whole tree is
 * asserted, field by field.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Program, until } from "../failures/Program.ts"
import { openAiStandIn } from "../support/openAiStandIn.ts"
import { otlpReceiver, type Span, treeOf } from "../support/otlpReceiver.ts"
import { freshMongo, freshMysql, freshRabbit, withServers } from "../support/servers.ts"

setDefaultTimeout(60_000)

type Variables = Readonly<Record<string, string>>
interface Stack {
  readonly variables: Variables
  readonly drop: () => Promise<unknown>
}

const embedded = async (): Promise<Stack> => {
  const folder = mkdtempSync(join(tmpdir(), "tracing-"))
  return {
    variables: { DATA_DIR: folder },
    drop: async () => rmSync(folder, { recursive: true, force: true }),
  }
}
const external = async (): Promise<Stack> => {
  const [rabbit, mysql] = await Promise.all([freshRabbit(), freshMysql()])
  const mongo = freshMongo()
  return {
    variables: {
      RABBITMQ_DSN: rabbit.dsn,
      MYSQL_URL: mysql.url,
      MONGODB_URL: mongo.url,
      MONGODB_DATABASE: mongo.database,
    },
    drop: () => Promise.all([rabbit.drop(), mysql.drop(), mongo.drop()]),
  }
}

/** What the stacks call their steps. */
const onServers = {
  system: "rabbitmq",
  load: "find user_embeddings",
  save: "bulkWrite user_embeddings",
  product: "find product_embeddings",
  phrases: { load: ["find phrase_embeddings"], save: ["bulkWrite phrase_embeddings"] },
}
const onSqlite = {
  system: "sqlite",
  load: "load user_embeddings",
  save: "save user_embeddings",
  product: "load product_embeddings",
  phrases: { load: [], save: [] },
}

const newTraceId = () => crypto.randomUUID().replaceAll("-", "")
const parentId = "b7ad6b7169203331"
const traceparent = (traceId: string, flags: "00" | "01" = "01") => `00-${traceId}-${parentId}-${flags}`

const suite = (name: string, make: () => Promise<Stack>, words: typeof onServers | typeof onSqlite) =>
  describe(name, () => {
    const collector = otlpReceiver()
    const openAi = openAiStandIn()
    const programs: Array<Program> = []
    let stack: Stack
    let environment: Variables = {}
    let api = ""

    const start = (...args: ReadonlyArray<string>) => {
      const program = new Program(args, environment)
      programs.push(program)
      return program
    }
    const startWorker = async () => {
      const worker = start("worker")
      await until("worker is ready", 30, async () => {
        const answer = await fetch(`http://127.0.0.1:${environment.WORKER_PORT}/livez`).catch(() => undefined)
        return answer?.ok ? true : undefined
      })
      return worker
    }
    const post = (path: string, body: unknown, headers: Variables = {}) =>
      fetch(`${api}${path}`, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: JSON.stringify(body),
      })
    /** The trace, once a span of this name has come so often, with all that belongs to it. */
    const traced = (traceId: string, last: string, times = 1): Promise<ReadonlyArray<Span>> =>
      until(`${last} ×${times}`, 30, () => {
        const spans = collector.trace(traceId)
        const ids = new Set([...spans.map(({ spanId }) => spanId), parentId])
        const whole = spans.every(({ parent }) => parent === undefined || ids.has(parent))
        const marked = spans.some(({ name }) => name === "UPDATE user_interactions")
        return whole && marked && spans.filter(({ name }) => name.startsWith(last)).length >= times
          ? spans
          : undefined
      })

    beforeAll(async () => {
      stack = await make()
      const free = Bun.serve({ port: 0, fetch: () => new Response() })
      environment = {
        ...stack.variables,
        API_PORT: "0",
        WORKER_PORT: String(free.port),
        WORKER_RETRY_DELAY: "100",
        OPENAI_API_KEY: "sk-secret-of-the-test",
        OPENAI_BASE_URL: openAi.url,
        OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
        OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
        OTEL_BSP_SCHEDULE_DELAY: "50",
        OTEL_METRIC_EXPORT_INTERVAL: "300",
      }
      await free.stop(true)
      expect(await start("setup").ended()).toBe(0)
      api = String((await start("api").saw("api.listening")).url)
      await startWorker()
      // Connections and modules are there afterwards.
      await post("/api/user/first/search", { query: "warm up" })
      await until("the first is applied", 30, () =>
        collector.spans.find(({ name }) => name.startsWith("ack ")),
      )
    }, 90_000)

    afterAll(async () => {
      for (const program of programs) program.signal("SIGTERM")
      await Promise.all(programs.map((program) => program.ended()))
      collector.stop()
      openAi.stop()
      await stack.drop()
    }, 60_000)

    test("a search is one trace from the request to the acknowledgement, over both processes", async () => {
      const traceId = newTraceId()
      const answer = await post(
        "/api/user/u-traced/search",
        { query: "wireless headphones" },
        { traceparent: traceparent(traceId), tracestate: "shop=abc,other=1" },
      )
      const { message_id } = (await answer.json()) as { message_id: string }
      const spans = await traced(traceId, "ack ")
      const process = "process user_events:user.embedding.search:user_embedding_updates"
      expect(treeOf(spans)).toEqual([
        "api SERVER POST /api/user/{userId}/search",
        "  api CLIENT INSERT user_interactions",
        "  api PRODUCER publish user_events:user.embedding.search",
        `    worker CONSUMER ${process}`,
        `      worker CLIENT ${words.load}`,
        ...words.phrases.load.map((one) => `      worker CLIENT ${one}`),
        "      worker CLIENT embeddings text-embedding-3-small",
        ...words.phrases.save.map((one) => `      worker CLIENT ${one}`),
        `      worker CLIENT ${words.save}`,
        "      worker CLIENT ack user_embedding_updates",
        "  api CLIENT UPDATE user_interactions",
      ])

      const named = (wanted: string) => spans.find((span) => span.name === wanted)!
      const [server, publish, consumer] = [
        named("POST /api/user/{userId}/search"),
        named("publish user_events:user.embedding.search"),
        named(process),
      ]
      expect(server.parent).toBe(parentId)
      expect(answer.headers.get("traceparent")).toBe(`00-${traceId}-${server.spanId}-01`)
      expect(new Set(spans.map(({ traceState }) => traceState))).toEqual(new Set(["shop=abc,other=1"]))
      expect(server.attributes).toEqual({
        "http.request.method": "POST",
        "http.route": "/api/user/{userId}/search",
        "url.scheme": "http",
        "url.path": "/api/user/REDACTED/search",
        "http.response.status_code": 201,
      })
      const messaging = {
        "messaging.system": words.system,
        "messaging.message.id": message_id,
        "messaging.rabbitmq.destination.routing_key": "user.embedding.search",
      }
      expect(publish.attributes).toEqual({
        ...messaging,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "user_events:user.embedding.search",
      })
      expect(consumer.attributes).toEqual({
        ...messaging,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "user_events:user.embedding.search:user_embedding_updates",
        "user_embeddings.attempt": 1,
        "user_embeddings.settlement": "ack",
      })
      expect(consumer.links).toEqual([{ traceId, spanId: publish.spanId }])
      expect(named("embeddings text-embedding-3-small").attributes).toEqual({
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "text-embedding-3-small",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.embeddings.dimension.count": 1536,
      })
      expect(named("ack user_embedding_updates").attributes).toEqual({
        "messaging.system": words.system,
        "messaging.operation.name": "ack",
        "messaging.operation.type": "settle",
        "messaging.destination.name": "user_embedding_updates",
      })
      expect(named("INSERT user_interactions").attributes).toEqual({
        "db.system.name": words.system === "rabbitmq" ? "mysql" : "sqlite",
        "db.operation.name": "INSERT",
        "db.collection.name": "user_interactions",
      })

      // Between the first and the last moment there is always a span, but for the wait in the queue. Marks come later, in
      // rounds of their own.
      const wait = consumer.start - publish.end
      let covered = server.start
      const path = spans.filter(({ name }) => name !== "UPDATE user_interactions")
      for (const { end, start } of path.toSorted((a, b) => a.start - b.start)) {
        expect(start - covered).toBeLessThanOrEqual(Math.max(wait, 50))
        covered = Math.max(covered, end)
      }
      for (const child of spans.filter(({ parent }) => parent === consumer.spanId)) {
        expect(child.start).toBeGreaterThanOrEqual(consumer.start)
        expect(child.end).toBeLessThanOrEqual(consumer.end)
      }
    })

    test("a product event looks its vector up in place of an embedding", async () => {
      await fetch(`${api}/api/product/p-1/embedding`, {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ text: "a garden hose" }),
      })
      const traceId = newTraceId()
      await post("/api/user/u-viewer/product/p-1/view", {}, { traceparent: traceparent(traceId) })
      expect(treeOf(await traced(traceId, "ack "))).toEqual([
        "api SERVER POST /api/user/{userId}/product/{productId}/view",
        "  api CLIENT INSERT user_interactions",
        "  api PRODUCER publish user_events:user.embedding.product_view",
        "    worker CONSUMER process user_events:user.embedding.product_view:user_embedding_updates",
        `      worker CLIENT ${words.load}`,
        `      worker CLIENT ${words.product}`,
        `      worker CLIENT ${words.save}`,
        "      worker CLIENT ack user_embedding_updates",
        "  api CLIENT UPDATE user_interactions",
      ])
    })

    test("a message that fails twice shows both attempts, each below the publishing that brought it", async () => {
      openAi.faults.set("flaky phrase", { status: 500 })
      const traceId = newTraceId()
      await post("/api/user/u-flaky/search", { query: "flaky phrase" }, { traceparent: traceparent(traceId) })
      await until("two requests", 30, () =>
        openAi.received.filter(({ input }) => input.includes("flaky phrase")).length >= 2 ? true : undefined,
      )
      openAi.faults.delete("flaky phrase")
      const spans = await traced(traceId, "ack ")
      const attempts = spans.filter(({ kind }) => kind === "CONSUMER").toSorted((a, b) => a.start - b.start)
      expect(
        attempts.map(({ attributes, failed }) => [
          attributes["user_embeddings.attempt"],
          attributes["user_embeddings.settlement"],
          attributes["error.type"],
          failed,
        ]),
      ).toEqual([
        [1, "retry", "phrase_embedder_server_error", true],
        [2, "retry", "phrase_embedder_server_error", true],
        [3, "ack", undefined, false],
      ])
      for (const [index, rung] of ["100", "200"].entries()) {
        const copy = spans.find(({ name }) => name === `publish user_embedding_updates.retry.${rung}`)
        expect(copy?.parent).toBe(attempts[index]!.spanId)
        expect(attempts[index + 1]!.parent).toBe(copy!.spanId)
        expect(attempts[index + 1]!.links).toEqual([{ traceId, spanId: copy!.spanId }])
      }
    })

    test("a dead letter that is retried goes on in its trace", async () => {
      openAi.faults.set("refused phrase", { status: 400 })
      const traceId = newTraceId()
      await post(
        "/api/user/u-dead/search",
        { query: "refused phrase" },
        { traceparent: traceparent(traceId) },
      )
      await traced(traceId, "publish failed")
      openAi.faults.delete("refused phrase")
      expect(await start("failed", "retry", "--all").ended()).toBe(0)
      const spans = await traced(traceId, "ack ")
      const [first, second] = spans
        .filter(({ kind }) => kind === "CONSUMER")
        .toSorted((a, b) => a.start - b.start)
      expect([first?.attributes["user_embeddings.settlement"], first?.failed]).toEqual(["dead_letter", true])
      expect([second?.attributes["user_embeddings.settlement"], second?.failed]).toEqual(["ack", false])
    })

    test("of a batch each sampled message tells the whole way in its own trace, the others nothing", async () => {
      const workers = programs.filter(({ name }) => name === "worker")
      for (const worker of workers) worker.signal("SIGTERM")
      await Promise.all(workers.map((worker) => worker.ended()))
      const sampled = [newTraceId(), newTraceId(), newTraceId()]
      const unsampled = [newTraceId(), newTraceId()]
      const answers = await Promise.all([
        ...sampled.map((id) =>
          post(
            `/api/user/b-${id.slice(0, 8)}/search`,
            { query: `batch ${id}` },
            { traceparent: traceparent(id) },
          ),
        ),
        ...unsampled.map((id) =>
          post(
            `/api/user/b-${id.slice(0, 8)}/search`,
            { query: `batch ${id}` },
            { traceparent: traceparent(id, "00") },
          ),
        ),
      ])
      expect(answers.map(({ headers }) => headers.get("traceparent")?.replace(/-\w{16}-/, " "))).toEqual([
        ...sampled.map((id) => `00-${id} 01`),
        ...unsampled.map((id) => `00-${id} 00`),
      ])
      await startWorker()
      for (const id of sampled) {
        const spans = await traced(id, "ack ")
        expect(
          treeOf(spans)
            .map((line) => line.trim())
            .toSorted(),
        ).toEqual(
          [
            "api SERVER POST /api/user/{userId}/search",
            "api CLIENT INSERT user_interactions",
            "api PRODUCER publish user_events:user.embedding.search",
            "worker CONSUMER process user_events:user.embedding.search:user_embedding_updates",
            `worker CLIENT ${words.load}`,
            ...words.phrases.load.map((one) => `worker CLIENT ${one}`),
            "worker CLIENT embeddings text-embedding-3-small",
            ...words.phrases.save.map((one) => `worker CLIENT ${one}`),
            `worker CLIENT ${words.save}`,
            "worker CLIENT ack user_embedding_updates",
            "api CLIENT UPDATE user_interactions",
          ].toSorted(),
        )
        expect(spans.find(({ kind }) => kind === "CONSUMER")?.parent).toBe(
          spans.find(({ kind }) => kind === "PRODUCER")?.spanId,
        )
      }
      for (const id of unsampled) expect(collector.trace(id)).toEqual([])
      const batches = await until("a span of the batch", 10, () => {
        const found = collector.spans.filter(({ name }) => name === "process user_embedding_updates")
        return found.length > 0 ? found : undefined
      })
      for (const batch of batches) {
        expect(batch.parent).toBeUndefined()
        expect(Number(batch.attributes["messaging.batch.message_count"])).toBeGreaterThan(1)
        const processed = batch.links.map(
          ({ spanId }) => collector.spans.find((span) => span.spanId === spanId)?.kind,
        )
        expect(processed.every((kind) => kind === "CONSUMER")).toBe(true)
      }
    })

    test("metrics arrive too, with units, under the names of their parts", async () => {
      const wanted = [
        ["user-embeddings-worker", "user_embeddings.event_to_embedding", "s"],
        ["user-embeddings-worker", "messaging.process.duration", "s"],
        ["user-embeddings-worker", "gen_ai.client.token.usage", "1"],
        ["user-embeddings-worker", "gen_ai.client.operation.duration", "s"],
        ["user-embeddings-worker", "db.client.operation.duration", "s"],
        ["user-embeddings-api", "http.server.request.duration", "s"],
        ["user-embeddings-api", "process.cpu.time", "s"],
        ["user-embeddings-api", "user_embeddings.outbox.unpublished", "1"],
        ["user-embeddings-api", "user_embeddings.queue.messages", "1"],
      ]
      for (const [service, name, unit] of wanted)
        await until(`${service} ${name}`, 20, () =>
          collector.metrics.find((one) => one.service === service && one.name === name && one.unit === unit),
        )
    })

    test("nothing that was sent tells who searched for what, or a secret", () => {
      const raw = collector.raw()
      expect(raw.length).toBeGreaterThan(10_000)
      const secrets = [
        "headphones",
        "flaky phrase",
        "refused phrase",
        "u-traced",
        "u-viewer",
        "u-flaky",
        "sk-secret",
        "garden hose",
      ]
      const passwords = Object.values(environment).flatMap(
        (value) => /:\/\/[^:/]+:([^@]+)@/.exec(value)?.[0] ?? [],
      )
      for (const secret of [...secrets, ...passwords])
        expect([secret, raw.includes(secret)]).toEqual([secret, false])
    })
  })

suite("traces on the embedded stack", embedded, onSqlite)
withServers(["rabbitmq", "mysql", "mongodb"], "traces on real servers", () =>
  suite("of two processes", external, onServers),
)
