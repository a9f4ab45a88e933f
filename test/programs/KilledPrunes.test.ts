/**
 * A prune that is killed or interrupted at any time, and started again, on both stacks. It takes a minute, so it runs with
 * FAILURES=long alone.
 */
import { expect } from "bun:test"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { Effect, Either, Layer } from "effect"
import type * as Interaction from "../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import * as EmbeddingUpdater from "../../src/services/update/EmbeddingUpdater.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"
import { bundledProgram } from "../support/bundledProgram.ts"
import { delivery } from "../support/delivery.ts"
import { layerSuite } from "../support/effect.ts"
import { readVariables } from "../support/otherProcess.ts"
import { embeddingOf, product, storeProduct } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const main = await bundledProgram("src/programs/main.ts")
const users = Array.from({ length: 20 }, (_, index) => `user-${index}`)
/** A slice has 5,000 events. */
const eventsPerUser = 3_000
const texts = ["red shoes", "white wine", "chess", "hammer", "lamp", "tent"]

const historyOf = (user: string) =>
  Array.from({ length: eventsPerUser }, (_, n) =>
    product(
      user,
      "product_view",
      `p-${n % texts.length}`,
      new Date(Date.UTC(2026, 0, 1, 0, n)).toISOString(),
    ),
  )

/** Records, publishes and applies events. */
const act = Effect.fnUntraced(function* (interactions: ReadonlyArray<Interaction.Interaction>) {
  const log = yield* InteractionLog
  const recordedAt = Date.now()
  const facts = { idempotencyKey: null, occurredAtGiven: true, trace: null, recordedAt }
  const rows = (yield* log.append(interactions.map((interaction) => ({ interaction, ...facts })))).flatMap(
    (one) => (one._tag === "Recorded" ? [one] : []),
  )
  yield* log.markPublished(rows, recordedAt)
  yield* (yield* EmbeddingUpdater.EmbeddingUpdater).update(
    rows.map(({ id, interaction }) => ({
      delivery: delivery(encodeMessage(interaction), { recordedAt, logId: id }),
      decoded: Either.right(interaction),
    })),
  )
})

/** Runs `prune` until the log has fewer rows than before, and then for `more` ms. Answers how it ended. */
const stoppedPrune = Effect.fnUntraced(function* (
  env: Record<string, string>,
  signal: "SIGKILL" | "SIGINT",
  more: number,
) {
  const rows = Effect.flatMap(InteractionLog, ({ backlog }) => Effect.map(backlog, ({ total }) => total))
  const before = yield* rows
  const child = spawn(process.execPath, [main, "prune", "--before", "2026-03-01", "--yes"], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env },
  })
  const said: Array<string> = []
  child.stderr.on("data", (text) => void said.push(String(text)))
  const exit = once(child, "close")
  while (child.exitCode === null && (yield* rows) === before) yield* Effect.sleep("5 millis")
  yield* Effect.sleep(more)
  child.kill(signal)
  const [code, by] = yield* Effect.promise(() => exit)
  return { code, by, said: said.join(""), left: yield* rows }
})

const suite = (name: string, stack: ReturnType<typeof embedded>) =>
  layerSuite(
    name,
    Layer.mergeAll(Auditor.layer, Rebuilder.layer, EmbeddingUpdater.layer).pipe(
      Layer.provideMerge(EventVectors.layer),
      Layer.provideMerge(stack),
    ),
    (it) => {
      it(
        "what a killed prune leaves is complete, and the next one goes on",
        () =>
          Effect.gen(function* () {
            for (const [index, text] of texts.entries()) yield* storeProduct(`p-${index}`, text)
            for (const user of users) yield* act(historyOf(user))
            const env = yield* readVariables
            const before = yield* Effect.forEach(users, embeddingOf)
            const audited = Effect.gen(function* () {
              const { extra, missing } = yield* (yield* Auditor.Auditor).audit({})
              expect({ extra, missing }).toEqual({ extra: 0, missing: 0 })
            })
            let turns = 0
            for (let left = 1; left > 0; turns++) {
              const signal = turns % 2 === 0 ? "SIGKILL" : "SIGINT"
              const ended = yield* stoppedPrune(env, signal, Math.random() * 300)
              left = ended.left
              yield* audited
              if (ended.code === 0) continue
              if (signal === "SIGKILL") expect(ended.by).toBe("SIGKILL")
              else {
                expect(ended.code).toBe(130)
                expect(ended.said).toMatch(
                  /^stopped at row \d+ of the log, after [\d,]+ events; run it again/m,
                )
              }
            }
            expect(turns).toBeGreaterThan(1)
            const rebuilder = yield* Rebuilder.Rebuilder
            for (const [index, user] of users.entries()) {
              expect((yield* rebuilder.rebuild({ user })).failures).toEqual([])
              const rebuilt = yield* embeddingOf(user)
              const { embedding, event_count, mass, recent } = before[index]!
              expect(rebuilt).toMatchObject({ event_count, recent, mass: expect.closeTo(mass, 3) })
              const difference = rebuilt!.embedding.map((value, i) => value - embedding[i]!)
              expect(Math.hypot(...difference)).toBeLessThanOrEqual(1e-4)
            }
          }),
        600_000,
      )
    },
  )

if (process.env.FAILURES === "long") {
  suite("a prune that is killed, on the embedded stack", embedded())
  withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
    suite("a prune that is killed", external({ TOGETHER_WEIGHT: "0" })),
  )
}
