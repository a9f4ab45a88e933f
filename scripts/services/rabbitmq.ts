import { connect } from "amqplib"
import { aptInstall, findProgram, program } from "./install.ts"
import type { Ports, Service } from "./service.ts"

// The start script on the PATH of Debian's package insists on its own user and folders. It wraps the first one here.
const serverScripts = ["/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"]

const configuration = (ports: Ports) => `\
listeners.tcp.1 = 127.0.0.1:${ports.amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = ${ports.management}
`

export const rabbitmq: Service = {
  name: "rabbitmq",
  urlVariable: "RABBITMQ_DSN",
  ports: { amqp: 5672, management: 15672, distribution: 25672, epmd: 4369 },
  env: (ports) => ({
    RABBITMQ_DSN: `amqp://guest:guest@127.0.0.1:${ports.amqp}`,
    RABBITMQ_MANAGEMENT_URL: `http://guest:guest@127.0.0.1:${ports.management}`,
  }),
  probe: async (env) => {
    const connection = await connect(env.RABBITMQ_DSN ?? "", { timeout: 2000 })
    await connection.close()
    if (env.RABBITMQ_MANAGEMENT_URL === undefined) return
    const { username, password, origin } = new URL(env.RABBITMQ_MANAGEMENT_URL)
    const response = await fetch(`${origin}/api/overview`, {
      headers: { authorization: `Basic ${btoa(`${username}:${password}`)}` },
    })
    if (!response.ok) throw new Error(`the management API answers ${response.status}`)
  },
  docker: {
    image: "rabbitmq:4-management",
    env: { RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: "+sbwt none" },
    args: [],
  },
  native: {
    install: (signal) =>
      aptInstall("rabbitmq-server", () => findProgram(...serverScripts) !== undefined, signal),
    prepare: async (folder, ports) => {
      await Bun.write(`${folder}/rabbitmq.conf`, configuration(ports))
      await Bun.write(
        `${folder}/enabled_plugins`,
        "[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n",
      )
      await Bun.write(`${folder}/rabbitmq-env.conf`, "")
    },
    // Runs epmd in the server's process group. RabbitMQ would start it as a daemon that never ends.
    command: () => ["sh", "-c", `"$0" & exec "$1"`, program("epmd"), program(...serverScripts)],
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
