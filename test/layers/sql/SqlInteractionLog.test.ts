import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { once } from "node:events"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { Server } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import {
  Cause,
  Clock,
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Redacted,
  Runtime,
  Schedule,
} from "effect"
import fc from "fast-check"
import { createServer } from "mysql2"
import { createConnection, type RowDataPacket } from "mysql2/promise"
import * as Mysql from "../../../src/layers/sql/Mysql.ts"
import { interactionLog } from "../../../src/layers/sql/migrations/interactionLog.ts"
import { SqlInserts, SqlReader } from "../../../src/layers/sql/SqlDialect.ts"
import * as SqlInteractionLog from "../../../src/layers/sql/SqlInteractionLog.ts"
import { migrate } from "../../../src/layers/sql/SqlMigrations.ts"
import * as Sqlite from "../../../src/layers/sqlite/Sqlite.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { type Dependency, DependencyDown } from "../../../src/services/ports/Dependencies.ts"
import { InteractionLog, type NewInteraction } from "../../../src/services/ports/InteractionLog.ts"
import { search, suite, view } from "../../contracts/InteractionLogContract.ts"
import { effectTest } from "../../support/effect.ts"
import { freshMysql, urlOf, withServers } from "../../support/servers.ts"
import { tcpProxy } from "../../support/tcpProxy.ts"

const withSetup = <E>(
  client: Layer.Layer<SqlClient.SqlClient, E>,
  { dependency, dialect }: Pick<typeof Mysql, "dependency" | "dialect">,
) =>
  SqlInteractionLog.layer(dialect).pipe(
    Layer.provideMerge(Layer.effectDiscard(Effect.flatMap(dependency, ({ setup }) => setup))),
    Layer.provideMerge(client),
  )

const temporary = (): string => mkdtempSync(join(tmpdir(), "user-embeddings-"))
const temporaryFolder = Effect.acquireRelease(Effect.sync(temporary), (folder) =>
  Effect.sync(() => rmSync(folder, { recursive: true })),
)
/** A new database, dropped with the scope. */
const mysqlDatabase = Effect.map(
  Effect.acquireRelease(
    Effect.promise(() => freshMysql()),
    ({ drop }) => Effect.promise(drop),
  ),
  ({ url }) => url,
)
const query = (url: string, statement: string) =>
  Effect.promise(async () => {
    const connection = await createConnection({ uri: url, dateStrings: true })
    const [rows] = await connection.query<RowDataPacket[]>(statement)
    await connection.end()
    return Array.isArray(rows) ? rows.map((row): Record<string, unknown> => ({ ...row })) : []
  })
const mysqlLog = (url: string) => withSetup(Mysql.layer({ url: Redacted.make(url) }), Mysql)
const sqliteLog = (directory: string) => withSetup(Sqlite.layer({ directory }), Sqlite)

/** A separate instance, like one of another process. */
const open = <E>(layer: Layer.Layer<InteractionLog, E>) =>
  Effect.map(Layer.build(Layer.fresh(layer)), (context) => Context.get(context, InteractionLog))
const dependencyOf = <E>(
  layer: Layer.Layer<SqlClient.SqlClient, E>,
  dependency: Effect.Effect<Dependency, never, SqlClient.SqlClient>,
) => Effect.flatMap(Layer.build(Layer.fresh(layer)), (context) => Effect.provide(dependency, context))

/** The error of an effect, and the time in ms until it failed. */
const failure = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(Effect.flip(effect)), ([took, error]) => ({
    error,
    millis: Duration.toMillis(took),
  }))

{
  const directory = temporary()
  const log = sqliteLog(directory)
  afterAll(() => rmSync(directory, { recursive: true }))
  suite("InteractionLog on SQLite", log, Layer.fresh(log))
}

