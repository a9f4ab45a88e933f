/**
 * A whole system of real processes on databases of its own, under load, on servers that may be killed. Every scenario
 * ends with {@link System.proof}: the log against what is applied, and every vector against one computed from the log.
 */
import { describe, expect, test } from "bun:test"
import amqp from "amqplib"
import { Effect, Exit, Layer, Scope } from "effect"
import { type Binary, MongoClient } from "mongodb"
import mysql, { type RowDataPacket } from "mysql2/promise"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { sacrificialVariable } from "../../scripts/services/sacrificial.ts"
import * as Stack from "../../src/layers/Stack.ts"
import * as Provision from "../../src/programs/tasks/ProvisionServers.ts"
import {
  exchange,
  failedQueue,
  quarantineQueue,
  queue,
  retryQueue,
  routingKey,
} from "../../src/services/ports/InteractionQueue.ts"
import { PhraseEmbedder } from "../../src/services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import { vectorOf } from "../support/openAiStandIn.ts"
import { freshMongo, freshMysql, freshRabbit, management } from "../support/servers.ts"
import { quiet, variables } from "../support/stacks.ts"
import { type TcpProxy, tcpProxy } from "../support/tcpProxy.ts"
import { Program, until } from "./Program.ts"
import {
  dimensions,
  expected,
  type Item,
  localVector,
  products,
  type Row,
  type VectorOfPhrase,
} from "./Shop.ts"

/** The numbers of the promise, and those that fit into the test command. */
export const long = process.env.FAILURES === "long"
export const inForm = <A>(short: A, long_: A): A => (long ? long_ : short)

type Variables = Readonly<Record<string, string>>

/** A user's document as it is stored. */
export interface UserDocument {
  readonly user_id: string
  readonly embedding: Binary
  readonly event_count: number
  readonly mass: number
  readonly version: number
  readonly updated_at: Date
}

/** A message that lies in `failed`. */
export interface Letter {
  readonly body: Buffer
  readonly messageId: string | undefined
  readonly headers: Readonly<Record<string, unknown>>
}

export interface Answers {
  /** Answers by status, 0 = none. */
  readonly statuses: Map<number, number>
  /** Milliseconds, sorted. */
  readonly times: Array<number>
}

/** A worker that takes messages. */
export const consuming = (worker: Program) =>
  worker.saw("rabbitmq.connected", 90, ({ connection }) => connection === "consumer")

const broker = sacrificial.addresses() ?? {}

export class System {
  /** Message ids that the API has answered with success. */
  readonly accepted = new Set<string>()
  readonly programs: Array<Program> = []
  readonly env: Variables
  private readonly scope = Effect.runSync(Scope.make())
  private readonly pool: mysql.Pool
  private readonly mongo: MongoClient
  private readonly drop: () => Promise<unknown>
  private readonly vectorOfPhrase: VectorOfPhrase
  private url = ""

  private constructor(env: Variables, drop: () => Promise<unknown>) {
    this.env = env
    this.drop = drop
    this.vectorOfPhrase =
      env.OPENAI_API_KEY === undefined ? localVector : (text) => vectorOf(text, dimensions)
    this.pool = mysql.createPool({ uri: env.MYSQL_URL!, connectionLimit: 4, timezone: "Z" })
    this.mongo = new MongoClient(env.MONGODB_URL!, {
      serverSelectionTimeoutMS: 3000,
      socketTimeoutMS: 3000,
    })
  }

  /** Set up, with the shop's products; no program runs yet. */
  static async open(extra: Variables): Promise<System> {
    const [rabbit, mysql] = await Promise.all([freshRabbit(broker), freshMysql()])
    const mongo = freshMongo(broker.MONGODB_URL)
    const env = {
      RABBITMQ_DSN: rabbit.dsn,
      RABBITMQ_MANAGEMENT_URL: broker.RABBITMQ_MANAGEMENT_URL!,
      MYSQL_URL: mysql.url,
      MONGODB_URL: mongo.url,
      MONGODB_DATABASE: mongo.database,
      EMBEDDING_DIMENSIONS: String(dimensions),
      // All scenarios hold in packs too.
      EVENTS_PER_MESSAGE: process.env.EVENTS_PER_MESSAGE ?? "1",
      RATE_LIMIT_PER_USER: "0",
      WORKER_RETRY_DELAY: "200",
      API_PORT: "0",
      WORKER_PORT: "0",
      ...extra,
    }
    const prepare = Effect.gen(function* () {
      yield* Provision.setup
      const { space } = yield* PhraseEmbedder
      const store = yield* ProductEmbeddings
      yield* store.upsert(
        Array.from(products, ([product_id, embedding]) => ({
          product_id,
          embedding,
          product_name: product_id,
          category: null,
          space,
          text: null,
        })),
      )
    })
    await Effect.runPromise(
      Effect.provide(prepare, Layer.provideMerge(Stack.layer, Layer.merge(variables(env), quiet))),
    )
    return new System(env, () => Promise.allSettled([rabbit.drop(), mysql.drop(), mongo.drop()]))
  }

