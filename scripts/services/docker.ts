/** Servers in Docker containers. They outlive the program that starts them. */
import { messageOf, run } from "./command.ts"
import type { Backend, Instance } from "./service.ts"

const docker = (...args: string[]) => run(["docker", ...args])
const onContainer = (verb: string) => async (instance: Instance) => {
  await docker(verb, instance.handle)
}

let engine: Promise<string | undefined> | undefined
const findEngine = async () => {
  if (Bun.which("docker") === null) return "no docker command"
  try {
    await run(["docker", "info"], { signal: AbortSignal.timeout(2000) })
    return undefined
  } catch {
    return "no Docker engine answers"
  }
}

const pulled = (image: string) =>
  docker("image", "inspect", image).then(
    () => true,
    () => false,
  )

export const dockerBackend: Backend = {
  obstacle: () => (engine ??= findEngine()),
  create: async ({ docker: container, ports: inside }, ports, started, signal) => {
    if (!(await pulled(container.image)))
      await run(["docker", "pull", "--quiet", container.image], { signal })
    signal.throwIfAborted()
    const flags = [
      ...Object.keys(inside).flatMap((purpose) => ["-p", `127.0.0.1:${ports[purpose]}:${inside[purpose]}`]),
      ...Object.entries(container.env).flatMap(([name, value]) => ["-e", `${name}=${value}`]),
    ]
    const id = await docker(
      "create",
      "--label",
      "user-embeddings.services",
      ...flags,
      container.image,
      ...container.args,
    )
    started(id.trim())
    await docker("start", id.trim())
  },
  prepare: async (service, ports) => service.docker.prepare?.(ports),
  start: async (_, instance) => {
    // `docker start` refuses a paused container.
    await docker("unpause", instance.handle).catch(() => {})
    await docker("start", instance.handle)
    return instance.handle
  },
  stop: onContainer("stop"),
  kill: onContainer("kill"),
  pause: onContainer("pause"),
  resume: onContainer("unpause"),
  exec: (_, instance, command) => docker("exec", instance.handle, ...command),
  remove: async (instance) => {
    await docker("rm", "--force", "--volumes", instance.handle).catch((error: unknown) => {
      if (!messageOf(error).includes("No such container")) throw error
    })
  },
  running: async (instance) => {
    const state = await docker("inspect", "--format", "{{.State.Running}}", instance.handle).catch(() => "")
    return state.trim() === "true"
  },
  log: (instance) => run(["sh", "-c", `docker logs --tail 20 "$0" 2>&1`, instance.handle]).catch(messageOf),
}
