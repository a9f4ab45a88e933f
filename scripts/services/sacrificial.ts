/**
 * A second RabbitMQ and MongoDB for tests that kill them. Their state is in a second folder. A process works with one
 * folder only, so each command here runs in another process.
 */
import { resolve } from "node:path"
import { run } from "./command.ts"
import type { Status } from "./manager.ts"
import type { ServiceEnv, ServiceName } from "./service.ts"

/** The variable with the URLs of these servers as JSON. */
export const sacrificialVariable = "SACRIFICIAL_SERVERS"
const folder = ".services-sacrificial"
const only = ["--only", "rabbitmq,mongodb"] as const

const services = (signal: AbortSignal | undefined, ...args: readonly string[]) =>
  run([process.execPath, resolve(import.meta.dir, "../services.ts"), ...args], {
    // Empty URLs, so that these servers are started even if the environment names others.
    env: { SERVICES_FOLDER: folder, RABBITMQ_DSN: "", RABBITMQ_MANAGEMENT_URL: "", MONGODB_URL: "" },
    ...(signal === undefined ? {} : { signal }),
  })

/** Starts the servers and answers the value of the variable. */
export const up = async (signal?: AbortSignal): Promise<string> => {
  const statuses: readonly Status[] = JSON.parse(await services(signal, "up", ...only, "--json"))
  return JSON.stringify(Object.assign({}, ...statuses.map(({ env }) => env)))
}
export const down = () => services(undefined, "down")

/** The URLs of the servers, or undefined when they do not run. */
export const addresses = (): ServiceEnv | undefined => {
  const text = process.env[sacrificialVariable]
  return text ? (JSON.parse(text) as ServiceEnv) : undefined
}

const verb = (name: string) => (service: ServiceName) => services(undefined, name, service)
export const stop = verb("stop")
export const kill = verb("kill")
export const pause = verb("pause")
export const resume = verb("resume")
export const start = verb("start")
export const exec = (service: ServiceName, ...command: readonly string[]) =>
  services(undefined, "exec", service, "--", ...command)
