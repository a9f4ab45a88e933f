/** The files under otel/ use the metrics, labels and ports of the program, the runbook entries and the containers. */
import { expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { HttpServer } from "@effect/platform"
import { Effect, Layer } from "effect"
import * as Api from "../../src/programs/Api.ts"
import * as Worker from "../../src/programs/Worker.ts"
import * as Settings from "../../src/services/Settings.ts"
import * as Telemetry from "../../src/services/Telemetry.ts"
import { layerSuite } from "../support/effect.ts"
import { embeddingWith, eventually } from "../support/pipeline.ts"
import { embedded } from "../support/stacks.ts"

const root = join(import.meta.dir, "../..")
const read = (path: string) => readFileSync(join(root, path), "utf8")

interface Alert {
  readonly alert: string
  readonly expr: string
  readonly labels: { readonly severity: string }
  readonly annotations: { readonly summary: string; readonly runbook_url: string }
}
interface Component {
  readonly receivers?: ReadonlyArray<string>
  readonly processors?: ReadonlyArray<string>
  readonly exporters?: ReadonlyArray<string>
}
const { groups } = Bun.YAML.parse(read("otel/alerts.yml")) as {
  readonly groups: ReadonlyArray<{ readonly rules: ReadonlyArray<Alert> }>
}
const alerts = groups.flatMap(({ rules }) => rules)

test("each alert has an entry in the runbook, and each entry has an alert", () => {
  const entries = [...read("docs/runbook.md").matchAll(/^## (\w+)$/gm)].map(([, name]) => name!)
  expect(entries.toSorted()).toEqual(alerts.map(({ alert }) => alert).toSorted())
  for (const { alert, annotations, labels } of alerts) {
    expect(annotations.runbook_url).toBe(`docs/runbook.md#${alert.toLowerCase()}`)
    expect(annotations.summary).not.toBe("")
    expect(["page", "ticket"]).toContain(labels.severity)
  }
})

test("the dashboard asks for documented metrics alone, each panel in a place of its own", () => {
  const { panels } = JSON.parse(read("otel/grafana.json")) as {
    readonly panels: ReadonlyArray<{
      readonly gridPos: Readonly<Record<"x" | "y" | "w" | "h", number>>
      readonly targets?: ReadonlyArray<{ readonly expr: string }>
    }>
  }
  const names = panels.flatMap(({ targets = [] }) =>
    targets.flatMap(
      ({ expr }) =>
        expr
          .replaceAll(/ by \([^)]*\)/g, "")
          .match(/\b(user_embeddings|messaging|gen_ai|http_server|db_client|process)_\w+/g)!,
    ),
  )
  expect(names.length).toBeGreaterThanOrEqual(20)
  const documented = read("docs/telemetry.md")
  for (const name of names) expect(documented).toContain(`\`${name.replace(/_(bucket|count|sum)$/, "")}`)
  const cells = panels.flatMap(({ gridPos: { h, w, x, y } }) =>
    Array.from({ length: w * h }, (_, i) => `${x + (i % w)},${y + Math.floor(i / w)}`),
  )
  expect(new Set(cells).size).toBe(cells.length)
})

layerSuite(
  "metrics of a running system",
  Layer.merge(Api.layer, Worker.layer).pipe(Layer.provideMerge(embedded({ API_PORT: "0" }))),
  (it) =>
    it(
      "include all metrics of the alerts, with their labels",
      () =>
        Effect.gen(function* () {
          const { address } = yield* HttpServer.HttpServer
          yield* Effect.promise(() =>
            fetch(`http://127.0.0.1:${address._tag === "TcpAddress" ? address.port : 0}/api/user/u/search`, {
              method: "POST",
              headers: { "content-type": "application/json" },
              body: JSON.stringify({ query: "red wine" }),
            }),
          )
          yield* embeddingWith("u", 1)
          const wanted = alerts.flatMap(({ expr }) => [
            ...expr.matchAll(/([a-z]+_[a-z_]+)(?:\{([^}]*)\})?(?=[[)\s])/g),
          ])
          const series = wanted
            .map(([, name, labels = ""]) => ({ name: name!, labels: labels.split(",") }))
            .filter(({ name }) => name !== "histogram_quantile")
          expect(series.length).toBeGreaterThanOrEqual(7)
          const missing = yield* eventually(
            Effect.map(Telemetry.prometheus, (text) => {
              const lines = text.split("\n")
              const missing = series.filter(
                ({ labels, name }) =>
                  !lines.some(
                    (line) =>
                      line.startsWith(name) &&
                      /^[{ ]/.test(line.slice(name.length)) &&
                      labels.every((label) => line.includes(label)),
                  ),
              )
              return missing.length === 0 ? missing : undefined
            }),
          )
          expect(missing).toEqual([])
        }),
      30_000,
    ),
)

test("Prometheus scrapes the ports of the API and the worker", () => {
  const { scrape_configs: jobs } = Bun.YAML.parse(read("otel/prometheus.yml")) as {
    readonly scrape_configs: ReadonlyArray<{
      readonly static_configs?: ReadonlyArray<{ readonly targets: ReadonlyArray<string> }>
      readonly dns_sd_configs?: ReadonlyArray<{
        readonly names: ReadonlyArray<string>
        readonly port: number
      }>
    }>
  }
  const targets = jobs.flatMap(({ dns_sd_configs = [], static_configs = [] }) => [
    ...static_configs.flatMap(({ targets }) => targets),
    ...dns_sd_configs.flatMap(({ names, port }) => names.map((name) => `${name}:${port}`)),
  ])
  expect(targets).toEqual([`api:${Settings.API_PORT.fallback}`, `worker:${Settings.WORKER_PORT.fallback}`])
})

test("the pipelines of the collector use declared components, and it listens on the port that API and worker send to", () => {
  const { exporters, processors, receivers, service } = Bun.YAML.parse(read("otel/collector.yaml")) as {
    readonly receivers: {
      readonly otlp: { readonly protocols: { readonly http: { readonly endpoint: string } } }
    }
    readonly processors: object
    readonly exporters: object
    readonly service: { readonly pipelines: Readonly<Record<string, Component>> }
  }
  expect(Object.keys(service.pipelines).toSorted()).toEqual(["metrics", "traces"])
  for (const pipeline of Object.values(service.pipelines)) {
    for (const name of pipeline.receivers ?? []) expect(Object.keys(receivers)).toContain(name)
    for (const name of pipeline.processors ?? []) expect(Object.keys(processors)).toContain(name)
    for (const name of pipeline.exporters ?? []) expect(Object.keys(exporters)).toContain(name)
  }
  const compose = read("docker-compose.yml")
  const endpoint = /OTEL_EXPORTER_OTLP_ENDPOINT-http:\/\/(\w+):(\d+)\}/.exec(compose)
  const { services } = Bun.YAML.parse(compose) as {
    readonly services: Readonly<
      Record<string, { readonly profiles?: ReadonlyArray<string>; readonly volumes?: ReadonlyArray<string> }>
    >
  }
  expect(endpoint?.[1] ?? "").toBe("collector")
  expect(receivers.otlp.protocols.http.endpoint).toEndWith(`:${endpoint?.[2]}`)
  const observing = Object.entries(services).filter(([, { profiles = [] }]) =>
    profiles.includes("observability"),
  )
  expect(observing.map(([name]) => name).toSorted()).toEqual(["collector", "jaeger", "prometheus"])
  for (const [, { volumes = [] }] of observing)
    for (const volume of volumes) expect(existsSync(join(root, volume.split(":")[0]!))).toBe(true)
})
