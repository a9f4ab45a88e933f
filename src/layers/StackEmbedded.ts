/** SQLite + local embedder (or OpenAI) → Ports, without servers. */
import { Effect, Layer } from "effect"
import { Dependencies } from "../services/ports/Dependencies.ts"
import * as Embedder from "./embedder/Embedder.ts"
import * as SqlInteractionLog from "./sql/SqlInteractionLog.ts"
import * as SqlProductTally from "./sql/SqlProductTally.ts"
import * as SqlWorkerReports from "./sql/SqlWorkerReports.ts"
import * as Sqlite from "./sqlite/Sqlite.ts"
import * as SqliteDeadLetters from "./sqlite/SqliteDeadLetters.ts"
import * as SqliteEmbeddingFeed from "./sqlite/SqliteEmbeddingFeed.ts"
import * as SqliteInteractionQueue from "./sqlite/SqliteInteractionQueue.ts"
import * as SqlitePhraseEmbeddings from "./sqlite/SqlitePhraseEmbeddings.ts"
import * as SqliteProductEmbeddings from "./sqlite/SqliteProductEmbeddings.ts"
import * as SqliteProductPairs from "./sqlite/SqliteProductPairs.ts"
import * as SqliteUserEmbeddings from "./sqlite/SqliteUserEmbeddings.ts"

const log = Layer.mergeAll(
  SqlInteractionLog.layer(Sqlite.dialect),
  SqlProductTally.layer(Sqlite.dialect),
  SqlWorkerReports.layer(Sqlite.dialect),
)
const queue = Layer.merge(SqliteInteractionQueue.layer, SqliteDeadLetters.layer)
const embeddings = Layer.mergeAll(
  SqliteUserEmbeddings.layer,
  SqliteProductEmbeddings.layer,
  SqliteProductPairs.layer,
  SqlitePhraseEmbeddings.layer,
)

const feed = SqliteEmbeddingFeed.layer

const dependencies = Layer.effect(Dependencies, Effect.all([Sqlite.dependency, Embedder.EmbedderDependency]))

/** With any embedder: see {@link Embedder.of}. */
export const on = <E, R>(embedder: Layer.Layer<Embedder.Embedder, E, R>) =>
  Layer.mergeAll(log, queue, embeddings, feed, dependencies).pipe(
    Layer.provideMerge(embedder),
    Layer.provide(Sqlite.layerConfig),
  )

export const layer = on(Embedder.layerConfig)

/** The databases create themselves when they are opened. */
export const forSetup = layer
