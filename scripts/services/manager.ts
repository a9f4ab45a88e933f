/** Starts, stops and deliberately breaks servers. */
import { freePorts, messageOf, sleep, within } from "./command.ts"
import { dockerBackend } from "./docker.ts"
import { jaeger } from "./jaeger.ts"
import { mongodb } from "./mongodb.ts"
import { mysql } from "./mysql.ts"
import { nativeBackend } from "./native.ts"
import { rabbitmq } from "./rabbitmq.ts"
import {
  type Backend,
  defaultServices,
  type Instance,
  type Service,
  type ServiceEnv,
  type ServiceName,
  serviceNames,
} from "./service.ts"
import { forget, locked, readState, remember, type State } from "./state.ts"

const services: Readonly<Record<ServiceName, Service>> = { rabbitmq, mysql, mongodb, jaeger }
const backends: Readonly<Record<Instance["backend"], Backend>> = {
  docker: dockerBackend,
  native: nativeBackend,
}

const readyWithin = 120_000
const never = new AbortController().signal

export interface Status {
  readonly service: ServiceName
  readonly where: "environment" | "docker" | "native" | "nowhere"
  readonly ready: boolean
  readonly env: ServiceEnv
  readonly detail: string
}

export interface UpOptions {
  readonly only?: readonly ServiceName[]
  readonly signal?: AbortSignal
  readonly say?: (line: string) => void
}

export interface UpResult {
  readonly statuses: readonly Status[]
  /** Servers that this call started. All others ran before or were named in the environment. */
  readonly started: readonly ServiceName[]
}

/** Probes a server once. Answers undefined when it is ready, otherwise the reason. */
const problemOf = (service: Service, env: ServiceEnv): Promise<string | undefined> =>
  within(2500, service.probe(env)).then(() => undefined, messageOf)

const waitUntilReady = async (service: Service, instance: Instance, signal: AbortSignal) => {
  const backend = backends[instance.backend]
  const deadline = Date.now() + readyWithin
  for (;;) {
    signal.throwIfAborted()
    const problem = await problemOf(service, instance.env)
    if (problem === undefined) return
    const ended = !(await backend.running(instance))
    if (ended || Date.now() > deadline) {
      const what = ended ? "it ended while starting" : `not ready after ${readyWithin / 1000} s: ${problem}`
      throw new Error(`${what}\n${await backend.log(instance)}`)
    }
    await sleep(100)
  }
}

/** The server that the environment names, unless `up` started it and `services env` exported it. */
const fromEnvironment = (service: Service, instance: Instance | undefined): ServiceEnv | undefined => {
  const url = process.env[service.urlVariable]
  if (!url || url === instance?.env[service.urlVariable]) return undefined
  return Object.fromEntries(
    urlVariables(service.name).flatMap((name) => (process.env[name] ? [[name, process.env[name]]] : [])),
  )
}

const discard = async (instance: Instance) => {
  await backends[instance.backend].remove(instance)
  forget(instance.service)
}

const create = async (service: Service, backend: Instance["backend"], signal: AbortSignal) => {
  const purposes = Object.keys(service.ports)
  const free = await freePorts(purposes.length)
  const ports = Object.fromEntries(purposes.map((purpose, index) => [purpose, free[index] ?? 0]))
  let instance: Instance | undefined
  try {
    await backends[backend].create(
      service,
      ports,
      (handle) => {
        instance = { service: service.name, backend, handle, ports, env: service.env(ports) }
        remember(instance)
      },
      signal,
    )
    if (instance === undefined) throw new Error("nothing was started")
    await waitUntilReady(service, instance, signal)
    await backends[backend].prepare(service, ports)
    return instance
  } catch (error) {
    if (instance !== undefined) await discard(instance)
    throw error
  }
}

const provide = async (
  service: Service,
  signal: AbortSignal,
): Promise<Status & { readonly isNew: boolean }> => {
  const known = readState()[service.name]
  const given = fromEnvironment(service, known)
  if (given !== undefined) {
    const problem = await problemOf(service, given)
    const advice = `${service.urlVariable} is set, but: ${problem} (unset it to have a server started here)`
    const detail = problem === undefined ? `${service.urlVariable} is set` : advice
    return {
      service: service.name,
      where: "environment",
      ready: problem === undefined,
      env: given,
      detail,
      isNew: false,
    }
  }
  const answer = (instance: Instance, detail: string, isNew: boolean) =>
    ({
      service: service.name,
      where: instance.backend,
      ready: true,
      env: instance.env,
      detail,
      isNew,
    }) as const
  const reasons = [`${service.urlVariable} is not set`]
  if (known !== undefined) {
    if ((await problemOf(service, known.env)) === undefined) return answer(known, "already running", false)
    try {
      const again = await restart(service, known, signal)
      return answer(again, "did not answer, started again with its data", false)
    } catch (error) {
      signal.throwIfAborted()
      reasons.push(`the earlier one could not be started again: ${messageOf(error)}`)
      await discard(known)
    }
  }
  for (const backend of ["docker", "native"] as const) {
    try {
      const obstacle = await backends[backend].obstacle(service)
      if (obstacle !== undefined) throw new Error(obstacle)
      return answer(await create(service, backend, signal), reasons.join("; "), true)
    } catch (error) {
      signal.throwIfAborted()
      reasons.push(`${backend}: ${messageOf(error)}`)
    }
  }
  const advice = `Set ${service.urlVariable}, start Docker, or fix the errors above.`
  return {
    service: service.name,
    where: "nowhere",
    ready: false,
    env: {},
    detail: `${reasons.join("\n    ")}\n    ${advice}`,
    isNew: false,
  }
}

