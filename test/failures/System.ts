/**
 * A whole system of real processes under load, with its own databases on servers that may be killed. Every scenario ends
 * with {@link System.proof}: it compares the log with the applied events, and every vector with one computed from the log.
 */
import { describe, expect, test } from "bun:test"
import { appendFileSync } from "node:fs"
import type amqp from "amqplib"
import { Effect, Exit, Layer, Scope } from "effect"
import { type Binary, MongoClient } from "mongodb"
import mysql, { type RowDataPacket } from "mysql2/promise"
import * as sacrificial from "../../scripts/services/sacrificial.ts"
import { sacrificialVariable } from "../../scripts/services/sacrificial.ts"
import { quarantineQueueOf, quarantineQueues } from "../../src/layers/rabbitmq/RabbitTopology.ts"
import * as Stack from "../../src/layers/Stack.ts"
import * as Provision from "../../src/programs/tasks/ProvisionServers.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import {
  exchange,
  failedQueue,
  partitionedRetryQueue,
  partitionQueue,
  queue,
  retryQueue,
  routingKey,
  setAsideQueue,
} from "../../src/services/ports/InteractionQueue.ts"
import { PhraseEmbedder } from "../../src/services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"
import * as cluster from "../support/cluster.ts"
import { vectorOf } from "../support/openAiStandIn.ts"
import {
  connectAmqp,
  freshMongo,
  freshMysql,
  freshRabbit,
  management,
  virtualHostIn,
} from "../support/servers.ts"
import { quiet, variables } from "../support/stacks.ts"
import { type TcpProxy, tcpProxy } from "../support/tcpProxy.ts"
import { costlyProbeMillis, Program, until } from "./Program.ts"
import {
  dimensions,
  expected,
  type Item,
  localVector,
  products,
  type Row,
  type VectorOfPhrase,
} from "./Shop.ts"

/** The long form has the numbers that the documents promise, the short form fits into the test command. */
export const long = process.env.FAILURES === "long"
/** The whole test command leaves out heavy scenarios and repetitions, because they take too long there. */
const brief = process.env.FAILURES === "brief"
export const inForm = <A>(short: A, long_: A): A => (long ? long_ : short)
/** How often a scenario repeats what it breaks. */
export const repetitions = (short: number, long_: number): number => (brief ? 1 : inForm(short, long_))

type Variables = Readonly<Record<string, string>>

/** Runs an effect on the servers of a scenario, in the process of the test. */
const onStack = <A, E>(env: Variables, run: Effect.Effect<A, E, Layer.Layer.Success<typeof Stack.layer>>) =>
  Effect.runPromise(Effect.provide(run, Layer.provideMerge(Stack.layer, Layer.merge(variables(env), quiet))))

const audit = Effect.flatMap(Auditor.Auditor, (auditor) => auditor.audit({ details: true })).pipe(
  Effect.provide(Layer.provide(Auditor.layer, EventVectors.layer)),
)

/** A stored document of a user. */
export interface UserDocument {
  readonly user_id: string
  readonly embedding: Binary
  readonly event_count: number
  readonly mass: number
  readonly version: number
  readonly updated_at: Date
}

/** A message in the queue `failed`. */
export interface DeadLetter {
  readonly body: Buffer
  readonly messageId: string | undefined
  readonly headers: Readonly<Record<string, unknown>>
}

export interface Answers {
  /** Number of answers by status; 0 stands for no answer. */
  readonly statuses: Map<number, number>
  /** Milliseconds, sorted. */
  readonly times: Array<number>
  /** The answers that are no success. */
  readonly refusals: Array<Refusal>
}

export interface Refusal {
  readonly status: number
  readonly retryAfter: string | null
  /** `performance.now()` when the request began. */
  readonly begun: number
  readonly ended: number
}

const bodyOf = ({ occurred_at, ...row }: Row): Buffer =>
  Buffer.from(
    JSON.stringify({
      ...row,
      occurred_at: new Date(occurred_at).toISOString(),
      metadata: {},
      version: "1.0",
    }),
  )

/** Waits until a worker consumes messages. */
export const consuming = (worker: Program) =>
  worker.saw("rabbitmq.connected", 90, ({ connection }) => connection === "consumer")

const broker = sacrificial.addresses() ?? {}

export class System {
  /** Message ids that the API has answered with success. */
  readonly accepted = new Set<string>()
  readonly programs: Array<Program> = []
  readonly figures: Record<string, string | number> = {}
  readonly env: Variables
  private readonly scope = Effect.runSync(Scope.make())
  readonly pool: mysql.Pool
  private readonly mongo: MongoClient
  private readonly drop: () => Promise<unknown>
  private readonly vectorOfPhrase: VectorOfPhrase
  url = ""

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

