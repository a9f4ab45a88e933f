/** The cost of tracing: the same pipeline without an endpoint, with 1 % of the traces, and with all of them. */
import type { Arena, Env } from "./arena.ts"
import type { Figure, Run } from "./figures.ts"
import { external, products, type Sequence } from "./pipeline.ts"

const ratio = (share: string): Env => ({
  OTEL_TRACES_SAMPLER: "parentbased_traceidratio",
  OTEL_TRACES_SAMPLER_ARG: share,
})

/** Settings by name; all are compared with the first. */
const settings = (endpoint: string): ReadonlyArray<readonly [name: string, env: Env]> => {
  const on = { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_METRIC_EXPORT_INTERVAL: "10000" }
  return [
    ["off", {}],
    ["1 %", { ...on, ...ratio("0.01") }],
    ["100 %", { ...on, ...ratio("1") }],
  ]
}

const parts = ({ api = 0, worker = 0 }: Run["cpu"]) => ({ api, worker })

/** Contestants with both routes, and the number of spans that have arrived. */
export const tracing = async (arena: Arena, next: Sequence) => {
  const collector = await arena.own(arena.embedded("sink"), "sink.ts", "sink")
  const url = `http://127.0.0.1:${collector.port}`
  const contestants: Array<{ name: string; events: number; run: (events: number) => Promise<Run> }> = []
  for (const [name, env] of settings(url)) {
    const ours = await external(arena, next, env, { name: "tracing", products })
    const only = (run: (events: number) => Promise<Run>) => async (events: number) => {
      const seen = await run(events)
      return { ...seen, cpu: parts(seen.cpu) }
    }
    contestants.push({ name: `single, ${name}`, events: 4_000, run: only(ours.single) })
    contestants.push({ name: `bulk, ${name}`, events: 4_000, run: only(ours.bulk) })
  }
  const arrived = async (): Promise<number> => Object(await (await fetch(url)).json()).spans
  return { contestants, arrived }
}

/** The cost of a setting compared with the first setting of its route, as shares of throughput and CPU. */
export const costOf = (figure: Figure, off: Figure) => ({
  throughput: 1 - figure.eventsPerSecond.median / off.eventsPerSecond.median,
  cpu: figure.cpuTotal / off.cpuTotal - 1,
})