effectTest(
  "interactions get the same answers together as one by one, whatever is in the log before",
  () =>
    Effect.gen(function* () {
      const log = yield* open(sqliteLog(yield* temporaryFolder))
      const few = fc.record({
        product: fc.constantFrom<Array<string>>("p", "q"),
        key: fc.constantFrom<Array<string | null>>(null, "k", "l"),
        second: fc.constantFrom<Array<number>>(0, 1),
        metadata: fc.constantFrom<Array<Record<string, number>>>({}, { a: 1 }),
        occurredAtGiven: fc.boolean(),
      })
      type Facts = typeof few extends fc.Arbitrary<infer A> ? A : never
      const entriesOf = (user: string, facts: ReadonlyArray<Facts>) =>
        facts.map(({ key, metadata, occurredAtGiven, product, second }) =>
          view(user, product, {
            occurred_at: `2026-02-10T12:00:0${second}.000Z`,
            idempotencyKey: key,
            metadata,
            occurredAtGiven,
          }),
        )
      // Every key once more at the end shows what it means in the log.
      const probes = ["k", "l"].map((key) => ({
        product: "probe",
        key,
        second: 0,
        metadata: {},
        occurredAtGiven: true,
      }))
      const answersOf = (appends: ReadonlyArray<ReadonlyArray<NewInteraction>>) =>
        Effect.map(Effect.forEach(appends, log.append), (answers) =>
          answers.flat().map(({ _tag, interaction: { metadata, occurred_at, product_id } }) => ({
            _tag,
            metadata,
            occurred_at,
            product_id,
          })),
        )
      let users = 0
      const run = Runtime.runPromise(yield* Effect.runtime())
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(
            fc.array(few, { maxLength: 3 }),
            fc.array(few, { minLength: 1, maxLength: 6 }),
            async (before, items) => {
              const [alone, together] = [`u-${users++}`, `u-${users++}`]
              const oneByOne = (user: string, facts: ReadonlyArray<Facts>) =>
                entriesOf(user, facts).map((entry) => [entry])
              const expected = await run(answersOf(oneByOne(alone, [...before, ...items, ...probes])))
              const found = await run(
                answersOf([
                  ...oneByOne(together, before),
                  entriesOf(together, items),
                  ...oneByOne(together, probes),
                ]),
              )
              expect(found).toEqual(expected)
            },
          ),
          { numRuns: 200 },
        ),
      )
    }),
  60_000,
)

effectTest("what is larger than a packet of the server is recorded in parts, and a single row fails", () =>
  Effect.gen(function* () {
    const context = yield* Layer.build(Sqlite.layer({ directory: yield* temporaryFolder }))
    yield* Effect.flatMap(Effect.provide(Sqlite.dependency, context), ({ setup }) => setup)
    const insert = Context.get(context, SqlInserts)!
    const tooLarge = Effect.fail(new SqlError({ cause: { errno: 1153, sqlState: "08S01" } }))
    let mostRows = 3
    const sizes: Array<number> = []
    const limited = Context.add(context, SqlInserts, (one) => {
      const rows = one.sql.split("(").length - 2
      sizes.push(rows)
      return rows > mostRows ? tooLarge : insert(one)
    })
    const dialect = { ...Sqlite.dialect, isTooLarge: Mysql.dialect.isTooLarge }
    const log = yield* open(
      SqlInteractionLog.layer(dialect).pipe(Layer.provide(Layer.succeedContext(limited))),
    )
    const entries = Array.from({ length: 10 }, (_, index) => view("u", `p-${index}`))
    const answers = yield* log.append([...entries, entries[0]!])
    expect(answers.map(({ _tag }) => _tag)).toEqual([...Array(10).fill("Recorded"), "Duplicate"])
    expect((yield* log.backlog).total).toBe(10)
    // The last two are a duplicate and its neighbour, then the neighbour alone.
    expect(sizes).toEqual([10, 6, 3, 3, 5, 3, 2, 1])
    mostRows = 0
    yield* Effect.flip(log.append([view("u", "p")]))
    expect(sizes).toHaveLength(9)
  }),
)

