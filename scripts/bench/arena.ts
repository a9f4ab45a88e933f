/** Where contestants run: real servers, a virtual host and databases for each contestant, and its processes. */
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { Binary, MongoClient } from "mongodb"
import { createConnection } from "mysql2/promise"
import { freePorts, lastLines, sleep } from "../services/command.ts"
import { productId, productVector } from "./events.ts"
import type { Order, Seen } from "./load.ts"

export const dimensions = 1536
const root = resolve(import.meta.dir, "../..")

export type Env = Readonly<Record<string, string>>

/** A process of a contestant. */
export interface Part {
  readonly pid: number
  readonly port: number
  readonly stop: () => Promise<void>
}

let counter = 0
/** A name that has not been used before. */
const fresh = (name: string) => `user_embeddings_bench_${name}_${process.pid}_${counter++}`

const management = async (
  { RABBITMQ_DSN = "", RABBITMQ_MANAGEMENT_URL = "" }: Env,
  method: "PUT" | "DELETE",
  path: string,
  body: object = {},
) => {
  const { origin } = new URL(RABBITMQ_MANAGEMENT_URL)
  const { password, username } = new URL(RABBITMQ_DSN)
  const response = await fetch(`${origin}/api${path}`, {
    method,
    headers: {
      authorization: `Basic ${btoa(`${username}:${password}`)}`,
      "content-type": "application/json",
    },
    body: JSON.stringify(body),
  })
  if (!response.ok) throw new Error(`RabbitMQ's management API answers ${response.status} to ${path}`)
}

const onMysql = async (url: string, statement: string) => {
  const connection = await createConnection(url)
  await connection.query(statement)
  await connection.end()
}

export class Arena {
  readonly servers: Env
  private readonly folder = mkdtempSync(join(tmpdir(), "bench-"))
  private readonly undo: Array<() => Promise<unknown>> = []
  private readonly parts = new Set<Part>()

  constructor(servers: Env) {
    this.servers = servers
  }

  /** The environment of a contestant: its own virtual host and two databases on the servers. */
  async place(name: string): Promise<Env> {
    const own = fresh(name)
    const dsn = new URL(this.servers.RABBITMQ_DSN ?? "")
    await management(this.servers, "PUT", `/vhosts/${own}`)
    this.undo.push(() => management(this.servers, "DELETE", `/vhosts/${own}`))
    await management(this.servers, "PUT", `/permissions/${own}/${dsn.username}`, {
      configure: ".*",
      write: ".*",
      read: ".*",
    })
    dsn.pathname = `/${own}`
    const mysql = new URL(this.servers.MYSQL_URL ?? "")
    await onMysql(this.servers.MYSQL_URL ?? "", `CREATE DATABASE \`${own}\``)
    this.undo.push(() => onMysql(this.servers.MYSQL_URL ?? "", `DROP DATABASE \`${own}\``))
    mysql.pathname = `/${own}`
    const env = {
      ...this.knobs(own),
      RABBITMQ_DSN: dsn.href,
      MYSQL_URL: mysql.href,
      MONGODB_URL: this.servers.MONGODB_URL ?? "",
      MONGODB_DATABASE: own,
    }
    this.undo.push(() => withMongo(env, (database) => database.dropDatabase()))
    await this.setUp(env)
    return env
  }

  /** The environment of a contestant without servers. */
  embedded(name: string): Env {
    return { ...this.knobs(fresh(name)), DATA_DIR: join(this.folder, fresh(name)) }
  }

  /** Creates missing tables, queues and collections. */
  async setUp(env: Env): Promise<void> {
    await this.program(env, "setup").ended
  }

  /** Counts all pairs of products, which the API would do up to a minute later. */
  async countPairs(env: Env): Promise<void> {
    await this.program(env, "rebuild", "--pairs").ended
  }

  /** Stores the catalogue with the command `products import`. */
  async importProducts(env: Env, count: number): Promise<void> {
    const file = join(this.folder, `${fresh("products")}.jsonl`)
    const line = (index: number) =>
      JSON.stringify({
        product_id: productId(index),
        product_name: productId(index),
        category: "kitchen-and-dining",
        vector: [...productVector(index, dimensions)],
      })
    await Bun.write(file, Array.from({ length: count }, (_, index) => `${line(index)}\n`).join(""))
    await this.setUp(env)
    await this.program(env, "products", "import", file).ended
  }

  /** Registers an action that runs before the databases are dropped. */
  onClose(undo: () => Promise<unknown>): void {
    this.undo.push(undo)
  }

  private knobs(name: string): Env {
    return {
      RATE_LIMIT_PER_USER: "0",
      EMBEDDING_DIMENSIONS: String(dimensions),
      LOG_FORMAT: "json",
      BENCH_LOG: join(this.folder, `${name}.log`),
    }
  }

  private spawn(env: Env, command: ReadonlyArray<string>) {
    const log = openSync(env.BENCH_LOG ?? "/dev/null", "a")
    const inherited = Object.entries(process.env).filter(([name]) => ["HOME", "TMPDIR"].includes(name))
    const path = [join(root, "node_modules/.bin"), process.env.PATH].join(":")
    return Bun.spawn([...command], {
      cwd: root,
      env: { ...Object.fromEntries(inherited), PATH: path, ...env },
      stdin: "ignore",
      stdout: log,
      stderr: log,
    })
  }

  private program(env: Env, ...args: ReadonlyArray<string>) {
    const child = this.spawn(env, ["bin/user-embeddings", ...args])
    const log = env.BENCH_LOG ?? ""
    const ended = child.exited.then((code) => {
      if (code !== 0)
        throw new Error(`${args.join(" ")} ended with ${code}:\n${lastLines(readFileSync(log, "utf8"), 20)}`)
    })
    return { child, ended }
  }

