/**
 * A real Prometheus reads the rules and answers every expression of the dashboard and the alerts, about a system with
 * events, a retry and a dead letter. The whole test command leaves it out, because Prometheus must be installed.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { HttpServer } from "@effect/platform"
import { Context, Effect, Exit, Layer, Schema, Scope } from "effect"
import { aptInstall } from "../../scripts/services/install.ts"
import * as Api from "../../src/programs/Api.ts"
import * as Worker from "../../src/programs/Worker.ts"
import { openAiStandIn } from "../support/openAiStandIn.ts"
import { embedded } from "../support/stacks.ts"

const folder = resolve(import.meta.dir, "../../otel")
const read = (name: string) => readFileSync(join(folder, name), "utf8")

const Answer = Schema.Struct({
  status: Schema.String,
  error: Schema.optional(Schema.String),
  data: Schema.optional(
    Schema.Struct({
      result: Schema.Array(Schema.Struct({ value: Schema.Tuple(Schema.Number, Schema.String) })),
    }),
  ),
})

const { groups } = Bun.YAML.parse(read("alerts.yml")) as {
  readonly groups: ReadonlyArray<{ readonly rules: ReadonlyArray<{ readonly expr: string }> }>
}
/** What alerts compare with their limits. In a healthy system the comparison itself has no rows. */
const compared = groups
  .flatMap(({ rules }) => rules)
  .flatMap(({ expr }) => expr.split(/\s+or\s+/))
  .map((part) => part.replace(/ (>|==) [\d.]+$/, ""))
const { panels } = JSON.parse(read("grafana.json")) as {
  readonly panels: ReadonlyArray<{ readonly targets?: ReadonlyArray<{ readonly expr: string }> }>
}
const shown = panels
  .flatMap(({ targets = [] }) => targets.map(({ expr }) => expr))
  .map((expr) => expr.replaceAll("$__rate_interval", "20s"))

const scrapeConfig = (api: string) => `
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [${join(folder, "alerts.yml")}]
scrape_configs: [{ job_name: api, static_configs: [{ targets: ["${new URL(api).host}"] }] }]
`

if (process.env.FAILURES !== "brief")
  describe("Prometheus", () => {
    const openAi = openAiStandIn()
    const data = mkdtempSync(join(tmpdir(), "prometheus-"))
    const system = Layer.merge(Api.layer, Worker.layer).pipe(
      Layer.provideMerge(
        embedded({
          API_PORT: "0",
          WORKER_PORT: "0",
          WORKER_RETRY_DELAY: "100",
          OPENAI_API_KEY: "sk-test",
          OPENAI_BASE_URL: openAi.url,
        }),
      ),
    )
    const scope = Effect.runSync(Scope.make())
    let api = ""
    let prometheus = ""
    let child: Bun.Subprocess | undefined

    const run = async (...command: ReadonlyArray<string>) => {
      const program = Bun.spawn([...command], { stdout: "pipe", stderr: "pipe" })
      const [out, err] = await Promise.all([
        new Response(program.stdout).text(),
        new Response(program.stderr).text(),
      ])
      return { code: await program.exited, text: out + err }
    }
    const send = (path: string, body: object) =>
      fetch(`${api}${path}`, {
        method: path.endsWith("embedding") ? "PUT" : "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      })
    const ask = async (expr: string) => {
      const response = await fetch(`${prometheus}/api/v1/query?query=${encodeURIComponent(expr)}`)
      return Schema.decodeUnknownSync(Answer)(await response.json())
    }

    beforeAll(async () => {
      await aptInstall("prometheus", () => Bun.which("prometheus") !== null, new AbortController().signal)
      const context = await Effect.runPromise(Layer.buildWithScope(system, scope))
      const { address } = Context.get(context, HttpServer.HttpServer)
      api = `http://127.0.0.1:${address._tag === "TcpAddress" ? address.port : 0}`
      const config = join(data, "prometheus.yml")
      writeFileSync(config, scrapeConfig(api))
      const free = Bun.serve({ port: 0, fetch: () => new Response() })
      prometheus = `http://127.0.0.1:${free.port}`
      await free.stop(true)
      const options = [
        `--config.file=${config}`,
        `--storage.tsdb.path=${join(data, "tsdb")}`,
        `--web.listen-address=${new URL(prometheus).host}`,
      ]
      child = Bun.spawn(["prometheus", ...options], { stdout: "ignore", stderr: "ignore" })
    }, 300_000)

    afterAll(async () => {
      child?.kill()
      await child?.exited
      await Effect.runPromise(Scope.close(scope, Exit.void))
      openAi.stop()
      rmSync(data, { recursive: true })
    }, 60_000)

    test("accepts the rules and the configuration", async () => {
      const rules = await run("promtool", "check", "rules", join(folder, "alerts.yml"))
      expect([rules.text, rules.code]).toEqual([expect.stringContaining("SUCCESS: 7 rules found"), 0])
      const config = ["check", "config", "--syntax-only", join(folder, "prometheus.yml")]
      const checked = await run("promtool", ...config)
      expect([checked.text, checked.code]).toEqual([expect.stringContaining("SUCCESS"), 0])
    })

    test("answers every expression of the dashboard and the alerts with rows", async () => {
      openAi.faults.set("refused", { status: 400 })
      openAi.faults.set("flaky", { status: 500 })
      await send("/api/product/p-1/embedding", { text: "a tent for two" })
      expect(shown.length).toBeGreaterThan(20)
      let lacking: ReadonlyArray<string> = ["not asked yet"]
      for (let round = 0; round < 60 && lacking.length > 0; round++) {
        for (const query of ["refused", "flaky", `warm socks ${round}`])
          await send(`/api/user/u-${round}/search`, { query })
        await send(`/api/user/u-${round}/product/p-1/view`, {})
        await Bun.sleep(1_000)
        const answers = await Promise.all(
          [...shown, ...compared].map(async (expr) => ({
            expr,
            answer: await ask(expr).catch(() => undefined),
          })),
        )
        for (const { answer, expr } of answers)
          if (answer !== undefined)
            expect([expr, answer.status, answer.error]).toEqual([expr, "success", undefined])
        const hasRows = (answer: typeof Answer.Type | undefined) =>
          answer?.data?.result.some(({ value: [, number] }) => Number.isFinite(Number(number)))
        lacking = answers.flatMap(({ answer, expr }) => (hasRows(answer) ? [] : [expr]))
      }
      expect(lacking).toEqual([])
    }, 120_000)
  })
