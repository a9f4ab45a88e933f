#!/usr/bin/env bun
/** The tests on given servers, or on clusters in containers. `--help` explains it. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { parseArgs } from "node:util"
import bunfig from "../bunfig.toml"
import { messageOf } from "./services/command.ts"
import { versionIn } from "./services/manager.ts"
import * as sacrificial from "./services/sacrificial.ts"
import { defaultServices, type ServiceEnv } from "./services/service.ts"
import { bunTest, type Result } from "./test/bunTest.ts"

const root = resolve(import.meta.dir, "..")

/** Folders and files of each suite. All files need servers. */
const suites = {
  contracts: [
    "test/layers/rabbitmq",
    "test/layers/mongodb",
    "test/layers/sql",
    "test/layers/InteractionQueue",
  ],
  pipeline: ["test/programs", "test/services"],
  commands: ["test/programs/cli", "test/docs"],
  failures: ["test/failures"],
} as const
type Suite = keyof typeof suites
const names = Object.keys(suites) as Array<Suite>

const help = `Usage: bun run test:servers [SUITE…] [options]

Runs the tests on servers of any version, says which versions these are, and prints what each suite and each
failure scenario did. The suites, all of them by default:

  contracts   the promises of the log, the queue and the stores
  pipeline    from recording to the embedding, and the tasks
  commands    setup, doctor and the other commands, and every command of the documents
  failures    servers and programs killed, stopped and frozen under load; scenarios for clusters run only here

  --only TEXT       only tests with this in their names
  --servers LIST    what to start, by default ${"rabbitmq=3,mysql,mongodb=3"}: two clusters of three nodes
  --json            the result as JSON on standard output; progress goes to standard error

The servers are those of RABBITMQ_DSN, RABBITMQ_MANAGEMENT_URL, MYSQL_URL and MONGODB_URL, if these are set.
Otherwise they are started in containers with the images of docker-compose.yml, and removed at the end.

On servers of the environment the failure scenarios need a command that breaks them:

  SERVERS_CONTROL='./control {action} {name}'

{action} is kill (SIGKILL), stop (SIGTERM), start, pause (SIGSTOP), resume, or exec, which is followed by a program
of the server with its arguments. {name} is rabbitmq, mysql or mongodb. Several nodes have numbers in the order of
the URL: rabbitmq1, rabbitmq2 … Everything on these servers may be lost. One scenario needs a MongoDB that was started
with --setParameter enableTestCommands=1.

FAILURES=long runs the scenarios with the numbers that the documents promise, which takes hours.`

interface Scenario {
  readonly scenario: string
  readonly seconds: number
  readonly accepted: number
  readonly figures: Readonly<Record<string, string | number>>
}

interface SuiteResult extends Result {
  readonly suite: Suite
  readonly seconds: number
}

class BadUsage extends Error {}

const parse = () => {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        only: { type: "string" },
        servers: { type: "string", default: "rabbitmq=3,mysql,mongodb=3" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    })
    const unknown = positionals.find((word) => !names.some((name) => name === word))
    if (unknown !== undefined) throw new Error(`unknown suite "${unknown}"; there are ${names.join(", ")}`)
    return {
      ...values,
      chosen: names.filter((name) => positionals.length === 0 || positionals.includes(name)),
    }
  } catch (error) {
    throw new BadUsage(messageOf(error))
  }
}

