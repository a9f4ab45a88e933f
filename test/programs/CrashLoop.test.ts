import { expect } from "bun:test"
import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { Chunk, type ConfigError, Duration, Effect, type Layer, Stream } from "effect"
import type { Ports } from "../../src/layers/Stack.ts"
import { DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { bundledProgram } from "../support/bundledProgram.ts"
import { layerSuite } from "../support/effect.ts"
import { endLeases, readVariables } from "../support/otherProcess.ts"
import { drained, eventually, message, search } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const program = await bundledProgram("test/support/mortalWorker.ts")
const inherited = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => /^(HOME|PATH|BUN_JSC_.*)$/.test(name)),
)
/** Workers in processes of their own. A worker that dies is started again, until the scope closes. */
const workers = (count: number, env: Record<string, string>, onDeath: () => void) =>
  Effect.gen(function* () {
    const seen = { deaths: 0, quarantined: new Set<string>() }
    let over = false
    const children = new Map<number, ReturnType<typeof spawn>>()
    const start = (slot: number) => {
      const child = spawn(process.execPath, [program], {
        env: { ...inherited, ...env },
        stdio: ["ignore", "ignore", "pipe"],
      })
      children.set(slot, child)
      createInterface({ input: child.stderr }).on("line", (line) => {
        const quarantined = /"event":"message.quarantined".*"message_id":"([0-9a-f]{64})"/.exec(line)
        if (quarantined?.[1] !== undefined) seen.quarantined.add(quarantined[1])
      })
      child.once("exit", (code) => {
        if (over) return
        if (code === 139) seen.deaths += 1
        onDeath()
        start(slot)
      })
    }
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        for (let slot = 0; slot < count; slot++) start(slot)
      }),
      () =>
        Effect.sync(() => {
          over = true
          for (const child of children.values()) child.kill("SIGKILL")
        }),
    )
    return seen
  })

const suite = (
  name: string,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
  workerCount: number,
) =>
  layerSuite(name, stack, (it) => {
    it(
      "becomes a dead letter after ten deaths in quarantine; all other messages are applied, and later ones never quarantined",
      () =>
        Effect.gen(function* () {
          const queue = yield* InteractionQueue
          const deadLetters = yield* DeadLetters
          const users = yield* UserEmbeddings
          const env = yield* readVariables
          let count = 0
          const harmless = (some: number) =>
            Array.from({ length: some }, () => {
              const at = new Date(Date.UTC(2026, 1, 10, 0, 0, 0, count)).toISOString()
              return search(`harmless-${count++ % 10}`, "garden chairs", at)
            })
          const killer = search("killer", "a lethal phrase", "2026-02-10T00:00:00.000Z")
          const [before, after] = [harmless(20), harmless(20)]
          yield* queue.publish([...before, killer, ...after].map((one) => message(one)))

          const seen = yield* workers(workerCount, env, () => endLeases(env))

          yield* eventually(
            Effect.map(queue.depths, ({ quarantined }) => (quarantined > 0 ? true : undefined)),
            Duration.seconds(60),
          )
          const meanwhile: Array<string> = []
          const deadLetter = yield* eventually(
            Effect.gen(function* () {
              const more = harmless(3)
              yield* queue.publish(more.map((one) => message(one)))
              meanwhile.push(...more.map(({ message_id }) => message_id))
              yield* Effect.sleep("200 millis")
              return Chunk.toReadonlyArray(yield* Stream.runCollect(deadLetters.list))[0]
            }),
            Duration.seconds(180),
          )
          expect(deadLetter).toMatchObject({
            error: "crash_loop",
            attempts: 1,
            messageId: killer.message_id,
            originalRoutingKey: "user.embedding.search",
          })
          yield* drained
          expect(seen.deaths).toBe(3 + 10)
          expect(yield* deadLetters.count).toBe(1)
          expect(meanwhile.filter((id) => seen.quarantined.has(id))).toEqual([])
          const load = users.load(["killer", ...Array.from({ length: 10 }, (_, i) => `harmless-${i}`)])
          // The depths do not include what the workers hold, because they are other processes.
          const records = yield* eventually(
            Effect.map(load, (found) => {
              const applied = [...found.values()].map(({ embedding }) => embedding?.event_count ?? 0)
              return applied.reduce((sum, events) => sum + events, 0) === count ? found : undefined
            }),
            Duration.seconds(10),
          )
          expect(records.has("killer")).toBe(false)
        }),
      300_000,
    )
  })

// Ten deaths take long. The whole test command has the ten of real servers.
if (process.env.FAILURES !== "brief")
  suite("a message that kills workers, on the embedded stack", embedded(), 1)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  suite("a message that kills workers", external(), 2),
)
