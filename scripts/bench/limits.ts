/** The least that an event of each route can cost: the sum of the floors of its stages. */
import type { Figure } from "./figures.ts"
import { cores } from "./machine.ts"

interface Route {
  readonly stages: ReadonlyArray<string>
  /** The stage whose cost all events of a write share. */
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
  "single, batches": onServers("HTTP echo", " batches"),
  "bulk, batches": onServers("HTTP echo, 100", " batches"),
  "single, windows": onServers("HTTP echo", " batches"),
  "bulk, windows": onServers("HTTP echo, 100", " batches"),
  // One thread handles everything.
  embedded: {
    stages: ["HTTP echo", "SQLite: INSERT", "SQLite: publish", "JSON.parse", "fold"],
    shared: "SQLite: write",
    threads: 1,
  },
}

/** The sum of the floors of one route: µs of CPU an event, if `perWrite` events share a document's write. */
export const limitOf = (
  floorsFound: ReadonlyArray<Figure>,
  { shared, stages, threads }: Route,
  perWrite: number,
) => {
  const cost = (start: string) => {
    const floor = floorsFound.find(({ name }) => name === start || name.startsWith(start))
    if (floor === undefined) return Number.NaN
    // If one thread does all the work, the load generator has a core of its own.
    return floor.cpuTotal - (threads === 1 ? (floor.cpu.load ?? 0) : 0)
  }
  const sum = stages.reduce((total, stage) => total + cost(stage), cost(shared) / perWrite)
  return { micros: sum, eventsPerSecond: (threads * 1e6) / sum }
}