/** The files of a suite that use servers; a file belongs to the last suite that names it. */
const filesOf = (suite: Suite): ReadonlyArray<string> =>
  [...new Bun.Glob("test/**/*.test.ts").scanSync({ cwd: root })]
    .filter(
      (file) => names.findLast((name) => suites[name].some((start) => file.startsWith(start))) === suite,
    )
    .filter((file) => /withServers\(|failures\//.test(`${file} ${readFileSync(join(root, file), "utf8")}`))
    .toSorted()

const urlVariables = ["RABBITMQ_DSN", "RABBITMQ_MANAGEMENT_URL", "MYSQL_URL", "MONGODB_URL"]

/** The URLs of the environment, or undefined when it names no server at all. */
const given = (): ServiceEnv | undefined => {
  const set = urlVariables.filter((name) => process.env[name])
  if (set.length === 0) return undefined
  const missing = urlVariables.filter((name) => !set.includes(name))
  if (missing.length > 0) throw new BadUsage(`${set.join(" and ")} is set, but not ${missing.join(" and ")}`)
  return Object.fromEntries(urlVariables.map((name) => [name, process.env[name] ?? ""]))
}

/** The nodes of a URL such as `amqp://a,amqp://b` or `mongodb://a,b`. */
const nodeCount = (url: string | undefined) => (url ?? "").split("?")[0]?.split(",").length ?? 1

const describeServers = (env: ServiceEnv) =>
  Promise.all(
    defaultServices.map(async (name) => {
      const url = { rabbitmq: env.RABBITMQ_DSN, mysql: env.MYSQL_URL, mongodb: env.MONGODB_URL }[
        name as "mysql"
      ]
      return { version: await versionIn(name, env), nodes: nodeCount(url) }
    }),
  )

const table = (rows: ReadonlyArray<ReadonlyArray<string | number>>) =>
  rows
    .map((row, index) => `| ${row.join(" | ")} |${index === 0 ? `\n|${" --- |".repeat(row.length)}` : ""}`)
    .join("\n")

const print = (
  servers: Awaited<ReturnType<typeof describeServers>>,
  results: ReadonlyArray<SuiteResult>,
  scenarios: ReadonlyArray<Scenario>,
) => {
  const versions = servers.map(({ nodes, version }) => (nodes > 1 ? `${version}, ${nodes} nodes` : version))
  console.log(`\nOn ${versions.join("; ")}:\n`)
  console.log(
    table([
      ["suite", "passed", "failed", "skipped", "seconds"],
      ...results.map(({ suite, passed, failed, skipped, seconds }) => [
        suite,
        passed,
        failed,
        skipped,
        seconds,
      ]),
    ]),
  )
  if (scenarios.length > 0)
    console.log(
      `\n${table([
        ["scenario", "seconds", "events accepted", "figures"],
        ...scenarios.map(({ scenario, seconds, accepted, figures }) => [
          scenario,
          seconds,
          accepted,
          Object.entries(figures)
            .map(([what, figure]) => `${what} ${figure}`)
            .join(", "),
        ]),
      ])}`,
    )
  const failures = results.flatMap((result) => result.failures)
  if (failures.length > 0) console.log(`\nFailed:\n${failures.map((name) => `  ${name}`).join("\n")}`)
}

const main = async (signal: AbortSignal): Promise<number> => {
  const { chosen, help: wantsHelp, json, only, servers } = parse()
  if (wantsHelp) {
    console.log(help)
    return 0
  }
  const environment = given()
  const folder = mkdtempSync(join(tmpdir(), "test-servers-"))
  const figures = join(folder, "figures")
  writeFileSync(figures, "")
  try {
    if (environment === undefined) console.error(`starting ${servers} in containers`)
    const urls = environment ?? (JSON.parse(await sacrificial.up(servers, signal)) as ServiceEnv)
    const described = await describeServers(urls)
    for (const { nodes, version } of described) console.error(`${version}, nodes: ${nodes}`)
    const mayBreak = environment === undefined || Boolean(process.env[sacrificial.controlVariable])
    if (!mayBreak) console.error("No failure scenarios: SERVERS_CONTROL is not set.")
    const env = {
      ...process.env,
      ...urls,
      ...(mayBreak && { [sacrificial.sacrificialVariable]: JSON.stringify(urls) }),
      SCENARIO_FIGURES: figures,
    }
    const results: Array<SuiteResult> = []
    for (const suite of chosen.filter((name) => mayBreak || name !== "failures")) {
      console.error(`\n${suite}`)
      const begun = performance.now()
      const files = filesOf(suite).map((file) => `./${file}`)
      const pattern = only === undefined ? [] : [`--test-name-pattern=${only}`]
      const result = await bunTest(
        [`--timeout=${2 * bunfig.test.timeout}`, ...pattern, ...files],
        env,
        signal,
      )
      results.push({ ...result, suite, seconds: Math.round((performance.now() - begun) / 1000) })
    }
    const scenarios = readFileSync(figures, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map((line): Scenario => JSON.parse(line))
    if (json) console.log(JSON.stringify({ servers: described, suites: results, scenarios }, null, 2))
    else print(described, results, scenarios)
    return results.every(({ failed }) => failed === 0) && results.some(({ passed }) => passed > 0) ? 0 : 1
  } finally {
    if (environment === undefined) await sacrificial.down()
    rmSync(folder, { recursive: true, force: true })
  }
}

const interrupted = new AbortController()
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
  process.on(signal, () => interrupted.abort(new Error(`interrupted by ${signal}`)))
try {
  process.exit(await main(interrupted.signal))
} catch (error) {
  console.error(error instanceof BadUsage ? `${error.message}\n\n${help}` : messageOf(error))
  process.exit(interrupted.signal.aborted ? 130 : error instanceof BadUsage ? 2 : 1)
}
