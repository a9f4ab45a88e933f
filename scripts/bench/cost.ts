/** What an event costs at the rates that shops have, beside the baseline, and what a system at rest costs. */
import { sleep } from "../services/command.ts"
import { startMeter } from "./cpu.ts"
import { type Figure, number, summarise, table } from "./figures.ts"
import type { External, naive } from "./pipeline.ts"
import type { Bench } from "./suites.ts"

/** Events a second. */
const rates = [20, 100, 300, 1_000, 2_000, 3_000]
/** The baseline falls behind above this rate. */
const mostOfBaseline = 300
const restSeconds = 30

type Systems = { readonly project: External; readonly baseline: Awaited<ReturnType<typeof naive>> }

export const cost = async ({ arena, quick, say }: Bench, { baseline, project }: Systems) => {
  const rounds = quick ? 1 : 3
  // A process that has just started compiles its code, which takes a third of its CPU during the first 10,000 events, and
  // its servers still settle.
  await project.single(quick ? 10_000 : 20_000)
  await baseline.single(quick ? 500 : 4_000)
  // A lower rate must not pay for the pairs of these events.
  await arena.countPairs(project.env)
  const rest = startMeter(project.driven.meter)
  await sleep(restSeconds * 1_000)
  const atRest = Object.entries(rest()).map(([name, micros]) => [name, micros / (1e4 * restSeconds)] as const)
  const figures: Array<Figure> = []
  for (const rate of rates) {
    const seconds = (quick ? 3 : 10) * (rate < 100 ? 2 : 1)
    for (const [name, steady] of [
      [`${number(rate)}/s`, project.steady] as const,
      ...(rate > mostOfBaseline ? [] : [[`naive, ${number(rate)}/s`, baseline.steady] as const]),
    ]) {
      const runs = []
      for (let round = 0; round < rounds; round++) runs.push(await steady(rate, seconds))
      const figure = summarise(name, runs)
      say(`cost: ${name}: ${number(figure.cpuTotal)} µs; ${JSON.stringify(figure.more)}`)
      figures.push(figure)
    }
  }
  const full = []
  for (let round = 0; round < rounds; round++) full.push(await project.single(quick ? 2_000 : 20_000))
  figures.push(summarise("full load", full))
  return { atRest, figures }
}

export const restTable = (atRest: ReadonlyArray<readonly [string, number]>) =>
  table(
    ["", ...atRest.map(([name]) => name)],
    [["% of a core", ...atRest.map(([, share]) => share.toFixed(2))]],
  )