  /** Sets up the databases and stores the products. It starts no program. */
  static async open(extra: Variables): Promise<System> {
    const [rabbit, mysql] = await Promise.all([freshRabbit(broker), freshMysql(broker.MYSQL_URL)])
    const mongo = freshMongo(broker.MONGODB_URL)
    const env = {
      RABBITMQ_DSN: rabbit.dsn,
      RABBITMQ_MANAGEMENT_URL: broker.RABBITMQ_MANAGEMENT_URL!,
      MYSQL_URL: mysql.url,
      MONGODB_URL: mongo.url,
      MONGODB_DATABASE: mongo.database,
      EMBEDDING_DIMENSIONS: String(dimensions),
      // Every scenario must hold for message batches too.
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
    await onStack(env, prepare)
    return new System(env, () => Promise.allSettled([rabbit.drop(), mysql.drop(), mongo.drop()]))
  }

  async close(): Promise<void> {
    await Promise.all(this.programs.map((program) => program.kill()))
    await Effect.runPromise(Scope.close(this.scope, Exit.void))
    const connection = this.connection?.then((open) => open.close())
    await Promise.allSettled([this.pool.end(), this.mongo.close(), connection])
    await this.drop()
  }

  /** Prints the last log lines of each program, for a scenario that failed. */
  printLogs(): void {
    for (const { log, name } of this.programs)
      for (const { event, ...facts } of log.slice(-4))
        console.error(`    ${name}: ${event} ${JSON.stringify(facts)}`)
  }

  /** A figure of this scenario for the table of `bun run test:servers`, such as ("slowest recovery", "4.1 s"). */
  report(what: string, figure: string | number): void {
    this.figures[what] = figure
    this.say(`${what}: ${figure}`)
  }

  /** Prints the progress of the long form. */
  say(what: string): void {
    if (long) console.error(`    ${new Date().toISOString().slice(11, 19)} ${what}`)
  }

  /** A proxy in front of one of the servers, for programs that get its URL. */
  proxy(variable: "RABBITMQ_DSN" | "MONGODB_URL"): Promise<TcpProxy> {
    return Effect.runPromise(Scope.extend(tcpProxy(this.env[variable]!), this.scope))
  }

  private program(args: ReadonlyArray<string>, extra: Variables): Program {
    const program = new Program(args, { ...this.env, ...extra })
    this.programs.push(program)
    return program
  }

  /** Starts a command that runs until it is stopped. */
  start(args: ReadonlyArray<string>): Program {
    return this.program(args, {})
  }

  worker(extra: Variables = {}): Program {
    return this.program(["worker"], extra)
  }

  workers(count: number, extra: Variables = {}): ReadonlyArray<Program> {
    return Array.from({ length: count }, () => this.worker(extra))
  }

  /** Starts the API and waits until it listens. */
  async api(extra: Variables = {}): Promise<Program> {
    const program = this.program(["api"], extra)
    const { url } = await program.saw("api.listening", 90)
    this.url = String(url)
    return program
  }

  /** Runs a command to its end. */
  command(...args: ReadonlyArray<string>) {
    return this.commandWith({}, ...args)
  }

  async commandWith(env: Variables, ...args: ReadonlyArray<string>) {
    const program = this.program(args, env)
    await until(`${program.name} ends`, 120, () => !program.running || undefined)
    return program.output()
  }

  /** Posts items by the bulk route. All must be accepted. */
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

  /** Posts items one by one at this rate until all are posted or `stop` is called: to the newest API, or to these in turn. */
  load(items: ReadonlyArray<Item>, perSecond: number, urls?: ReadonlyArray<string>) {
    const statuses = new Map<number, number>()
    const times: Array<number> = []
    const refusals: Array<Refusal> = []
    let posted = 0
    let stopped = false
    const one = async ({ event_type, occurred_at, product_id, search_phrase, user_id }: Item) => {
      const path = event_type === "search" ? "search" : `product/${product_id}/${event_type.slice(8)}`
      const body = event_type === "search" ? { query: search_phrase, occurred_at } : { occurred_at }
      const begun = performance.now()
      let status = 0
      let retryAfter: string | null = null
      const url = urls === undefined ? this.url : urls[posted++ % urls.length]
      try {
        const response = await fetch(`${url}/api/user/${user_id}/${path}`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
        })
        const { message_id } = (await response.json()) as { message_id: string }
        status = response.status
        retryAfter = response.headers.get("retry-after")
        if (response.ok) this.accepted.add(message_id)
      } catch {
        // The API was killed before it answered, so the interaction may be lost.
      }
      const ended = performance.now()
      if (status < 200 || status > 299) refusals.push({ status, retryAfter, begun, ended })
      times.push(ended - begun)
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
      return { statuses, times, refusals }
    })()
    return {
      done,
      /** Stops and resolves with the answers. */
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

  get database() {
    return this.mongo.db(this.env.MONGODB_DATABASE!)
  }

  get collection() {
    return this.database.collection<UserDocument>("user_embeddings")
  }

  users(): Promise<ReadonlyArray<UserDocument>> {
    return this.collection.find({ event_count: { $gt: 0 } }).toArray()
  }

  /** Number of applied events of all users. */
  async applied(): Promise<number> {
    const [sum] = await this.collection
      .aggregate<{ n: number }>([{ $group: { _id: null, n: { $sum: "$event_count" } } }])
      .toArray()
    return sum?.n ?? 0
  }

  private connection: Promise<amqp.ChannelModel> | undefined

  /** Uses a channel of the broker directly. What it holds goes back to its queue. */
  async onChannel<A>(use: (channel: amqp.ConfirmChannel) => Promise<A>): Promise<A> {
    const connecting =
      this.connection ??
      connectAmqp(this.env.RABBITMQ_DSN!).then((connection) => connection.on("error", () => {}))
    this.connection = connecting
    try {
      const channel = await connecting.then((connection) => connection.createConfirmChannel())
      channel.on("error", () => {})
      const answer = await use(channel)
      await channel.close()
      return answer
    } catch (error) {
      if (this.connection === connecting) this.connection = undefined
      await connecting.then((connection) => connection.close()).catch(() => {})
      throw error
    }
  }

  /** Ready messages in the main, set-aside and quarantine queues together, in quarantine, in retry queues, and in `failed`. */
  depths() {
    return this.onChannel(async (channel) => {
      const first = Number(this.env.WORKER_RETRY_DELAY)
      const count = async (name: string) => (await channel.checkQueue(name)).messageCount
      let quarantined = 0
      for (const name of quarantineQueues) quarantined += await count(name)
      let retry = 0
      const delays = Array.from({ length: Number(this.env.WORKER_MAX_RETRIES ?? 5) }, (_, i) =>
        Math.min(60_000, first * 2 ** i),
      )
      // The greatest number of partitions in the scenario.
      const partitions = Number(this.env.RABBITMQ_PARTITIONS ?? 0)
      let partitioned = 0
      for (let index = 0; index < partitions; index++) partitioned += await count(partitionQueue(index))
      for (const delay of new Set(delays)) {
        retry += await count(retryQueue(delay))
        if (partitions > 0) retry += await count(partitionedRetryQueue(delay))
      }
      return {
        main: (await count(queue)) + partitioned + (await count(setAsideQueue)) + quarantined,
        quarantined,
        retry,
        failed: await count(failedQueue),
      }
    })
  }

  /** Publishes bodies to the exchange without the API. */
  publish(
    messages: ReadonlyArray<{ readonly body: Buffer; readonly type?: Item["event_type"] }>,
  ): Promise<void> {
    return this.onChannel(async (channel) => {
      for (const { body, type = "search" } of messages)
        channel.publish(exchange, routingKey(type), body, { deliveryMode: 2 })
      await channel.waitForConfirms()
    })
  }

  /** Publishes rows of the log again, as update messages. */
  publishAgain(rows: ReadonlyArray<Row>): Promise<void> {
    return this.publish(rows.map((row) => ({ type: row.event_type, body: bodyOf(row) })))
  }

  /** Publishes a row of the log again, as a message that was in hand when a worker died. */
  suspect(row: Row): Promise<void> {
    return this.onChannel(async (channel) => {
      channel.sendToQueue(quarantineQueueOf(64), bodyOf(row), {
        deliveryMode: 2,
        messageId: row.message_id,
        headers: { "x-isolated-attempts": 1, "x-original-routing-key": routingKey(row.event_type) },
      })
      await channel.waitForConfirms()
    })
  }

  /** The messages in `failed`, which stay there. */
  deadLetters(): Promise<ReadonlyArray<DeadLetter>> {
    return this.onChannel(async (channel) => {
      const deadLetters: Array<DeadLetter> = []
      for (;;) {
        const message = await channel.get(failedQueue)
        if (message === false) return deadLetters
        const { content, properties } = message
        deadLetters.push({
          body: content,
          messageId: properties.messageId,
          headers: properties.headers ?? {},
        })
      }
    })
  }

  /** Changes settings of the system's virtual host; `path` is relative to it. */
  manage(kind: "policies" | "bindings" | "queues", path: string, method: string, body?: object) {
    const vhost = virtualHostIn(this.env.RABBITMQ_DSN!)
    const init = body === undefined ? { method } : { method, body: JSON.stringify(body) }
    return management(`/${kind}/${vhost}${path}`, init, broker)
  }

  /** Waits until the whole log is published and delivered to workers. */
  delivered(): Promise<true> {
    return until("all delivered to workers", 20, async () =>
      (await this.unpublished()) === 0 && (await this.depths()).main === 0 ? true : undefined,
    )
  }

  /** Waits until the whole log is published, and applied except for `dead` messages. */
  async settled(seconds: number, dead = 0): Promise<void> {
    let last = ""
    const probe = async () => {
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
    }
    await until("everything applied", seconds, probe, costlyProbeMillis).catch((error: Error) => {
      throw new Error(`${error.message}; last seen ${last}`)
    })
  }

  /** Sends SIGTERM to the running workers and expects them to end with exit code 0 within 30 s. */
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
   * The end of every scenario: no message waits, the log holds every accepted interaction, the audit finds nothing missing
   * and nothing extra, and every vector is the one computed from the log.
   */
  async proof({ dead = 0, within = 60 }: { readonly dead?: number; readonly within?: number } = {}) {
    await this.settled(within, dead)
    await this.stopWorkers()
    // Messages that the workers had not acknowledged are duplicates and must change nothing.
    const { main } = await this.depths()
    if (main > 0) {
      await this.worker().handled(main, within)
      await this.stopWorkers()
    }
    expect((await this.depths()).main).toBe(0)
    const rows = await this.rows()
    const logged = new Set(rows.map(({ message_id }) => message_id))
    expect([...this.accepted].filter((id) => !logged.has(id))).toEqual([])

    const { details = [], ...counts } = await onStack(this.env, audit)
    const byUser = Map.groupBy(rows, ({ user_id }) => user_id)
    expect({ ...counts, details: details.slice(0, 5) }).toMatchObject({
      users: byUser.size,
      consistent: byUser.size,
      missing: 0,
      extra: 0,
      not_erased: 0,
      in_flight: 0,
      dead,
      skipped: 0,
    })

    const deadIds = new Set(dead > 0 ? (await this.deadLetters()).map(({ messageId }) => messageId) : [])
    const documents = new Map((await this.users()).map((document) => [document.user_id, document]))
    for (const [user, all] of byUser) {
      const own = all.filter(({ message_id }) => !deadIds.has(message_id))
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

/** Time limit of a scenario, in ms. */
const longest = inForm(240_000, 3_600_000)
/** Number of systems that run at the same time. Each has three programs or more. */
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

/** Appends what a scenario measured to a file, one line of JSON each. */
const record = (outcome: object) => {
  const file = process.env.SCENARIO_FIGURES
  if (file) appendFileSync(file, `${JSON.stringify(outcome)}\n`)
}

/** Runs a scenario on its own system, which is always closed. */
const perform = async (scenario: string, run: (system: System) => Promise<unknown>, env: Variables) => {
  const begun = performance.now()
  const system = await System.open(env)
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${longest / 1000} s`)), longest)
  })
  try {
    await Promise.race([run(system), late])
    const seconds = Math.round((performance.now() - begun) / 1000)
    record({ scenario, seconds, accepted: system.accepted.size, figures: system.figures })
  } catch (error) {
    system.printLogs()
    throw error
  } finally {
    clearTimeout(timer)
    await system.close()
  }
}

type Scenario = (name: string, run: (system: System) => Promise<unknown>, env?: Variables) => void

/**
 * A suite of failure scenarios. Scenarios that break `programs` run at the same time in the short form, because they
 * mostly wait. Scenarios that break `servers` run alone, because all systems use the same servers. `needs` says how many
 * nodes a server must have that the scenarios break; without them the suite belongs to `bun run test:servers` alone.
 */
export const failures = (
  name: string,
  breaks: "servers" | "programs",
  tests: (scenario: Scenario) => void,
  needs: Partial<Readonly<Record<cluster.Server, number>>> = {},
): void => {
  const missing = [sacrificialVariable, "MYSQL_URL"].filter((variable) => !process.env[variable])
  if (missing.length > 0)
    return void test.skip(`${name}: SKIPPED, needs ${missing.join(" and ")} (\`bun run test\` starts servers that may be killed)`, () => {})
  const tooSmall = Object.entries(needs).some(
    ([server, count]) => cluster.nodes(server as cluster.Server).length < count,
  )
  if (tooSmall) return

  describe(name, () => {
    if (breaks === "servers") {
      return tests((title, run, env = {}) =>
        test(
          title,
          () =>
            perform(`${name}: ${title}`, run, env).catch((error) =>
              cluster.mend().then(() => Promise.reject(error)),
            ),
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
            .then(() => perform(`${name}: ${title}`, run, env))
            .finally(nextTurn),
        longest * 20,
      ),
    )
  })
}

/** A scenario that `bun run test test/failures` runs, but not the whole test command. */
export const heavy =
  (scenario: Scenario): Scenario =>
  (...one) => {
    if (!brief) scenario(...one)
  }

/** The same for a suite. */
export const heavyFailures: typeof failures = (...suite) => {
  if (!brief) failures(...suite)
}
