/**
 * Replaces `mongosh ADDRESS --eval CODE` where it is not installed. CODE sees `db` with its collections. Their functions
 * work as in mongosh: `find` takes a filter and a projection, and a cursor is printed.
 */
import { type Document, type Filter, MongoClient } from "mongodb"

const code = process.argv[process.argv.indexOf("--eval") + 1] ?? ""
const client = await MongoClient.connect(process.env.MONGODB_URL ?? "")
const database = client.db(process.env.MONGODB_DATABASE)

const collection = (name: string) => {
  const target = database.collection(name)
  return {
    countDocuments: (filter: Filter<Document>) => target.countDocuments(filter),
    aggregate: (stages: Array<Document>) => target.aggregate(stages),
    find: (filter: Filter<Document>, projection: Document) => target.find(filter, { projection }),
  }
}
const db = new Proxy({}, { get: (_, name) => collection(String(name)) })
const answer = await new Function("db", `return (async () => (${code}))()`)(db)
const printed = typeof answer?.toArray === "function" ? await answer.toArray() : answer
if (printed === undefined || (Array.isArray(printed) && printed.length === 0))
  throw new Error("nothing to print")
console.log(JSON.stringify(printed, null, 2))
await client.close()
