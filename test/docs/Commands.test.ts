/**
 * Runs every command in the `sh` blocks of the README and of docs/, file by file, on a system with real servers that
 * has interactions, products and a dead letter. The test replaces the addresses and ports in the commands by its own. A
 * command that several documents show runs once. The whole test command runs each command of the program once, and only
 * parses the lines that show it with other options.
 */
import { afterAll, beforeAll, expect, test } from "bun:test"
import { type ChildProcess, spawn } from "node:child_process"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { CliConfig } from "@effect/cli"
import { BunContext } from "@effect/platform-bun"
import { Effect } from "effect"
import manifest from "../../package.json" with { type: "json" }
import { program as commandLine } from "../../src/programs/cli/Program.ts"
import * as CommandLine from "../../src/programs/cli/support/CommandLine.ts"
import { bundledProgram } from "../support/bundledProgram.ts"
import {
  connectAmqp,
  freshMongo,
  freshMysql,
  freshRabbit,
  urlOf,
  urlsIn,
  virtualHostIn,
  withServers,
} from "../support/servers.ts"

const main = await bundledProgram("src/programs/main.ts")
const root = resolve(import.meta.dir, "../..")
const files = ["README.md", ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)].filter((name) =>
  name.endsWith(".md"),
)

/** Commands that are not run here, each with the reason. */
const notRun: ReadonlyArray<readonly [RegExp, string]> = [
  [/^npx -y bun@/, "CI runs it"],
  [/^bun (start|run test)\b/, "CI runs it"],
  [/^git clone /, "CI begins with it"],
  [/^docker /, "it needs a Docker engine"],
  [/^(pip|openapi-|composer) ?/, "test/deploy/Clients.test.ts makes the clients"],
  [/backup-monday\b/, "Backup.test.ts does the same on the embedded stack"],
  [/^kubectl /, "it needs a cluster; test/deploy checks the manifests"],
  [/services (up|env)\b/, "it started the servers of this test"],
  [/^rabbitmqctl /, "LeastPrivilege.test.ts does the same over the management API"],
  [/^bun run (bench|test:failures|test:servers)\b/, "it takes minutes"],
  [
    /^(bun add|bunx|npx|npm install) user-embeddings\b/,
    "test/package does it with the packages that would be published",
  ],
]
/** Commands that run until a signal stops them. */
const serving = /^(bun run |user-embeddings )(up|api|worker|relay)\b/

const blocksOf = (file: string): ReadonlyArray<string> =>
  [...readFileSync(join(root, file), "utf8").matchAll(/^```sh\n(.*?)^```/gms)].map(([, block]) => block ?? "")

/** Logical lines: a backslash at the end of a line joins it with the next. */
const linesOf = (block: string) =>
  block
    .replaceAll("\\\n", " ")
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.startsWith("#"))

const freePort = () =>
  new Promise<number>((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => done(typeof address === "object" && address !== null ? address.port : 0))
    })
  })

const until = async (what: string, holds: () => Promise<boolean>) => {
  const deadline = Date.now() + 20_000
  while (!(await holds().catch(() => false))) {
    if (Date.now() > deadline) throw new Error(`${what}: not within 20 s`)
    await Bun.sleep(50)
  }
}

