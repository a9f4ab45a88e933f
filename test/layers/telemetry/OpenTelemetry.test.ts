/** OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_*_EXPORTER and OTEL_SDK_DISABLED decide what is sent, and how. */
import { afterAll, afterEach, expect, test } from "bun:test"
import { createServer, type Http2Server, type ServerHttp2Stream } from "node:http2"
import type { AddressInfo } from "node:net"
import { ConfigProvider, Effect, Layer } from "effect"
import * as OpenTelemetry from "../../../src/layers/telemetry/OpenTelemetry.ts"

const received: Array<string> = []
const http = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch: async (request) => {
    received.push(`${new URL(request.url).pathname} ${request.headers.get("content-type")}`)
    await request.bytes()
    return new Response()
  },
})
const grpc: Http2Server = createServer()
grpc.on("stream", (stream: ServerHttp2Stream, headers) => {
  received.push(`${headers[":path"]} ${headers["content-type"]}`)
  stream.on("data", () => {})
  stream.on("end", () => {
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true })
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }))
    // An empty message: the answer to an export without partial success.
    stream.end(Buffer.alloc(5))
  })
})
await new Promise<void>((resolve) => grpc.listen(0, "127.0.0.1", resolve))
const grpcPort = (grpc.address() as AddressInfo).port

const before = { ...process.env }
afterEach(() => {
  for (const name of Object.keys(process.env)) if (name.startsWith("OTEL_")) delete process.env[name]
  Object.assign(process.env, before)
})
afterAll(() => {
  http.stop(true)
  grpc.close()
})

/** What arrives of one span and the metrics, when the program ends. The exporters read the environment themselves. */
const sentWith = async (variables: Readonly<Record<string, string>>) => {
  const endpoint = `http://127.0.0.1:${variables.OTEL_EXPORTER_OTLP_PROTOCOL === "grpc" ? grpcPort : http.port}`
  const all = { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, ...variables }
  Object.assign(process.env, all)
  const config = Layer.setConfigProvider(ConfigProvider.fromMap(new Map(Object.entries(all))))
  await Effect.runPromise(
    Effect.void.pipe(
      Effect.withSpan("test"),
      Effect.provide(Layer.provide(OpenTelemetry.layerConfig("api"), config)),
    ),
  )
  return received.splice(0).toSorted()
}

test("traces and metrics are sent by the protocol that is named, or each by its own", async () => {
  expect(await sentWith({})).toEqual(["/v1/metrics application/json", "/v1/traces application/json"])
  expect(await sentWith({ OTEL_EXPORTER_OTLP_PROTOCOL: "http/protobuf" })).toEqual([
    "/v1/metrics application/x-protobuf",
    "/v1/traces application/x-protobuf",
  ])
  expect(await sentWith({ OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: "http/protobuf" })).toEqual([
    "/v1/metrics application/x-protobuf",
    "/v1/traces application/json",
  ])
  const service = (signal: string) =>
    `/opentelemetry.proto.collector.${signal.toLowerCase()}.v1.${signal}Service/Export application/grpc`
  expect(await sentWith({ OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" })).toEqual([
    service("Metrics"),
    service("Trace"),
  ])
})

test("what is turned off is not sent", async () => {
  expect(await sentWith({ OTEL_METRICS_EXPORTER: "none" })).toEqual(["/v1/traces application/json"])
  expect(await sentWith({ OTEL_TRACES_EXPORTER: "none" })).toEqual(["/v1/metrics application/json"])
  expect(await sentWith({ OTEL_SDK_DISABLED: "true" })).toEqual([])
})

test("an exporter or a protocol that does not exist is refused by its name", async () => {
  const refusal = (variables: Readonly<Record<string, string>>) =>
    sentWith(variables).catch((error: unknown) => String(error))
  expect(await refusal({ OTEL_METRICS_EXPORTER: "prometheus" })).toContain(
    'OTEL_METRICS_EXPORTER "prometheus": must be one of otlp, none',
  )
  expect(await refusal({ OTEL_EXPORTER_OTLP_PROTOCOL: "thrift" })).toContain("must be one of http/json")
})
