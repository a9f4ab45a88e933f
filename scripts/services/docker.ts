/** Servers in containers, by testcontainers. They outlive the program that starts them, and `down` removes them. */
import { readFileSync } from "node:fs"
import { resolve } from "node:path"
import type { GenericContainer, StartedNetwork, WaitStrategy } from "testcontainers"
import { lastLines, messageOf, sleep, within } from "./command.ts"
import { type Backend, type Instance, isClustered, type Node, portsOf, type Service } from "./service.ts"

/** Loaded on demand, because it takes 0.3 s. */
const testcontainers = async () => {
  // Its helper container would remove the servers as soon as this program ends.
  process.env.TESTCONTAINERS_RYUK_DISABLED = "true"
  return import("testcontainers")
}

const client = async () => (await testcontainers()).getContainerRuntimeClient()
const containerOf = async ({ handle }: Pick<Instance, "handle">) => (await client()).container.getById(handle)

let engine: Promise<string | undefined> | undefined
const findEngine = async () => {
  try {
    const { host } = (await within(5000, client())).info.containerRuntime
    return ["localhost", "127.0.0.1"].includes(host) ? undefined : `the engine is on another machine, ${host}`
  } catch {
    return "no Docker engine answers"
  }
}

/** The images are those of docker-compose.yml. */
const imageOf = ({ docker, name }: Service): string => {
  const file = readFileSync(resolve(import.meta.dir, "../../docker-compose.yml"), "utf8")
  const { services } = Bun.YAML.parse(file) as { services: Record<string, { image?: string }> }
  const image = services[docker.compose]?.image
  if (image === undefined) throw new Error(`docker-compose.yml names no image for ${name}`)
  return image
}

/** True for an answer of the engine that only says that there is nothing left to do. */
const isDone = (error: unknown) =>
  error instanceof Error && "statusCode" in error && [304, 404].includes(Number(error.statusCode))
const ignoreDone = (error: unknown) => {
  if (!isDone(error)) throw error
}

/** One network for all nodes of a cluster. They know each other by their names there. */
const networkName = ({ cluster }: Node) => `user-embeddings-${Object.values(cluster[0] ?? {})[0]}`
const networks = new Map<string, Promise<StartedNetwork>>()
const networkOf = async (node: Node) => {
  const name = networkName(node)
  const { Network } = await testcontainers()
  const network = networks.get(name) ?? new Network({ nextUuid: () => name }).start()
  networks.set(name, network)
  return network
}

/** Removes the network of a cluster after its last container. */
const removeNetwork = async (node: Node) => {
  const { dockerode } = (await client()).container
  const name = networkName(node)
  if ((await dockerode.listContainers({ all: true, filters: { network: [name] } })).length > 0) return
  for (let attempt = 1; ; attempt++) {
    try {
      return void (await dockerode.getNetwork(name).remove().catch(ignoreDone))
    } catch (error) {
      // The engine frees the address of a container some time after it has removed the container.
      if (attempt === 50) throw error
      await sleep(100)
    }
  }
}

/** The container of a node, which publishes its ports on this machine only. */
const containerFor = async (service: Service, node: Node, started: (handle: string) => void) => {
  const { GenericContainer } = await testcontainers()
  class Container extends GenericContainer {
    protected override async beforeContainerCreated() {
      for (const bindings of Object.values(this.hostConfig.PortBindings ?? {}))
        for (const binding of bindings as Array<{ HostIp?: string }>) binding.HostIp = "127.0.0.1"
    }
    protected override async containerCreated(id: string) {
      started(id)
    }
  }
  const container: GenericContainer = new Container(imageOf(service))
  const ports = portsOf(node)
  const arguments_ = service.docker.onHost?.(node)
  if (arguments_ !== undefined) container.withNetworkMode("host").withEntrypoint([...arguments_])
  else
    container.withExposedPorts(
      ...Object.entries(service.ports).map(([purpose, inside]) => ({
        container: inside,
        host: ports[purpose] ?? 0,
      })),
    )
  if (isClustered(node) && arguments_ === undefined)
    container
      .withNetwork(await networkOf(node))
      .withNetworkAliases(node.name)
      .withHostname(node.name)
  return container
    .withLabels({ "user-embeddings.services": node.name })
    .withEnvironment({ ...service.docker.env })
    .withCopyContentToContainer([...(service.docker.files?.(node) ?? [])])
}

const until = (ready: () => Promise<void>): WaitStrategy => ({
  waitUntilReady: ready,
  withStartupTimeout: () => until(ready),
  isStartupTimeoutSet: () => false,
  getStartupTimeout: () => 0,
})

export const dockerBackend: Backend = {
  obstacle: () => {
    engine ??= findEngine()
    return engine
  },
  create: async (service, node, started, ready, signal) => {
    try {
      const container = await containerFor(service, node, started)
      signal.throwIfAborted()
      await container.withWaitStrategy(until(ready)).start()
    } catch (error) {
      if (isClustered(node)) await removeNetwork(node)
      throw error
    }
    await service.docker.prepare?.(portsOf(node))
  },
  start: async (_, instance) => {
    const container = await containerOf(instance)
    // A paused container cannot be started.
    await container.unpause().catch(() => {})
    await container.start().catch(ignoreDone)
    return instance.handle
  },
  stop: async (instance) => void (await (await containerOf(instance)).stop({ t: 30 }).catch(ignoreDone)),
  kill: async (instance) => void (await (await containerOf(instance)).kill()),
  pause: async (instance) => void (await (await containerOf(instance)).pause()),
  resume: async (instance) => void (await (await containerOf(instance)).unpause()),
  exec: async (_, instance, command) => {
    const { container } = await client()
    const answer = await container.exec(await containerOf(instance), [...command])
    if (answer.exitCode !== 0)
      throw new Error(`\`${command.join(" ")}\` failed (${answer.exitCode}): ${lastLines(answer.output, 5)}`)
    return answer.stdout
  },
  remove: async (instance) => {
    const container = await containerOf(instance)
    await container.remove({ force: true, v: true }).catch(ignoreDone)
    if (isClustered(instance)) await removeNetwork(instance)
  },
  running: async (instance) =>
    (await containerOf(instance)).inspect().then(
      ({ State }) => State.Running,
      () => false,
    ),
  log: async (instance) => {
    const log = await (await containerOf(instance))
      .logs({ stdout: true, stderr: true, tail: 20 })
      .catch(messageOf)
    // Each piece of a log without a terminal begins with eight bytes: the stream and the length.
    return typeof log === "string" ? log : log.toString("utf8").replaceAll(/^[^\n]{0,3}\0[^\n]{4}/gm, "")
  },
}

/** The first process of the container that publishes a port of this machine. */
export const processBehind = async (port: number): Promise<number | undefined> => {
  const { dockerode } = (await client()).container
  const [container] = await dockerode.listContainers({ filters: { publish: [String(port)] } })
  return container && (await dockerode.getContainer(container.Id).inspect()).State.Pid
}
