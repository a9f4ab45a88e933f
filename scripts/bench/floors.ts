/**
 * What each stage costs by itself, with the same clients, servers, bodies and guarantees. No event can cost less than
 * their sum. A write is counted per document; the pipeline suite measures how many events share a document's write.
 */
import { connect } from "amqplib"
import { Array as Arr } from "effect"
import { Binary, MongoClient } from "mongodb"
import { createPool } from "mysql2/promise"
import * as AppliedIds from "../../src/services/model/AppliedIds.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import * as Vector from "../../src/services/model/Vector.ts"
import { type Arena, dimensions, type Env } from "./arena.ts"
import { startMeter } from "./cpu.ts"
import { event, interaction, productVector } from "./events.ts"
import { perEvent, type Run } from "./figures.ts"
import { type Sequence, serverMeter, users } from "./pipeline.ts"

/** A stage, and the number of events in one run of it. */
export interface Floor {
  readonly name: string
  readonly events: number
  readonly run: (events: number) => Promise<Run>
}

const rowsPerInsert = 100
const window = 1_000
const ackEvery = 500
const documentsPerWrite = 100
const writesAtOnce = 2
/** Interactions in a message batch. */
export const eventsPerMessage = 100
/** Events that share a normalisation. */
const eventsPerFold = 4

/** Runs work in this process and counts its CPU as the client's. */
export const measured = async (
  events: number,
  meter: Readonly<Record<string, ReadonlyArray<number>>>,
  work: () => Promise<void> | void,
): Promise<Run> => {
  const used = startMeter(meter)
  const before = process.cpuUsage()
  const started = performance.now()
  await work()
  const seconds = (performance.now() - started) / 1000
  const { system, user } = process.cpuUsage(before)
  return { eventsPerSecond: events / seconds, cpu: perEvent({ client: user + system, ...used() }, events) }
}