  async close(): Promise<void> {
    await Promise.all(this.programs.map((program) => program.kill()))
    await Effect.runPromise(Scope.close(this.scope, Exit.void))
    await Promise.allSettled([this.pool.end(), this.mongo.close()])
    await this.drop()
  }

  /** What the programs logged last, for a scenario that failed. */
  tell(): void {
    for (const { log, name } of this.programs)
      for (const { event, ...facts } of log.slice(-4))
        console.error(`    ${name}: ${event} ${JSON.stringify(facts)}`)
  }

  /** Progress of the long form. */
  say(what: string): void {
    if (long) console.error(`    ${new Date().toISOString().slice(11, 19)} ${what}`)
  }

  /** A proxy before one of the servers, for the programs that are told to use it. */
  proxy(variable: "RABBITMQ_DSN" | "MONGODB_URL"): Promise<TcpProxy> {
    return Effect.runPromise(Scope.extend(tcpProxy(this.env[variable]!), this.scope))
  }

  private program(args: ReadonlyArray<string>, extra: Variables): Program {
    const program = new Program(args, { ...this.env, ...extra })
    this.programs.push(program)
    return program
  }

  worker(extra: Variables = {}): Program {
    return this.program(["worker"], extra)
  }

  workers(count: number, extra: Variables = {}): ReadonlyArray<Program> {
    return Array.from({ length: count }, () => this.worker(extra))
  }

  /** The API, once it listens. */
  async api(extra: Variables = {}): Promise<Program> {
    const program = this.program(["api"], extra)
    const { url } = await program.saw("api.listening", 90)
    this.url = String(url)
    return program
  }

  /** A command, run to its end. */
  async command(...args: ReadonlyArray<string>) {
    const program = this.program(args, {})
    await until(`${program.name} ends`, 120, () => !program.running || undefined)
    return program.output()
  }

