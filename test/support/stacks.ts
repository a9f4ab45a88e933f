/** Both stacks as layers for tests: the embedded stack in its own folder, the external stack on new databases. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { ConfigProvider, Effect, Layer, Logger, LogLevel } from "effect"
import * as Stack from "../../src/layers/Stack.ts"
import * as Provision from "../../src/programs/tasks/ProvisionServers.ts"
import { freshMongo, freshMysql, freshRabbit } from "./servers.ts"

type Variables = Readonly<Record<string, string>>

/** Logs errors only. */
export const quiet = Logger.minimumLogLevel(LogLevel.Error)

/** Configuration from these variables only. */
export const variables = (values: Variables) =>
  Layer.setConfigProvider(ConfigProvider.fromMap(new Map(Object.entries(values))))

/** Rounds follow each other sooner than by default, because most tests wait for single events. */
const intervals = { COMMIT_INTERVAL: "1", PUBLISH_INTERVAL: "2", MARK_INTERVAL: "50", WORKER_INTERVAL: "5" }

const ready = Stack.layer.pipe(Layer.tap((ports) => Effect.provide(Provision.setup, ports)))

const withVariables = <E, R>(
  acquire: Effect.Effect<{ readonly values: Variables; readonly drop: () => Promise<unknown> }, E, R>,
) =>
  Layer.unwrapScoped(
    Effect.acquireRelease(acquire, ({ drop }) => Effect.promise(drop)).pipe(
      Effect.map(({ values }) => Layer.provideMerge(ready, variables(values))),
    ),
  ).pipe(Layer.provideMerge(quiet))

/** SQLite in a folder that is deleted with the layer. */
export const embedded = (extra: Variables = {}) =>
  withVariables(
    Effect.sync(() => {
      const folder = mkdtempSync(join(tmpdir(), "user-embeddings-"))
      return {
        values: { DATA_DIR: folder, ...intervals, ...extra },
        drop: async () => rmSync(folder, { recursive: true, force: true }),
      }
    }),
  )

/** The real servers: a virtual host, a MySQL database and a MongoDB database that are deleted with the layer. */
export const external = (extra: Variables = {}) =>
  withVariables(
    Effect.promise(async () => {
      const [rabbit, mysql] = await Promise.all([freshRabbit(), freshMysql()])
      const mongo = freshMongo()
      return {
        values: {
          RABBITMQ_DSN: rabbit.dsn,
          ...(process.env.RABBITMQ_MANAGEMENT_URL && {
            RABBITMQ_MANAGEMENT_URL: process.env.RABBITMQ_MANAGEMENT_URL,
          }),
          MYSQL_URL: mysql.url,
          MONGODB_URL: mongo.url,
          MONGODB_DATABASE: mongo.database,
          ...intervals,
          ...extra,
        },
        drop: () => Promise.all([rabbit.drop(), mysql.drop(), mongo.drop()]),
      }
    }),
  )
