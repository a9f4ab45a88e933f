/**
 * The feed and those who follow it, while workers, the broker, the sink and PostgreSQL fail: a consumer in Python ends with
 * what `export embeddings` writes, and `sink --check` finds no difference.
 */
import { expect } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { Effect, Exit, Scope } from "effect"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { freshPostgres } from "../support/servers.ts"
import { tcpProxy } from "../support/tcpProxy.ts"
import { type Program, until } from "./Program.ts"
import { happenings, type Item } from "./Shop.ts"
import { consuming, heavyFailures, inForm, type System } from "./System.ts"

/** Nothing waits to be published or applied. Merges and erasures make the numbers of rows and events differ. */
const isQuiet = (system: System) =>
  until("nothing waits", 120, async () => {
    const { main, retry } = await system.depths().catch(() => ({ main: 1, retry: 0 }))
    return main + retry + (await system.unpublished().catch(() => 1)) === 0 || undefined
  })

/** An erasure needs RabbitMQ for the dead letters, so a client repeats it until it succeeds. */
const erase = (system: System, user: string) =>
  until(`${user} is erased`, 60, async () => {
    const { status } = await fetch(`${system.url}/api/user/${user}`, { method: "DELETE" })
    expect([204, 503]).toContain(status)
    return status === 204 || undefined
  })
const merge = async (system: System, user: string, from: string) => {
  const { status } = await fetch(`${system.url}/api/user/${user}/merge`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ from }),
  })
  expect(status).toBe(201)
}

/** Loads the system at this rate, kills a worker now and then, erases and merges users; `stop` ends it. */
const chaos = (system: System, name: string, perSecond: number, workers: Array<Program>) => {
  const items: ReadonlyArray<Item> = happenings(150, inForm(2_000, 6_000), name)
  const load = system.load(items, perSecond)
  let stopped = false
  let round = 0
  const acts = (async () => {
    while (!stopped) {
      await Bun.sleep(inForm(700, 5_000))
      const victim = round % workers.length
      await workers[victim]!.kill()
      workers[victim] = system.worker()
      const user = (of: number) => `${name}-${of % 150}`
      await erase(system, user(7 * round))
      await merge(system, user(7 * round + 1), user(7 * round + 2))
      round += 1
    }
  })()
  return async () => {
    stopped = true
    await acts
    await load.stop()
    system.say(`${name}: ${round} workers killed, as many users erased and merged`)
  }
}

const begin = async (system: System) => {
  await system.api()
  const workers = [...system.workers(2)]
  await Promise.all(workers.map(consuming))
  return workers
}

const rebuildAll = async (system: System) => {
  const { code } = await system.command("rebuild", "--all", "--allow-missing", "--json")
  expect(code).toBe(0)
}

