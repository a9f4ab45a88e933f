/** Describes the machine on which the figures were measured. */
import { readFileSync } from "node:fs"
import { availableParallelism, cpus, release, totalmem } from "node:os"
import { connect } from "amqplib"
import { MongoClient } from "mongodb"
import { createConnection } from "mysql2/promise"
import manifest from "../../package.json" with { type: "json" }
import type { Env } from "./arena.ts"

const versions = async ({ MONGODB_URL = "", MYSQL_URL = "", RABBITMQ_DSN = "" }: Env) => {
  const mysql = await createConnection(MYSQL_URL)
  const [rows] = await mysql.query("SELECT VERSION() AS version")
  await mysql.end()
  const mongo = await MongoClient.connect(MONGODB_URL)
  const { version } = await mongo.db().admin().buildInfo()
  await mongo.close()
  const rabbit = await connect(RABBITMQ_DSN)
  const { server } = Object(rabbit.connection).serverProperties ?? {}
  const properties = Object(Object(rabbit.connection).serverProperties)
  await rabbit.close()
  return {
    MySQL: String(Object([rows].flat()[0]).version),
    MongoDB: String(version),
    RabbitMQ: String(properties.version ?? server ?? "unknown"),
  }
}

export const cores = availableParallelism()

export const machine = async (servers: Env) => ({
  processor: cpus()[0]?.model.trim() ?? "unknown",
  cores,
  "memory in GiB": Math.round(totalmem() / 2 ** 30),
  kernel: release(),
  "load before": readFileSync("/proc/loadavg", "utf8").split(" ").slice(0, 3).join(" "),
  Bun: Bun.version,
  "user-embeddings": manifest.version,
  ...(await versions(servers)),
})
