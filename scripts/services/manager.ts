/** Starts, stops and deliberately breaks servers. */
import { freePorts, messageOf, sleep, within } from "./command.ts"
import { dockerBackend } from "./docker.ts"
import { jaeger } from "./jaeger.ts"
import { mongodb } from "./mongodb.ts"
import { mysql } from "./mysql.ts"
import { nativeBackend } from "./native.ts"
import { postgres } from "./postgres.ts"
import { rabbitmq } from "./rabbitmq.ts"
import {
  type Backend,
  defaultServices,
  type Instance,
  type Node,
  nodesOf,
  portsOf,
  type Service,
  type ServiceEnv,
  type ServiceName,
  serviceNames,
} from "./service.ts"
import { forget, locked, readState, remember, type State } from "./state.ts"

const services: Readonly<Record<ServiceName, Service>> = { rabbitmq, mysql, mongodb, postgres, jaeger }
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
  /** The number of nodes of a service, for clusters. */
  readonly sizes?: Readonly<Partial<Record<ServiceName, number>>>
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

/** The nodes of a service that `up` started, in order. */
const started = (name: ServiceName, state: State = readState()): readonly Instance[] =>
  Object.values(state)
    .filter(({ service }) => service === name)
    .toSorted((a, b) => a.index - b.index)

/** The URLs of a service that `up` started. */
const envOf = (service: Service, state?: State): ServiceEnv | undefined => {
  const [first] = started(service.name, state)
  return first === undefined ? undefined : service.env(first.cluster)
}

/** The server that the environment names, unless `up` started it and `services env` exported it. */
const fromEnvironment = (service: Service, state?: State): ServiceEnv | undefined => {
  const url = process.env[service.urlVariable]
  if (!url || url === envOf(service, state)?.[service.urlVariable]) return undefined
  return Object.fromEntries(
    urlVariables(service.name).flatMap((name) => (process.env[name] ? [[name, process.env[name]]] : [])),
  )
}

const discard = async (instance: Instance) => {
  await backends[instance.backend].remove(instance)
  forget(instance.name)
}

/** Like `Promise.all`, but waits for all promises even when one fails. */
const all = async <A>(promises: readonly Promise<A>[]): Promise<A[]> => {
  await Promise.allSettled(promises)
  return Promise.all(promises)
}

const createNode = async (
  service: Service,
  node: Node,
  backend: Instance["backend"],
  signal: AbortSignal,
) => {
  let instance: Instance | undefined
  await backends[backend].create(
    service,
    node,
    (handle) => {
      instance = { ...node, backend, handle, env: service.env([portsOf(node)]) }
      remember(instance)
    },
    async () => {
      if (instance === undefined) throw new Error("nothing was started")
      await waitUntilReady(service, instance, signal)
    },
    signal,
  )
}

/** Starts a single server, or all nodes of a cluster at the same time. */
const create = async (service: Service, size: number, backend: Instance["backend"], signal: AbortSignal) => {
  const obstacle = await backends[backend].obstacle(service, size > 1)
  if (obstacle !== undefined) throw new Error(obstacle)
  const purposes = Object.keys(service.ports)
  const free = await freePorts(purposes.length * size)
  const cluster = Array.from({ length: size }, () =>
    Object.fromEntries(purposes.map((purpose) => [purpose, free.pop() ?? 0])),
  )
  try {
    await all(nodesOf(service.name, cluster).map((node) => createNode(service, node, backend, signal)))
    if (size > 1) await service.join?.(cluster)
  } catch (error) {
    await all(started(service.name).map(discard))
    throw error
  }
}

/** Why nodes that were started before do not answer; undefined if all do, or if there are none. */
const restartAll = async (service: Service, nodes: readonly Instance[], signal: AbortSignal) => {
  const problems = await Promise.all(nodes.map(({ env }) => problemOf(service, env)))
  const silent = nodes.filter((_, index) => problems[index] !== undefined)
  await all(silent.map((node) => restart(service, node, signal)))
  return silent.length === 0 ? "already running" : "did not answer, started again with its data"
}

