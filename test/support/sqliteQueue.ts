/** The queue and the dead letters in one SQLite file that is set up. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Effect, Layer } from "effect"
import * as Sqlite from "../../src/layers/sqlite/Sqlite.ts"
import * as SqliteDeadLetters from "../../src/layers/sqlite/SqliteDeadLetters.ts"
import * as SqliteInteractionQueue from "../../src/layers/sqlite/SqliteInteractionQueue.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"

export const setUp = Layer.effectDiscard(Effect.flatMap(Sqlite.dependency, ({ setup }) => setup))

export const queueIn = (directory: string) =>
  Layer.merge(SqliteInteractionQueue.layer, SqliteDeadLetters.layer).pipe(
    Layer.provide(setUp),
    Layer.provideMerge(Sqlite.layer({ directory })),
    Layer.provide(EmbeddingConfig.layer({})),
  )

/** An empty folder that is removed with the scope. */
export const freshDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "user-embeddings-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true })),
)
