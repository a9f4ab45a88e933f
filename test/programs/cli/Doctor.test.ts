/** `doctor` on real servers: each problem is caused on purpose, and must be reported with its remedy. */
import { afterAll, beforeAll, expect, test } from "bun:test"
import { resolve } from "node:path"
import type { Channel } from "amqplib"
import { Clock, Effect, identity, Layer } from "effect"
import { MongoClient } from "mongodb"
import mysql from "mysql2/promise"
import * as Stack from "../../../src/layers/Stack.ts"
import { interactionLog } from "../../../src/layers/sql/migrations/interactionLog.ts"
import * as Provision from "../../../src/programs/tasks/ProvisionServers.ts"
import { openAiStandIn } from "../../support/openAiStandIn.ts"
import { record, recording, search, storeProduct, workedOff } from "../../support/pipeline.ts"
import {
  changedUrls,
  connectAmqp,
  freshMongo,
  freshMysql,
  freshRabbit,
  management,
  urlOf,
  virtualHostIn,
  withServers,
} from "../../support/servers.ts"
import { quiet, variables } from "../../support/stacks.ts"

type Variables = Readonly<Record<string, string>>

withServers(["rabbitmq", "mysql", "mongodb"], "doctor", () => {
  let env: Variables = {}
  const undo: Array<() => Promise<unknown>> = []

  const configured = (changed: Variables = {}) => Layer.merge(variables({ ...env, ...changed }), quiet)
  const looking = (changed: Variables) => Layer.provideMerge(Stack.forSetup, configured(changed))

  /** All findings, each as `dependency: problem → remedy`. */
  const findings = async (changed: Variables = {}, clock?: Clock.Clock): Promise<ReadonlyArray<string>> => {
    const diagnoses = await Effect.runPromise(
      Provision.doctor.pipe(
        clock === undefined ? identity : Effect.withClock(clock),
        Effect.provide(looking(changed)),
      ),
    )
    return diagnoses.flatMap(({ dependency, findings, status }) => {
      expect(findings.length === 0).toBe(status === "ok")
      return findings.map(({ problem, remedy }) => `${dependency}: ${problem} → ${remedy}`)
    })
  }
  const setUp = () => Effect.runPromise(Effect.provide(Provision.setup, looking({})))

  const onChannel = async (use: (channel: Channel) => Promise<unknown>) => {
    const connection = await connectAmqp(env.RABBITMQ_DSN ?? "")
    const channel = await connection.createChannel()
    await use(channel)
    await channel.close()
    await connection.close()
  }
  const onMysql = async (statement: string) => {
    const connection = await mysql.createConnection(env.MYSQL_URL ?? "")
    await connection.query(statement)
    await connection.end()
  }
  const changedUrl = (variable: string, change: (url: URL) => void): Variables => {
    return { [variable]: changedUrls(env[variable] ?? "", change) }
  }

  beforeAll(async () => {
    const [rabbit, sql] = [await freshRabbit(), await freshMysql()]
    const mongo = freshMongo()
    undo.push(rabbit.drop, sql.drop, mongo.drop)
    env = {
      RABBITMQ_DSN: rabbit.dsn,
      RABBITMQ_MANAGEMENT_URL: process.env.RABBITMQ_MANAGEMENT_URL ?? "",
      MYSQL_URL: sql.url,
      MONGODB_URL: mongo.url,
      MONGODB_DATABASE: mongo.database,
    }
    await setUp()
    await Effect.runPromise(
      storeProduct("p-1", "wireless headphones").pipe(
        Effect.provide(recording(Layer.provideMerge(Stack.layer, configured()))),
        Effect.scoped,
      ),
    )
  }, 60_000)
  afterAll(async () => {
    for (const drop of undo) await drop()
  }, 60_000)

  const slowTest = (name: string, run: () => Promise<unknown>) => test(name, run, 60_000)

  slowTest("finds nothing when nothing is wrong", async () => {
    expect(await findings()).toEqual([])
  })

  slowTest("no products: reported without failing", async () => {
    const { database, drop } = freshMongo()
    undo.push(drop)
    const empty = { MONGODB_DATABASE: database }
    await Effect.runPromise(Effect.provide(Provision.setup, looking(empty)))
    expect(await findings(empty)).toEqual([
      expect.stringMatching(/^products: there are no products: .* → user-embeddings products import FILE; /),
    ])
  })

  slowTest("a product whose vector another program wrote wrongly", async () => {
    const client = new MongoClient(env.MONGODB_URL ?? "")
    const products = client.db(env.MONGODB_DATABASE ?? "").collection("product_embeddings")
    const good = await products.findOne({ product_id: "p-1" })
    await products.insertOne({ product_id: "p-null", space: good?.space, embedding: null })
    expect(await findings()).toEqual([
      expect.stringMatching(
        /^product vectors: 1 products cannot be used: .*: p-null has a vector that has 0 dimensions instead of \d+ → correct/,
      ),
    ])
    await products.deleteOne({ product_id: "p-null" })
    await client.close()
  })

  slowTest("a wrong password of MySQL", async () => {
    expect(
      await findings(
        changedUrl("MYSQL_URL", (url) => {
          url.password = "nope"
        }),
      ),
    ).toEqual([
      expect.stringMatching(/^mysql: Access denied.* → check user, password and database in MYSQL_URL$/),
    ])
  })

  slowTest("no such database in MySQL", async () => {
    expect(
      await findings(
        changedUrl("MYSQL_URL", (url) => {
          url.pathname = "/ue_nope"
        }),
      ),
    ).toEqual([
      expect.stringMatching(
        /^mysql: (Unknown database 'ue_nope'|Access denied .* 'ue_nope') → create the database that MYSQL_URL names, and grant its user access$/,
      ),
    ])
  })

  slowTest("MySQL is not running", async () => {
    expect(
      await findings(
        changedUrl("MYSQL_URL", (url) => {
          url.port = "1"
        }),
      ),
    ).toEqual([
      expect.stringMatching(/^mysql: .*ECONNREFUSED.* → start MySQL, or correct host and port in MYSQL_URL$/),
    ])
  })

  slowTest("a migration that has not run", async () => {
    await onMysql(`DELETE FROM ${interactionLog.table}`)
    const names = Object.keys(interactionLog.steps).toSorted()
    expect(await findings()).toEqual(
      names.map((name) => `mysql: missing migration ${name} → run: user-embeddings setup`),
    )
    await setUp()
  })

  slowTest("a virtual host that does not exist", async () => {
    expect(
      await findings(
        changedUrl("RABBITMQ_DSN", (url) => {
          url.pathname = "/ue_nope"
        }),
      ),
    ).toEqual([
      expect.stringMatching(
        /^rabbitmq: connect: there is no such virtual host, .* → correct the virtual host in RABBITMQ_DSN, or rabbitmqctl add_vhost/,
      ),
    ])
  })

  slowTest("a wrong password of RabbitMQ", async () => {
    expect(
      await findings(
        changedUrl("RABBITMQ_DSN", (url) => {
          url.password = "nope"
        }),
      ),
    ).toEqual([
      expect.stringMatching(
        /^rabbitmq: connect: .*ACCESS.REFUSED.* → correct user and password in RABBITMQ_DSN$/,
      ),
    ])
  })

  slowTest("a user of RabbitMQ without permissions", async () => {
    const host = virtualHostIn(env.RABBITMQ_DSN ?? "")
    const name = `nobody_${host}`
    const put = (path: string, body: object) =>
      management(path, { method: "PUT", body: JSON.stringify(body) })
    await put(`/users/${name}`, { password: "nobody", tags: "" })
    await put(`/permissions/${host}/${name}`, { configure: "^$", write: "^$", read: "^$" })
    try {
      const found = await findings(
        changedUrl("RABBITMQ_DSN", (url) => {
          url.username = name
          url.password = "nobody"
        }),
      )
      expect(found.length).toBeGreaterThan(0)
      for (const finding of found)
        expect(finding).toMatch(
          /^rabbitmq: (exchange|queue) .*ACCESS.REFUSED.* → let the user of RABBITMQ_DSN configure, write and read: rabbitmqctl set_permissions/,
        )
    } finally {
      await management(`/users/${name}`, { method: "DELETE" })
    }
  })

  slowTest("a main queue that another program declared as classic", async () => {
    await onChannel(async (channel) => {
      await channel.deleteQueue("user_embedding_updates")
      await channel.assertQueue("user_embedding_updates", { durable: true })
      await channel.bindQueue("user_embedding_updates", "user_events", "user.embedding.*")
    })
    expect(await findings()).toEqual([
      expect.stringMatching(
        /^rabbitmq: queue user_embedding_updates as it should be \(.*PRECONDITION.FAILED.*x-queue-type.*\) → another program declared it: drain it, rabbitmqctl delete_queue user_embedding_updates, and run user-embeddings setup$/,
      ),
    ])
    await onChannel((channel) => channel.deleteQueue("user_embedding_updates"))
    expect(await findings()).toContain(
      "rabbitmq: missing queue user_embedding_updates → run: user-embeddings setup",
    )
    await setUp()
  })

  slowTest("a main queue that is not bound", async () => {
    await onChannel((channel) =>
      channel.unbindQueue("user_embedding_updates", "user_events", "user.embedding.*"),
    )
    expect(await findings()).toEqual([
      "rabbitmq: missing binding of queue user_embedding_updates to exchange user_events by user.embedding.* → run: user-embeddings setup",
    ])
    await setUp()
  })

  slowTest("policies that lose messages, or do not", async () => {
    const host = virtualHostIn(env.RABBITMQ_DSN ?? "")
    const put = (kind: string, name: string, pattern: string, definition: object) =>
      management(`/${kind}/${host}/${name}`, {
        method: "PUT",
        body: JSON.stringify({ pattern, definition, "apply-to": "queues" }),
      })
    await put("policies", "short", "^(failed|other)$", {
      "message-ttl": 60_000_000,
      overflow: "reject-publish",
    })
    await put("policies", "harmless", "retry", { overflow: "reject-publish" })
    await put("operator-policies", "small", "^(failed|user_embedding_updates)$", { "max-length": 1_000_000 })
    try {
      expect((await findings()).toSorted()).toEqual([
        "rabbitmq: operator policy small applies to user_embedding_updates, failed (max-length 1000000: the number of messages is limited) → exclude these queues from its pattern, or: rabbitmqctl clear_operator_policy -p VHOST small",
        "rabbitmq: policy short applies to failed (message-ttl 60000000: messages expire) → exclude these queues from its pattern, or: rabbitmqctl clear_policy -p VHOST short",
      ])
    } finally {
      for (const [kind, name] of [
        ["policies", "short"],
        ["policies", "harmless"],
        ["operator-policies", "small"],
      ])
        await management(`/${kind}/${host}/${name}`, { method: "DELETE" })
    }
    expect(await findings()).toEqual([])
  })

  slowTest("the consumer timeout in force, as far as it can be known", async () => {
    const policy = await management(`/policies/${virtualHostIn(env.RABBITMQ_DSN ?? "")}/user-embeddings`)
    expect(await policy.json()).toMatchObject({
      "apply-to": "queues",
      priority: -1,
      definition: { "queue-leader-locator": "balanced" },
    })
    const note = async (changed: Variables = {}) => {
      const diagnoses = await Effect.runPromise(Effect.provide(Provision.doctor, looking(changed)))
      const notes = diagnoses.find(({ dependency }) => dependency === "rabbitmq")?.notes
      return notes?.filter((one) => one.startsWith("the consumer timeout"))
    }
    const version = await Effect.runPromise(Effect.provide(Provision.doctor, looking({})))
    const [major = 0] = (version.find(({ dependency }) => dependency === "rabbitmq")?.version ?? "")
      .split(".")
      .map(Number)
    expect(await note()).toEqual([
      major >= 4
        ? "the consumer timeout is 86400 s, by policy user-embeddings"
        : "the consumer timeout is consumer_timeout of rabbitmq.conf, which no API tells: 30 minutes unless it was changed",
    ])
    expect(await note({ RABBITMQ_MANAGEMENT_URL: "http://127.0.0.1:1" })).toEqual([
      "the consumer timeout is not known: the management API does not answer (RABBITMQ_MANAGEMENT_URL)",
    ])
  })

  slowTest("MongoDB is not running", async () => {
    expect(await findings({ MONGODB_URL: "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=500" })).toEqual([
      expect.stringMatching(/^mongodb: .*ECONNREFUSED.* → start MongoDB, or correct MONGODB_URL$/),
    ])
  })

  slowTest("a user unknown to MongoDB", async () => {
    expect(await findings({ MONGODB_URL: urlOf("mongodb").replace("://", "://nobody:nope@") })).toEqual([
      expect.stringMatching(
        /^mongodb: .*Authentication failed.* → correct user, password and authSource in MONGODB_URL$/,
      ),
    ])
  })

  slowTest("a missing index and a missing validator", async () => {
    const client = await MongoClient.connect(env.MONGODB_URL ?? "")
    const database = client.db(env.MONGODB_DATABASE)
    await database.collection("product_embeddings").dropIndex("product_id_1")
    await database.command({ collMod: "user_embeddings", validator: {} })
    await client.close()
    expect(await findings()).toEqual([
      "mongodb: missing user_embeddings: validator → run: user-embeddings setup",
      "mongodb: missing product_embeddings: unique index on product_id → run: user-embeddings setup",
    ])
    await setUp()
  })

  slowTest("a key that OpenAI refuses", async () => {
    const service = openAiStandIn({ apiKey: "right" })
    try {
      const found = await findings({ OPENAI_API_KEY: "sk-wrong", OPENAI_BASE_URL: service.url })
      // The stored product was embedded locally, so it is reported too.
      expect(found.filter((line) => !line.startsWith("products: "))).toEqual([
        expect.stringMatching(
          /^openai: .*401.* → correct OPENAI_API_KEY, OPENAI_EMBEDDING_MODEL or OPENAI_BASE_URL$/,
        ),
      ])
      expect(found.join()).not.toContain("sk-wrong")
    } finally {
      await service.stop()
    }
  })

  slowTest("clocks that differ", async () => {
    const clock = Clock.make()
    const late = 90_000
    const behind: Clock.Clock = Object.assign(Object.create(clock), {
      currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now - late),
      unsafeCurrentTimeMillis: () => clock.unsafeCurrentTimeMillis() - late,
    })
    const found = await findings({}, behind)
    expect(found).toHaveLength(2)
    for (const [index, server] of ["mysql", "mongodb"].entries())
      expect(found[index]).toMatch(
        new RegExp(
          `^${server}: this machine's clock is (8[89]|9[012]) s behind the server's → set both clocks by NTP`,
        ),
      )
  })

  slowTest("products and users of another space, after a change of the dimensions", async () => {
    await Effect.runPromise(
      Effect.gen(function* () {
        yield* record(search("u-1", "wireless headphones", "2026-02-10T12:34:56.789Z"))
        yield* workedOff
      }).pipe(Effect.provide(recording(Layer.provideMerge(Stack.layer, configured()))), Effect.scoped),
    )
    expect(await findings()).toEqual([])
    expect(await findings({ EMBEDDING_DIMENSIONS: "768" })).toEqual([
      expect.stringMatching(
        /^products: 1 products have no vector in the space local:.*:768, .* → user-embeddings products import FILE imports them again; /,
      ),
      expect.stringMatching(
        /^users: the embeddings of 1 users are not in the space local:.*:768 .* → user-embeddings rebuild --all, /,
      ),
    ])
  })

  slowTest("dead letters: reported without failing, also as text", async () => {
    const main = resolve(import.meta.dir, "../../../src/programs/main.ts")
    const doctor = (changed: Variables = {}) => {
      const { exitCode, stdout } = Bun.spawnSync([process.execPath, main, "doctor"], {
        env: { PATH: process.env.PATH, ...env, ...changed },
      })
      return { code: exitCode, out: stdout.toString() }
    }
    await onChannel(async (channel) => {
      channel.publish("failed", "failed", Buffer.from("not JSON"))
    })
    const { code, out } = doctor()
    expect(code).toBe(0)
    expect(out).toMatch(/^dead letters +attention/m)
    expect(out).toContain("dead letters: 1 messages failed for good\n  → user-embeddings failed groups")
    const wrong = doctor({ MYSQL_URL: "mysql://root:nope@127.0.0.1:1/x" })
    expect(wrong.code).toBe(1)
    expect(wrong.out).toMatch(/^mysql +down/m)
  })
})
