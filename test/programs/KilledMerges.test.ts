/**
 * Workers that are killed at a step of a merge: before or after the record is frozen, taken over, or made an alias, and before
 * the acknowledgement. Events of both ids arrive meanwhile. On the embedded stack every step; with FAILURES=long also on real
 * servers.
 */
import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import * as Interaction from "../../src/services/model/Interaction.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"
import { bundledProgram } from "../support/bundledProgram.ts"
import { layerSuite } from "../support/effect.ts"
import { mortalWorker, readVariables } from "../support/otherProcess.ts"
import { record, recording, workedOff } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"
import { audited, expectSurvivors, phrases } from "../support/survivors.ts"

const isLong = process.env.FAILURES === "long"
/** By default the steps after which a record is frozen, or taken over and not yet an alias. */
const steps = isLong ? [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] : [2, 4]

const program = await bundledProgram("test/support/mortalWorker.ts")
const searches = (user: string, from: number, count: number) =>
  Array.from({ length: count }, (_, i) =>
    Interaction.make({
      user_id: user,
      event_type: "search",
      search_phrase: phrases[i % phrases.length]!,
      occurred_at: new Date(Date.UTC(2026, 0, 1, from + i)).toISOString(),
      metadata: {},
    }),
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
        "each merge is finished by whoever meets it, and counts every event once",
        () =>
          Effect.gen(function* () {
            const env = yield* readVariables
            const users = yield* UserEmbeddings
            const ends: Array<boolean> = []
            for (const step of steps) {
              const [guest, customer] = [`guest-${step}`, `u-${step}`]
              // More events than a record keeps ids of.
              const before = [...searches(guest, 0, 330), ...searches(customer, 400, 20)]
              yield* record(...before)
              yield* workedOff
              yield* record(Interaction.merge(customer, guest, new Date(Date.UTC(2026, 1, 1)).toISOString()))
              ends.push(yield* mortalWorker(program, env, step))
              const after = [...searches(guest, 800, 5), ...searches(customer, 900, 5)]
              yield* record(...after)
              yield* workedOff
              const records = yield* users.load([guest, customer])
              expect(records.get(guest)).toMatchObject({
                embedding: undefined,
                links: { alias_of: customer },
              })
              const events = [...before, ...after].map((one) => ({ ...one, user_id: customer }))
              yield* expectSurvivors(records.get(customer)?.embedding, events)
              expect(yield* audited(guest)).toEqual({ extra: 0, missing: 0 })
            }
            // Three writes, each with a step before and after it, one of the ledger, and the acknowledgement.
            if (isLong) expect(ends.slice(0, 7)).toEqual(Array(7).fill(true))
            else expect(ends).toEqual([true, true])
          }),
        120_000,
      )
    },
  )

suite("workers killed during merges, on the embedded stack", embedded())
if (isLong)
  withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
    suite("workers killed during merges", external()),
  )