withServers(["rabbitmq", "mysql", "mongodb"], "the commands of the documents", () => {
  const folder = mkdtempSync(join(tmpdir(), "documents-"))
  /** The words of the commands to parse, one command a line. */
  const parsed = join(folder, "parsed")
  const undo: Array<() => Promise<unknown>> = []
  let environment: NodeJS.ProcessEnv = {}
  const system: Array<ChildProcess> = []

  const run = async (script: string) => {
    const child = Bun.spawn(["bash", "-euo", "pipefail", "-c", script], {
      cwd: root,
      env: environment,
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    })
    const [code, out, err] = await Promise.all([
      child.exited,
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ])
    return { code, out, err }
  }

  const program = (name: string, script: string) => {
    const path = join(folder, "bin", name)
    writeFileSync(path, script)
    chmodSync(path, 0o755)
  }

  beforeAll(async () => {
    const [rabbit, mysql, mongo] = [await freshRabbit(), await freshMysql(), freshMongo()]
    undo.push(rabbit.drop, mysql.drop, mongo.drop)
    const [apiPort, workerPort] = [await freePort(), await freePort()]
    mkdirSync(join(folder, "bin"))
    environment = {
      ...process.env,
      PATH: [join(folder, "bin"), join(root, "node_modules/.bin"), process.env.PATH].join(":"),
      RABBITMQ_DSN: rabbit.dsn,
      MYSQL_URL: mysql.url,
      MONGODB_URL: mongo.url,
      MONGODB_DATABASE: mongo.database,
      DATA_DIR: join(folder, "data"),
      TMPDIR: folder,
      API_PORT: String(apiPort),
      WORKER_PORT: String(workerPort),
      LOG_LEVEL: "warn",
    }
    // `bun run NAME` runs the bundle if package.json has that script.
    const { scripts }: typeof manifest = manifest
    const names = Object.entries(scripts).flatMap(([name, script]) =>
      [`bun src/programs/main.ts ${name}`, `bin/user-embeddings ${name}`].includes(script) ? [name] : [],
    )
    const bun = process.execPath
    const isProgram = names.map((name) => `"run ${name}"`).join("|")
    const bunThat = (does: string) =>
      `#!/bin/sh\ncase "$1 $2" in ${isProgram}) shift; ${does};; esac\nexec ${bun} "$@"\n`
    program("user-embeddings", `#!/bin/sh\nexec ${bun} ${main} "$@"\n`)
    program("bun", bunThat(`exec ${bun} ${main} "$@"`))
    const note = `printf '%s\\0' "$@" >> "${parsed}"; echo >> "${parsed}"; exit`
    mkdirSync(join(folder, "bin/parsing"))
    program("parsing/user-embeddings", `#!/bin/sh\n${note}\n`)
    program("parsing/bun", bunThat(note))
    const { hostname, password, pathname, port, username } = new URL(mysql.url)
    program(
      "mysql",
      `#!/bin/sh\nwhile [ "$1" != -e ]; do shift; done\nexec mariadb -h ${hostname} -P ${port} -u ${username} -p${password} ${pathname.slice(1)} "$@"\n`,
    )
    // A status of 400 or more is a failure, unless it improves after the worker has applied the events.
    program(
      "curl",
      `#!/bin/sh\nexec ${Bun.which("curl")} --fail-with-body --retry 5 --retry-delay 1 --retry-all-errors -sS "$@"\n`,
    )
    program("mongosh", `#!/bin/sh\nexec bun ${join(import.meta.dir, "../support/mongosh.ts")} "$@"\n`)
    expect(await run("user-embeddings setup")).toMatchObject({ code: 0 })
    expect(await run("user-embeddings products import samples/catalogue.jsonl")).toMatchObject({ code: 0 })
    for (const part of ["api", "worker"])
      system.push(spawn("user-embeddings", [part], { cwd: root, env: environment, stdio: "ignore" }))
    for (const port of [apiPort, workerPort])
      await until("the system answers", async () => (await fetch(`http://127.0.0.1:${port}/readyz`)).ok)
    const connection = await connectAmqp(rabbit.dsn)
    const channel = await connection.createConfirmChannel()
    channel.publish("user_events", "user.embedding.search", Buffer.from("not JSON"))
    await channel.waitForConfirms()
    await until("the dead letter", async () => {
      const { out } = await run("user-embeddings failed list --json")
      const [letter]: ReadonlyArray<{ readonly id: string }> = JSON.parse(out)
      environment.ID = letter?.id
      return letter !== undefined
    })
    await connection.close()
  }, 60_000)

  afterAll(async () => {
    const ended = system.map((part) => new Promise((done) => part.once("exit", done)))
    for (const part of system) part.kill("SIGTERM")
    await Promise.all(ended)
    for (const each of undo) await each()
    rmSync(folder, { recursive: true, force: true })
  }, 60_000)

  /** The command with the addresses of this test. */
  const adapted = (line: string): string => {
    const [management] = urlsIn(process.env.RABBITMQ_MANAGEMENT_URL ?? "http://127.0.0.1:15672")
    const vhost = virtualHostIn(environment.RABBITMQ_DSN ?? urlOf("rabbitmq"))
    const here = line
      .replaceAll(/(localhost|127\.0\.0\.1):3000/g, `127.0.0.1:${environment.API_PORT}`)
      .replaceAll(/(localhost|127\.0\.0\.1):9464/g, `127.0.0.1:${environment.WORKER_PORT}`)
      .replaceAll(/(localhost|127\.0\.0\.1):15672/g, `127.0.0.1:${management?.port}`)
      .replaceAll(/(--out|>>) /g, '$1 "$TMPDIR"/')
      .replaceAll("/tmp/", '"$TMPDIR"/')
      .replaceAll("/api/queues/%2F/", `/api/queues/${vhost}/`)
    if (serving.test(here))
      return `API_PORT=0 WORKER_PORT=0 timeout -s TERM 4 ${here.replace(/\s+#.*/, "")} || test $? = 124`
    return here
  }

  const isNewTo = (seen: Set<string>, key: string) => {
    const size = seen.size
    return seen.add(key).size > size
  }
  const lines = new Set<string>()
  const isRun = (line: string) =>
    !notRun.some(([pattern]) => pattern.test(line)) && isNewTo(lines, line.replace(/\s+# .*/, ""))
  /** The name of a command, such as `failed list`. Imports run, because later commands use what they store. EvaluateHistory.test.ts runs `evaluate`. */
  const kind = /(?:bun run|user-embeddings) ((?!import|products import)[a-z]+(?: [a-z]+\b(?!\/))?)/
  const kinds = new Set(["evaluate samples"])
  const isParsed = (line: string) => {
    const name = kind.exec(line)?.[1]
    return process.env.FAILURES === "brief" && name !== undefined && !isNewTo(kinds, name)
  }
  const parse = async () => {
    const commands = existsSync(parsed) ? readFileSync(parsed, "utf8").trim().split("\n") : []
    for (const command of commands)
      await Effect.runPromise(
        CommandLine.read(
          commandLine.descriptor,
          command.split("\0").slice(0, -1),
          CliConfig.defaultConfig,
        ).pipe(Effect.provide(BunContext.layer)),
      )
  }
  for (const file of files)
    for (const [index, block] of blocksOf(file).entries()) {
      const commands = linesOf(block)
        .filter(isRun)
        .map((line) => ({ line, isParsed: isParsed(line) }))
      if (commands.length > 0)
        test(`${file}, block ${index + 1}`, async () => {
          rmSync(parsed, { force: true })
          const script = commands
            .map(({ isParsed, line }) =>
              isParsed ? `(PATH="${folder}/bin/parsing:$PATH"\n${adapted(line)}\n)` : adapted(line),
            )
            .join("\n")
          const { code, err, out } = await run(`cd ${root}\n${script}`)
          if (code !== 0) throw new Error(`${script}\nended with ${code}:\n${out}\n${err}`)
          await parse()
        }, 60_000)
    }
})
