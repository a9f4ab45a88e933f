/** The term `together`: counted from the log whatever happens to it, and added to the scan exactly. */
import { expect } from "bun:test"
import { type ConfigError, Effect, Layer, Runtime } from "effect"
import fc from "fast-check"
import type { Ports } from "../../../src/layers/Stack.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { countPairs, encodePairs, type PairCounts } from "../../../src/services/model/Together.ts"
import type { DependencyDown } from "../../../src/services/ports/Dependencies.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { ProductPairs } from "../../../src/services/ports/ProductPairs.ts"
import { ProductTally } from "../../../src/services/ports/ProductTally.ts"
import * as PairCounter from "../../../src/services/recommend/PairCounter.ts"
import { view } from "../../contracts/InteractionLogContract.ts"
import { effectTest } from "../../support/effect.ts"
import { withServers } from "../../support/servers.ts"
import * as stacks from "../../support/stacks.ts"

const products = ["p", "q", "r", "s"]
const step = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant("view" as const),
      user: fc.nat(2),
      product: fc.nat(3),
      at: fc.nat(40),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("retract" as const), user: fc.nat(2) }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("merge" as const), user: fc.nat(2), from: fc.nat(2) }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("count" as const), dies: fc.boolean() }) },
)
type Step = typeof step extends fc.Arbitrary<infer A> ? A : never

/** T by the definition, from what the log says of each person. */
const byDefinition = Effect.fnUntraced(function* (users: ReadonlyArray<string>) {
  const log = yield* InteractionLog
  const counts: PairCounts = new Map()
  const people = new Map<string, string>()
  for (const user of users) people.set((yield* log.person(user)).user_id, user)
  for (const user of people.values()) {
    const newest = yield* log.newest(user, 1_000)
    const events = newest
      .toSorted(
        (a, b) =>
          Date.parse(a.interaction.occurred_at) - Date.parse(b.interaction.occurred_at) || a.id - b.id,
      )
      .map(({ interaction }) => interaction.product_id ?? undefined)
    countPairs(counts, events)
  }
  return counts
})

const base = Date.UTC(2026, 0)
let runs = 0

const perform = Effect.fnUntraced(function* (steps: ReadonlyArray<Step>) {
  const log = yield* InteractionLog
  const stored = yield* ProductPairs
  const tally = yield* ProductTally
  const run = ++runs
  const name = (user: number) => `u-${run}-${user}`
  const id = (product: string) => `${product}-${run}`
  let dying = false
  // Ids settle at once, and a process may die before the last row of pairs is written.
  const counter = yield* PairCounter.PairCounter.pipe(
    Effect.provide(
      PairCounter.layer.pipe(
        Layer.provide(Layer.succeed(ProductTally, { ...tally, settled: log.maxId })),
        Layer.provide(
          Layer.succeed(ProductPairs, {
            ...stored,
            save: (upTo, rows) =>
              dying
                ? Effect.zipRight(stored.save(upTo, rows.slice(1)), Effect.dieMessage("killed"))
                : stored.save(upTo, rows),
          }),
        ),
      ),
    ),
  )
  for (const each of steps) {
    if (each.kind === "view") {
      const occurred_at = new Date(base + each.at * 1_000).toISOString()
      yield* log.append([view(name(each.user), id(products[each.product]!), { occurred_at })])
    }
    if (each.kind === "retract") {
      const [newest] = yield* log.newest(name(each.user), 1)
      if (newest !== undefined)
        yield* log.append([{ ...view("x", "p", {}), interaction: Interaction.retract(newest.interaction) }])
    }
    if (each.kind === "merge" && each.user !== each.from) {
      const at = new Date(base + 100_000 + run).toISOString()
      yield* log.append([
        { ...view("x", "p", {}), interaction: Interaction.merge(name(each.user), name(each.from), at) },
      ])
    }
    if (each.kind === "count") {
      dying = each.dies
      yield* Effect.exit(counter.catchUp)
      dying = false
    }
  }
  yield* counter.catchUp
  const users = [0, 1, 2].map(name)
  const expected = yield* byDefinition(users)
  const text = (counts: PairCounts) =>
    Object.fromEntries(products.map((product) => [product, encodePairs(counts.get(id(product)) ?? [])]))
  const found = Effect.map(stored.load(products.map(id)), (rows) =>
    text(new Map(Array.from(rows, ([product, { pairs }]) => [product, pairs]))),
  )
  expect(yield* found).toEqual(text(expected))
  if (run % 5 === 0) {
    yield* counter.rebuild(() => Effect.void)
    expect(yield* found).toEqual(text(expected))
  }
})

const suite = (
  name: string,
  numRuns: number,
  stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>,
) =>
  effectTest(
    `${name}: stored pairs are those of the definition, whatever is late, taken back, merged, or killed`,
    () =>
      Effect.gen(function* () {
        const run = Runtime.runPromise(yield* Effect.runtime<Ports>())
        const property = fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), (steps) =>
          run(perform(steps)),
        )
        yield* Effect.promise(() => fc.assert(property, { numRuns }))
      }).pipe(Effect.provide(stack)),
    60_000,
  )

suite("SQLite", 60, stacks.embedded())
withServers(["mysql", "mongodb", "rabbitmq"], "pairs of products on servers", () =>
  suite("MySQL and MongoDB", 15, stacks.external()),
)
