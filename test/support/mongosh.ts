/** Stands in for `mongosh URL --eval CODE` where it is not installed: CODE sees `db` with its collections. */
import { MongoClient } from "mongodb"

const code = process.argv[process.argv.indexOf("--eval") + 1] ?? ""
const client = await MongoClient.connect(process.env.MONGODB_URL ?? "")
const database = client.db(process.env.MONGODB_DATABASE)
const db = new Proxy(database, {
  get: (target, name) => {
    const own: unknown = Reflect.get(target, name)
    return own === undefined
      ? target.collection(String(name))
      : typeof own === "function"
        ? own.bind(target)
        : own
  },
})
const answer: unknown = await new Function("db", `return (async () => (${code}))()`)(db)
console.log(JSON.stringify(answer, null, 2))
await client.close()
