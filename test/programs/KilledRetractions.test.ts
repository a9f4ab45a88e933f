/**
 * Workers that are killed at a step of a retraction: before or after a write, or before the acknowledgement. By default one
 * step; with FAILURES=long every step, on both stacks.
 */
import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import * as Interaction from "../../src/services/model/Interaction.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"
import { bundledProgram } from "../support/bundledProgram.ts"
import { layerSuite } from "../support/effect.ts"
import { mortalWorker, readVariables } from "../support/otherProcess.ts"
import { embeddingOf, record, recording, search, workedOff } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const isLong = process.env.FAILURES === "long"
/** By default after the rebuild of one user, and before the write of the other. */
const firstStep = isLong ? 1 : 3

const program = await bundledProgram("test/support/mortalWorker.ts")
const phrases = ["running shoes", "red wine", "board games", "cordless drill", "baby blanket"]
const history = (user: string, count: number) =>
  Array.from({ length: count }, (_, i) =>
    search(user, phrases[i % phrases.length]!, new Date(Date.UTC(2026, 0, 1, i)).toISOString()),
  )

const suite = (name: string, stack: ReturnType<typeof embedded>) =>
  layerSuite(
    name,
    Layer.mergeAll(Auditor.layer, Rebuilder.layer).pipe(
      Layer.provideMerge(EventVectors.layer),
      Layer.provideMerge(recording(stack)),
    ),
    (it) => {
      it(
        "each retraction is applied once, whether its event is subtracted or its user rebuilt",
        () =>
          Effect.gen(function* () {
            const env = yield* readVariables
            // Of many events one is subtracted; a user with few is rebuilt.
            const users = { many: history("many", 60), few: history("few", 9) }
            yield* record(...users.many, ...users.few)
            yield* workedOff
            let step = firstStep
            let died = true
            for (; died && (isLong || step === firstStep); step++) {
              const taken = [users.many[step]!, users.few[step]!]
              yield* record(...taken.map((event) => Interaction.retract(event)))
              died = yield* mortalWorker(program, env, step)
              if (died) yield* workedOff
            }
            // Two writes, each with a step before and after it, and the acknowledgement.
            if (isLong) expect(step - 2).toBeGreaterThanOrEqual(5)
            else expect(died).toBe(true)
            const rebuilder = yield* Rebuilder.Rebuilder
            for (const [user, events] of Object.entries(users)) {
              const live = yield* embeddingOf(user)
              expect(live?.event_count).toBe(events.length - (step - firstStep))
              yield* rebuilder.rebuild({ user })
              const rebuilt = yield* embeddingOf(user)
              const { mass, recent, total_weight } = rebuilt!
              expect(live).toMatchObject({ recent, mass: expect.closeTo(mass, 5) })
              expect(live?.total_weight).toBeCloseTo(total_weight, 9)
              const difference = live!.embedding.map((value, i) => value - rebuilt!.embedding[i]!)
              expect(Math.hypot(...difference)).toBeLessThanOrEqual(1e-5)
            }
            const { extra, missing } = yield* (yield* Auditor.Auditor).audit({})
            expect({ extra, missing }).toEqual({ extra: 0, missing: 0 })
          }),
        120_000,
      )
    },
  )

suite("workers killed during retractions, on the embedded stack", embedded())
if (isLong)
  withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
    suite("workers killed during retractions", external()),
  )
