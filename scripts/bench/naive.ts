/**
 * The baseline: a plain first version with the same clients. Every event is inserted, published, confirmed, read,
 * written and acknowledged by itself. Usage: `naive.ts api PORT` and `naive.ts worker`, with the servers in the
 * environment, after `setup`. Vectors are float32, products are in memory, and writes are journaled on a majority.
 * It gives the same guarantees as this project, except exactly-once.
 */
import { connect } from "amqplib"
import { Binary, MongoClient } from "mongodb"
import { createPool } from "mysql2/promise"
import { type EventType, messageId } from "../../src/services/model/Interaction.ts"

const { RABBITMQ_DSN = "", MYSQL_URL = "", MONGODB_URL = "", MONGODB_DATABASE = "" } = process.env
const exchange = "user_events"
const queue = "user_embedding_updates"
const prefetch = 64
const lambda = 0.023
const weights: Record<string, number> = { product_view: 0.3, product_click: 0.5, product_purchase: 1 }

interface Posted {
  readonly user_id: string
  readonly event_type: Exclude<EventType, "search">
  readonly product_id: string
  readonly occurred_at: string
  readonly metadata: object
}

const open = async () => (await connect(RABBITMQ_DSN)).createConfirmChannel()

const api = async (port: number) => {
  const channel = await open()
  const pool = createPool({ uri: MYSQL_URL, connectionLimit: 64, timezone: "Z" })
  const publish = (type: string, body: string, message_id: string) =>
    new Promise<void>((done, failed) => {
      const options = { persistent: true, messageId: message_id, contentType: "application/json" }
      channel.publish(exchange, `user.embedding.${type}`, Buffer.from(body), options, (error) =>
        error ? failed(error) : done(),
      )
    })
  Bun.serve({
    hostname: "127.0.0.1",
    port,
    fetch: async (request) => {
      const posted: Posted = JSON.parse(await request.text())
      const { event_type, metadata, occurred_at, product_id, user_id } = posted
      if (
        !user_id ||
        !product_id ||
        weights[event_type] === undefined ||
        Number.isNaN(Date.parse(occurred_at))
      )
        return Response.json({ error: "invalid" }, { status: 422 })
      const message_id = messageId({ user_id, event_type, product_id, occurred_at, search_phrase: null })
      await pool.execute(
        `INSERT INTO user_interactions (message_id, user_id, event_type, product_id, occurred_at, metadata, created_at)
          VALUES (?, ?, ?, ?, ?, ?, ?)`,
        [
          message_id,
          user_id,
          event_type,
          product_id,
          occurred_at.slice(0, 23).replace("T", " "),
          JSON.stringify(metadata),
          new Date().toISOString().slice(0, 23).replace("T", " "),
        ],
      )
      await publish(event_type, JSON.stringify({ ...posted, message_id, version: "1.0" }), message_id)
      return Response.json({ message_id, user_id, event_type, occurred_at }, { status: 201 })
    },
  })
}

interface UserDocument {
  readonly user_id: string
  readonly embedding: Binary
  readonly mass: number
  readonly last_updated: Date
  readonly event_count: number
  readonly version: number
}

const worker = async () => {
  const mongo = await MongoClient.connect(MONGODB_URL, { writeConcern: { w: "majority", journal: true } })
  const database = mongo.db(MONGODB_DATABASE)
  const users = database.collection<UserDocument>("user_embeddings")
  const products = new Map<string, Float32Array>()
  for await (const { embedding, product_id } of database
    .collection<{ readonly product_id: string; readonly embedding: Binary }>("product_embeddings")
    .find())
    products.set(product_id, embedding.toFloat32Array())

  /** One read, one fold, one write; tries again if another event of the user was written first. */
  const apply = async ({ event_type, occurred_at, product_id, user_id }: Posted): Promise<void> => {
    const vector = products.get(product_id)
    if (vector === undefined) return
    const current = await users.findOne({ user_id })
    const at = Date.parse(occurred_at)
    const last = current?.last_updated.getTime() ?? at
    const keep = (current?.mass ?? 0) * Math.exp((-lambda * Math.max(0, at - last)) / 86_400_000)
    const take = weights[event_type]! * Math.exp((-lambda * Math.max(0, last - at)) / 86_400_000)
    const before = current?.embedding.toFloat32Array() ?? vector
    const sum = new Float64Array(vector.length)
    let squares = 0
    for (let i = 0; i < sum.length; i++) {
      sum[i] = keep * before[i]! + take * vector[i]!
      squares += sum[i]! ** 2
    }
    const mass = Math.sqrt(squares)
    const written = await users
      .updateOne(
        { user_id, version: current?.version ?? 0 },
        {
          $set: {
            embedding: Binary.fromFloat32Array(Float32Array.from(sum, (x) => x / mass)),
            mass,
            last_updated: new Date(Math.max(at, last)),
          },
          $inc: { version: 1, event_count: 1 },
        },
        { upsert: current === null },
      )
      .catch(() => undefined)
    if (!written || written.modifiedCount + written.upsertedCount === 0)
      return apply({ event_type, metadata: {}, occurred_at, product_id, user_id })
  }

  const channel = await open()
  await channel.prefetch(prefetch)
  await channel.consume(queue, async (message) => {
    if (message === null) return
    await apply(JSON.parse(message.content.toString()))
    channel.ack(message)
  })
}

const [part, port] = process.argv.slice(2)
await (part === "api" ? api(Number(port)) : worker())
console.error(`${part}.listening`)