test("statements use no function that newer servers lack", async () => {
  const sources = new Bun.Glob("src/layers/{sql,sqlite}/**/*.ts").scan(".")
  for await (const path of sources) {
    const code = (await Bun.file(path).text()).replaceAll(/\/\/.*/g, "")
    // MySQL 9.7 has neither.
    expect([path, code.match(/\b(SHA1?|MD5)\(/i)?.[0]]).toEqual([path, undefined])
  }
})

describe("the SQLite file", () => {
  effectTest("keeps its rows when it is closed and opened again", () =>
    Effect.gen(function* () {
      const directory = join(yield* temporaryFolder, "new", "folder")
      const entry = search("u", "shoes")
      yield* Effect.scoped(Effect.flatMap(open(sqliteLog(directory)), (log) => log.append([entry])))
      const log = yield* open(sqliteLog(directory))
      expect(yield* log.append([entry])).toEqual([{ _tag: "Duplicate", interaction: entry.interaction }])
    }),
  )

  effectTest("that cannot be opened is named in the error, with a remedy", () =>
    Effect.gen(function* () {
      const occupied = join(yield* temporaryFolder, "file")
      writeFileSync(occupied, "")
      const { error } = yield* failure(Layer.build(Sqlite.layer({ directory: occupied })))
      expect(error).toBeInstanceOf(DependencyDown)
      expect(error.detail).toContain(join(occupied, Sqlite.fileName))
      expect(error.remedy).toContain("DATA_DIR")
    }),
  )

  effectTest("without tables fails with an error that names setup", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryFolder
      const log = yield* open(
        SqlInteractionLog.layer(Sqlite.dialect).pipe(Layer.provide(Sqlite.layer({ directory }))),
      )
      const { error } = yield* failure(log.append([search("u", "shoes")]))
      expect(error).toMatchObject({ reason: "not_set_up", operation: "append" })
      expect(error.message).toContain("user-embeddings setup")
    }),
  )

  effectTest("is migrated once by several processes that start together", () =>
    Effect.gen(function* () {
      const client = Sqlite.layer({ directory: yield* temporaryFolder })
      const instances = yield* Effect.replicateEffect(dependencyOf(client, Sqlite.dependency), 4)
      expect(yield* instances[0]!.missing).toContain("migration 0001_user_interactions")
      const done = yield* Effect.forEach(instances, ({ setup }) => setup, { concurrency: "unbounded" })
      expect(done.flat().filter((line) => line === "ran migration 0001_user_interactions")).toHaveLength(1)
      expect(yield* Effect.forEach(instances, ({ setup }) => setup)).toEqual([[], [], [], []])
      expect(yield* instances[0]!.missing).toEqual([])
    }),
  )

  effectTest("isolates the transactions of concurrent fibers", () =>
    Effect.gen(function* () {
      const context = yield* Layer.build(Sqlite.layer({ directory: yield* temporaryFolder }))
      const sql = Context.get(context, SqlClient.SqlClient)
      const sqlite = Context.get(context, Sqlite.Sqlite)
      yield* sql`CREATE TABLE t (n INTEGER PRIMARY KEY)`
      const insert = (n: number) => sql`INSERT INTO t VALUES (${n})`
      const refused = Effect.flip(
        sql.withTransaction(Effect.zipRight(Effect.zip(insert(1), Effect.yieldNow()), Effect.fail("no"))),
      )
      const kept = sql.withTransaction(Effect.zip(Effect.zip(insert(2), Effect.yieldNow()), insert(3)))
      const direct = sqlite.use((database) => void database.run("INSERT INTO t VALUES (4)"))
      const failing = Effect.flip(
        sqlite.transaction((database) => {
          database.run("INSERT INTO t VALUES (5)")
          database.run("INSERT INTO t VALUES (5)")
        }),
      )
      yield* Effect.all([refused, kept, insert(6), direct, failing], { concurrency: "unbounded" })
      expect(yield* sql`SELECT n FROM t ORDER BY n`).toEqual([2, 3, 4, 6].map((n) => ({ n })))
    }),
  )

  effectTest("gives the leader lock to another process when the lease of a dead process has expired", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryFolder
      const context = yield* Layer.build(sqliteLog(directory))
      const log = Context.get(context, InteractionLog)
      const sql = Context.get(context, SqlClient.SqlClient)
      const now = yield* Clock.currentTimeMillis
      yield* sql`INSERT INTO leases VALUES ('relay', 'a dead process', ${now + 60_000})`
      expect(yield* log.withLeaderLock(Effect.void)).toBe(false)
      yield* sql`UPDATE leases SET expires_at = ${now}`
      expect(yield* log.withLeaderLock(Effect.void)).toBe(true)
    }),
  )
})

