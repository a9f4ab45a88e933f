/** End to end: from the first POST until all events are in the documents. */
import { Database } from "bun:sqlite"
import { join } from "node:path"
import { fileName } from "../../src/layers/sqlite/Sqlite.ts"
import {
  type Applied,
  type Arena,
  appliedIn,
  type Env,
  type Part,
  storeProducts,
  until,
  withMongo,
} from "./arena.ts"
import { type Meter, serverBehind, startMeter } from "./cpu.ts"
import type { Range } from "./events.ts"
import { perEvent, type Run } from "./figures.ts"
import { counter, histogram, quantile } from "./metrics.ts"

export const users = 1_000
export const products = 1_000
export const space = "local:minilm-words:1536"

/** Gives out each event number once, so that no run repeats an event. */
export const sequence = () => {
  const epoch = Date.now() - 12 * 3_600_000
  let next = 0
  return (count: number, range: Partial<Range> = {}): Range => {
    const from = next
    next += count
    return { from, count, users, products, epoch, ...range }
  }
}
export type Sequence = ReturnType<typeof sequence>

export interface Driven {
  readonly url: string
  readonly meter: Meter
  readonly look: () => Promise<Applied>
  readonly next: Sequence
}

interface Drive {
  readonly connections: number
  readonly perRequest: number
  readonly plain?: boolean
}

const drive = async (
  arena: Arena,
  { look, meter, next, url }: Driven,
  order: Drive & { readonly rate: number | null },
  events: number,
) => {
  const before = await look()
  const range = next(events)
  const used = startMeter(meter)
  const started = performance.now()
  const seen = await arena.load({ url, range, ...order })
  const after = await until(look, before.events + events)
  const seconds = (performance.now() - started) / 1000
  const bad = Object.keys(seen.statuses).filter((status) => !["200", "201"].includes(status))
  if (bad.length > 0) throw new Error(`${url} answered ${JSON.stringify(seen.statuses)}`)
  return {
    seen,
    cpu: { load: seen.cpu / events, ...perEvent(used(), events) },
    eventsPerSecond: events / seconds,
    eventsPerWrite: events / Math.max(1, after.writes - before.writes),
  }
}

/** Maximum rate: the clock runs from the first request to the last document. */
export const maximum =
  (arena: Arena, driven: Driven, order: Drive) =>
  async (events: number): Promise<Run> => {
    const { cpu, eventsPerSecond, eventsPerWrite, seen } = await drive(
      arena,
      driven,
      { ...order, rate: null },
      events,
    )
    return {
      eventsPerSecond,
      cpu,
      more: {
        "accepted/s": events / seen.seconds,
        "POST p50 ms": seen.p50,
        "POST p99 ms": seen.p99,
        "events/write": eventsPerWrite,
      },
    }
  }

/** At a fixed rate; the metrics of `worker` give the time from event to embedding. The baseline has none. */
export const steady =
  (arena: Arena, driven: Driven, worker: Part | undefined, plain = false) =>
  async (rate: number, seconds: number): Promise<Run> => {
    const events = Math.round(rate * seconds)
    const timed = async () => worker && (await histogram(worker, eventToEmbedding))
    const before = await timed()
    const { cpu, seen } = await drive(arena, driven, { connections: 64, perRequest: 1, rate, plain }, events)
    const after = await timed()
    return {
      eventsPerSecond: rate,
      cpu,
      more: {
        "POST p50 ms": seen.p50,
        "POST p95 ms": seen.p95,
        "POST p99 ms": seen.p99,
        "POST worst ms": seen.worst,
        ...(before &&
          after && {
            "to embedding p50 ms": 1000 * quantile(before, after, 0.5),
            "to embedding p95 ms": 1000 * quantile(before, after, 0.95),
          }),
      },
    }
  }
const eventToEmbedding = "user_embeddings_event_to_embedding_seconds"

export const serverMeter = async (servers: Env) => ({
  mysqld: await serverBehind(servers.MYSQL_URL ?? ""),
  rabbitmq: await serverBehind(servers.RABBITMQ_DSN ?? ""),
  mongod: await serverBehind(servers.MONGODB_URL ?? ""),
})

const urlOf = ({ port }: Part) => `http://127.0.0.1:${port}`

interface Stock {
  readonly name: string
  /** Number of products in the catalogue. */
  readonly products: number
  /** Counts by the worker's metrics; for stores with too many documents to sum. */
  readonly byMetrics?: boolean
}

/** This project on the three servers, with both routes. */
export const external = async (
  arena: Arena,
  next: Sequence,
  more: Env = {},
  stock: Stock = { name: "project", products },
) => {
  const env = { ...(await arena.place(stock.name)), ...more }
  await storeProducts(env, stock.products, space)
  const [api, worker] = await Promise.all([arena.part(env, "api"), arena.part(env, "worker")])
  const documents = await appliedIn(env)
  arena.onClose(documents.close)
  const byMetrics = async () => ({
    events: await counter(worker, `${eventToEmbedding}_count`),
    writes: 0,
  })
  const meter = { api: [api.pid], worker: [worker.pid], ...(await serverMeter(arena.servers)) }
  const driven: Driven = {
    url: urlOf(api),
    meter,
    look: stock.byMetrics ? byMetrics : documents.look,
    next,
  }
  return {
    env,
    api,
    worker,
    driven,
    single: maximum(arena, driven, { connections: 256, perRequest: 1 }),
    bulk: maximum(arena, driven, { connections: 8, perRequest: 100 }),
    steady: steady(arena, driven, worker),
  }
}
export type External = Awaited<ReturnType<typeof external>>

/** The baseline, on the same servers. */
export const naive = async (arena: Arena, next: Sequence) => {
  const env = await arena.place("naive")
  // The validator would reject the baseline's simpler documents.
  await withMongo(env, (database) => database.command({ collMod: "user_embeddings", validator: {} }))
  await storeProducts(env, products, space)
  const [api, worker] = await Promise.all([
    arena.own(env, "naive.ts", "api"),
    arena.own(env, "naive.ts", "worker"),
  ])
  const { close, look } = await appliedIn(env)
  arena.onClose(close)
  const meter = { api: [api.pid], worker: [worker.pid], ...(await serverMeter(arena.servers)) }
  const driven: Driven = { url: urlOf(api), meter, look, next }
  return {
    env,
    worker,
    driven,
    single: maximum(arena, driven, { connections: 64, perRequest: 1, plain: true }),
    steady: steady(arena, driven, undefined, true),
  }
}

/** This project in one process, on one SQLite file. */
export const embedded = async (arena: Arena, next: Sequence, more: Env = {}) => {
  const env = arena.embedded("embedded")
  await arena.importProducts(env, products)
  const up = await arena.part(env, "up", more)
  const database = new Database(join(env.DATA_DIR ?? "", fileName), { readonly: true })
  const sums = database.query<Applied, []>(
    "SELECT COALESCE(SUM(json_extract(facts, '$.event_count')), 0) AS events, COALESCE(SUM(version), 0) AS writes FROM user_embeddings",
  )
  const look = async (): Promise<Applied> => sums.get() ?? { events: 0, writes: 0 }
  const meter = { up: [up.pid] }
  return {
    single: maximum(arena, { url: urlOf(up), meter, look, next }, { connections: 128, perRequest: 1 }),
  }
}
