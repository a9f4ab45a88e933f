/** For processes that use the stack of a test. */
import { Database } from "bun:sqlite"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { join } from "node:path"
import { Config, Effect, Option } from "effect"
import { fileName } from "../../src/layers/sqlite/Sqlite.ts"
import { drained } from "./pipeline.ts"

const names = ["DATA_DIR", "RABBITMQ_DSN", "MYSQL_URL", "MONGODB_URL", "MONGODB_DATABASE"]
/** The environment of such a process. */
export const readVariables = Effect.map(
  Effect.forEach(names, (name) => Config.option(Config.string(name))),
  (values): Record<string, string> =>
    Object.fromEntries(
      names.flatMap((name, index) =>
        Option.match(values[index]!, { onNone: () => [], onSome: (value) => [[name, value]] }),
      ),
    ),
)

/** On SQLite a dead process keeps its messages until its lease ends, 10 s later. */
export const endLeases = (env: Record<string, string>) => {
  if (env.DATA_DIR === undefined) return
  const database = new Database(join(env.DATA_DIR, fileName))
  database.run("PRAGMA busy_timeout = 5000")
  database.run("UPDATE queue_consumers SET lease_until = 0")
  database.close()
}

/** A worker that dies at this step; answers whether it did, or took no such step and stopped in order. */
export const mortalWorker = (program: string, env: Record<string, string>, step: number) =>
  Effect.gen(function* () {
    const child = spawn(process.execPath, [program], {
      env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env, DIE_AT: String(step) },
      stdio: "ignore",
    })
    const exit = Effect.promise(() => once(child, "exit"))
    const [, signal] = yield* Effect.race(
      exit,
      Effect.flatMap(drained, () => {
        child.kill("SIGTERM")
        return exit
      }),
    )
    endLeases(env)
    return signal === "SIGKILL"
  })
