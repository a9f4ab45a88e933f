/**
 * Workers side by side. First: search events against an embedding service that takes 100 ms. Each worker may have one
 * request of 16 phrases at a time, so that latency and not the CPU is the limit. Second, hot users: ten workers on ten
 * users, whose writes conflict.
 */
import { make } from "../../src/services/model/Interaction.ts"
import { type Arena, appliedIn, type Env, type Part, storeProducts, until } from "./arena.ts"
import { publishAll } from "./backlog.ts"
import { event, interaction } from "./events.ts"
import { counter } from "./metrics.ts"
import { products, type Sequence, space, users } from "./pipeline.ts"

const latencyMillis = 100
const phrasesPerRequest = 16
const dimensions = 256
/** The maximum rate of one such worker. */
const mostPerWorker = (1000 / latencyMillis) * phrasesPerRequest

const startWorkers = async (arena: Arena, env: Env, count: number, more: Env) => {
  const workers: Array<Part> = []
  // Start two at a time, because starting needs CPU.
  while (workers.length < count) {
    const some = Math.min(2, count - workers.length)
    workers.push(...(await Promise.all(Array.from({ length: some }, () => arena.part(env, "worker", more)))))
  }
  return workers
}

export interface Scaled {
  readonly workers: number
  readonly eventsPerSecond: number
  /** Share of the ideal: the number of workers times the rate of one. */
  readonly share: number
}

export const scale = async (
  arena: Arena,
  seconds: number,
  counts: ReadonlyArray<number>,
): Promise<ReadonlyArray<Scaled>> => {
  const service = await arena.openAi(latencyMillis)
  const env = {
    ...(await arena.place("scale")),
    EMBEDDING_DIMENSIONS: String(dimensions),
    OPENAI_API_KEY: "bench",
    OPENAI_BASE_URL: service.url,
    OPENAI_REQUESTS_AT_ONCE: "1",
    OPENAI_PHRASES_PER_REQUEST: String(phrasesPerRequest),
    WORKER_PREFETCH: String(4 * phrasesPerRequest),
  }
  const { close, look } = await appliedIn(env)
  const rates: Array<Scaled> = []
  let number = 0
  const search = () =>
    make({
      user_id: `user-${number % users}`,
      event_type: "search",
      search_phrase: `phrase ${number}`,
      occurred_at: new Date(Date.now() - 3_600_000 + number++).toISOString(),
      metadata: {},
    })
  for (const workers of counts) {
    const running = await startWorkers(arena, env, workers, {})
    // Warm up first: while Bun compiles the code of ten processes, the CPU is the limit.
    const warm = workers * 300 * phrasesPerRequest
    const events = Math.round(mostPerWorker * workers * seconds)
    const before = await look()
    await publishAll(env, Array.from({ length: warm + events }, search))
    const from = await until(look, before.events + warm)
    const started = performance.now()
    const to = await until(look, before.events + warm + events)
    const eventsPerSecond = ((to.events - from.events) * 1000) / (performance.now() - started)
    const one = rates[0]?.eventsPerSecond ?? eventsPerSecond
    rates.push({
      workers,
      eventsPerSecond,
      share: eventsPerSecond / (one * (workers / (rates[0]?.workers ?? 1))),
    })
    await Promise.all(running.map((worker) => worker.stop()))
  }
  await close()
  return rates
}

export interface Hot {
  readonly workers: number
  readonly users: number
  readonly eventsPerSecond: number
  /** Interactions folded again because another worker had written first, per event. */
  readonly conflictsPerEvent: number
  readonly applied: number
}

export const hot = async (arena: Arena, next: Sequence, events: number): Promise<Hot> => {
  const [workers, hotUsers] = [10, 10]
  const env = { ...(await arena.place("hot")), WORKER_PREFETCH: "200" }
  await storeProducts(env, products, space)
  const running = await startWorkers(arena, env, workers, {})
  const { close, look } = await appliedIn(env)
  const range = next(events, { users: hotUsers })
  const all = Array.from({ length: events }, (_, i) => interaction(event(range, range.from + i)))
  const started = performance.now()
  await publishAll(env, all)
  const { events: applied } = await until(look, events)
  const eventsPerSecond = (events * 1000) / (performance.now() - started)
  const conflicts = await Promise.all(
    running.map((worker) => counter(worker, "user_embeddings_lock_conflicts_total")),
  )
  await Promise.all(running.map((worker) => worker.stop()))
  await close()
  const folded = conflicts.reduce((sum, each) => sum + each, 0)
  return { workers, users: hotUsers, eventsPerSecond, conflictsPerEvent: folded / events, applied }
}
