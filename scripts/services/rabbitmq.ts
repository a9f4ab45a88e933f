import { connect } from "amqplib"
import { Either } from "effect"
import { nodeUrls } from "../../src/services/NodeUrls.ts"
import { sleep } from "./command.ts"
import { aptInstall, findProgram, program } from "./install.ts"
import { isClustered, nodesOf, type Ports, type Service, type ServiceEnv } from "./service.ts"

// The start script on the PATH of Debian's package insists on its own user and folders. It wraps the first one here.
const serverScripts = ["/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"]

const plugins = "[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n"

const configuration = (ports: Ports) => `\
listeners.tcp.1 = 127.0.0.1:${ports.amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = ${ports.management}
`

/** Nodes that start at the same time find each other by this list. */
const clusterConfiguration = (cluster: readonly Ports[]) => `\
loopback_users.guest = false
listeners.tcp.default = 5672
log.console = true
cluster_formation.peer_discovery_backend = classic_config
${nodesOf("rabbitmq", cluster)
  .map(({ name }, index) => `cluster_formation.classic_config.nodes.${index + 1} = rabbit@${name}\n`)
  .join("")}`

/** The URL of the first node. */
const firstIn = (list = ""): URL => {
  const urls = nodeUrls(list, ["amqp:", "amqps:", "http:", "https:"])
  return new URL(Either.getOrThrowWith(urls, (problem) => new Error(problem))[0] ?? "")
}

/** Calls the management API on the first node, with the user of the DSN unless the URL has one. */
const callManagement = async (env: ServiceEnv, path: string): Promise<unknown> => {
  const url = firstIn(env.RABBITMQ_MANAGEMENT_URL)
  const { password, username } = url.username === "" ? firstIn(env.RABBITMQ_DSN) : url
  const response = await fetch(`${url.origin}/api${path}`, {
    headers: { authorization: `Basic ${btoa(`${username}:${password}`)}` },
  })
  if (!response.ok) throw new Error(`the management API answers ${response.status}`)
  return response.json()
}

const env = (cluster: readonly Ports[]): ServiceEnv => ({
  RABBITMQ_DSN: cluster.map(({ amqp }) => `amqp://guest:guest@127.0.0.1:${amqp}`).join(","),
  RABBITMQ_MANAGEMENT_URL: cluster
    .map(({ management }) => `http://guest:guest@127.0.0.1:${management}`)
    .join(","),
})

export const rabbitmq: Service = {
  name: "rabbitmq",
  urlVariable: "RABBITMQ_DSN",
  ports: { amqp: 5672, management: 15672, distribution: 25672, epmd: 4369 },
  env,
  probe: async (env) => {
    const connection = await connect(firstIn(env.RABBITMQ_DSN).href, { timeout: 2000 })
    const { version } = connection.connection.serverProperties
    await connection.close()
    if (env.RABBITMQ_MANAGEMENT_URL) await callManagement(env, "/overview")
    return `RabbitMQ ${version}`
  },
  join: async (cluster) => {
    const deadline = Date.now() + 60_000
    for (;;) {
      const nodes = (await callManagement(env(cluster), "/nodes")) as Array<{ running: boolean }>
      if (nodes.filter(({ running }) => running).length === cluster.length) return
      if (Date.now() > deadline)
        throw new Error(`${nodes.length} of ${cluster.length} nodes found each other`)
      await sleep(200)
    }
  },
  docker: {
    compose: "rabbitmq",
    env: { RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: "+sbwt none +sbwtdcpu none +sbwtdio none" },
    files: (node) => {
      const enabled = { target: "/etc/rabbitmq/enabled_plugins", content: plugins, mode: 0o644 }
      if (!isClustered(node)) return [enabled]
      const content = clusterConfiguration(node.cluster)
      return [
        enabled,
        { target: "/etc/rabbitmq/rabbitmq.conf", content, mode: 0o644 },
        { target: "/var/lib/rabbitmq/.erlang.cookie", content: "user-embeddings", mode: 0o400 },
      ]
    },
  },
  native: {
    install: (signal) =>
      aptInstall("rabbitmq-server", () => findProgram(...serverScripts) !== undefined, signal),
    prepare: async (folder, ports) => {
      await Bun.write(`${folder}/rabbitmq.conf`, configuration(ports))
      await Bun.write(`${folder}/enabled_plugins`, plugins)
      await Bun.write(`${folder}/rabbitmq-env.conf`, "")
    },
    // Runs epmd in the server's process group. RabbitMQ would start it as a daemon that never ends.
    command: () => ["sh", "-c", `"$0" & exec "$1"`, program("epmd"), program(...serverScripts)],
    programs: "/usr/lib/rabbitmq/bin",
    env: (folder, ports) => ({
      HOME: folder,
      ERL_EPMD_PORT: String(ports.epmd),
      ERL_EPMD_ADDRESS: "127.0.0.1",
      RABBITMQ_NODENAME: `user-embeddings-${ports.amqp}@localhost`,
      RABBITMQ_DIST_PORT: String(ports.distribution),
      RABBITMQ_MNESIA_BASE: `${folder}/data`,
      RABBITMQ_LOG_BASE: folder,
      RABBITMQ_LOGS: "-",
      RABBITMQ_PID_FILE: `${folder}/pid`,
      RABBITMQ_CONF_ENV_FILE: `${folder}/rabbitmq-env.conf`,
      RABBITMQ_CONFIG_FILE: `${folder}/rabbitmq.conf`,
      RABBITMQ_ENABLED_PLUGINS_FILE: `${folder}/enabled_plugins`,
      RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: "+sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
    }),
  },
}
