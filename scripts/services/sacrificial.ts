/**
 * A second set of servers beside the usual one, for tests that kill them: RabbitMQ and MongoDB with their state in a
 * folder of their own. Commands run in programs of their own, because the folder belongs to the program.
 */
import { resolve } from "node:path"
import { run } from "./command.ts"
import type { Status } from "./manager.ts"
import type { ServiceEnv, ServiceName } from "./service.ts"

/** What the tests find them by. */
export const sacrificialVariable = "SACRIFICIAL_SERVERS"
const folder = ".services-sacrificial"
const only = ["--only", "rabbitmq,mongodb"] as const

const services = (signal: AbortSignal | undefined, ...args: readonly string[]) =>
  run([process.execPath, resolve(import.meta.dir, "../services.ts"), ...args], {
    // Empty addresses, so that none of the usual servers is taken for one of these.
    env: { SERVICES_FOLDER: folder, RABBITMQ_DSN: "", RABBITMQ_MANAGEMENT_URL: "", MONGODB_URL: "" },
    ...(signal === undefined ? {} : { signal }),
  })

/** Brings them up; answers where they are, as the value of the variable. */
export const up = async (signal?: AbortSignal): Promise<string> => {
  const statuses: readonly Status[] = JSON.parse(await services(signal, "up", ...only, "--json"))
  return JSON.stringify(Object.assign({}, ...statuses.map(({ env }) => env)))
}
export const down = () => services(undefined, "down")

/** Where they are; undefined when nobody has started them. */
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
