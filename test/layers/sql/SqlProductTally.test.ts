import { expect } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as SqlClient from "@effect/sql/SqlClient"
import { Context, Effect, Layer, Redacted, Runtime, type Scope } from "effect"
import fc from "fast-check"
import { createConnection } from "mysql2/promise"
import * as Mysql from "../../../src/layers/sql/Mysql.ts"
import * as SqlInteractionLog from "../../../src/layers/sql/SqlInteractionLog.ts"
import * as SqlProductTally from "../../../src/layers/sql/SqlProductTally.ts"
import * as Sqlite from "../../../src/layers/sqlite/Sqlite.ts"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { ProductTally } from "../../../src/services/ports/ProductTally.ts"
import * as Popularity from "../../../src/services/recommend/Popularity.ts"
import { view } from "../../contracts/InteractionLogContract.ts"
import { effectTest } from "../../support/effect.ts"
import { freshMysql, withServers } from "../../support/servers.ts"

const dayMillis = 86_400_000
const today = 20_500
const lambda = 0.1
const types = ["product_view"]
/** After every row was recorded, in Unix ms. */
const allTime = Date.UTC(2100, 0)

const parts = <E, R>(
  client: Layer.Layer<SqlClient.SqlClient, E, R>,
  { dependency, dialect }: Pick<typeof Mysql, "dependency" | "dialect">,
) =>
  Effect.gen(function* () {
    const context = yield* Layer.build(
      Layer.mergeAll(SqlInteractionLog.layer(dialect), SqlProductTally.layer(dialect)).pipe(
        Layer.provideMerge(Layer.effectDiscard(Effect.flatMap(dependency, ({ setup }) => setup))),
        Layer.provideMerge(Layer.fresh(client)),
      ),
    )
    const sql = Context.get(context, SqlClient.SqlClient)
    return {
      context,
      sql,
      log: Context.get(context, InteractionLog),
      tally: Context.get(context, ProductTally),
      /** As if the time had passed after which the rows that were seen are settled. */
      waited: sql`UPDATE product_tally_state SET marked_at = 0`,
    }
  })
type Parts = Effect.Effect.Success<ReturnType<typeof parts>>

/** The totals by the rows of the log themselves, without those that are taken back. */
const fromLog = ({ sql }: Parts, factor: number) =>
  Effect.map(
    sql<{ product_id: string; day: string; events: number }>`
      SELECT product_id, SUBSTR(occurred_at, 1, 10) AS day, COUNT(*) AS events FROM user_interactions i
      WHERE product_id IS NOT NULL AND event_type = 'product_view'
        AND NOT EXISTS (SELECT 1 FROM user_interactions r WHERE r.reference = i.message_id) GROUP BY product_id, SUBSTR(occurred_at, 1, 10)`
      .unprepared,
    (rows) => {
      const totals = new Map<string, { interactions: number; decayed: number }>()
      for (const { day, events, product_id } of rows) {
        const { decayed, interactions } = totals.get(product_id) ?? { interactions: 0, decayed: 0 }
        totals.set(product_id, {
          interactions: interactions + Number(events),
          decayed: decayed + Number(events) * Math.exp(-factor * (today - Date.parse(day) / dayMillis)),
        })
      }
      return totals
    },
  )

const stored = ({ tally }: Parts, factor = lambda) =>
  Effect.map(
    tally.totals(types, factor, today),
    ({ products }) =>
      new Map(
        products.map(({ decayed, interactions, product_id }) => [product_id, { interactions, decayed }]),
      ),
  )

const expectEqual = (
  found: Map<string, object>,
  expected: Map<string, { interactions: number; decayed: number }>,
) => {
  expect([...found.keys()].toSorted()).toEqual([...expected.keys()].toSorted())
  for (const [product, { decayed, interactions }] of expected)
    expect(found.get(product)).toEqual({ interactions, decayed: expect.closeTo(decayed, 9) })
}

let events = 0
const viewed = (user: string, product: string, day: number) =>
  view(user, product, { occurred_at: new Date((today - day) * dayMillis + events++).toISOString() })