  /** Posts items by the bulk route; all must be accepted. */
  async post(items: ReadonlyArray<Item>): Promise<void> {
    for (let start = 0; start < items.length; start += 500) {
      const response = await fetch(`${this.url}/api/interactions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(items.slice(start, start + 500)),
      })
      const answer = (await response.json()) as { results: ReadonlyArray<{ message_id: string }> }
      expect(response.status).toBe(200)
      for (const { message_id } of answer.results) this.accepted.add(message_id)
    }
  }

  /** Posts items one by one at so many a second until they are used up or it is told to stop. */
  load(items: ReadonlyArray<Item>, perSecond: number) {
    const statuses = new Map<number, number>()
    const times: Array<number> = []
    let stopped = false
    const one = async ({ event_type, occurred_at, product_id, search_phrase, user_id }: Item) => {
      const path = event_type === "search" ? "search" : `product/${product_id}/${event_type.slice(8)}`
      const body = event_type === "search" ? { query: search_phrase, occurred_at } : { occurred_at }
      const begun = performance.now()
      let status = 0
      try {
        const response = await fetch(`${this.url}/api/user/${user_id}/${path}`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
        })
        const { message_id } = (await response.json()) as { message_id: string }
        status = response.status
        if (response.ok) this.accepted.add(message_id)
      } catch {
        // The API was killed: nobody has been promised anything.
      }
      times.push(performance.now() - begun)
      statuses.set(status, (statuses.get(status) ?? 0) + 1)
    }
    const done = (async (): Promise<Answers> => {
      const begun = performance.now()
      const open: Array<Promise<void>> = []
      while (!stopped && open.length < items.length) {
        const due = Math.min(items.length, Math.ceil(((performance.now() - begun) / 1000) * perSecond))
        while (open.length < due) open.push(one(items[open.length]!))
        await Bun.sleep(5)
      }
      await Promise.all(open)
      times.sort((a, b) => a - b)
      return { statuses, times }
    })()
    return {
      done,
      /** Answers what came back. */
      stop: () => {
        stopped = true
        return done
      },
    }
  }

  async rows(): Promise<ReadonlyArray<Row>> {
    const [rows] = await this.pool.query<Array<RowDataPacket & Row & { occurred_at: Date | number }>>(
      "SELECT message_id, user_id, event_type, search_phrase, product_id, occurred_at FROM user_interactions",
    )
    return rows.map((row) => ({ ...row, occurred_at: Number(row.occurred_at) }))
  }

  private async number(sql: string): Promise<number> {
    const [[row]] = await this.pool.query<Array<RowDataPacket & { readonly n: number }>>(sql)
    return Number(row?.n ?? 0)
  }

  unpublished(): Promise<number> {
    return this.number("SELECT COUNT(*) AS n FROM user_interactions WHERE NOT processed_to_queue")
  }

  get collection() {
    return this.mongo.db(this.env.MONGODB_DATABASE!).collection<UserDocument>("user_embeddings")
  }

  users(): Promise<ReadonlyArray<UserDocument>> {
    return this.collection.find({ event_count: { $gt: 0 } }).toArray()
  }

  /** Events taken in, of all users. */
  async applied(): Promise<number> {
    const [sum] = await this.collection
      .aggregate<{ n: number }>([{ $group: { _id: null, n: { $sum: "$event_count" } } }])
      .toArray()
    return sum?.n ?? 0
  }

  /** Uses a channel of the broker, straight. */
  async onChannel<A>(use: (channel: amqp.ConfirmChannel) => Promise<A>): Promise<A> {
    const connection = await amqp.connect(this.env.RABBITMQ_DSN!, { timeout: 5000 })
    connection.on("error", () => {})
    try {
      const channel = await connection.createConfirmChannel()
      channel.on("error", () => {})
      return await use(channel)
    } finally {
      await connection.close().catch(() => {})
    }
  }

  /** Ready messages: of the main queue and the suspects', of all rungs together, of `failed`. */
  depths() {
    return this.onChannel(async (channel) => {
      const first = Number(this.env.WORKER_RETRY_DELAY)
      const count = async (name: string) => (await channel.checkQueue(name)).messageCount
      let retry = 0
      const rungs = Array.from({ length: Number(this.env.WORKER_MAX_RETRIES ?? 5) }, (_, i) =>
        Math.min(60_000, first * 2 ** i),
      )
      for (const delay of new Set(rungs)) retry += await count(retryQueue(delay))
      return {
        main: (await count(queue)) + (await count(quarantineQueue)),
        retry,
        failed: await count(failedQueue),
      }
    })
  }

  /** Publishes bodies to the exchange, as anybody may. */
  publish(
    messages: ReadonlyArray<{ readonly body: Buffer; readonly type?: Item["event_type"] }>,
  ): Promise<void> {
    return this.onChannel(async (channel) => {
      for (const { body, type = "search" } of messages)
        channel.publish(exchange, routingKey(type), body, { deliveryMode: 2 })
      await channel.waitForConfirms()
    })
  }

  /** Publishes rows of the log once more, as a producer of our messages would write them. */
  publishAgain(rows: ReadonlyArray<Row>): Promise<void> {
    return this.publish(
      rows.map(({ event_type: type, occurred_at, ...row }) => ({
        type,
        body: Buffer.from(
          JSON.stringify({
            ...row,
            event_type: type,
            occurred_at: new Date(occurred_at).toISOString(),
            metadata: {},
            version: "1.0",
          }),
        ),
      })),
    )
  }

  /** What lies in `failed`; it stays there. */
  letters(): Promise<ReadonlyArray<Letter>> {
    return this.onChannel(async (channel) => {
      const letters: Array<Letter> = []
      for (;;) {
        const message = await channel.get(failedQueue)
        if (message === false) return letters
        const { content, properties } = message
        letters.push({ body: content, messageId: properties.messageId, headers: properties.headers ?? {} })
      }
    })
  }

  /** Changes the broker's settings of this system; `path` below its virtual host. */
  manage(kind: "policies" | "bindings" | "queues", path: string, method: string, body?: object) {
    const vhost = new URL(this.env.RABBITMQ_DSN!).pathname.slice(1)
    const init = body === undefined ? { method } : { method, body: JSON.stringify(body) }
    return management(`/${kind}/${vhost}${path}`, init, broker)
  }

  /** Waits until all of the log is published and in the hands of workers. */
  delivered(): Promise<true> {
    return until("all delivered to workers", 20, async () =>
      (await this.unpublished()) === 0 && (await this.depths()).main === 0 ? true : undefined,
    )
  }

  /** Waits until all of the log is published and applied, but `dead` letters. */
  async settled(seconds: number, dead = 0): Promise<void> {
    let last = ""
    await until("everything applied", seconds, async () => {
      try {
        const unpublished = await this.unpublished()
        const rows = await this.number("SELECT COUNT(*) AS n FROM user_interactions")
        const applied = await this.applied()
        last = JSON.stringify({ rows, unpublished, applied })
        if (unpublished > 0 || applied < rows - dead) return undefined
        const depths = await this.depths()
        last = JSON.stringify({ rows, unpublished, applied, ...depths })
        return depths.main + depths.retry === 0 || undefined
      } catch (error) {
        last = String(error)
        return undefined
      }
    }).catch((error: Error) => {
      throw new Error(`${error.message}; last seen ${last}`)
    })
  }

  /** Asks the running workers to end, and expects that they do so in order and in time. */
  async stopWorkers(): Promise<void> {
    const running = this.programs.filter((program) => program.name === "worker" && program.running)
    await Promise.all(running.map(consuming))
    for (const program of running) program.signal("SIGTERM")
    const codes = await Promise.race([
      Promise.all(running.map((program) => program.ended())),
      Bun.sleep(30_000).then(() => "not within 30 s"),
    ])
    expect(codes).toEqual(running.map(() => 0))
  }

  /**
   * The end of every scenario. Nothing waits anywhere, what was promised is in the log, the audit finds nothing
   * missing and nothing extra, and every vector is the one that the log gives.
   */
  async proof({ dead = 0, within = 60 }: { readonly dead?: number; readonly within?: number } = {}) {
    await this.settled(within, dead)
    await this.stopWorkers()
    // What the workers had not acknowledged is a duplicate, and must prove to be one.
    const { main } = await this.depths()
    if (main > 0) {
      await this.worker().handled(main, within)
      await this.stopWorkers()
    }
    expect((await this.depths()).main).toBe(0)
    const rows = await this.rows()
    const logged = new Set(rows.map(({ message_id }) => message_id))
    expect([...this.accepted].filter((id) => !logged.has(id))).toEqual([])

    const { code, out } = await this.command("audit", "--json", "--details")
    const { details, ...audit } = JSON.parse(out)
    const byUser = Map.groupBy(rows, ({ user_id }) => user_id)
    expect({ code, ...audit, details: details.slice(0, 5) }).toMatchObject({
      code: 0,
      users: byUser.size,
      consistent: byUser.size,
      missing: 0,
      extra: 0,
      in_flight: 0,
      dead,
      skipped: 0,
    })

    const letters = new Set(dead > 0 ? (await this.letters()).map(({ messageId }) => messageId) : [])
    const documents = new Map((await this.users()).map((document) => [document.user_id, document]))
    for (const [user, all] of byUser) {
      const own = all.filter(({ message_id }) => !letters.has(message_id))
      const document = documents.get(user)
      expect([user, document?.event_count ?? 0]).toEqual([user, own.length])
      if (document === undefined) continue
      const { direction, mass } = expected(own, this.vectorOfPhrase)
      const stored = document.embedding.toFloat32Array()
      expect(stored.length).toBe(dimensions)
      const off = direction.reduce((most, x, i) => Math.max(most, Math.abs(x - stored[i]!)), 0)
      if (!(off <= 1e-4) || !(Math.abs(mass - Number(document.mass)) <= 1e-3 * mass))
        throw new Error(`${user}: the vector is off by ${off}, its mass ${document.mass} instead of ${mass}`)
    }
  }
}

/** What a scenario may take, in ms. */
const longest = inForm(240_000, 3_600_000)
/** Systems that run at once, each of three programs or more. */
const atOnce = 4

let free = atOnce
const waiting: Array<() => void> = []
const turn = async () => {
  if (free > 0) free -= 1
  else await new Promise<void>((begin) => waiting.push(begin))
}
const nextTurn = () => {
  const begin = waiting.shift()
  if (begin === undefined) free += 1
  else begin()
}

/** On a system of its own, which is closed whatever happens. */
const perform = async (run: (system: System) => Promise<unknown>, env: Variables) => {
  const system = await System.open(env)
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${longest / 1000} s`)), longest)
  })
  try {
    await Promise.race([run(system), late])
  } catch (error) {
    system.tell()
    throw error
  } finally {
    clearTimeout(timer)
    await system.close()
  }
}

