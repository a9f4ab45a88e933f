/**
 * Servers for tests that break them: a second RabbitMQ, MySQL and MongoDB with a state folder of their own, or servers of the
 * environment. A process works with one state folder only, so each command here runs in another process.
 */
import { resolve } from "node:path"
import { run } from "./command.ts"
import type { Status } from "./manager.ts"
import type { ServiceEnv, ServiceName } from "./service.ts"

/** The variable with the URLs of these servers as JSON. */
export const sacrificialVariable = "SACRIFICIAL_SERVERS"
/** The variable with a command that breaks and repairs a node, such as `./control {action} {name}`. */
export const controlVariable = "SERVERS_CONTROL"
const folder = ".services-sacrificial"
export type Action = "kill" | "stop" | "start" | "pause" | "resume"

const services = (signal: AbortSignal | undefined, ...args: readonly string[]) =>
  run([process.execPath, resolve(import.meta.dir, "../services.ts"), ...args], {
    // Empty URLs, so that these servers are started even if the environment names others.
    env: {
      SERVICES_FOLDER: folder,
      RABBITMQ_DSN: "",
      RABBITMQ_MANAGEMENT_URL: "",
      MYSQL_URL: "",
      MONGODB_URL: "",
    },
    ...(signal === undefined ? {} : { signal }),
  })

/** Starts the servers and answers the value of the variable. `only` is as in `bun run services up --only`. */
export const up = async (only = "rabbitmq,mysql,mongodb", signal?: AbortSignal): Promise<string> => {
  const statuses: readonly Status[] = JSON.parse(await services(signal, "up", "--only", only, "--json"))
  return JSON.stringify(Object.assign({}, ...statuses.map(({ env }) => env)))
}
export const down = () => services(undefined, "down")

/** The URLs of the servers, or undefined when they do not run. */
export const addresses = (): ServiceEnv | undefined => {
  const text = process.env[sacrificialVariable]
  return text ? (JSON.parse(text) as ServiceEnv) : undefined
}

/** Breaks or repairs one node: by the command of the environment, else as a server that {@link up} started. */
export const control = async (
  action: Action | "exec",
  name: string,
  ...rest: readonly string[]
): Promise<string> => {
  const command = process.env[controlVariable]
  if (!command) return services(undefined, action, name, ...rest)
  const filled = command.replaceAll("{action}", action).replaceAll("{name}", name)
  return run(["sh", "-c", `${filled} "$@"`, "control", ...rest])
}

/** The names of a server's nodes: its own name if there is one, else numbered in the order of the URL. */
const nodesOf = (service: ServiceName): readonly string[] => {
  const { MONGODB_URL = "", RABBITMQ_DSN = "" } = addresses() ?? {}
  const count = { rabbitmq: RABBITMQ_DSN, mongodb: MONGODB_URL, mysql: "", postgres: "", jaeger: "" }[
    service
  ].split(",").length
  return count === 1 ? [service] : Array.from({ length: count }, (_, index) => `${service}${index + 1}`)
}

/** Breaks or repairs all nodes of a server. */
const verb = (action: Action) => (service: ServiceName) =>
  Promise.all(nodesOf(service).map((name) => control(action, name)))
export const stop = verb("stop")
export const kill = verb("kill")
export const pause = verb("pause")
export const resume = verb("resume")
export const start = verb("start")
/** Runs a program on all nodes of a server. */
export const exec = (service: ServiceName, ...command: readonly string[]) =>
  Promise.all(nodesOf(service).map((name) => control("exec", name, ...command)))