const suite = (name: string, runs: number, open: Effect.Effect<Parts, unknown, Scope.Scope>) => {
  effectTest(
    `${name}: the stored counts equal those of the log, whatever is appended, taken back and erased`,
    () =>
      Effect.gen(function* () {
        const one = yield* open
        const run = Runtime.runPromise(yield* Effect.runtime<never>())
        const product = fc.constantFrom("p", "q", "r")
        const user = fc.constantFrom("a", "b")
        const step = fc.oneof(
          fc.record({ kind: fc.constant("append" as const), user, product, day: fc.nat(20) }),
          fc.record({ kind: fc.constant("retract" as const), user }),
          fc.record({ kind: fc.constant("erase" as const), user }),
          fc.record({ kind: fc.constant("advance" as const) }),
          fc.record({ kind: fc.constant("wait" as const) }),
        )
        // Users stay the same in all runs, so that an erasure also meets rows that a run before has counted.
        const perform = (steps: ReadonlyArray<typeof step extends fc.Arbitrary<infer A> ? A : never>) =>
          Effect.gen(function* () {
            for (const each of steps) {
              if (each.kind === "append") yield* one.log.append([viewed(each.user, each.product, each.day)])
              if (each.kind === "retract") {
                const newest = yield* one.log.newest(each.user, 1)
                yield* one.log.append(
                  newest.map(({ interaction }) => ({
                    ...viewed(each.user, "p", 0),
                    interaction: Interaction.retract(interaction),
                  })),
                )
              }
              if (each.kind === "erase") yield* one.log.erase(each.user, allTime)
              if (each.kind === "wait") yield* one.waited
              if (each.kind === "advance")
                yield* Effect.all([one.tally.advance(lambda, today), one.tally.advance(lambda, today)], {
                  concurrency: 2,
                })
            }
            for (let round = 0; round < 3; round++)
              yield* Effect.zipRight(one.waited, one.tally.advance(lambda, today))
            expectEqual(yield* stored(one), yield* fromLog(one, lambda))
          })
        yield* Effect.promise(() =>
          fc.assert(
            fc.asyncProperty(fc.array(step, { maxLength: 12 }), (steps) => run(perform(steps))),
            { numRuns: runs },
          ),
        )
      }),
    30_000,
  )

  effectTest(`${name}: another λ and a later day begin anew or move the day, and the counts stay equal`, () =>
    Effect.gen(function* () {
      const one = yield* open
      yield* one.log.append([viewed("a", "p", 3), viewed("a", "q", 900), viewed("b", "p", 0)])
      const count = (factor: number, day: number) =>
        Effect.forEach([1, 2, 3], () => Effect.zipRight(one.waited, one.tally.advance(factor, day)))
      // Two years after the first day, exp(λ · days) has left the range in which it is exact.
      yield* count(1, today - 700)
      yield* count(1, today)
      expectEqual(yield* stored(one, 1), yield* fromLog(one, 1))
      yield* count(0.5, today)
      expectEqual(yield* stored(one, 0.5), yield* fromLog(one, 0.5))
      expect((yield* one.tally.state).lambda).toBe("0.5")
    }),
  )

  effectTest(`${name}: popularity is the same from stored counts, from lost ones, and after an erasure`, () =>
    Effect.gen(function* () {
      const one = yield* open
      yield* one.log.append([
        viewed("a", "p", 1),
        viewed("a", "p", 2),
        viewed("b", "q", 0),
        viewed("c", "r", 5),
      ])
      const read = Layer.build(
        Layer.fresh(Popularity.layer).pipe(
          Layer.provide(EmbeddingConfig.layer({})),
          Layer.provide(Layer.succeedContext(one.context)),
        ),
      ).pipe(
        Effect.flatMap((context) => {
          const popularity = Context.get(context, Popularity.Popularity)
          return Effect.all([popularity.counts, popularity.ranking])
        }),
        Effect.map(([{ most, of }, ranking]) => ({
          most,
          ever: ["p", "q", "r"].map(of),
          ranking: ranking.map(({ product_id }) => product_id),
        })),
        Effect.scoped,
      )
      const expected = { most: 2, ever: [2, 1, 1], ranking: ["p", "q", "r"] }
      expect(yield* read).toEqual(expected)
      for (let round = 0; round < 2; round++) yield* Effect.zipRight(one.waited, read)
      expect((yield* one.tally.state).countedUpTo).toBeGreaterThan(0)
      expect(yield* read).toEqual(expected)
      yield* one.log.erase("b", allTime)
      expect(yield* read).toEqual({ most: 2, ever: [2, 0, 1], ranking: ["p", "r"] })
      yield* one.sql`DELETE FROM product_tally`
      yield* one.sql`UPDATE product_tally_state SET counted_up_to = 0`
      expect(yield* read).toEqual({ most: 2, ever: [2, 0, 1], ranking: ["p", "r"] })
    }),
  )
}

suite(
  "SQLite",
  25,
  Effect.gen(function* () {
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "user-embeddings-"))),
      (folder) => Effect.sync(() => rmSync(folder, { recursive: true })),
    )
    return yield* parts(Sqlite.layer({ directory }), Sqlite)
  }),
)

withServers(["mysql"], "stored counts on MySQL", () => {
  const database = Effect.acquireRelease(
    Effect.promise(() => freshMysql()),
    ({ drop }) => Effect.promise(drop),
  )
  const open = Effect.flatMap(database, ({ url }) => parts(Mysql.layer({ url: Redacted.make(url) }), Mysql))
  suite("MySQL", 6, open)

  effectTest("a row that is committed after rows with greater ids is counted", () =>
    Effect.gen(function* () {
      const { url } = yield* database
      const one = yield* parts(Mysql.layer({ url: Redacted.make(url) }), Mysql)
      const slow = yield* Effect.promise(async () => {
        const connection = await createConnection(url)
        await connection.beginTransaction()
        await connection.query(`INSERT INTO user_interactions (message_id, user_id, event_type, product_id, occurred_at,
          metadata, created_at) VALUES ('slow', 'u', 'product_view', 'late', '2026-02-10', '{}', NOW())`)
        return connection
      })
      yield* one.log.append([viewed("a", "p", 0), viewed("a", "q", 0)])
      // The ids are seen, but only some time later no transaction of before can still commit.
      yield* one.tally.advance(lambda, today)
      yield* one.tally.advance(lambda, today)
      expect((yield* one.tally.state).countedUpTo).toBe(0)
      yield* Effect.promise(() => slow.commit().then(() => slow.end()))
      yield* Effect.zipRight(one.waited, one.tally.advance(lambda, today))
      expect([...(yield* stored(one)).keys()]).toEqual(["late", "p", "q"])
    }),
  )
})
