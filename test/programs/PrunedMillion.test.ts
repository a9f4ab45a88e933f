/** A prune of a log of 1,000,000 rows on MySQL, killed in the middle. It takes minutes, so it runs with FAILURES=long alone. */
import { expect } from "bun:test"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { Effect, Either, Layer } from "effect"
import { createConnection, type RowDataPacket } from "mysql2/promise"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import * as AppliedIds from "../../src/services/model/AppliedIds.ts"
import { fold } from "../../src/services/model/Fold.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"
import { bundledProgram } from "../support/bundledProgram.ts"
import { layerSuite } from "../support/effect.ts"
import { readVariables } from "../support/otherProcess.ts"
import { embeddingOf, product, storeProduct } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { external } from "../support/stacks.ts"

const main = await bundledProgram("src/programs/main.ts")
const products = 100
const users = 20_000
const eventsPerUser = 50
const rows = users * eventsPerUser
const began = Date.UTC(2024, 0, 1)
const seconds = 30
const cut = new Date(began + 0.9 * rows * seconds * 1000).toISOString()

/** Row n of the log: visits of ten events each, one user after another. */
const userOf = (n: number) => Math.floor(n / 10) % users
const eventOf = (n: number) =>
  product(
    `u-${userOf(n)}`,
    "product_view",
    `p-${(n * 7) % products}`,
    new Date(began + n * seconds * 1000).toISOString(),
  )
const rowsOfUser = (user: number) =>
  Array.from({ length: eventsPerUser }, (_, i) => Math.floor(i / 10) * 10 * users + user * 10 + (i % 10))

const insertRows = `
  INSERT INTO user_interactions (message_id, user_id, event_type, product_id, occurred_at, metadata, created_at,
    processed_to_queue)
  SELECT SHA2(CONCAT_WS('|', user_id, 'product_view', product_id, CONCAT(DATE_FORMAT(at, '%Y-%m-%dT%H:%i:%s'), '.000Z')), 256),
    user_id, 'product_view', product_id, at, '{}', at, TRUE
  FROM (
    WITH RECURSIVE digits (d) AS (SELECT 0 UNION ALL SELECT d + 1 FROM digits WHERE d < 9)
    SELECT n, CONCAT('u-', FLOOR(n / 10) MOD ${users}) AS user_id, CONCAT('p-', (n * 7) MOD ${products}) AS product_id,
      TIMESTAMP('2024-01-01') + INTERVAL n * ${seconds} SECOND AS at
    FROM (SELECT ? + a.d + 10 * b.d + 100 * c.d + 1000 * e.d AS n FROM digits a, digits b, digits c, digits e) numbers) made
  ORDER BY n`

/** Documents as workers would have left them. */
const storeUsers = Effect.gen(function* () {
  const store = yield* UserEmbeddings
  const vectors = yield* EventVectors.EventVectors
  const { eventTypes, history, lambda } = yield* EmbeddingConfig.EmbeddingConfig
  const settings = { lambda, weights: eventTypes.weights, history, space: vectors.space }
  for (let from = 0; from < users; from += 200) {
    const writes = []
    for (let user = from; user < from + 200; user++) {
      const interactions = rowsOfUser(user).map(eventOf)
      const found = yield* vectors.resolve(interactions)
      const events = interactions.map((interaction, index) => ({
        interaction,
        vector: Either.getOrThrow(found[index]!),
      }))
      const record = {
        user_id: `u-${user}`,
        embedding: Either.getOrThrow(fold(undefined, events, settings, Date.now())),
        version: 1,
        applied: AppliedIds.pack(interactions.map(({ message_id }) => message_id)),
        archived: 0,
        erased_at: 0,
        erased_to: null,
        generation: 0,
      }
      writes.push({ record, expected: undefined })
    }
    expect((yield* store.save(writes)).every((saved) => saved)).toBe(true)
  }
})