const provide = async (
  service: Service,
  size: number,
  signal: AbortSignal,
): Promise<Status & { readonly isNew: boolean }> => {
  const given = fromEnvironment(service)
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
  const answer = (where: Instance["backend"], detail: string, isNew: boolean) => ({
    service: service.name,
    where,
    ready: true,
    env: envOf(service) ?? {},
    detail: size > 1 ? `${size} nodes; ${detail}` : detail,
    isNew,
  })
  const reasons = [`${service.urlVariable} is not set`]
  const known = started(service.name)
  if (known[0] !== undefined) {
    try {
      if (known.length !== size || known[0].cluster.length !== size)
        throw new Error(`there were ${known.length} nodes of ${known[0].cluster.length}`)
      return answer(known[0].backend, await restartAll(service, known, signal), false)
    } catch (error) {
      signal.throwIfAborted()
      reasons.push(`the earlier one could not be started again: ${messageOf(error)}`)
      await all(known.map(discard))
    }
  }
  for (const backend of ["docker", "native"] as const) {
    try {
      await create(service, size, backend, signal)
      return answer(backend, reasons.join("; "), true)
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
  const url = status.where === "environment" ? given.replaceAll(/:[^:@/,]*@/g, ":***@") : given
  const state = status.ready
    ? `ready${seconds === undefined ? "" : ` in ${seconds.toFixed(1)} s`}`
    : "NOT READY"
  return `${status.service.padEnd(9)} ${status.where.padEnd(11)} ${state}  ${url}  (${status.detail})`
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
  const { only = defaultServices, sizes = {}, signal = never, say = () => {} } = options
  return locked(signal, async () => {
    const before = Date.now()
    const created: ServiceName[] = []
    const statuses = await all(
      only.map(async (name) => {
        const { isNew, ...status } = await provide(services[name], sizes[name] ?? 1, signal)
        if (isNew) created.push(name)
        say(describe(status, (Date.now() - before) / 1000))
        return status
      }),
    ).catch(async (error: unknown) => {
      await discardAll(created)
      throw error
    })
    return { statuses, started: created }
  })
}

/** Stops the servers that `up` started and deletes their data; all of them unless `only` names some. */
export const down = (options: Omit<UpOptions, "signal"> = {}): Promise<void> =>
  locked(undefined, async () => {
    for (const { name, backend } of await discardAll(options.only ?? serviceNames)) {
      options.say?.(`${name.padEnd(9)} ${backend.padEnd(11)} stopped, data deleted`)
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
      const given = fromEnvironment(service, state)
      const env = given ?? envOf(service, state)
      if (env === undefined) {
        return { service: name, where: "nowhere", ready: false, env: {}, detail: "never started" }
      }
      const nodes = given === undefined ? started(name, state) : []
      const problems = await Promise.all(
        nodes.length === 0
          ? [problemOf(service, env)]
          : nodes.map(({ env, name }) =>
              problemOf(service, env).then((problem) => problem && `${name}: ${problem}`),
            ),
      )
      const problem = problems.filter((each) => each !== undefined).join("; ")
      const detail = problem || (nodes.length > 1 ? `${nodes.length} nodes answer` : "answers")
      return { service: name, where: nodes[0]?.backend ?? "environment", ready: problem === "", env, detail }
    }),
  )
  for (const each of statuses) options.say?.(describe(each))
  return statuses
}

/** The variables of all services, without probing them. */
export const environment = (options: Pick<UpOptions, "only"> = {}) => {
  const state = readState()
  const names = options.only ?? usual(state)
  const found = names.map((name) => fromEnvironment(services[name], state) ?? envOf(services[name], state))
  const env: ServiceEnv = Object.assign({}, ...found)
  return { env, missing: names.filter((_, index) => found[index] === undefined) }
}

/** Product and version of the server that the environment names, such as `MySQL 8.4.3`. */
export const versionIn = (name: ServiceName, env: ServiceEnv): Promise<string> =>
  within(10_000, services[name].probe(env))

/** The names of the variables with the URLs of a service. */
export const urlVariables = (name: ServiceName): readonly string[] =>
  Object.keys(services[name].env([services[name].ports]))

const restart = async (service: Service, instance: Instance, signal: AbortSignal): Promise<void> => {
  const handle = await backends[instance.backend].start(service, instance)
  const again = { ...instance, handle }
  remember(again)
  await waitUntilReady(service, again, signal)
}

const ours = (name: string): Instance => {
  const state = readState()
  const instance = state[name]
  if (instance === undefined) {
    const names = Object.keys(state).join(", ")
    throw new Error(`${name} was not started by \`bun run services up\`; running: ${names || "none"}`)
  }
  return instance
}

const onInstance = (verb: "stop" | "kill" | "pause" | "resume") => (name: string) => {
  const instance = ours(name)
  return backends[instance.backend][verb](instance)
}

/** Ends a node with SIGTERM and keeps its ports and data for `start`. */
export const stop = onInstance("stop")
/** Ends a node as a power cut would (SIGKILL). */
export const kill = onInstance("kill")
/** Freezes a node: connections stay open, nothing answers (SIGSTOP). */
export const pause = onInstance("pause")
export const resume = onInstance("resume")
/** Runs a program of the server, such as `rabbitmqctl`, and answers its standard output. */
export const exec = (name: string, command: readonly string[]): Promise<string> => {
  const instance = ours(name)
  return backends[instance.backend].exec(services[instance.service], instance, command)
}
/** Starts a stopped or killed node with its old ports and data, and waits until it is ready. */
export const start = async (name: string): Promise<void> => {
  const instance = ours(name)
  await restart(services[instance.service], instance, never)
}