withServers(["mysql"], "MySQL", () => {
  {
    let database: Awaited<ReturnType<typeof freshMysql>>
    beforeAll(async () => {
      database = await freshMysql()
    })
    afterAll(() => database.drop())
    const log = Layer.suspend(() => mysqlLog(database.url))
    suite("InteractionLog on MySQL", log, Layer.fresh(log))
  }

  effectTest("stores rows in the documented columns", () =>
    Effect.gen(function* () {
      const url = yield* mysqlDatabase
      const log = yield* open(mysqlLog(url))
      const facts = {
        occurred_at: "2026-02-10T12:34:56.789Z",
        metadata: { device: "mobile" },
        idempotencyKey: "key-1",
        recordedAt: Date.UTC(2026, 1, 10, 12, 34, 57, 1),
      }
      const trace = {
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        tracestate: null,
      }
      const found = search("u-42", "wireless headphones 🎧", facts)
      const appended = yield* log.append([
        found,
        view("u-42", "p-1", { ...facts, idempotencyKey: null, trace }),
      ])
      const rows = yield* query(url, "SELECT * FROM user_interactions ORDER BY event_type DESC")
      expect(rows).toEqual([
        {
          id: expect.any(Number),
          message_id: found.interaction.message_id,
          user_id: "u-42",
          event_type: "search",
          search_phrase: "wireless headphones 🎧",
          product_id: null,
          occurred_at: "2026-02-10 12:34:56.789",
          metadata: facts.metadata,
          traceparent: null,
          tracestate: null,
          created_at: "2026-02-10 12:34:57.001",
          processed_to_queue: 0,
          published_at: null,
          idempotency_key: "key-1",
          reference: null,
        },
        expect.objectContaining({
          event_type: "product_view",
          search_phrase: null,
          product_id: "p-1",
          traceparent: trace.traceparent,
          idempotency_key: null,
        }),
      ])
      const metadata = yield* query(
        url,
        "SELECT JSON_UNQUOTE(JSON_EXTRACT(metadata, '$.device')) AS device FROM user_interactions",
      )
      expect(metadata).toEqual([{ device: "mobile" }, { device: "mobile" }])
      if (appended[0]?._tag !== "Recorded") throw new Error("not recorded")
      yield* log.markPublished([appended[0]], Date.UTC(2026, 1, 10, 12, 35))
      expect(
        yield* query(url, "SELECT user_id, published_at FROM user_interactions WHERE processed_to_queue"),
      ).toEqual([{ user_id: "u-42", published_at: "2026-02-10 12:35:00.000" }])
    }),
  )

  effectTest(
    "of release 0.1.0 takes retractions after a migration that may run twice, and keeps its rows",
    () =>
      Effect.gen(function* () {
        const url = yield* mysqlDatabase
        const client = Mysql.layer({ url: Redacted.make(url) })
        const { "0005_references": step, ...before } = interactionLog.steps
        yield* Effect.provide(migrate({ ...interactionLog, steps: before }), client)
        yield* query(
          url,
          `INSERT INTO user_interactions (message_id, user_id, event_type, product_id, occurred_at, metadata, created_at)
          VALUES ('m', 'u', 'product_view', 'p', NOW(), '{}', NOW())`,
        )
        yield* Effect.provide(Effect.all([step!, step!]), client)
        const log = yield* open(mysqlLog(url))
        const retracted = {
          ...search("u", "shoes"),
          interaction: Interaction.retract(search("u", "shoes").interaction),
        }
        expect((yield* log.append([retracted])).map(({ _tag }) => _tag)).toEqual(["Recorded"])
        expect(
          yield* query(url, "SELECT message_id, product_id, reference FROM user_interactions ORDER BY id"),
        ).toEqual([
          { message_id: "m", product_id: "p", reference: null },
          {
            message_id: retracted.interaction.message_id,
            product_id: null,
            reference: retracted.interaction.reference,
          },
        ])
      }),
  )

  effectTest("has exactly the indexes that the queries use", () =>
    Effect.gen(function* () {
      const url = yield* mysqlDatabase
      yield* open(mysqlLog(url))
      const indexes = yield* query(
        url,
        `SELECT GROUP_CONCAT(column_name ORDER BY seq_in_index) AS columns, MIN(non_unique) AS many
        FROM information_schema.statistics
        WHERE table_schema = DATABASE() AND table_name = 'user_interactions' GROUP BY index_name`,
      )
      expect(
        indexes.map(({ columns, many }) => `${columns} ${many ? "index" : "unique"}`).toSorted(),
      ).toEqual([
        "id unique",
        "message_id unique",
        "processed_to_queue,id index",
        "user_id,idempotency_key unique",
        "user_id,occurred_at,id,event_type index",
        "user_id,product_id,event_type index",
      ])
    }),
  )

  effectTest("is migrated once by several processes that start together", () =>
    Effect.gen(function* () {
      const names = Object.keys(interactionLog.steps)
      const client = Mysql.layer({ url: Redacted.make(yield* mysqlDatabase) })
      const instances = yield* Effect.replicateEffect(dependencyOf(client, Mysql.dependency), 4)
      expect(yield* instances[0]!.missing).toEqual(names.map((name) => `migration ${name}`))
      const done = yield* Effect.forEach(instances, ({ setup }) => setup, { concurrency: "unbounded" })
      expect(done.flat()).toEqual(names.map((name) => `ran migration ${name}`))
      expect(yield* Effect.forEach(instances, ({ setup }) => setup)).toEqual([[], [], [], []])
      expect(yield* instances[0]!.missing).toEqual([])
      expect(yield* instances[0]!.ping).toMatch(/^\d+\.\d+/)
    }),
  )

  effectTest("without tables fails with an error that names setup", () =>
    Effect.gen(function* () {
      const client = Mysql.layer({ url: Redacted.make(yield* mysqlDatabase) })
      const log = yield* open(SqlInteractionLog.layer(Mysql.dialect).pipe(Layer.provide(client)))
      const { error } = yield* failure(log.append([search("u", "shoes")]))
      expect(error).toMatchObject({ reason: "not_set_up", operation: "append" })
      expect(error.message).toContain("user-embeddings setup")
    }),
  )

  effectTest("a missing database and a wrong password have other remedies than an outage", () =>
    Effect.gen(function* () {
      const url = new URL(urlOf("mysql"))
      url.pathname = "/user_embeddings_missing"
      const missing = yield* dependencyOf(Mysql.layer({ url: Redacted.make(url.href) }), Mysql.dependency)
      expect((yield* failure(missing.ping)).error.remedy).toContain("create the database")
      url.password = "not-the-password"
      const denied = yield* dependencyOf(Mysql.layer({ url: Redacted.make(url.href) }), Mysql.dependency)
      const { error } = yield* failure(denied.ping)
      expect(error.remedy).toContain("check user, password")
      expect(JSON.stringify(error) + error.message).not.toContain("not-the-password")
    }),
  )

  effectTest("an append waits for the open transaction of another process, and depends on its outcome", () =>
    Effect.gen(function* () {
      const url = yield* mysqlDatabase
      const log = yield* open(mysqlLog(url))
      const insertUncommitted = (entry: NewInteraction) =>
        Effect.promise(async () => {
          const connection = await createConnection(url)
          await connection.beginTransaction()
          await connection.query(
            `INSERT INTO user_interactions (message_id, user_id, event_type, product_id, occurred_at, metadata,
              created_at) VALUES (?, ?, ?, ?, ?, '{}', NOW())`,
            [
              entry.interaction.message_id,
              entry.interaction.user_id,
              entry.interaction.event_type,
              entry.interaction.product_id,
              "2026-02-10 12:34:56.789",
            ],
          )
          return connection
        })
      for (const outcome of ["commit", "rollback"] as const) {
        const entry = view("u", outcome, { occurred_at: "2026-02-10T12:34:56.789Z" })
        const connection = yield* insertUncommitted(entry)
        const appending = yield* Effect.fork(log.append([entry]))
        const waiting = query(
          url,
          "SELECT info FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'INSERT %'",
        )
        yield* Effect.repeat(waiting, { until: (rows) => rows.length > 0 }).pipe(Effect.timeout("2 seconds"))
        yield* Effect.promise(() => connection[outcome]())
        const [answer] = yield* Fiber.join(appending)
        expect(answer?._tag).toBe(outcome === "commit" ? "Duplicate" : "Recorded")
        yield* Effect.promise(() => connection.end())
      }
    }),
  )

  effectTest("slow readers leave the connections of recording alone", () =>
    Effect.gen(function* () {
      const url = yield* mysqlDatabase
      const log = yield* open(mysqlLog(url))
      const context = yield* Layer.build(Mysql.layer({ url: Redacted.make(url) }))
      const recorded = yield* open(
        SqlInteractionLog.layer(Mysql.dialect).pipe(Layer.provide(Layer.succeedContext(context))),
      )
      const reader = Context.get(context, SqlReader)
      const slow = Array.from({ length: 20 }, () => reader!`SELECT SLEEP(1.5)`.unprepared)
      const reading = yield* Effect.fork(Effect.all(slow, { concurrency: "unbounded" }))
      // All connections for reading are taken now.
      yield* Effect.repeat(
        query(
          url,
          "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE '%SLEEP(1.5)'",
        ),
        { until: (rows) => rows.length >= 2 },
      ).pipe(Effect.timeout("3 seconds"))
      const [took] = yield* Effect.timed(recorded.append([view("u", "p")]))
      expect(Duration.toMillis(took)).toBeLessThan(1_000)
      yield* Fiber.interrupt(reading)
      expect(yield* log.newest("u", 1)).toHaveLength(1)
    }),
  )

  effectTest("the server itself ends a read that takes too long", () =>
    Effect.gen(function* () {
      const context = yield* Layer.build(Mysql.layer({ url: Redacted.make(yield* mysqlDatabase) }))
      const [row] = yield* Context.get(context, SqlReader)!<{ Value: string }>`
        SHOW SESSION VARIABLES WHERE Variable_name IN ('max_execution_time', 'max_statement_time')`.unprepared
      expect(Number(row?.Value)).toBeOneOf([9, 9_000])
      for (const errno of [3024, 1969])
        expect(Mysql.dialect.failureReason(new SqlError({ cause: { errno, sqlState: "HY000" } }))).toBe(
          "timeout",
        )
    }),
  )

  effectTest("a user's products are read from the index alone, and a history in its order", () =>
    Effect.gen(function* () {
      const url = yield* mysqlDatabase
      const log = yield* open(mysqlLog(url))
      yield* log.append(Array.from({ length: 500 }, (_, n) => view("u", `p-${n}`)))
      const plan = (statement: string) => query(url, `EXPLAIN ${statement}`)
      const [products] = yield* plan(`SELECT product_id, event_type, COUNT(*) FROM user_interactions
        FORCE INDEX (user_interactions_products) WHERE user_id = 'u' AND product_id IN ('p-1', 'p-2') GROUP BY product_id, event_type`)
      expect(JSON.stringify(products)).toMatch(/Using index|Covering index/)
      const [history] = yield* plan(`SELECT id FROM user_interactions FORCE INDEX (user_interactions_history)
        WHERE user_id = 'u' ORDER BY occurred_at, id LIMIT 10`)
      expect(JSON.stringify(history)).not.toMatch(/filesort|Sort/)
    }),
  )

  effectTest("doctor and readiness name the writes that the user's rights do not allow", () =>
    Effect.gen(function* () {
      const url = yield* mysqlDatabase
      yield* open(mysqlLog(url))
      const reader = new URL(url)
      reader.username = `ue_reader_${process.pid}`
      const database = reader.pathname.slice(1)
      yield* query(url, `CREATE USER '${reader.username}'@'%' IDENTIFIED BY 'ue'`)
      yield* Effect.addFinalizer(() => query(url, `DROP USER '${reader.username}'@'%'`))
      yield* query(url, `GRANT SELECT, UPDATE ON \`${database}\`.* TO '${reader.username}'@'%'`)
      const client = Mysql.layer({ url: Redacted.make(reader.href) })
      const { impaired, inspect } = yield* dependencyOf(client, Mysql.dependency)
      expect(yield* impaired!).toEqual([expect.stringMatching(/^the server refuses INSERT: INSERT/)])
      expect(yield* inspect!).toEqual([
        { problem: expect.stringContaining("refuses INSERT"), remedy: expect.stringContaining("grant") },
        { problem: expect.stringContaining("refuses DELETE"), remedy: expect.stringContaining("grant") },
      ])
      const log = yield* open(SqlInteractionLog.layer(Mysql.dialect).pipe(Layer.provide(client)))
      expect((yield* failure(log.append([view("u", "p")]))).error.reason).toBe("rejected")
      const whole = yield* dependencyOf(Mysql.layer({ url: Redacted.make(url) }), Mysql.dependency)
      expect([yield* whole.impaired!, yield* whole.inspect!]).toEqual([[], []])
    }),
  )

  effectTest("ssl-mode decides whether a connection is encrypted, and whose certificate is good enough", () =>
    Effect.gen(function* () {
      const url = new URL(yield* mysqlDatabase)
      const at = (mode: string) => {
        url.search = `?ssl-mode=${mode}`
        return Layer.build(Layer.fresh(Mysql.layer({ url: Redacted.make(url.href) })))
      }
      const isEncrypted = (mode: string) =>
        Effect.flatMap(at(mode), (context) =>
          Effect.map(
            Context.get(context, SqlClient.SqlClient)<{ Value: string }>`SHOW STATUS LIKE 'Ssl_cipher'`
              .unprepared,
            ([row]) => row?.Value !== "",
          ),
        )
      const offersTls = yield* Effect.promise(() =>
        createConnection({ uri: urlOf("mysql"), ssl: { rejectUnauthorized: false } })
          .then((connection) => connection.end())
          .then(
            () => true,
            () => false,
          ),
      )
      expect(yield* isEncrypted("DISABLED")).toBe(false)
      expect(yield* isEncrypted("PREFERRED")).toBe(offersTls)
      const required = yield* Effect.either(isEncrypted("REQUIRED"))
      expect(required._tag).toBe(offersTls ? "Right" : "Left")
      // The server's certificate is its own, or it has none.
      const verified = yield* Effect.provide(Mysql.dependency, yield* at("VERIFY_IDENTITY"))
      expect((yield* failure(verified.ping)).error.remedy).toContain("ssl-mode and ssl-ca")
    }),
  )

  effectTest("interrupted callers return their connections", () =>
    Effect.gen(function* () {
      const log = yield* open(mysqlLog(yield* mysqlDatabase))
      for (let round = 0; round < 20; round++) {
        const callers = Array.from({ length: 20 }, (_, index) => log.newest(`u-${index}`, 1))
        yield* Effect.all(callers, { concurrency: "unbounded" }).pipe(Effect.timeoutOption(round % 5))
      }
      const appended = Array.from({ length: 20 }, (_, index) => log.append([view("u", `p-${index}`)]))
      const { length } = yield* Effect.all(appended, { concurrency: "unbounded" })
      expect(length).toBe(20)
    }),
  )
})