const suite = () =>
  layerSuite(
    "a log of 1,000,000 rows",
    Layer.mergeAll(Auditor.layer, Rebuilder.layer).pipe(
      Layer.provideMerge(EventVectors.layer),
      Layer.provideMerge(external({ TOGETHER_WEIGHT: "0" })),
    ),
    (it) => {
      it(
        "is pruned to a tenth",
        () =>
          Effect.gen(function* () {
            for (let n = 0; n < products; n++) yield* storeProduct(`p-${n}`, `product number ${n}`)
            const env = yield* readVariables
            const admin = yield* Effect.promise(async () => createConnection(env.MYSQL_URL!))
            const query = (text: string, values: ReadonlyArray<unknown> = []) =>
              Effect.promise(async () => (await admin.query<Array<RowDataPacket>>(text, [...values]))[0])
            for (let from = 0; from < rows; from += 10_000) yield* query(insertRows, [from])
            yield* storeUsers
            const sizes = Effect.gen(function* () {
              const tables = [
                "user_interactions",
                "user_checkpoints",
                "pruned_interactions",
                "pruned_products",
              ]
              for (const table of tables) yield* query(`OPTIMIZE TABLE ${table}`)
              yield* query(`ANALYZE TABLE ${tables.join(", ")}`)
              const found = yield* query(
                `SELECT table_name AS name, ROUND((data_length + index_length) / 1048576) AS mib
                  FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name IN (?)`,
                [tables],
              )
              return found.map(({ mib, name }) => `${name} ${mib} MiB`).join(", ")
            })
            const audited = Effect.gen(function* () {
              const { consistent, extra, missing } = yield* (yield* Auditor.Auditor).audit({})
              expect({ consistent, extra, missing }).toEqual({ consistent: users, extra: 0, missing: 0 })
            })
            const count = Effect.map(query("SELECT COUNT(*) AS n FROM user_interactions"), ([row]) =>
              Number(row?.n),
            )
            const say = (text: string) => Effect.sync(() => console.log(text))
            // As if a process had looked at the rows a minute ago, so that pairs may be counted.
            yield* query(
              "UPDATE product_tally_state SET marked_id = (SELECT MAX(id) FROM user_interactions), marked_at = 0 WHERE id = 1",
            )
            yield* audited
            yield* say(`before: ${yield* sizes}`)
            const sample = [0, 777, 4_321, 12_345, users - 1].map((user) => `u-${user}`)
            const before = yield* Effect.forEach(sample, embeddingOf)

            const start = () =>
              spawn(process.execPath, [main, "prune", "--before", cut, "--yes"], {
                env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env },
                stdio: "inherit",
              })
            let began = performance.now()
            const first = start()
            const ended = once(first, "exit")
            while ((yield* count) > 0.5 * rows && first.exitCode === null) yield* Effect.sleep("100 millis")
            first.kill("SIGKILL")
            expect((yield* Effect.promise(() => ended))[1]).toBe("SIGKILL")
            yield* say(
              `killed after ${Math.round((performance.now() - began) / 1000)} s at ${yield* count} rows`,
            )
            yield* audited
            began = performance.now()
            expect((yield* Effect.promise(() => once(start(), "exit")))[0]).toBe(0)
            yield* say(`the rest took ${Math.round((performance.now() - began) / 1000)} s`)
            expect(yield* count).toBe(0.1 * rows)
            began = performance.now()
            yield* audited
            yield* say(`audit: ${Math.round(performance.now() - began)} ms`)
            yield* say(`after: ${yield* sizes}`)
            const rebuilder = yield* Rebuilder.Rebuilder
            for (const [index, user] of sample.entries()) {
              expect((yield* rebuilder.rebuild({ user })).failures).toEqual([])
              const rebuilt = yield* embeddingOf(user)
              const { embedding, event_count, recent } = before[index]!
              expect(rebuilt).toMatchObject({ event_count, recent })
              const difference = rebuilt!.embedding.map((value, i) => value - embedding[i]!)
              expect(Math.hypot(...difference)).toBeLessThanOrEqual(1e-4)
            }
            yield* Effect.promise(() => admin.end())
          }),
        1_500_000,
      )
    },
  )

if (process.env.FAILURES === "long") withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", suite)
