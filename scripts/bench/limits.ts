/** What an event of each route costs at the least: the floors of its stages added up. */
import type { Figure } from "./figures.ts"
import { cores } from "./machine.ts"

interface Route {
  readonly stages: ReadonlyArray<string>
  /** Paid once for all events of a write. */
  readonly shared: string
  readonly threads: number
}
const onServers = (echo: string, messages: string): Route => ({
  stages: [echo, "INSERT", `publish${messages}`, `consume${messages}`, "JSON.parse", "fold"],
  shared: "write",
  threads: cores,
})
export const routes: Readonly<Record<string, Route>> = {
  single: onServers("HTTP echo", ","),
  bulk: onServers("HTTP echo, 100", ","),
  "single, packs": onServers("HTTP echo", " packs"),
  "bulk, packs": onServers("HTTP echo, 100", " packs"),
  "single, windows": onServers("HTTP echo", " packs"),
  "bulk, windows": onServers("HTTP echo, 100", " packs"),
  // It has one thread.
  embedded: {
    stages: ["HTTP echo", "SQLite: INSERT", "SQLite: publish", "JSON.parse", "fold"],
    shared: "SQLite: write",
    threads: 1,
  },
}

/** The floors of one route added up: µs of CPU an event, if `perWrite` events share a document's write. */
export const limitOf = (
  floorsFound: ReadonlyArray<Figure>,
  { shared, stages, threads }: Route,
  perWrite: number,
) => {
  const cost = (start: string) => {
    const floor = floorsFound.find(({ name }) => name === start || name.startsWith(start))
    if (floor === undefined) return Number.NaN
    // The load generator has a core of its own where one thread does all the work.
    return floor.cpuTotal - (threads === 1 ? (floor.cpu.load ?? 0) : 0)
  }
  const sum = stages.reduce((total, stage) => total + cost(stage), cost(shared) / perWrite)
  return { micros: sum, eventsPerSecond: (threads * 1e6) / sum }
}
