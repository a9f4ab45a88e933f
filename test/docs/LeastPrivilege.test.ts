/** The exact grants of docs/security.md are enough for `setup` and for everything that happens to an interaction. */
import { expect } from "bun:test"
import { type ChildProcess, spawn } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { Effect, Layer } from "effect"
import { MongoClient } from "mongodb"
import mysql from "mysql2/promise"
import { mongodb } from "../../scripts/services/mongodb.ts"
import { nodesOf } from "../../scripts/services/service.ts"
import * as Stack from "../../src/layers/Stack.ts"
import * as Provision from "../../src/programs/tasks/ProvisionServers.ts"
import * as Worker from "../../src/programs/Worker.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as InteractionRecorder from "../../src/services/record/InteractionRecorder.ts"
import * as OutboxRelay from "../../src/services/record/OutboxRelay.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"
import { effectTest } from "../support/effect.ts"
import {
  changedUrls,
  freshMysql,
  freshRabbit,
  management,
  virtualHostIn,
  withServers,
} from "../support/servers.ts"
import { quiet, variables } from "../support/stacks.ts"

const guide = readFileSync(resolve(import.meta.dir, "../../docs/security.md"), "utf8")
const block = (language: string): string =>
  new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, "s").exec(guide)?.[1] ?? ""

const withUser = (urls: string, user: string, password: string): string =>
  changedUrls(urls, (url) => {
    url.username = user
    url.password = password
  })

/** A database and the guide's two users, with unique names. `undo` removes them. */
const mysqlUsers = async () => {
  const fresh = await freshMysql()
  const database = new URL(fresh.url).pathname.slice(1)
  const suffix = database.slice(-12)
  const admin = await mysql.createConnection(fresh.url)
  const own = (text: string) =>
    text.replaceAll("`user_embeddings`", `\`${database}\``).replaceAll(/'(ue_\w+)'/g, `'$1_${suffix}'`)
  for (const statement of block("sql").split(";").map(own))
    if (statement.trim() !== "") await admin.query(statement)
  return {
    setup: withUser(fresh.url, `ue_setup_${suffix}`, "change-me-1"),
    run: withUser(fresh.url, `ue_run_${suffix}`, "change-me-2"),
    undo: async () => {
      for (const role of ["setup", "run"]) await admin.query(`DROP USER 'ue_${role}_${suffix}'@'%'`)
      await admin.end()
      await fresh.drop()
    },
  }
}

/** A virtual host in which the guide's user has the guide's permissions and no other. */
const rabbitUser = async () => {
  const fresh = await freshRabbit()
  const vhost = virtualHostIn(fresh.dsn)
  const user = `ue_run_${vhost}`
  const [configure, write, read] = [...block("sh").matchAll(/'([^']*)'/g)].map(([, pattern]) => pattern)
  const put = (path: string, body: object) => management(path, { method: "PUT", body: JSON.stringify(body) })
  await put(`/users/${user}`, { password: "change-me-2", tags: "" })
  await put(`/permissions/${vhost}/${user}`, { configure, write, read })
  return {
    run: withUser(fresh.dsn, user, "change-me-2"),
    undo: async () => {
      await management(`/users/${user}`, { method: "DELETE" })
      await fresh.drop()
    },
  }
}

const freePort = () =>
  new Promise<number>((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => done(typeof address === "object" && address !== null ? address.port : 0))
    })
  })

/** A MongoDB server that checks passwords, with the guide's user. */
const mongoUser = async () => {
  await mongodb.native.install(new AbortController().signal)
  const folder = mkdtempSync(join(tmpdir(), "mongod-auth-"))
  await mongodb.native.prepare(folder, {})
  const port = await freePort()
  const [node] = nodesOf("mongodb", [{ mongodb: port }])
  const [program = "", ...args] = mongodb.native.command(folder, node!)
  const server: ChildProcess = spawn(program, [...args, "--auth"], { stdio: "ignore" })
  const url = `mongodb://127.0.0.1:${port}`
  const client = await MongoClient.connect(url, { serverSelectionTimeoutMS: 20_000 })
  const [, user, pwd] = /user: "(.*?)", pwd: "(.*?)"/.exec(block("js")) ?? []
  const [, role] = /role: "(.*?)"/.exec(block("js")) ?? []
  // A connection from the same machine may create the first user without a password.
  await client.db("admin").command({ createUser: "admin", pwd: "admin", roles: ["root"] })
  await client.close()
  const admin = await MongoClient.connect(`mongodb://admin:admin@127.0.0.1:${port}/admin`)
  await admin
    .db("user_embeddings")
    .command({ createUser: user, pwd, roles: [{ role, db: "user_embeddings" }] })
  await admin.close()
  return {
    run: `mongodb://${user}:${pwd}@127.0.0.1:${port}/user_embeddings`,
    undo: async () => {
      const ended = new Promise((done) => server.once("exit", done))
      server.kill("SIGKILL")
      await ended
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

const guided = Effect.acquireRelease(
  Effect.promise(() => Promise.all([mysqlUsers(), rabbitUser(), mongoUser()])),
  (all) => Effect.promise(() => Promise.all(all.map(({ undo }) => undo()))),
)

const interaction = Interaction.make({
  user_id: "least",
  event_type: "search",
  search_phrase: "door keys",
  occurred_at: "2026-02-10T10:00:00.000Z",
  metadata: {},
})

withServers(["rabbitmq", "mysql"], "the grants of docs/security.md", () => {
  effectTest(
    "are enough to set up, record, apply and erase, and the user `run` may not change tables",
    () =>
      Effect.gen(function* () {
        const [{ setup, run: runUrl }, rabbit, mongo] = yield* guided
        const stack = (mysqlUrl: string) =>
          Stack.layer.pipe(
            Layer.provideMerge(
              variables({ RABBITMQ_DSN: rabbit.run, MYSQL_URL: mysqlUrl, MONGODB_URL: mongo.run }),
            ),
            Layer.provideMerge(quiet),
          )
        yield* Effect.provide(Provision.setup, stack(setup))
        const refused = yield* Effect.promise(async () => {
          const connection = await mysql.createConnection(runUrl)
          const error = await connection.query("DROP TABLE user_interactions").then(() => undefined, String)
          await connection.end()
          return error
        })
        expect(refused).toContain("command denied")

        const pipeline = Layer.mergeAll(InteractionRecorder.layer, Worker.layer).pipe(
          Layer.provideMerge(OutboxRelay.layer),
          Layer.provideMerge(EventVectors.layer),
          Layer.provideMerge(stack(runUrl)),
        )
        yield* Effect.gen(function* () {
          const recorder = yield* InteractionRecorder.InteractionRecorder
          const users = yield* UserEmbeddings
          const log = yield* InteractionLog
          yield* recorder.record([{ interaction, idempotencyKey: null, occurredAtGiven: true }])
          yield* Effect.repeat(Effect.delay(users.load(["least"]), "20 millis"), {
            until: (records) => records.get("least")?.embedding?.event_count === 1,
          }).pipe(Effect.timeout("15 seconds"))
          const erased_to = yield* log.maxId
          const token = (yield* log.beginErasure(["least"])).token
          yield* log.finishErasure("least", token, erased_to)
          expect(yield* log.renewSurvivors("least")).toBe(1)
          expect(yield* log.erase("least", yield* log.maxId)).toBe(1)
          expect(yield* users.erase("least", { erased_at: Date.now(), erased_to })).toBe(true)
        }).pipe(Effect.provide(pipeline))
      }),
    60_000,
  )
})
