/** Reads while events are written: one vector in each form, a hundred vectors at once, and recommendations. */
import { sleep } from "../services/command.ts"
import type { Arena } from "./arena.ts"
import { type External, external, type Sequence, users } from "./pipeline.ts"

export interface ReadsRun {
  readonly products: number
  readonly name: string
  readonly reads: number
  readonly p50: number
  readonly p99: number
  readonly worst: number
  /** Of the events written meanwhile. */
  readonly postP99: number
}

interface Kind {
  readonly name: string
  /** Requests a second. */
  readonly rate: number
  readonly path: (n: number) => string
  readonly init?: (n: number) => RequestInit
}

const user = (n: number) => `user-${(n * 7) % users}`
const accept = "application/octet-stream"
const hundred = (read: string, format: string) => (n: number) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ user_ids: Array.from({ length: 100 }, (_, i) => user(n * 100 + i)), read, format }),
})
const many = (read: string, format: string): Kind => ({
  name: `100 at once, ${read}, ${format}`,
  rate: 10,
  path: () => "/api/embeddings",
  init: hundred(read, format),
})
const kinds: ReadonlyArray<Kind> = [
  { name: "one, stored, json", rate: 50, path: (n) => `/api/user/${user(n)}/embedding?vector=true` },
  {
    name: "one, stored, float32",
    rate: 50,
    path: (n) => `/api/user/${user(n)}/embedding`,
    init: () => ({ headers: { accept } }),
  },
  {
    name: "one, taste, float32",
    rate: 50,
    path: (n) => `/api/user/${user(n)}/embedding?read=taste`,
    init: () => ({ headers: { accept } }),
  },
  many("stored", "json"),
  many("stored", "float32"),
  many("taste", "float32"),
  { name: "recommendations", rate: 5, path: (n) => `/api/user/${user(n)}/recommendations` },
]

/** Latencies in ms, from the time at which a request was due. Requests do not wait for each other. */
const read = async (url: string, { init, path, rate }: Kind, seconds: number) => {
  const started = performance.now()
  const one = async (n: number) => {
    const due = started + (n * 1000) / rate
    await sleep(Math.max(0, due - performance.now()))
    const response = await fetch(url + path(n), init?.(n))
    await response.arrayBuffer()
    if (!response.ok) throw new Error(`${path(n)} answered ${response.status}`)
    return performance.now() - due
  }
  return Promise.all(Array.from({ length: Math.round(rate * seconds) }, (_, n) => one(n)))
}

/** Gives each user an embedding, and waits until the catalogue is loaded. */
const warmUp = async ({ bulk, driven }: External) => {
  await bulk(20 * users)
  const deadline = Date.now() + 120_000
  while (!(await fetch(`${driven.url}/api/user/${user(0)}/recommendations`)).ok) {
    if (Date.now() > deadline) throw new Error("no recommendations within 120 s")
    await sleep(200)
  }
}

/** All kinds of reads on a catalogue of this size. */
export const reads = async (
  arena: Arena,
  next: Sequence,
  {
    eventsPerSecond,
    products,
    seconds,
  }: { readonly products: number; readonly eventsPerSecond: number; readonly seconds: number },
): Promise<ReadonlyArray<ReadsRun>> => {
  const sized: Sequence = (count) => next(count, { products })
  const project = await external(arena, sized, {}, { name: `reads_${products}`, products, byMetrics: true })
  await warmUp(project)
  const runs: Array<ReadsRun> = []
  for (const kind of kinds) {
    await read(project.driven.url, kind, 1)
    const [written, latencies] = await Promise.all([
      project.steady(eventsPerSecond, seconds),
      read(project.driven.url, kind, seconds),
    ])
    const sorted = latencies.toSorted((a, b) => a - b)
    const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0
    const [p50, p99, worst] = [at(0.5), at(0.99), at(1)]
    const postP99 = written.more?.["POST p99 ms"] ?? 0
    runs.push({ products, name: kind.name, reads: sorted.length, p50, p99, worst, postP99 })
  }
  await Promise.all([project.api.stop(), project.worker.stop()])
  return runs
}
