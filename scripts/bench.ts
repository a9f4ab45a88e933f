#!/usr/bin/env bun
/** Measures this project side by side with a plain baseline and with what its parts cost; `--help` says how. */
import { parseArgs } from "node:util"
import { Arena } from "./bench/arena.ts"
import { type Figure, number, type Run, summarise, table } from "./bench/figures.ts"
import { embedded, external, naive, sequence } from "./bench/pipeline.ts"
import { messageOf } from "./services/command.ts"
import { down, up } from "./services/manager.ts"

const { values } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    only: { type: "string" },
    help: { type: "boolean", short: "h", default: false },
  },
})
const rounds = values.quick ? 1 : 5
const scale = values.quick ? 0.5 : 1
const wanted = (name: string) => values.only === undefined || values.only.split(",").includes(name)
const say = (line: string) => console.error(line)

const { started, statuses } = await up({ say })
const arena = new Arena(Object.assign({}, ...statuses.map(({ env }) => env)))
try {
  const next = sequence()
  const contestants: Array<readonly [string, number, (events: number) => Promise<Run>]> = []
  if (wanted("naive")) contestants.push(["naive", 4_000, (await naive(arena, next)).single])
  const project = await external(arena, next)
  if (wanted("single")) contestants.push(["single", 20_000, project.single])
  if (wanted("bulk")) contestants.push(["bulk", 40_000, project.bulk])
  if (wanted("embedded")) contestants.push(["embedded", 15_000, (await embedded(arena, next)).single])
  const runs = new Map<string, Array<Run>>()
  for (let round = 0; round <= rounds; round++)
    for (const [name, events, run] of contestants) {
      const seen = await run(Math.round(events * scale))
      say(
        `${round === 0 ? "warm-up" : `round ${round}`} ${name}: ${number(seen.eventsPerSecond)}/s ${JSON.stringify(seen)}`,
      )
      if (round > 0) runs.set(name, [...(runs.get(name) ?? []), seen])
    }
  const figures: ReadonlyArray<Figure> = [...runs].map(([name, all]) => summarise(name, all))
  console.log(
    table(
      ["", "events/s", "CPU µs"],
      figures.map((figure) => [figure.name, number(figure.eventsPerSecond.median), number(figure.cpuTotal)]),
    ),
  )
} catch (error) {
  console.error(messageOf(error))
  process.exitCode = 1
} finally {
  await arena.close()
  if (started.length > 0) await down({ only: started })
}
process.exit()
