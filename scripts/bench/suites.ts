/** The suites of `bun run bench`: what each suite runs, and its section of the report. */
import { sleep } from "../services/command.ts"
import type { Arena, Env } from "./arena.ts"
import { backlog } from "./backlog.ts"
import { cost, restTable } from "./cost.ts"
import { residentMegabytes } from "./cpu.ts"
import { type Figure, median, number, type Run, summarise, table } from "./figures.ts"
import { eventsPerMessage, floors } from "./floors.ts"
import { limitOf, routes } from "./limits.ts"
import { cores } from "./machine.ts"
import { type External, embedded, external, naive, products, sequence } from "./pipeline.ts"
import { publishing } from "./publishing.ts"
import { type ReadsRun, reads } from "./reads.ts"
import { hot, scale } from "./scale.ts"
import { sqliteFloors } from "./sqliteFloors.ts"
import { stocked } from "./stores.ts"
import { costOf, tracing } from "./tracing.ts"

/** The result of a suite: a text, and the same figures as JSON. */
export interface Section {
  readonly title: string
  readonly text: string
  readonly json: unknown
}

export interface Bench {
  readonly arena: Arena
  readonly quick: boolean
  readonly say: (line: string) => void
}

interface Contestant {
  readonly name: string
  readonly events: number
  readonly run: (events: number) => Promise<Run>
}

/** In each round every contestant runs once. The first round is the warm-up and does not count. */
const interleaved = async ({ quick, say }: Bench, contestants: ReadonlyArray<Contestant>) => {
  const rounds = quick ? 1 : 5
  const runs = new Map<string, Array<Run>>()
  for (let round = 0; round <= rounds; round++)
    for (const { events, name, run } of contestants) {
      const seen = await run(Math.max(100, Math.round(events * (quick ? 0.1 : round === 0 ? 0.25 : 1))))
      say(`${round === 0 ? "warm-up" : `round ${round}`}: ${name}: ${number(seen.eventsPerSecond)}/s`)
      if (round > 0) runs.set(name, [...(runs.get(name) ?? []), seen])
    }
  return new Map([...runs].map(([name, all]) => [name, summarise(name, all)] as const))
}

const rate = ({ eventsPerSecond: { least, median, most } }: Figure) =>
  least === most ? number(median) : `${number(median)} [${number(least)}–${number(most)}]`

/** One line a contestant: rate, CPU by process, all other figures. */
const compared = (figures: ReadonlyArray<Figure>, baseline: Figure | undefined) => {
  const processes = [...new Set(figures.flatMap(({ cpu }) => Object.keys(cpu)))]
  const extras = [...new Set(figures.flatMap(({ more }) => Object.keys(more)))]
  const cell = (value: number | undefined) => (value === undefined ? "" : number(value))
  return table(
    ["", "events/s", ...(baseline ? ["times"] : []), "µs CPU/event", ...processes, ...extras],
    figures.map((figure) => [
      figure.name,
      rate(figure),
      ...(baseline ? [(figure.eventsPerSecond.median / baseline.eventsPerSecond.median).toFixed(1)] : []),
      number(figure.cpuTotal),
      ...processes.map((process) => cell(figure.cpu[process])),
      ...extras.map((extra) => cell(figure.more[extra])),
    ]),
  )
}

/** As in a container of that size: on a large machine the garbage collector runs more rarely. */
const collector = { BUN_JSC_forceRAMSize: String(300 * 2 ** 20) }

/** Builds the value on the first call, and returns the same value on later calls. */
const once = <A>(build: () => Promise<A>): (() => Promise<A>) => {
  let built: Promise<A> | undefined
  return () => (built ??= build())
}

const batchSettings: Env = { EVENTS_PER_MESSAGE: String(eventsPerMessage) }
/** Maximum throughput: an event waits up to a second, and all events of a user in that second share one write. */
const windowSettings: Env = {
  ...batchSettings,
  EMBEDDING_BATCH_ENABLED: "true",
  EMBEDDING_BATCH_WINDOW: "1",
  WORKER_PREFETCH: "30000",
}
const settings = (env: Env) =>
  Object.entries(env)
    .map(([name, value]) => `${name}=${value}`)
    .join(" ")