test("the ids of one INSERT into MySQL are as far apart as the servers of a cluster set them", () => {
  expect(Mysql.dialect.insertedIds({ insertId: 10, idStep: 3 }, 3)).toEqual([10, 13, 16])
  expect(Mysql.dialect.insertedIds({ insertId: 10 }, 2)).toEqual([10, 11])
})

/** Answers statements of connections that were opened before `failOver` with the error code, all others with OK. */
const failingOver = (code: number) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const state = { failedOver: false, connections: 0 }
      const server = createServer((connection) => {
        const isOld = !state.failedOver
        state.connections += 1
        connection.serverHandshake({
          protocolVersion: 10,
          serverVersion: "8.4.0",
          connectionId: state.connections,
          statusFlags: 2,
          characterSet: 45,
          capabilityFlags: 0xffffff,
        })
        // The driver numbers packets on, but a statement begins with packet 0 and its answer with 1.
        const reply = (write: () => void) => {
          Reflect.set(connection, "sequenceId", 1)
          write()
          Reflect.set(connection, "sequenceId", 0)
        }
        // The driver's server calls SET a prepared statement.
        connection.on("stmt_prepare", () => reply(() => connection.writeOk()))
        connection.on("query", (text: string) => {
          const refused = text.startsWith("UPDATE") && isOld && state.failedOver
          reply(() =>
            refused
              ? connection.writeError({ message: "the server is read-only", code })
              : connection.writeOk({ affectedRows: 1 }),
          )
        })
        connection.on("error", () => {})
      })
      const listener = Reflect.get(server, "_server")
      if (!(listener instanceof Server)) throw new Error("the driver's server has no listener")
      const listening = once(listener, "listening")
      server.listen(0)
      await listening
      return {
        state,
        listener,
        url: `mysql://ue@127.0.0.1:${Object(listener.address()).port}/user_embeddings`,
      }
    }),
    ({ listener }) => Effect.sync(() => listener.close()),
  )

