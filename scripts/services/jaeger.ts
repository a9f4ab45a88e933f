import { chmodSync, cpSync, existsSync, renameSync } from "node:fs"
import { join } from "node:path"
import { run } from "./command.ts"
import { cacheFolder, inScratchFolder, program } from "./install.ts"
import { portsOf, type Service } from "./service.ts"

const goModule = "github.com/jaegertracing/jaeger@v1.76.0"
const compiled = join(cacheFolder, "jaeger-all-in-one-1.76.0")

/** Builds from a copy of the sources: `go install` refuses a module with replace directives. */
const compile = (signal: AbortSignal) =>
  inScratchFolder(async (folder) => {
    const go = program("go")
    const { Dir } = JSON.parse(await run([go, "mod", "download", "-json", goModule], { signal })) as {
      Dir: string
    }
    const source = join(folder, "source")
    cpSync(Dir, source, { recursive: true })
    for (const path of new Bun.Glob("**").scanSync({
      cwd: source,
      absolute: true,
      onlyFiles: false,
      dot: true,
    })) {
      chmodSync(path, 0o755) // The copy of Go's read-only module cache is read-only too.
    }
    await run([go, "build", "-o", join(folder, "jaeger"), "./cmd/all-in-one"], { cwd: source, signal })
    renameSync(join(folder, "jaeger"), compiled)
  })

/** Stores traces. The Go module has no web pages, so a native server offers only the query API (`/api/traces`). */
export const jaeger: Service = {
  name: "jaeger",
  urlVariable: "JAEGER_URL",
  ports: { query: 16686, otlpHttp: 4318, otlpGrpc: 4317 },
  env: ([ports]) => ({
    JAEGER_URL: `http://127.0.0.1:${ports?.query}`,
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${ports?.otlpHttp}`,
  }),
  probe: async (env) => {
    const response = await fetch(`${env.JAEGER_URL}/api/services`)
    if (!response.ok) throw new Error(`its query API answers ${response.status}`)
    return "Jaeger"
  },
  docker: { compose: "jaeger" },
  native: {
    install: async (signal) => {
      if (!existsSync(compiled)) await compile(signal)
    },
    prepare: async () => {},
    command: (_, node) => [
      compiled,
      `--query.http-server.host-port=127.0.0.1:${portsOf(node).query}`,
      `--collector.otlp.http.host-port=127.0.0.1:${portsOf(node).otlpHttp}`,
      `--collector.otlp.grpc.host-port=127.0.0.1:${portsOf(node).otlpGrpc}`,
      // Unused listeners get any free port.
      "--query.grpc-server.host-port=127.0.0.1:0",
      "--collector.grpc-server.host-port=127.0.0.1:0",
      "--collector.http-server.host-port=127.0.0.1:0",
      "--admin.http.host-port=127.0.0.1:0",
    ],
    env: () => ({ SPAN_STORAGE_TYPE: "memory" }),
  },
}
