#!/usr/bin/env bun
/** Measures this project beside a plain baseline and beside the cost of its stages; see `--help`. */
import { parseArgs } from "node:util"
import { Arena, type Env } from "./bench/arena.ts"
import { machine } from "./bench/machine.ts"
import { all, type Section, suites, usual } from "./bench/suites.ts"
import { messageOf } from "./services/command.ts"
import { down, up } from "./services/manager.ts"

const help = `Usage: bun run bench [suite …] [options]

  pipeline   this project by single events, by the bulk route and embedded, a plain baseline, and what each stage costs
  worker     20,000 events that wait in the queue, handled by this project's worker and by the baseline's
  publish    5,000 events, until the broker has confirmed their messages
  latency    latency at half of the maximum rate
  cost       CPU of an event and latency from 20 events/s to full load, beside the baseline; CPU of a system at rest
  memory     memory of api and worker over 1,000,000 events
  scale      1, 2, 4 and 10 workers; hot users
  stores     1,000,000 users, 100,000 products, 5,000,000 rows
  reads      vectors and recommendations while events are written, with 1,000 to 100,000 products
  tracing    without spans, with 1 % of the traces, and with all of them

Without a suite: ${usual.join(", ")}. If the environment names no servers, the benchmark starts some (bun run services) and stops
them again.

  --only a,b     the same as suites as arguments
  --quick        a tenth of the work, one round; for development
  --json         JSON on standard output
  --write FILE   replace the suites' sections in a Markdown file, between <!-- bench:NAME --> and <!-- /bench -->`

class BadUsage extends Error {}

const parse = () => {
  try {
    const { positionals, values } = parseArgs({
      allowPositionals: true,
      options: {
        only: { type: "string" },
        quick: { type: "boolean", default: false },
        json: { type: "boolean", default: false },
        write: { type: "string" },
        help: { type: "boolean", short: "h", default: false },
      },
    })
    const asked = [...positionals, ...(values.only?.split(",") ?? [])]
    const unknown = asked.find((name) => !all.some((known) => known === name))
    if (unknown !== undefined) throw new Error(`unknown suite "${unknown}"; the suites are ${all.join(", ")}`)
    return { ...values, names: asked.length === 0 ? usual : all.filter((name) => asked.includes(name)) }
  } catch (error) {
    throw new BadUsage(messageOf(error))
  }
}

/** Replaces the section between its marks, or appends marks and section. */
const placed = (document: string, name: string, text: string): string => {
  const [begin, end] = [`<!-- bench:${name} -->`, "<!-- /bench -->"]
  const block = `${begin}\n${text}\n${end}`
  const from = document.indexOf(begin)
  if (from < 0) return `${document.trimEnd()}\n\n${block}\n`
  return document.slice(0, from) + block + document.slice(document.indexOf(end, from) + end.length)
}

const main = async (): Promise<void> => {
  const { help: wantsHelp, json, names, quick, write } = parse()
  if (wantsHelp) return console.log(help)
  const say = (line: string) => console.error(line)
  const { started, statuses } = await up({ say })
  const servers: Env = Object.assign({}, ...statuses.map(({ env }) => env))
  const arena = new Arena(servers)
  try {
    const description = await machine(servers)
    const found: Record<string, Section> = {}
    const run = suites({ arena, quick, say })
    for (const name of names) {
      say(`— ${name}`)
      found[name] = await run[name]()
    }
    const about = `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC${quick ? "; --quick" : ""}: ${Object.entries(
      description,
    )
      .map(([what, value]) => `${what} ${value}`)
      .join(", ")}.`
    const sections = Object.entries(found).map(
      ([name, { text, title }]) => [name, `## ${title}\n\n${text}\n\n${about}`] as const,
    )
    if (json) {
      const results = Object.fromEntries(Object.entries(found).map(([name, section]) => [name, section.json]))
      console.log(JSON.stringify({ machine: description, quick, ...results }, null, 2))
    } else for (const [, text] of sections) console.log(`\n${text}`)
    if (write !== undefined) {
      let document = await Bun.file(write).text()
      for (const [name, text] of sections) document = placed(document, name, text)
      await Bun.write(write, document)
    }
  } finally {
    await arena.close()
    if (started.length > 0) await down({ only: started })
  }
}

try {
  await main()
  process.exit(0)
} catch (error) {
  console.error(error instanceof BadUsage ? `${error.message}\n\n${help}` : messageOf(error))
  process.exit(error instanceof BadUsage ? 2 : 1)
}