for (const code of [1053, 1290, 1792, 1836, 1927, 3169])
  effectTest(`a connection that answers ${code} is replaced, and the error is an outage`, () =>
    Effect.gen(function* () {
      const { state, url } = yield* failingOver(code)
      const context = yield* Layer.build(Mysql.layer({ url: Redacted.make(url) }))
      const sql = Context.get(context, SqlClient.SqlClient)
      const write = sql`UPDATE user_interactions SET processed_to_queue = TRUE`
      yield* write.unprepared
      expect(state.connections).toBe(1)
      state.failedOver = true
      expect(Mysql.dialect.failureReason(yield* Effect.flip(write.unprepared))).toBe("unavailable")
      yield* write.unprepared
      expect(state.connections).toBe(2)
    }),
  )

describe("a MySQL server that does not run", () => {
  effectTest("does not prevent the start, and calls fail at once", () =>
    Effect.gen(function* () {
      const client = Mysql.layer({ url: Redacted.make("mysql://ue:hidden@127.0.0.1:1/user_embeddings") })
      const log = yield* open(SqlInteractionLog.layer(Mysql.dialect).pipe(Layer.provide(client)))
      const { error, millis } = yield* failure(log.append([search("u", "shoes")]))
      expect(error).toMatchObject({ reason: "unavailable", operation: "append" })
      expect(millis).toBeLessThan(2_000)
      expect(JSON.stringify(error) + error.message).not.toContain("hidden")
      const dependency = yield* dependencyOf(client, Mysql.dependency)
      expect((yield* failure(dependency.ping)).error.detail).toContain("ECONNREFUSED")
    }),
  )
})