/** A server that a scenario left dead or frozen must not spoil the next. */
const mend = async () => {
  for (const server of ["rabbitmq", "mongodb"] as const) await sacrificial.resume(server).catch(() => {})
  await sacrificial.up()
}

type Scenario = (name: string, run: (system: System) => Promise<unknown>, env?: Variables) => void

/**
 * Tests of what may fail. In the short form they run side by side, as most of their time is waiting, unless they break
 * the servers that all stand on.
 */
export const failures = (
  name: string,
  breaks: "servers" | "programs",
  tests: (scenario: Scenario) => void,
): void => {
  const missing = [sacrificialVariable, "MYSQL_URL"].filter((variable) => !process.env[variable])
  if (missing.length > 0)
    return void test.skip(`${name}: SKIPPED, needs ${missing.join(" and ")} (\`bun run test\` starts servers that may be killed)`, () => {})

  describe(name, () => {
    if (breaks === "servers") {
      return tests((title, run, env = {}) =>
        test(
          title,
          () => perform(run, env).catch((error) => mend().then(() => Promise.reject(error))),
          longest * 20,
        ),
      )
    }
    const define = long ? test : test.concurrent
    tests((title, run, env = {}) =>
      define(
        title,
        () =>
          turn()
            .then(() => perform(run, env))
            .finally(nextTurn),
        longest * 20,
      ),
    )
  })
}