const describe = (status: Status, seconds?: number) => {
  const given = status.env[services[status.service].urlVariable] ?? ""
  const url = status.where === "environment" ? given.replace(/:[^:@/]*@/, ":***@") : given
  const state = status.ready
    ? `ready${seconds === undefined ? "" : ` in ${seconds.toFixed(1)} s`}`
    : "NOT READY"
  return `${status.service.padEnd(9)} ${status.where.padEnd(11)} ${state}  ${url}  (${status.detail})`
}

/** Like `Promise.all`, but waits for all promises even when one fails. */
const all = async <A>(promises: readonly Promise<A>[]): Promise<A[]> => {
  await Promise.allSettled(promises)
  return Promise.all(promises)
}

const discardAll = (names: readonly ServiceName[]) => {
  const instances = Object.values(readState()).filter(({ service }) => names.includes(service))
  return all(instances.map((instance) => discard(instance).then(() => instance)))
}

/**
 * Starts servers at the same time. A server that cannot be started has `ready: false` in the result. An interruption
 * rejects, and then every server that this call started is stopped.
 */
export const up = (options: UpOptions = {}): Promise<UpResult> => {
  const { only = defaultServices, signal = never, say = () => {} } = options
  return locked(signal, async () => {
    const before = Date.now()
    const started: ServiceName[] = []
    const statuses = await all(
      only.map(async (name) => {
        const { isNew, ...status } = await provide(services[name], signal)
        if (isNew) started.push(name)
        say(describe(status, (Date.now() - before) / 1000))
        return status
      }),
    ).catch(async (error: unknown) => {
      await discardAll(started)
      throw error
    })
    return { statuses, started }
  })
}

/** Stops the servers that `up` started and deletes their data; all of them unless `only` names some. */
export const down = (options: Omit<UpOptions, "signal"> = {}): Promise<void> =>
  locked(undefined, async () => {
    for (const { service, backend } of await discardAll(options.only ?? serviceNames)) {
      options.say?.(`${service.padEnd(9)} ${backend.padEnd(11)} stopped, data deleted`)
    }
  })

/** The three default servers, and all others that were started. */
const usual = (state: State): readonly ServiceName[] => [
  ...new Set([...defaultServices, ...Object.values(state).map((instance) => instance.service)]),
]

export const status = async (options: Omit<UpOptions, "signal"> = {}): Promise<readonly Status[]> => {
  const state = readState()
  const statuses = await Promise.all(
    (options.only ?? usual(state)).map(async (name): Promise<Status> => {
      const service = services[name]
      const instance = state[name]
      const given = fromEnvironment(service, instance)
      const env = given ?? instance?.env
      if (env === undefined) {
        return { service: name, where: "nowhere", ready: false, env: {}, detail: "never started" }
      }
      const problem = await problemOf(service, env)
      const where = given === undefined && instance !== undefined ? instance.backend : "environment"
      return { service: name, where, ready: problem === undefined, env, detail: problem ?? "answers" }
    }),
  )
  for (const each of statuses) options.say?.(describe(each))
  return statuses
}

/** The variables of all services, without probing them. */
export const environment = (options: Pick<UpOptions, "only"> = {}) => {
  const state = readState()
  const names = options.only ?? usual(state)
  const found = names.map((name) => fromEnvironment(services[name], state[name]) ?? state[name]?.env)
  const env: ServiceEnv = Object.assign({}, ...found)
  return { env, missing: names.filter((_, index) => found[index] === undefined) }
}

/** The names of the variables with the URLs of a service. */
export const urlVariables = (name: ServiceName): readonly string[] =>
  Object.keys(services[name].env(services[name].ports))

const restart = async (service: Service, instance: Instance, signal: AbortSignal): Promise<Instance> => {
  const handle = await backends[instance.backend].start(service, instance)
  const started = { ...instance, handle }
  remember(started)
  await waitUntilReady(service, started, signal)
  return started
}

const ours = (name: ServiceName): Instance => {
  const instance = readState()[name]
  if (instance === undefined) throw new Error(`${name} was not started by \`bun run services up\``)
  return instance
}

const onInstance = (verb: "stop" | "kill" | "pause" | "resume") => (name: ServiceName) => {
  const instance = ours(name)
  return backends[instance.backend][verb](instance)
}

/** Ends a server with SIGTERM and keeps its ports and data for `start`. */
export const stop = onInstance("stop")
/** Ends a server as a power cut would (SIGKILL). */
export const kill = onInstance("kill")
/** Freezes a server: connections stay open, nothing answers (SIGSTOP). */
export const pause = onInstance("pause")
export const resume = onInstance("resume")
/** Runs a program of the server, such as `rabbitmqctl`, and answers its standard output. */
export const exec = (name: ServiceName, command: readonly string[]): Promise<string> => {
  const instance = ours(name)
  return backends[instance.backend].exec(services[name], instance, command)
}
/** Starts a stopped or killed server with its old ports and data, and waits until it is ready. */
export const start = async (name: ServiceName): Promise<void> => {
  await restart(services[name], ours(name), never)
}