  private async started(child: Bun.Subprocess, port: number, ready: () => Promise<boolean>): Promise<Part> {
    const part: Part = {
      pid: child.pid,
      port,
      stop: async () => {
        this.parts.delete(part)
        child.kill("SIGCONT")
        child.kill("SIGTERM")
        const timer = setTimeout(() => child.kill("SIGKILL"), 15_000)
        await child.exited
        clearTimeout(timer)
      },
    }
    this.parts.add(part)
    const deadline = Date.now() + 60_000
    while (!(await ready().catch(() => false))) {
      if (child.exitCode !== null || Date.now() > deadline)
        throw new Error(`process ${child.pid} is not ready`)
      await sleep(20)
    }
    return part
  }

  /** Starts a part of this project and waits until it is ready. */
  async part(env: Env, name: "api" | "worker" | "up", more: Env = {}): Promise<Part> {
    const [port = 0] = await freePorts(1)
    const variable = name === "worker" ? "WORKER_PORT" : "API_PORT"
    const all: Env = { ...env, ...more, [variable]: String(port) }
    const profile = all.CPU_PROFILE && { BUN_OPTIONS: `--cpu-prof --cpu-prof-dir=${all.CPU_PROFILE}` }
    const child = this.spawn({ ...all, ...profile }, ["bin/user-embeddings", name])
    return this.started(child, port, async () => (await fetch(`http://127.0.0.1:${port}/readyz`)).ok)
  }

  /** Starts a program of this folder, which prints `….listening` when it is ready. */
  async own(env: Env, script: string, ...args: ReadonlyArray<string>): Promise<Part> {
    const [port = 0] = await freePorts(1)
    const child = this.spawn(env, ["bun", `scripts/bench/${script}`, ...args, String(port)])
    const listening = `${args[0] ?? script}.listening`
    const log = env.BENCH_LOG ?? ""
    const before = readFileSync(log, "utf8").split(listening).length
    return this.started(child, port, async () => readFileSync(log, "utf8").split(listening).length > before)
  }

  /** Starts a stand-in for the embedding service, which answers after the given latency. */
  async openAi(latencyMillis: number): Promise<{ readonly url: string }> {
    const [port = 0] = await freePorts(1)
    const env = this.knobs(fresh("openai"))
    const child = this.spawn(env, [
      "bun",
      "scripts/openai-stand-in.ts",
      ...["--port", String(port)],
      ...["--latency", String(latencyMillis)],
    ])
    const url = `http://127.0.0.1:${port}/v1`
    const headers = { authorization: "Bearer bench" }
    await this.started(child, port, async () => {
      const answer = await fetch(`${url}/models/text-embedding-3-small`, { headers })
      return answer.ok
    })
    return { url }
  }

  /** Runs the load generator to its end. */
  async load(order: Order): Promise<Seen> {
    const child = Bun.spawn([process.execPath, join(import.meta.dir, "load.ts"), JSON.stringify(order)], {
      stdout: "pipe",
      stderr: "inherit",
    })
    const text = await child.stdout.text()
    if ((await child.exited) !== 0) throw new Error("the load generator failed")
    return JSON.parse(text)
  }

  /** Stops all processes, drops all databases and removes all files. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.parts].map((part) => part.stop()))
    for (const undo of this.undo.toReversed()) await undo().catch(() => {})
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** Runs work on the contestant's MongoDB database. */
export const withMongo = async <A>(
  { MONGODB_DATABASE = "", MONGODB_URL = "" }: Env,
  work: (database: ReturnType<MongoClient["db"]>) => Promise<A>,
): Promise<A> => {
  const client = await MongoClient.connect(MONGODB_URL)
  try {
    return await work(client.db(MONGODB_DATABASE))
  } finally {
    await client.close()
  }
}

/** Stores the catalogue directly, without the program. */
export const storeProducts = (env: Env, count: number, space: string, size = dimensions) =>
  withMongo(env, async (database) => {
    const products = database.collection("product_embeddings")
    const now = new Date()
    for (let from = 0; from < count; from += 1000)
      await products.insertMany(
        Array.from({ length: Math.min(1000, count - from) }, (_, i) => ({
          product_id: productId(from + i),
          embedding: Binary.fromFloat32Array(productVector(from + i, size)),
          dimension_count: size,
          product_name: productId(from + i),
          category: "kitchen-and-dining",
          space,
          text: null,
          created_at: now,
          updated_at: now,
        })),
      )
  })

export interface Applied {
  readonly events: number
  readonly writes: number
}

/** Counts folded events and writes by the documents themselves. */
export const appliedIn = async (env: Env) => {
  const client = await MongoClient.connect(env.MONGODB_URL ?? "")
  const users = client.db(env.MONGODB_DATABASE).collection("user_embeddings")
  const look = async (): Promise<Applied> => {
    const [sums] = await users
      .aggregate<Applied>([
        { $group: { _id: null, events: { $sum: "$event_count" }, writes: { $sum: "$version" } } },
      ])
      .toArray()
    return sums ?? { events: 0, writes: 0 }
  }
  return { look, close: () => client.close() }
}
export type Looker = Awaited<ReturnType<typeof appliedIn>>

/** Waits until this many events are in the documents, and returns the sums at that time. */
export const until = async (look: () => Promise<Applied>, events: number): Promise<Applied> => {
  const deadline = Date.now() + 120_000
  for (;;) {
    const applied = await look()
    if (applied.events >= events) return applied
    if (Date.now() > deadline)
      throw new Error(`${events - applied.events} events were not applied within 120 s`)
    await sleep(50)
  }
}
