/** End to end: events are posted until all of them stand in the documents. */
import { Database } from "bun:sqlite"
import { join } from "node:path"
import { fileName } from "../../src/layers/Sqlite.ts"
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

export const users = 1_000
export const products = 1_000
export const space = "local:minilm-words:1536"

/** Numbers of events are given out once, so that no run repeats another one's. */
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

interface Driven {
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

/** The time runs from the first request to the last document. */
const drive =
  (arena: Arena, { look, meter, next, url }: Driven, drive: Drive) =>
  async (events: number): Promise<Run> => {
    const before = await look()
    const range = next(events)
    const used = startMeter(meter)
    const started = performance.now()
    const seen = await arena.load({ url, range, rate: null, ...drive })
    const after = await until(look, before.events + events)
    const seconds = (performance.now() - started) / 1000
    const bad = Object.entries(seen.statuses).filter(([status]) => !["200", "201"].includes(status))
    if (bad.length > 0) throw new Error(`${url} answered ${JSON.stringify(seen.statuses)}`)
    return {
      eventsPerSecond: events / seconds,
      cpu: { load: seen.cpu / events, ...perEvent(used(), events) },
      more: {
        "accepted/s": events / seen.seconds,
        "p50 ms": seen.p50,
        "p99 ms": seen.p99,
        "events/write": events / Math.max(1, after.writes - before.writes),
      },
    }
  }

export const serverMeter = async (servers: Env) => ({
  mysqld: await serverBehind(servers.MYSQL_URL ?? ""),
  rabbitmq: await serverBehind(servers.RABBITMQ_DSN ?? ""),
  mongod: await serverBehind(servers.MONGODB_URL ?? ""),
})

const urlOf = ({ port }: Part) => `http://127.0.0.1:${port}`

/** This project on the three servers, by both routes. */
export const external = async (arena: Arena, next: Sequence, more: Env = {}) => {
  const env = await arena.place("project")
  await storeProducts(env, products, space)
  const [api, worker] = await Promise.all([arena.part(env, "api", more), arena.part(env, "worker", more)])
  const { look } = await appliedIn(env)
  const meter = { api: [api.pid], worker: [worker.pid], ...(await serverMeter(arena.servers)) }
  const driven = { url: urlOf(api), meter, look, next }
  return {
    env,
    api,
    worker,
    driven,
    single: drive(arena, driven, { connections: 256, perRequest: 1 }),
    bulk: drive(arena, driven, { connections: 8, perRequest: 100 }),
  }
}
export type External = Awaited<ReturnType<typeof external>>

/** The baseline, on the same servers. */
export const naive = async (arena: Arena, next: Sequence) => {
  const env = await arena.place("naive")
  // Its documents are simpler than ours.
  await withMongo(env, (database) => database.command({ collMod: "user_embeddings", validator: {} }))
  await storeProducts(env, products, space)
  const [api, worker] = await Promise.all([
    arena.own(env, "naive.ts", "api"),
    arena.own(env, "naive.ts", "worker"),
  ])
  const { look } = await appliedIn(env)
  const meter = { api: [api.pid], worker: [worker.pid], ...(await serverMeter(arena.servers)) }
  return {
    env,
    worker,
    meter,
    look,
    single: drive(
      arena,
      { url: urlOf(api), meter, look, next },
      { connections: 64, perRequest: 1, plain: true },
    ),
  }
}

/** This project in one process, on a file. */
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
    single: drive(arena, { url: urlOf(up), meter, look, next }, { connections: 128, perRequest: 1 }),
  }
}
