/** Private servers as processes of this machine (Linux). Each server leads its own process group. */
import { spawn } from "node:child_process"
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"
import { lastLines, run, sleep } from "./command.ts"
import { findProgram } from "./install.ts"
import { type Backend, type Instance, type Node, portsOf, type Service } from "./service.ts"
import { servicesFolder } from "./state.ts"

const dataFolder = (name: string) => join(servicesFolder, name)
const logFile = (name: string) => join(servicesFolder, "logs", `${name}.log`)

interface Process {
  readonly pid: number
  readonly parent: number
  readonly group: number
  /** Start time in clock ticks since boot. Together with the pid it identifies a process. */
  readonly started: string
}

/** Answers undefined when there is no such process, or when it is a zombie without threads. */
const readProcess = (pid: number): Process | undefined => {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? []
    const [state, parent, group] = fields
    if (state === "Z" && Number(fields[17]) <= 1) return undefined
    return { pid, parent: Number(parent), group: Number(group), started: fields[19] ?? "" }
  } catch {
    return undefined
  }
}

const isSame = (process: Process) => readProcess(process.pid)?.started === process.started

const leader = ({ handle }: Instance) => {
  const [pid, started] = handle.split("@")
  return { pid: Number(pid), started }
}

const isRunning = (instance: Instance) => {
  const { pid, started } = leader(instance)
  return readProcess(pid)?.started === started
}

/** All processes of the group and their descendants. Erlang's helpers have their own groups. */
const members = (instance: Instance): Process[] => {
  const { pid, started } = leader(instance)
  const now = readProcess(pid)
  if (now !== undefined && now.started !== started) return [] // The pid belongs to another process now.
  const everything = readdirSync("/proc").flatMap((name) => readProcess(Number(name)) ?? [])
  const found = new Map(everything.filter(({ group }) => group === pid).map((each) => [each.pid, each]))
  for (let size = -1; size < found.size; ) {
    size = found.size
    for (const each of everything) if (found.has(each.parent)) found.set(each.pid, each)
  }
  return [...found.values()]
}

const send = (signal: NodeJS.Signals, ...processes: readonly Process[]) => {
  for (const each of processes) {
    try {
      if (isSame(each)) process.kill(each.pid, signal)
    } catch (error) {
      if (isSame(each)) throw error
    }
  }
}

/** Waits until all have ended; false when the time is over first. */
const haveEnded = async (processes: readonly Process[], milliseconds: number) => {
  const deadline = Date.now() + milliseconds
  while (processes.some(isSame)) {
    if (Date.now() > deadline) return false
    await sleep(20)
  }
  return true
}

const end = async (instance: Instance, processes: readonly Process[]) => {
  send("SIGKILL", ...processes)
  if (!(await haveEnded(processes, 10_000))) throw new Error(`${instance.name} survived SIGKILL`)
}

const kill = (instance: Instance) => end(instance, members(instance))

/** Sends SIGTERM to the server only: its helpers, such as RabbitMQ's epmd, must live until it has ended. */
const stop = async (instance: Instance) => {
  const all = members(instance)
  const server = all.filter(({ pid }) => pid === leader(instance).pid)
  send("SIGTERM", ...server)
  send("SIGCONT", ...all)
  await haveEnded(server, 30_000)
  await end(instance, all)
}

const launch = (service: Service, node: Node): string => {
  const folder = dataFolder(node.name)
  mkdirSync(join(servicesFolder, "logs"), { recursive: true })
  const log = openSync(logFile(node.name), "a")
  const [program = "", ...args] = service.native.command(folder, node)
  const child = spawn(program, args, {
    cwd: folder,
    detached: true,
    env: { ...process.env, ...service.native.env?.(folder, portsOf(node)) },
    stdio: ["ignore", log, log],
  })
  closeSync(log)
  child.unref()
  const server = child.pid === undefined ? undefined : readProcess(child.pid)
  if (server === undefined) throw new Error(`${program} did not start; see ${logFile(node.name)}`)
  return `${server.pid}@${server.started}`
}

export const nativeBackend: Backend = {
  obstacle: async ({ name, native }, clustered) => {
    if (process.platform !== "linux") return "native servers need Linux"
    return clustered && native.clusters !== true ? `a cluster of ${name} needs Docker` : undefined
  },
  create: async (service, node, started, ready, signal) => {
    await service.native.install(signal)
    const folder = dataFolder(node.name)
    rmSync(folder, { recursive: true, force: true })
    mkdirSync(folder, { recursive: true })
    await service.native.prepare(folder, portsOf(node))
    signal.throwIfAborted()
    started(launch(service, node))
    await ready()
  },
  start: async (service, instance) => {
    await stop(instance)
    if (!existsSync(dataFolder(instance.name))) throw new Error("its data folder is gone")
    return launch(service, instance)
  },
  stop,
  kill,
  pause: async (instance) => send("SIGSTOP", ...members(instance)),
  resume: async (instance) => send("SIGCONT", ...members(instance)),
  exec: (service, instance, [name = "", ...args]) => {
    const folder = dataFolder(instance.name)
    const path = findProgram(`${service.native.programs}/${name}`, name) ?? name
    return run([path, ...args], { cwd: folder, env: service.native.env?.(folder, portsOf(instance)) ?? {} })
  },
  remove: async (instance) => {
    await kill(instance)
    rmSync(dataFolder(instance.name), { recursive: true, force: true })
  },
  running: async (instance) => isRunning(instance),
  log: async ({ name }) =>
    existsSync(logFile(name)) ? lastLines(readFileSync(logFile(name), "utf8"), 20) : "no log",
}