heavyFailures("the feed", "servers", (scenario) => {
  scenario(
    "a consumer in Python ends with what the export writes, after kills of workers and broker",
    async (system) => {
      const folder = mkdtempSync(join(tmpdir(), "feed-"))
      const install = Bun.spawnSync(
        ["python3", "-m", "pip", "install", "--quiet", "--target", folder, "pika==1.3.2"],
        { stderr: "inherit" },
      )
      expect(install.exitCode).toBe(0)
      const follower = Bun.spawn(
        [
          "python3",
          resolve(import.meta.dir, "../../examples/feed.py"),
          system.env.RABBITMQ_DSN!,
          "dictionary",
          join(folder, "dictionary.jsonl"),
        ],
        { env: { ...process.env, PYTHONPATH: folder }, stdout: "pipe", stderr: "ignore" },
      )
      try {
        await follower.stdout.getReader().read()
        const workers = await begin(system)
        for (let kill = 1; kill <= inForm(2, 10); kill++) {
          const stop = chaos(system, `feed-${kill}`, inForm(100, 300), workers)
          await Bun.sleep(inForm(2_000, 15_000))
          await sacrificial.kill("rabbitmq")
          await Bun.sleep(inForm(1_000, 5_000))
          await sacrificial.start("rabbitmq")
          await Bun.sleep(inForm(2_000, 15_000))
          await stop()
          system.say(`killed RabbitMQ, ${kill} of ${inForm(2, 10)}`)
        }
        await isQuiet(system)
        await rebuildAll(system)
        const waiting = (name: string) =>
          system.onChannel(async (channel) => (await channel.checkQueue(name)).messageCount)
        // The sweep announces the last erasures.
        await Bun.sleep(6_000)
        await until("all changes are read", 60, async () =>
          (await waiting("dictionary")) === 0 ? true : undefined,
        )
        follower.kill("SIGTERM")
        await follower.exited
        const exported = join(folder, "export.jsonl")
        expect((await system.command("export", "embeddings", "--out", exported)).code).toBe(0)
        const read = (file: string) =>
          readFileSync(join(folder, file), "utf8")
            .split("\n")
            .filter((line) => line !== "")
            .map((line) => JSON.parse(line) as { user_id: string; version: number; embedding: Array<number> })
            .map(({ embedding, user_id, version }) => ({
              user_id,
              version,
              vector: Float32Array.from(embedding),
            }))
            .toSorted((a, b) => (a.user_id < b.user_id ? -1 : 1))
        const [is, shall] = [read("dictionary.jsonl"), read("export.jsonl")]
        expect(is.map(({ user_id, version }) => `${user_id} ${version}`)).toEqual(
          shall.map(({ user_id, version }) => `${user_id} ${version}`),
        )
        expect(is).toEqual(shall)
        system.report("users of the dictionary, equal to the export", is.length)
      } finally {
        follower.kill("SIGKILL")
        rmSync(folder, { recursive: true, force: true })
      }
    },
    { EMBEDDING_FEED: "vectors" },
  )

  // The sacrificial servers have no PostgreSQL: a proxy takes it away.
  if (process.env.POSTGRES_URL === undefined) return
  for (const feed of ["vectors", "ids"])
    scenario(
      `the sink (EMBEDDING_FEED=${feed}) has no difference after an outage of PostgreSQL, its own kills, erasures, merges and a rebuild`,
      async (system) => {
        const scope = Effect.runSync(Scope.make())
        const { drop, url } = await freshPostgres()
        try {
          const proxy = await Effect.runPromise(Scope.extend(tcpProxy(url), scope))
          const start = () => system.start(["sink", "--to", proxy.url])
          const check = async () => {
            const { code, out } = await system.command("sink", "--to", url, "--check", "--json")
            expect([code, JSON.parse(out)]).toMatchObject([
              0,
              { missing: 0, extra: 0, versions: 0, vectors: 0 },
            ])
            return JSON.parse(out) as { readonly rows: number }
          }
          const workers = await begin(system)
          let sink = start()
          await sink.saw("sink.filled")
          const stop = chaos(system, "sink", inForm(100, 300), workers)
          await Bun.sleep(inForm(1_000, 10_000))
          proxy.cut()
          await sink.saw("sink.waiting")
          const seconds = inForm(5, 600)
          await Bun.sleep(seconds * 1_000)
          proxy.restore()
          const back = performance.now()
          await until("the sink goes on", 60, () => sink.count("sink.filled") >= 2 || undefined)
          system.report(
            `the sink followed again after ${seconds} s without PostgreSQL, s`,
            ((performance.now() - back) / 1000).toFixed(1),
          )
          for (let kill = 1; kill <= inForm(2, 10); kill++) {
            await Bun.sleep(inForm(500, 3_000))
            await sink.kill()
            await Bun.sleep(inForm(200, 2_000))
            sink = start()
          }
          await stop()
          await isQuiet(system)
          // The sweep announces the last erasures.
          await Bun.sleep(6_000)
          await sink.saw("sink.filled")
          await check()
          await rebuildAll(system)
          const { rows } = await check()
          system.report("rows equal to what is stored", rows)
          expect(sink.running).toBe(true)
        } finally {
          await Effect.runPromise(Scope.close(scope, Exit.void))
          for (const program of system.programs) if (program.name.startsWith("sink")) await program.kill()
          await drop()
        }
      },
      { EMBEDDING_FEED: feed },
    )
})
