/**
 * The real servers of the tests. `bun run test` starts them and passes their URLs in the environment. Each suite uses its
 * own virtual host, MySQL database or MongoDB database. If a server is missing, its suites are skipped with a message.
 */
import { describe, test } from "bun:test"
import amqp from "amqplib"
import { Either } from "effect"
import { MongoClient } from "mongodb"
import mysql from "mysql2/promise"
import pg from "pg"
import { nodeUrls } from "../../src/services/NodeUrls.ts"

const variables = {
  rabbitmq: "RABBITMQ_DSN",
  mysql: "MYSQL_URL",
  mongodb: "MONGODB_URL",
  postgres: "POSTGRES_URL",
} as const
export type Server = keyof typeof variables

/** The URL of a server, for code inside {@link withServers}. */
export const urlOf = (server: Server): string => {
  const url = process.env[variables[server]]
  if (url === undefined) throw new Error(`${variables[server]} is not set: run the tests by \`bun run test\``)
  return url
}

/** A suite that needs servers. A skipped test names the missing ones. */
export const withServers = (servers: ReadonlyArray<Server>, name: string, suite: () => void) => {
  const missing = servers.filter((server) => process.env[variables[server]] === undefined)
  if (missing.length === 0) return describe(name, suite)
  return test.skip(`${name}: SKIPPED, needs ${missing.join(", ")} (\`bun run test\` starts what it can)`, () => {})
}

let counter = 0
const fresh = (): string => `${process.pid}_${Date.now().toString(36)}_${counter++}`

/** The AMQP and management URLs of a broker, by variable. */
export type Broker = Readonly<Record<string, string | undefined>>

const protocols = ["amqp:", "amqps:", "http:", "https:", "mysql:", "postgres:"]

/** The URLs of a list such as `amqp://a,amqp://b`: one for each node. */
export const urlsIn = (list: string): ReadonlyArray<URL> =>
  Either.getOrThrowWith(nodeUrls(list, protocols), (problem) => new Error(`${list}: ${problem}`)).map(
    (url) => new URL(url),
  )

/** The same list with each URL changed. */
export const changedUrls = (list: string, change: (url: URL) => void): string =>
  urlsIn(list)
    .map((url) => {
      change(url)
      return url.href
    })
    .join(",")

/** The first answer of several nodes that are asked in turn. */
const firstOf = async <A>(urls: ReadonlyArray<URL>, ask: (url: URL) => Promise<A>): Promise<A> => {
  let last: unknown
  for (const url of urls) {
    try {
      return await ask(url)
    } catch (error) {
      last = error
    }
  }
  throw last
}

/** A connection to the first node of a DSN that answers. */
export const connectAmqp = (dsn: string) =>
  firstOf(urlsIn(dsn), ({ href }) => amqp.connect(href, { timeout: 5000 }))

/** The virtual host of a DSN. */
export const virtualHostIn = (dsn: string): string => urlsIn(dsn)[0]!.pathname.slice(1)

/** Calls RabbitMQ's management API on the first node that answers; `path` is relative to /api. */
export const management = async (
  path: string,
  init: RequestInit = {},
  broker: Broker = process.env,
): Promise<Response> => {
  const list = broker.RABBITMQ_MANAGEMENT_URL
  if (list === undefined) throw new Error("RABBITMQ_MANAGEMENT_URL is not set")
  const [dsn] = urlsIn(broker.RABBITMQ_DSN ?? urlOf("rabbitmq"))
  const { username, password } = dsn!
  const headers = {
    authorization: `Basic ${btoa(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`)}`,
    "content-type": "application/json",
  }
  const response = await firstOf(urlsIn(list), ({ origin }) =>
    fetch(`${origin}/api${path}`, { ...init, headers }),
  )
  if (!response.ok && response.status !== 404)
    throw new Error(`management ${path}: ${response.status} ${await response.text()}`)
  return response
}

/** The DSN of a new, empty virtual host. */
export const freshRabbit = async (
  broker?: Broker,
): Promise<{
  readonly dsn: string
  readonly drop: () => Promise<unknown>
}> => {
  const vhost = `ue_${fresh()}`
  const list = broker?.RABBITMQ_DSN ?? urlOf("rabbitmq")
  await management(`/vhosts/${vhost}`, { method: "PUT" }, broker)
  const user = decodeURIComponent(urlsIn(list)[0]!.username)
  const permissions = JSON.stringify({ configure: ".*", write: ".*", read: ".*" })
  await management(`/permissions/${vhost}/${user}`, { method: "PUT", body: permissions }, broker)
  return {
    dsn: changedUrls(list, (url) => {
      url.pathname = `/${vhost}`
    }),
    drop: () => management(`/vhosts/${vhost}`, { method: "DELETE" }, broker),
  }
}

/** The URL of a new, empty MySQL database. */
export const freshMysql = async (
  server = urlOf("mysql"),
): Promise<{
  readonly url: string
  readonly drop: () => Promise<unknown>
}> => {
  const database = `user_embeddings_${fresh()}`
  const run = async (statement: string) => {
    const connection = await mysql.createConnection(server)
    await connection.query(statement)
    await connection.end()
  }
  await run(`CREATE DATABASE \`${database}\``)
  const url = new URL(server)
  url.pathname = `/${database}`
  return { url: url.href, drop: () => run(`DROP DATABASE \`${database}\``) }
}

/** The URL of a new, empty PostgreSQL database. */
export const freshPostgres = async (
  server = urlOf("postgres"),
): Promise<{
  readonly url: string
  readonly drop: () => Promise<unknown>
}> => {
  const database = `user_embeddings_${fresh()}`
  const run = async (statement: string) => {
    const client = new pg.Client(server)
    await client.connect()
    await client.query(statement)
    await client.end()
  }
  await run(`CREATE DATABASE ${database}`)
  const url = new URL(server)
  url.pathname = `/${database}`
  return { url: url.href, drop: () => run(`DROP DATABASE ${database} WITH (FORCE)`) }
}

/** The name of a MongoDB database that does not exist yet. */
export const freshMongo = (
  url = urlOf("mongodb"),
): {
  readonly url: string
  readonly database: string
  readonly drop: () => Promise<unknown>
} => {
  const database = `user_embeddings_${fresh()}`
  const drop = async () => {
    const client = await MongoClient.connect(url)
    await client.db(database).dropDatabase()
    await client.close()
  }
  return { url, database, drop }
}
