/** Copies the embedded database while other processes use it. */
import { Database } from "bun:sqlite"
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs"
import { join } from "node:path"
import { Effect, Schema } from "effect"
import { fileName } from "./Sqlite.ts"

export class NotBackedUp extends Schema.TaggedError<NotBackedUp>()("NotBackedUp", {
  message: Schema.String,
  remedy: Schema.String,
}) {}

export interface Backup {
  readonly file: string
  readonly bytes: number
  /** Rows of the log in the copy. */
  readonly interactions: number
}

/** SQLite itself does not wait until the copy is on disk. */
const sync = (path: string) => {
  const descriptor = openSync(path, "r")
  fsyncSync(descriptor)
  closeSync(descriptor)
}

const inDatabase = <A>(file: string, run: (database: Database) => A): A => {
  const database = new Database(file, { readwrite: true, create: false, strict: true })
  try {
    return run(database)
  } finally {
    database.close()
  }
}

/** Only the owner may read what users searched for. */
const copy = (from: string, unfinished: string) => {
  rmSync(unfinished, { force: true })
  // SQLite writes into an empty file, which keeps its permissions.
  closeSync(openSync(unfinished, "w", 0o600))
  inDatabase(from, (database) => database.run("VACUUM INTO ?", [unfinished]))
}

const check = (file: string): Pick<Backup, "interactions"> =>
  inDatabase(file, (database) => {
    const found = database.query<{ readonly quick_check: string }, []>("PRAGMA quick_check").get()
    if (found?.quick_check !== "ok") throw new Error(`the copy is damaged: ${found?.quick_check}`)
    const rows = database.query<{ readonly rows: number }, []>(
      "SELECT COUNT(*) AS rows FROM user_interactions",
    )
    return { interactions: rows.get()?.rows ?? 0 }
  })

/**
 * One consistent state: that of the moment when it begins. Writers go on meanwhile, because the database is in WAL mode.
 * The copy has its name only when it is complete and checked. `to` becomes a data folder.
 */
export const backup = (dataFolder: string, to: string): Effect.Effect<Backup, NotBackedUp> =>
  Effect.suspend(() => {
    const [from, file] = [join(dataFolder, fileName), join(to, fileName)]
    if (!existsSync(from))
      return new NotBackedUp({
        message: `there is no database at ${from}`,
        remedy: "set DATA_DIR to the folder of the system that is to be backed up",
      })
    if (existsSync(file))
      return new NotBackedUp({
        message: `${file} exists already`,
        remedy: "name a new folder for each backup, such as backups/$(date +%F)",
      })
    const unfinished = `${file}.partial`
    return Effect.try({
      try: (): Backup => {
        if (!existsSync(to)) mkdirSync(to, { recursive: true, mode: 0o700 })
        copy(from, unfinished)
        const checked = check(unfinished)
        chmodSync(unfinished, 0o600)
        sync(unfinished)
        renameSync(unfinished, file)
        sync(to)
        return { file, bytes: statSync(file).size, ...checked }
      },
      catch: (cause) => {
        rmSync(unfinished, { force: true })
        return new NotBackedUp({
          message: `cannot write ${file}: ${cause instanceof Error ? cause.message : String(cause)}`,
          remedy: "check that the folder may be written to and has room for the database",
        })
      },
    })
  })
