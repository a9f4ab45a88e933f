/**
 * The nodes of the servers that scenarios may break. `bun run test` starts single servers for them, `bun run test:servers`
 * starts clusters or takes those of the environment. A node is named after its server; several nodes have numbers, in the
 * order of the URL: `rabbitmq1`, `rabbitmq2`, `rabbitmq3`, `mysql`, `mongodb1` …
 *
 *     failures("a cluster of RabbitMQ", "servers", (scenario) => {
 *       scenario("the leader of the main queue killed", async (system) => {
 *         const leader = await queueLeader(virtualHostIn(system.env.RABBITMQ_DSN!), queue)
 *         await leader.kill()
 *         await leader.start()
 *       })
 *     }, { rabbitmq: 3 })
 */
import { MongoClient } from "mongodb"
import { within } from "../../scripts/services/command.ts"
import { mongodb } from "../../scripts/services/mongodb.ts"
import { mysql } from "../../scripts/services/mysql.ts"
import { rabbitmq } from "../../scripts/services/rabbitmq.ts"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import type { ServiceEnv } from "../../scripts/services/service.ts"
import { type Server as AnyServer, management, urlsIn } from "./servers.ts"

export interface Node {
  readonly name: string
  /** Host and port, as in the URL. */
  readonly address: string
  /** The URLs of this node alone. */
  readonly env: ServiceEnv
  /** Ends it as a power cut would. */
  readonly kill: () => Promise<unknown>
  /** Ends it with SIGTERM. */
  readonly stop: () => Promise<unknown>
  /** Starts it after `kill` or `stop`, and waits until it answers. */
  readonly start: () => Promise<void>
  /** Freezes it: connections stay open, nothing answers. */
  readonly pause: () => Promise<unknown>
  readonly resume: () => Promise<unknown>
}

/** Servers that scenarios may break. */
export type Server = Exclude<AnyServer, "postgres">

const addresses = sacrificial.addresses() ?? {}
const servers = { rabbitmq, mysql, mongodb }

/** The URLs of each node alone. A node of a replica set is addressed directly. */
const nodeUrls = (server: Server): ReadonlyArray<ServiceEnv> => {
  if (server === "mysql") return addresses.MYSQL_URL === undefined ? [] : [{ MYSQL_URL: addresses.MYSQL_URL }]
  if (server === "mongodb") {
    const [, login = "", hosts = ""] =
      /^mongodb:\/\/([^@/]*@)?([^/]*)/.exec(addresses.MONGODB_URL ?? "") ?? []
    return hosts
      .split(",")
      .filter((host) => host !== "")
      .map((host) => ({ MONGODB_URL: `mongodb://${login}${host}/?directConnection=true` }))
  }
  const urls = (list: string | undefined) => (list === undefined ? [] : urlsIn(list).map(({ href }) => href))
  const management = urls(addresses.RABBITMQ_MANAGEMENT_URL)
  return urls(addresses.RABBITMQ_DSN).map((RABBITMQ_DSN, index) => ({
    RABBITMQ_DSN,
    ...(management[index] !== undefined && { RABBITMQ_MANAGEMENT_URL: management[index] }),
  }))
}

const answers = async (server: Server, name: string, env: ServiceEnv): Promise<void> => {
  const deadline = Date.now() + 120_000
  for (;;) {
    try {
      return void (await within(2500, servers[server].probe(env)))
    } catch (error) {
      if (Date.now() > deadline)
        throw new Error(`${name} does not answer 120 s after its start`, { cause: error })
      await Bun.sleep(100)
    }
  }
}

/** The nodes of a server. There are none if scenarios may not break it. */
export const nodes = (server: Server): ReadonlyArray<Node> =>
  nodeUrls(server).map((env, index, all) => {
    const name = all.length === 1 ? server : `${server}${index + 1}`
    const control = (action: sacrificial.Action) => () => sacrificial.control(action, name)
    return {
      name,
      address: new URL(env[servers[server].urlVariable] ?? "").host,
      env,
      kill: control("kill"),
      stop: control("stop"),
      start: () => control("start")().then(() => answers(server, name, env)),
      pause: control("pause"),
      resume: control("resume"),
    }
  })

/** The names of nodes in their cluster, such as `rabbit@host`, by our names. They are asked while all nodes run. */
let erlangNames: Promise<ReadonlyMap<string, string>> | undefined
const askErlangNames = async () => {
  const pairs = nodes("rabbitmq").map(async ({ env, name }) => {
    const overview = (await (await management("/overview", {}, env)).json()) as { readonly node: string }
    return [overview.node, name] as const
  })
  return new Map(await Promise.all(pairs))
}

/** The node with the leader of a queue. Call it once while all nodes run. */
export const queueLeader = async (virtualHost: string, queue: string): Promise<Node> => {
  erlangNames ??= askErlangNames()
  const names = await erlangNames
  const path = `/queues/${encodeURIComponent(virtualHost)}/${encodeURIComponent(queue)}`
  const { leader = "" } = (await (await management(path, {}, addresses)).json()) as {
    readonly leader?: string
  }
  const node = nodes("rabbitmq").find(({ name }) => name === names.get(leader))
  if (node === undefined)
    throw new Error(`the leader of ${queue} is "${leader}", which is no node of the cluster`)
  return node
}

/** The primary of the replica set, as the first node that answers sees it. */
export const primary = async (): Promise<Node> => {
  const all = nodes("mongodb")
  for (const { env } of all) {
    const client = new MongoClient(env.MONGODB_URL ?? "", {
      serverSelectionTimeoutMS: 1000,
      socketTimeoutMS: 1000,
    })
    try {
      const { primary } = await client.db("admin").command({ hello: 1 })
      const node = all.find(({ address }) => address === primary)
      if (node !== undefined) return node
    } catch {
      // This node is out.
    } finally {
      await client.close()
    }
  }
  throw new Error("the replica set has no primary")
}

/** Resumes and starts what a failed scenario left frozen or stopped. */
export const mend = async (): Promise<void> => {
  for (const server of ["rabbitmq", "mysql", "mongodb"] as const)
    for (const { env, resume, start } of nodes(server)) {
      await resume().catch(() => {})
      await within(2500, servers[server].probe(env)).then(() => {}, start)
    }
}
