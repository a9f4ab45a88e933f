/** CPU time of processes on this machine, from /proc (Linux). */
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { processBehind } from "../services/docker.ts"

/** Clock ticks a second in /proc; the kernel's interface fixes the number. */
const ticksPerSecond = 100

interface Stat {
  readonly parent: number
  readonly name: string
  /** User and system time of all its threads, ended threads included, in µs. */
  readonly micros: number
}

const stat = (pid: number): Stat | undefined => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8")
    const end = text.lastIndexOf(")")
    const fields = text.slice(end + 2).split(" ")
    return {
      parent: Number(fields[1]),
      name: text.slice(text.indexOf("(") + 1, end),
      micros: ((Number(fields[11]) + Number(fields[12])) * 1e6) / ticksPerSecond,
    }
  } catch {
    return undefined
  }
}

const pids = (): ReadonlyArray<number> => readdirSync("/proc").map(Number).filter(Number.isInteger)

/** A process and all its descendants. */
const tree = (root: number): ReadonlyArray<number> => {
  const found = new Set([root])
  const everything = pids().map((pid) => [pid, stat(pid)?.parent] as const)
  for (let size = 0; size < found.size; ) {
    size = found.size
    for (const [pid, parent] of everything) if (parent !== undefined && found.has(parent)) found.add(pid)
  }
  return [...found]
}

/** The process that listens on a TCP port. */
const listener = (port: number): number | undefined => {
  const hex = port.toString(16).toUpperCase().padStart(4, "0")
  const inodes = new Set<string>()
  for (const table of ["/proc/net/tcp", "/proc/net/tcp6"])
    for (const line of readFileSync(table, "utf8").split("\n")) {
      const fields = line.trim().split(/\s+/)
      if (fields[1]?.endsWith(`:${hex}`) && fields[3] === "0A") inodes.add(`socket:[${fields[9]}]`)
    }
  return pids().find((pid) => {
    try {
      return readdirSync(`/proc/${pid}/fd`).some((fd) => inodes.has(readlinkSync(`/proc/${pid}/fd/${fd}`)))
    } catch {
      return false
    }
  })
}

/** The processes of the server behind a URL; in a container those of the container. */
export const serverBehind = async (url: string): Promise<ReadonlyArray<number>> => {
  const { hostname, port } = new URL(url)
  if (!["127.0.0.1", "localhost", "[::1]"].includes(hostname)) return []
  const pid = listener(Number(port))
  if (pid !== undefined && !stat(pid)?.name.startsWith("docker-")) return tree(pid)
  const inside = await processBehind(Number(port))
  return inside === undefined ? [] : tree(inside)
}

/** CPU time so far of a set of processes, in µs. */
export const cpuOf = (processes: ReadonlyArray<number>): number =>
  processes.reduce((sum, pid) => sum + (stat(pid)?.micros ?? 0), 0)

/** Resident memory of a process in MB. */
export const residentMegabytes = (pid: number): number =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? Number.NaN) / 1024

/** Processes by the name under which their CPU is counted. */
export type Meter = Readonly<Record<string, ReadonlyArray<number>>>

/** Reads the CPU clocks now; the returned function gives the CPU used since, in µs by name. */
export const startMeter = (meter: Meter) => {
  const read = () => Object.entries(meter).map(([name, processes]) => [name, cpuOf(processes)] as const)
  const before = Object.fromEntries(read())
  return () => Object.fromEntries(read().map(([name, micros]) => [name, micros - (before[name] ?? 0)]))
}
