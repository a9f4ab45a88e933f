#!/usr/bin/env bun
/** Real servers for tests and development; `--help` says how. */
import { parseArgs } from "node:util"
import { messageOf } from "./services/command.ts"
import { down, environment, status, up } from "./services/manager.ts"
import { defaultServices, type ServiceName, serviceNames } from "./services/service.ts"

const help = `Usage: bun run services <up|down|status|env> [options]

  up       start what is not running yet, wait until it is ready
  down     stop what up started and delete its data
  status   ask each service; exit 1 if one does not answer
  env      print export lines: eval "$(bun run --silent services env)"

  --only a,b   these services alone (${serviceNames.join(", ")})
  --with a,b   these besides the usual three (${defaultServices.join(", ")})
  --json       JSON on standard output

Each service is taken from the first of: its URL in the environment (RABBITMQ_DSN, MYSQL_URL, MONGODB_URL,
JAEGER_URL), Docker, a private instance on free loopback ports with its data in .services/.
Installing: RabbitMQ and MariaDB by apt-get as root, MongoDB by pip, Jaeger by go.`

class BadUsage extends Error {}

const names = (list: string | undefined): ServiceName[] | undefined =>
  list?.split(",").map((text) => {
    const name = serviceNames.find((known) => known === text.trim())
    if (name === undefined)
      throw new BadUsage(`unknown service "${text}"; there are ${serviceNames.join(", ")}`)
    return name
  })

const parse = () => {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        only: { type: "string" },
        with: { type: "string" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    })
    const extra = names(values.with)
    const only = names(values.only) ?? (extra && [...defaultServices])
    return { ...values, only: only && [...new Set([...only, ...(extra ?? [])])], commands: positionals }
  } catch (error) {
    throw new BadUsage(messageOf(error))
  }
}

const say = (line: string) => console.error(line)
const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`

/** Runs the command and answers the exit code. */
const main = async (): Promise<number> => {
  const { commands, json, only, help: wantsHelp } = parse()
  if (wantsHelp) {
    console.log(help)
    return 0
  }
  if (commands.length !== 1) throw new BadUsage("say what to do: up, down, status or env")
  const choice = only === undefined ? {} : { only }
  switch (commands[0]) {
    case "up": {
      const interrupted = new AbortController()
      for (const signal of ["SIGINT", "SIGTERM"] as const) {
        process.on(signal, () => interrupted.abort(new Error(`interrupted by ${signal}`)))
      }
      const { statuses } = await up({ ...choice, signal: interrupted.signal, say })
      if (json) console.log(JSON.stringify(statuses))
      return statuses.every((each) => each.ready) ? 0 : 1
    }
    case "status": {
      const statuses = await status(json ? choice : { ...choice, say: console.log })
      if (json) console.log(JSON.stringify(statuses))
      return statuses.every((each) => each.ready) ? 0 : 1
    }
    case "down":
      await down({ ...choice, say })
      if (json) console.log("{}")
      return 0
    case "env": {
      const { env, missing } = environment(choice)
      if (json) console.log(JSON.stringify(env))
      else for (const [name, value] of Object.entries(env)) console.log(`export ${name}=${quoted(value)}`)
      if (missing.length > 0) say(`not up: ${missing.join(", ")} (bun run services up)`)
      return missing.length > 0 ? 1 : 0
    }
    default:
      throw new BadUsage(`unknown command "${commands[0]}"`)
  }
}

try {
  process.exit(await main())
} catch (error) {
  console.error(error instanceof BadUsage ? `${error.message}\n\n${help}` : messageOf(error))
  process.exit(error instanceof BadUsage ? 2 : 1)
}