withServers(["mysql"], "MySQL in an outage", () => {
  const proxied = Effect.gen(function* () {
    const url = yield* mysqlDatabase
    const proxy = yield* tcpProxy(url)
    return { url, proxy, log: yield* open(mysqlLog(proxy.url)) }
  })

  effectTest("calls fail fast during the outage and succeed after it", () =>
    Effect.gen(function* () {
      const { proxy, log } = yield* proxied
      yield* log.append([view("u", "before")])
      proxy.cut()
      const { error, millis } = yield* failure(log.append([view("u", "during")]))
      expect(error.reason).toBe("unavailable")
      expect(millis).toBeLessThan(2_000)
      proxy.restore()
      const [answer] = yield* Effect.retry(
        log.append([view("u", "after")]),
        Schedule.spaced("50 millis"),
      ).pipe(Effect.timeout("3 seconds"))
      expect(answer?._tag).toBe("Recorded")
    }),
  )

  effectTest(
    "a transaction that is interrupted, or loses its connection, ends as that and not as a defect",
    () =>
      Effect.gen(function* () {
        const { proxy } = yield* proxied
        const client = yield* Layer.build(Mysql.layer({ url: Redacted.make(proxy.url) }))
        const sql = Context.get(client, SqlClient.SqlClient)
        const asleep = Effect.gen(function* () {
          const begun = yield* Deferred.make<void>()
          const transaction = Effect.zipRight(Deferred.succeed(begun, undefined), sql`SELECT SLEEP(5)`)
          const fiber = yield* Effect.fork(sql.withTransaction(transaction))
          yield* Deferred.await(begun)
          return fiber
        })
        const interrupted = yield* Effect.flatMap(asleep, Fiber.interrupt)
        expect(Exit.isFailure(interrupted) && Cause.isInterruptedOnly(interrupted.cause)).toBe(true)
        const cut = yield* asleep
        proxy.cut()
        const lost = yield* Fiber.await(cut)
        expect(Exit.isFailure(lost) && Cause.failureOption(lost.cause)).toMatchObject({
          value: { _tag: "SqlError" },
        })
      }),
  )

  effectTest(
    "calls to a silent server time out and keep no connection to it",
    () =>
      Effect.gen(function* () {
        const { proxy, log } = yield* proxied
        const client = Mysql.layer({ url: Redacted.make(proxy.url) })
        const unconnected = yield* open(SqlInteractionLog.layer(Mysql.dialect).pipe(Layer.provide(client)))
        yield* log.append([view("u", "before")])
        proxy.freeze()
        const [connected, connecting] = yield* Effect.all(
          [failure(log.append([view("u", "p")])), failure(unconnected.append([view("u", "p")]))],
          { concurrency: "unbounded" },
        )
        expect(connected.error.reason).toBe("timeout")
        expect(connected.millis).toBeLessThan(11_000)
        expect(connecting.error.reason).toBe("unavailable")
        expect(connecting.millis).toBeLessThan(7_000)
        proxy.restore()
        const [answer] = yield* log.append([view("u", "after")])
        expect(answer?._tag).toBe("Recorded")
      }),
    30_000,
  )

  effectTest(
    "a process that loses its connection loses the leader lock, and another process gets it",
    () =>
      Effect.gen(function* () {
        const { url, proxy, log } = yield* proxied
        const other = yield* open(mysqlLog(url))
        const acquired = yield* Deferred.make<void>()
        const relay = yield* Effect.fork(
          failure(log.withLeaderLock(Effect.zipRight(Deferred.succeed(acquired, undefined), Effect.never))),
        )
        yield* Deferred.await(acquired)
        expect(yield* other.withLeaderLock(Effect.void)).toBe(false)
        proxy.cut()
        const { error } = yield* Fiber.join(relay).pipe(Effect.timeout("5 seconds"))
        expect(error).toMatchObject({ reason: "unavailable", operation: "withLeaderLock" })
        const next = Effect.repeat(other.withLeaderLock(Effect.void), {
          until: (ran) => ran,
          schedule: Schedule.spaced("50 millis"),
        })
        yield* Effect.timeout(next, "3 seconds")
      }),
    15_000,
  )
})
