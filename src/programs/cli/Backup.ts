/** `backup`: copies the embedded stack while it runs. */
import { Options } from "@effect/cli"
import { Effect, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as SqliteBackup from "../../layers/sqlite/SqliteBackup.ts"
import * as Settings from "../../services/Settings.ts"
import { json, print } from "./support/Output.ts"
import { figure } from "./support/Progress.ts"
import { BadUsage, command, maybe } from "./support/Usage.ts"

export const backup = command(
  "backup",
  "Copies the database of the embedded stack while it is in use, all of one moment; the folder is a DATA_DIR to restore from",
  {
    to: maybe(Options.text("to"), "Folder for the copy, without a database in it"),
    json,
  },
  ({ json, to }) =>
    Effect.gen(function* () {
      if (Option.isNone(to))
        return yield* new BadUsage({ message: "give --to, as in backup --to backups/monday" })
      if ((yield* Stack.kind) === "external")
        return yield* new SqliteBackup.NotBackedUp({
          message: "backup is for the embedded stack; here RABBITMQ_DSN, MYSQL_URL and MONGODB_URL are set",
          remedy: "back up MySQL and MongoDB with their own tools: docs/deployment.md#backups-and-restore",
        })
      const made = yield* SqliteBackup.backup(yield* Settings.DATA_DIR, to.value)
      yield* print(json, made, ({ bytes, file, interactions }) =>
        [
          `${figure(interactions)} events, ${figure(Math.ceil(bytes / 1_000))} kB → ${file}`,
          `To restore: DATA_DIR=${to.value} user-embeddings up`,
        ].join("\n"),
      )
    }),
)
