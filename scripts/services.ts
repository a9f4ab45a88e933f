#!/usr/bin/env bun
/** Real servers for tests and development. `--help` explains the commands. */
import { parseArgs } from "node:util"
import { messageOf } from "./services/command.ts"
import { down, environment, exec, kill, pause, resume, start, status, stop, up } from "./services/manager.ts"
import { defaultServices, type ServiceName, serviceNames } from "./services/service.ts"

const help = `Usage: bun run services <up|down|status|env> [options]
       bun run services <stop|kill|pause|resume|start> NAME
       bun run services exec NAME PROGRAM [ARGUMENT…]

  up       start what is not running yet, wait until it is ready
  down     stop what up started and delete its data
  status   ask each service; exit 1 if one does not answer
  env      print export lines: eval "$(bun run --silent services env)"

  stop     end a server with SIGTERM; kill: as a power cut would; pause: freeze it until resume
  start    start a stopped or killed server with its ports and data, wait until it is ready
  exec     run a program of the server, such as rabbitmqctl

  --only a,b   only these services (${serviceNames.join(", ")}); rabbitmq=3 is a cluster of three nodes with
               the names rabbitmq1 to rabbitmq3, mongodb=3 a replica set
  --with a,b   these besides the default three (${defaultServices.join(", ")})
  --json       JSON on standard output

Each service is taken from the first of: its URL in the environment (RABBITMQ_DSN, MYSQL_URL, MONGODB_URL,
POSTGRES_URL, JAEGER_URL), Docker with the images of docker-compose.yml, a private instance on free loopback ports with its
data in .services/. Docker is the engine of DOCKER_HOST, else that of the default socket.
Installing without Docker: RabbitMQ and MariaDB by apt-get as root, MongoDB and PostgreSQL by pip, Jaeger by go.`

const verbs = { stop, kill, pause, resume, start } as const

class BadUsage extends Error {}

/** The services of a list such as `rabbitmq=3,mysql`, each with its number of nodes. */
const sizesIn = (list: string | undefined): Partial<Record<ServiceName, number>> | undefined =>
  list === undefined
    ? undefined
    : Object.fromEntries(
        list.split(",").map((text) => {
          const [, word = "", count = "1"] = /^([a-z]+)(?:=([1-9]))?$/.exec(text.trim()) ?? []
          const name = serviceNames.find((known) => known === word)
          if (name === undefined)
            throw new BadUsage(`unknown service "${text}"; there are ${serviceNames.join(", ")}`)
          if (Number(count) > 1 && name !== "rabbitmq" && name !== "mongodb")
            throw new BadUsage(`${name} has no cluster here; rabbitmq and mongodb have`)
          return [name, Number(count)]
        }),
      )

const parse = () => {
  const words = process.argv.slice(2)
  // The words after `exec NAME` belong to the program.
  const end = words[0] === "exec" ? 2 : words.length
  const program = words.slice(words[end] === "--" ? end + 1 : end)
  try {
    const { values, positionals } = parseArgs({
      args: words.slice(0, end),
      allowPositionals: true,
      options: {
        only: { type: "string" },
        with: { type: "string" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    })
    const extra = sizesIn(values.with)
    const sizes = { ...(sizesIn(values.only) ?? (extra && sizesIn(defaultServices.join(",")))), ...extra }
    return { ...values, sizes, commands: [...positionals, ...program] }
  } catch (error) {
    throw new BadUsage(messageOf(error))
  }
}

const say = (line: string) => console.error(line)
const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`

/** Runs the command and answers the exit code. */
const main = async (): Promise<number> => {
  const { commands, json, sizes, help: wantsHelp } = parse()
  if (wantsHelp) {
    console.log(help)
    return 0
  }
  const [command, target, ...rest] = commands
  const verb = Object.entries(verbs).find(([name]) => name === command)?.[1]
  if (target !== undefined && verb !== undefined && rest.length === 0) {
    await verb(target)
    return 0
  }
  if (target !== undefined && command === "exec" && rest.length > 0) {
    process.stdout.write(await exec(target, rest))
    return 0
  }
  if (commands.length !== 1)
    throw new BadUsage("a command is missing: up, down, status or env, or a verb and one service")
  const only = serviceNames.filter((name) => sizes[name] !== undefined)
  const choice = only.length === 0 ? {} : { only, sizes }
  switch (command) {
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
      throw new BadUsage(`unknown command "${command}"`)
  }
}

try {
  process.exit(await main())
} catch (error) {
  console.error(error instanceof BadUsage ? `${error.message}\n\n${help}` : messageOf(error))
  process.exit(error instanceof BadUsage ? 2 : 1)
}