export const floors = async (arena: Arena, next: Sequence): Promise<ReadonlyArray<Floor>> => {
  const env: Env = await arena.place("floors")
  const { mongod, mysqld, rabbitmq } = await serverMeter(arena.servers)
  const echo = await arena.own(env, "echo.ts", "echo")
  const url = `http://127.0.0.1:${echo.port}`

  const http = (connections: number, perRequest: number) => async (events: number) => {
    const used = startMeter({ server: [echo.pid] })
    const seen = await arena.load({ url, range: next(events), rate: null, connections, perRequest })
    return {
      eventsPerSecond: events / seen.seconds,
      cpu: { load: seen.cpu / events, ...perEvent(used(), events) },
    }
  }

  const pool = createPool({ uri: env.MYSQL_URL ?? "", connectionLimit: 1, timezone: "Z" })
  const columns = "message_id, user_id, event_type, product_id, occurred_at, metadata, created_at"
  const insertSql = `INSERT INTO user_interactions (${columns}) VALUES ${Array.from({ length: rowsPerInsert }, () => "(?, ?, ?, ?, ?, ?, ?)").join(", ")}`
  const insert = (events: number) => {
    const range = next(events)
    const rows = Array.from({ length: events }, (_, i) => {
      const one = interaction(event(range, range.from + i))
      const at = one.occurred_at.slice(0, 23).replace("T", " ")
      return [
        one.message_id,
        one.user_id,
        one.event_type,
        one.product_id,
        at,
        JSON.stringify(one.metadata),
        at,
      ]
    })
    return measured(events, { mysqld }, async () => {
      for (let from = 0; from < events; from += rowsPerInsert)
        await pool.execute(insertSql, rows.slice(from, from + rowsPerInsert).flat())
    })
  }

  const connection = await connect(env.RABBITMQ_DSN ?? "")
  const channel = await connection.createConfirmChannel()
  const publish = (perMessage: number) => (events: number) => {
    const range = next(events)
    const lines = Array.from({ length: events }, (_, i) =>
      encodeMessage(interaction(event(range, range.from + i))),
    )
    const bodies = Arr.chunksOf(lines, perMessage)
    return measured(
      events,
      { rabbitmq },
      () =>
        new Promise((done) => {
          let sent = 0
          let confirmed = 0
          const more = () => {
            while (sent < bodies.length && sent - confirmed < window)
              channel.publish(
                "user_events",
                "user.embedding.product_view",
                Buffer.concat(bodies[sent++]!),
                { persistent: true, contentType: "application/json" },
                () => {
                  confirmed += 1
                  if (confirmed === bodies.length) done()
                  else more()
                },
              )
          }
          more()
        }),
    )
  }
  /** Consumes what the publish stage has published. */
  const consume = (perMessage: number) => (events: number) =>
    measured(events, { rabbitmq }, async () => {
      const consuming = await connection.createChannel()
      await consuming.prefetch(window)
      await new Promise<void>((done) => {
        let received = 0
        void consuming.consume("user_embedding_updates", (message) => {
          if (message === null) return
          received += perMessage
          if (received % ackEvery === 0 || received >= events) consuming.ack(message, true)
          if (received >= events) done()
        })
      })
      await consuming.close()
    })
  const parse = (events: number) => {
    const range = next(1)
    const body = Buffer.from(encodeMessage(interaction(event(range, range.from))))
    return measured(events, {}, () => {
      for (let i = 0; i < events; i++) JSON.parse(body.toString())
    })
  }
  const vectors = Array.from({ length: 64 }, (_, i) => Vector.normalise(productVector(i, dimensions)))
  const fold = (events: number) =>
    measured(events, {}, () => {
      const sum = new Float64Array(dimensions)
      for (let i = 0; i < events; i++) {
        Vector.addScaled(sum, 0.5, vectors[i % 64]!)
        if (i % eventsPerFold === 0) Vector.divide(sum, Vector.norm(sum))
      }
    })

  const mongo = await MongoClient.connect(env.MONGODB_URL ?? "", {
    writeConcern: { w: "majority", journal: true },
  })
  const documents = mongo.db(env.MONGODB_DATABASE).collection<{ readonly _id: string }>("floor")
  await documents.createIndex({ user_id: 1 }, { unique: true })
  const ids = AppliedIds.append(
    AppliedIds.none,
    Array.from({ length: AppliedIds.keptIds }, (_, i) => interaction(event(next(1), i)).message_id),
  ).kept
  const document = (user: number, version: number) => ({
    _id: `user-${user}`,
    user_id: `user-${user}`,
    version,
    embedding: Binary.fromFloat32Array(vectors[user % 64]!),
    applied: new Binary(ids),
  })
  await documents.insertMany(Array.from({ length: users }, (_, user) => document(user, 0)))
  let version = 0
  const writeSome = (from: number) =>
    documents.bulkWrite(
      Array.from({ length: documentsPerWrite }, (_, i) => ({
        updateOne: {
          filter: { _id: `user-${from + i}` },
          update: [
            {
              $replaceWith: {
                $cond: [
                  { $eq: ["$version", version] },
                  { $literal: document(from + i, version + 1) },
                  "$$ROOT",
                ],
              },
            },
          ],
        },
      })),
      { ordered: false },
    )
  /** Writes every user's document in turn, as a worker does if the records are in its cache. */
  const write = (count: number) =>
    measured(count, { mongod }, async () => {
      for (let written = 0; written < count; written += users, version += 1)
        for (let from = 0; from < users; from += writesAtOnce * documentsPerWrite)
          await Promise.all(
            Array.from({ length: writesAtOnce }, (_, i) => writeSome(from + i * documentsPerWrite)),
          )
    })

  return [
    { name: "HTTP echo", events: 20_000, run: http(256, 1) },
    { name: "HTTP echo, 100 events a request", events: 40_000, run: http(8, 100) },
    { name: `INSERT of ${rowsPerInsert} rows`, events: 20_000, run: insert },
    { name: `publish, window ${window}`, events: 20_000, run: publish(1) },
    { name: `consume, one ack for ${ackEvery}`, events: 20_000, run: consume(1) },
    { name: `publish batches of ${eventsPerMessage}`, events: 40_000, run: publish(eventsPerMessage) },
    { name: `consume batches of ${eventsPerMessage}`, events: 40_000, run: consume(eventsPerMessage) },
    { name: "JSON.parse", events: 100_000, run: parse },
    { name: "fold", events: 50_000, run: fold },
    { name: `write of ${documentsPerWrite} documents`, events: 4_000, run: write },
  ]
}