export const suites = (bench: Bench) => {
  const { arena, quick, say } = bench
  const next = sequence()
  const project = once(() => external(arena, next))
  const baseline = once(() => naive(arena, next))
  let maxSingle: number | undefined

  const pipeline = async (): Promise<Section> => {
    const ours = await project()
    const batches = await external(arena, next, batchSettings, { name: "batches", products })
    const windows = await external(arena, next, windowSettings, { name: "windows", products })
    const contestants: ReadonlyArray<Contestant> = [
      { name: "naive", events: 4_000, run: (await baseline()).single },
      { name: "single", events: 20_000, run: ours.single },
      { name: "bulk", events: 40_000, run: ours.bulk },
      { name: "single, batches", events: 20_000, run: batches.single },
      { name: "bulk, batches", events: 40_000, run: batches.bulk },
      { name: "single, windows", events: 60_000, run: windows.single },
      { name: "bulk, windows", events: 100_000, run: windows.bulk },
      { name: "embedded", events: 20_000, run: (await embedded(arena, next)).single },
    ]
    const stage = [...(await floors(arena, next)), ...(await sqliteFloors(arena, next))]
    const figures = await interleaved(bench, [...contestants, ...stage])
    const whole = contestants.map(({ name }) => figures.get(name)!)
    const parts = stage.map(({ name }) => figures.get(name)!)
    const [plain, single, bulk] = whole
    maxSingle = single!.eventsPerSecond.median
    const limits = Object.entries(routes).map(([route, stages]) => {
      const figure = figures.get(route)!
      const perWrite = figure.more["events/write"]!
      const limit = limitOf(parts, stages, perWrite)
      return { route, perWrite, ...limit, share: figure.eventsPerSecond.median / limit.eventsPerSecond }
    })
    return {
      title: "End to end",
      text: [
        `From the first request until all events are in the documents (embedded: in the file), 1,000 users. Batches: \`${settings(batchSettings)}\`; windows: \`${settings(windowSettings)}\`.`,
        "",
        compared(whole, plain),
        "",
        "What each stage costs by itself, with the same clients and guarantees (a write is counted per document):",
        "",
        compared(parts, undefined),
        "",
        `The limit is the sum of these costs on ${cores} cores (embedded: on one, because it has one thread). A document's write is shared by as many events as in the run:`,
        "",
        table(
          ["route", "sum in µs", "limit in events/s", "reached", "share", "events/write"],
          limits.map(({ eventsPerSecond, micros, perWrite, route, share }) => [
            route,
            number(micros),
            number(eventsPerSecond),
            number(figures.get(route)!.eventsPerSecond.median),
            share.toFixed(2),
            number(perWrite),
          ]),
        ),
      ].join("\n"),
      json: {
        contestants: whole,
        floors: parts,
        limits,
        bulkTimesNaive: bulk && plain && bulk.eventsPerSecond.median / plain.eventsPerSecond.median,
      },
    }
  }

  const worker = async (): Promise<Section> => {
    const figures = await interleaved(bench, [
      { name: "naive worker", events: 4_000, run: backlog(await baseline(), "plain") },
      { name: "worker", events: 20_000, run: backlog(await project(), "message") },
    ])
    const all = [...figures.values()]
    return {
      title: "The worker alone",
      text: [
        "Events of 1,000 users wait in the queue; the clock stops when all of them are in the documents.",
        "",
        compared(all, figures.get("naive worker")),
      ].join("\n"),
      json: all,
    }
  }

  const publish = async (): Promise<Section> => {
    const figures = await interleaved(bench, [
      { name: "publish", events: 5_000, run: await publishing(arena, next) },
    ])
    const [figure] = figures.values()
    const earlier = 1_556
    return {
      title: "Publishing",
      text: [
        `5,000 events, 100 users × 50, from decoded interactions to confirmed messages; this is ${(figure!.eventsPerSecond.median / earlier).toFixed(1)} times the ${number(earlier)}/s that an earlier PHP implementation reports on its own hardware.`,
        "",
        compared([figure!], undefined),
      ].join("\n"),
      json: figure,
    }
  }

  const latency = async (): Promise<Section> => {
    const ours = await project()
    maxSingle ??= (await ours.single(quick ? 2_000 : 20_000)).eventsPerSecond
    const half = Math.round(maxSingle / 2)
    const runs: Array<Run> = []
    for (let round = 0; round <= (quick ? 1 : 5); round++) {
      const run = await ours.steady(half, quick ? 3 : 10)
      say(`latency: ${round === 0 ? "warm-up" : `round ${round}`}: ${JSON.stringify(run.more)}`)
      if (round > 0) runs.push(run)
    }
    const figure = summarise("half of the maximum rate", runs)
    return {
      title: "Latency",
      text: [
        `Single events at an even ${number(half)}/s, half of the maximum rate. Latency is counted from the time at which a request was due.`,
        "",
        compared([figure], undefined),
      ].join("\n"),
      json: figure,
    }
  }

  const memory = async (): Promise<Section> => {
    const ours = await external(arena, next, collector, { name: "memory", products: 1_000 })
    const parts = 20
    const events = quick ? 100_000 : 1_000_000
    const seen: Array<{ readonly events: number; readonly api: number; readonly worker: number }> = []
    for (let part = 1; part <= parts; part++) {
      await ours.bulk(events / parts)
      const measured = {
        events: (events / parts) * part,
        api: residentMegabytes(ours.api.pid),
        worker: residentMegabytes(ours.worker.pid),
      }
      seen.push(measured)
      say(`memory: ${JSON.stringify(measured)}`)
    }
    const tenth = (index: number, who: "api" | "worker") =>
      median(seen.slice(2 * index, 2 * index + 2).map((each) => each[who]))
    const rows = (["api", "worker"] as const).map((who) => {
      const [second, last] = [tenth(1, who), tenth(9, who)]
      return { who, second, last, ratio: last / second, most: Math.max(...seen.map((each) => each[who])) }
    })
    return {
      title: "Memory over time",
      text: [
        `Resident MB while ${number(events)} events go through the bulk route, with BUN_JSC_forceRAMSize=${collector.BUN_JSC_forceRAMSize}: the collector takes this for the machine's memory.`,
        "",
        table(
          ["process", "second tenth", "last tenth", "ratio", "most"],
          rows.map(({ last, most, ratio, second, who }) => [
            who,
            number(second),
            number(last),
            ratio.toFixed(2),
            number(most),
          ]),
        ),
      ].join("\n"),
      json: { rows, seen },
    }
  }

  const scaling = async (): Promise<Section> => {
    const counts = quick ? [1, 2] : [1, 2, 4, 10]
    const rates = await scale(arena, quick ? 3 : 10, counts)
    say(`scale: ${JSON.stringify(rates)}`)
    const met = await hot(arena, next, quick ? 2_000 : 10_000)
    return {
      title: "Workers side by side",
      text: [
        "Search events of new phrases against an embedding service that answers in 100 ms; each worker has one request of 16 phrases at a time.",
        "",
        table(
          ["workers", "events/s", "share of ideal"],
          rates.map(({ eventsPerSecond, share, workers }) => [
            String(workers),
            number(eventsPerSecond),
            share.toFixed(2),
          ]),
        ),
        "",
        `Hot users: ${met.workers} workers, ${met.users} users: ${number(met.eventsPerSecond)} events/s, ${met.conflictsPerEvent.toFixed(2)} lost compare-and-swaps an event; every event was applied once.`,
      ].join("\n"),
      json: { rates, hot: met },
    }
  }

  const stores = async (): Promise<Section> => {
    const share = quick ? 0.01 : 1
    const sizes = (name: string, users: number, products: number, rows: number) =>
      stocked(arena, next, name, { users, products, rows }, say)
    const small = await sizes("small", 10_000, 1_000, 10_000)
    const large = await sizes("large", 1_000_000 * share, 100_000 * share, 5_000_000 * share)
    const at = quick ? 200 : 1_000
    const runs = new Map<string, Array<Run>>([
      ["small", []],
      ["large", []],
    ])
    for (let round = 0; round <= (quick ? 1 : 5); round++)
      for (const [name, stock] of [
        ["small", small],
        ["large", large],
      ] as ReadonlyArray<readonly [string, External]>) {
        const run = await stock.steady(at, quick ? 3 : 10)
        say(`stores: ${name}: ${JSON.stringify(run.more)}`)
        if (round > 0) runs.get(name)?.push(run)
        await sleep(200)
      }
    const figures = [...runs].map(([name, all]) => summarise(name, all))
    return {
      title: "Large stores",
      text: [
        `Single events at ${number(at)}/s. Small: 10,000 users, 1,000 products and 10,000 rows; large: ${number(1_000_000 * share)} users, ${number(100_000 * share)} products and ${number(5_000_000 * share)} rows. Vectors have 384 dimensions.`,
        "",
        compared(figures, undefined),
      ].join("\n"),
      json: figures,
    }
  }

  const traced = async (): Promise<Section> => {
    const { arrived, contestants } = await tracing(arena, next)
    const figures = await interleaved(bench, contestants)
    const percent = (share: number) => `${(100 * share).toFixed(0)} %`
    const costs = [...figures.values()].map((figure) => {
      const off = figures.get(figure.name.replace(/, .*/, ", off"))!
      return { name: figure.name, ...costOf(figure, off) }
    })
    // The exporter sends an incomplete batch of spans after at most this time.
    await sleep(6_000)
    return {
      title: "What tracing costs",
      text: [
        "The same pipeline without an OTLP endpoint, with 1 % of the traces and with all of them. Spans and metrics go to a process that only receives them.",
        "",
        compared([...figures.values()], undefined),
        "",
        table(
          ["", "throughput lost", "additional CPU of api and worker"],
          costs.map(({ cpu, name, throughput }) => [name, percent(throughput), percent(cpu)]),
        ),
        "",
        `${number(await arrived())} spans arrived.`,
      ].join("\n"),
      json: { figures: [...figures.values()], costs },
    }
  }

  const costs = async (): Promise<Section> => {
    const found = await cost(bench, { project: await project(), baseline: await baseline() })
    return {
      title: "The cost of an event at any rate",
      text: [
        "Single events at even rates. A naive pipeline records, publishes, reads, writes and acknowledges one event at a time.",
        "",
        compared(found.figures, undefined),
        "",
        "A system at rest:",
        "",
        restTable(found.atRest),
      ].join("\n"),
      json: found,
    }
  }

  const reading = async (): Promise<Section> => {
    const [eventsPerSecond, seconds] = [1_000, quick ? 3 : 20]
    const runs: Array<ReadsRun> = []
    for (const products of quick ? [1_000, 10_000] : [1_000, 10_000, 100_000]) {
      const found = await reads(arena, next, { products, eventsPerSecond, seconds })
      for (const run of found) say(`reads: ${JSON.stringify(run)}`)
      runs.push(...found)
    }
    return {
      title: "Reads",
      text: [
        `Each kind of read for ${seconds} s at a fixed rate, while ${number(eventsPerSecond)} single events/s are written. Products × 1,536 dimensions. Latency from the time at which a request was due.`,
        "",
        table(
          ["products", "read", "requests", "p50 ms", "p99 ms", "worst ms", "POST p99 ms"],
          runs.map((run) => [
            number(run.products),
            run.name,
            String(run.reads),
            ...[run.p50, run.p99, run.worst, run.postP99].map(number),
          ]),
        ),
      ].join("\n"),
      json: runs,
    }
  }

  return {
    pipeline,
    worker,
    publish,
    latency,
    cost: costs,
    memory,
    scale: scaling,
    stores,
    tracing: traced,
    reads: reading,
  }
}

export type SuiteName = keyof ReturnType<typeof suites>
export const usual: ReadonlyArray<SuiteName> = ["pipeline", "worker", "publish", "latency"]
export const all: ReadonlyArray<SuiteName> = [
  ...usual,
  "cost",
  "memory",
  "scale",
  "stores",
  "tracing",
  "reads",
]
