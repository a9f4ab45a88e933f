/**
 * Creates the users of docs/security.md#least-privilege on the servers of docker-compose.yml, and sets their passwords.
 * Safe to repeat.
 */
import { MongoClient } from "mongodb"
import { createConnection } from "mysql2/promise"

const variable = (name: string): string => {
  const value = process.env[name]
  if (value === undefined) throw new Error(`${name} is not set`)
  return value
}
const database = "user_embeddings"
const names = "user_events|user_embedding_(updates.*|partitions)|user_embeddings.*|failed"
const [runPassword, setupPassword] = [variable("RUN_PASSWORD"), variable("SETUP_PASSWORD")]

const mysql = async () => {
  const { hostname: host, port, username: user } = new URL(variable("MYSQL_URL"))
  const password = variable("MYSQL_ROOT_PASSWORD")
  const admin = await createConnection({ host, port: Number(port), user, password })
  const create = async (user: string, password: string, rights: string) => {
    await admin.query("CREATE USER IF NOT EXISTS ?@'%'", [user])
    await admin.query("ALTER USER ?@'%' IDENTIFIED BY ?", [user, password])
    await admin.query(`GRANT ${rights} ON \`${database}\`.* TO ?@'%'`, [user])
  }
  await create("ue_setup", setupPassword, "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX")
  await create("ue_run", runPassword, "SELECT, INSERT, UPDATE, DELETE")
  await admin.end()
}

const rabbitmq = async () => {
  const admin = `Basic ${btoa(`guest:${variable("RABBITMQ_ADMIN_PASSWORD")}`)}`
  const put = async (path: string, body: object) => {
    const response = await fetch(`${variable("RABBITMQ_MANAGEMENT_URL")}/api${path}`, {
      method: "PUT",
      headers: { authorization: admin, "content-type": "application/json" },
      body: JSON.stringify(body),
    })
    if (!response.ok) throw new Error(`RabbitMQ answers ${response.status} to PUT ${path}`)
  }
  await put("/users/ue_run", { password: runPassword, tags: "policymaker" })
  const configure = `^(${names})$`
  await put("/permissions/%2F/ue_run", { configure, write: `^(amq\\.default|${names})$`, read: configure })
}

const mongodb = async () => {
  const client = await MongoClient.connect(variable("MONGODB_URL"), {
    auth: { username: "root", password: variable("MONGO_ROOT_PASSWORD") },
    authSource: "admin",
  })
  const db = client.db(database)
  const user = { pwd: runPassword, roles: [{ role: "readWrite", db: database }] }
  const { users } = await db.command({ usersInfo: "ue_run" })
  await db.command(users.length === 0 ? { createUser: "ue_run", ...user } : { updateUser: "ue_run", ...user })
  await client.close()
}

await Promise.all([mysql(), rabbitmq(), mongodb()])
console.log("created ue_setup and ue_run")
