/** MySQL + RabbitMQ + MongoDB + OpenAI (or the local embedder) → Ports. */
import { Effect, Layer } from "effect"
import { Dependencies } from "../services/ports/Dependencies.ts"
import { announcing } from "../services/update/AnnouncedEmbeddings.ts"
import * as Embedder from "./embedder/Embedder.ts"
import * as Mongo from "./mongodb/Mongo.ts"
import * as MongoPhraseEmbeddings from "./mongodb/MongoPhraseEmbeddings.ts"
import * as MongoProductEmbeddings from "./mongodb/MongoProductEmbeddings.ts"
import * as MongoProductPairs from "./mongodb/MongoProductPairs.ts"
import * as MongoUserEmbeddings from "./mongodb/MongoUserEmbeddings.ts"
import * as Rabbit from "./rabbitmq/Rabbit.ts"
import * as RabbitDeadLetters from "./rabbitmq/RabbitDeadLetters.ts"
import * as RabbitDependency from "./rabbitmq/RabbitDependency.ts"
import * as RabbitEmbeddingFeed from "./rabbitmq/RabbitEmbeddingFeed.ts"
import * as RabbitInteractionQueue from "./rabbitmq/RabbitInteractionQueue.ts"
import * as Mysql from "./sql/Mysql.ts"
import * as SqlInteractionLog from "./sql/SqlInteractionLog.ts"
import * as SqlProductTally from "./sql/SqlProductTally.ts"
import * as SqlWorkerReports from "./sql/SqlWorkerReports.ts"

const log = Layer.mergeAll(
  SqlInteractionLog.layer(Mysql.dialect),
  SqlProductTally.layer(Mysql.dialect),
  SqlWorkerReports.layer(Mysql.dialect),
)
const queue = Layer.merge(RabbitInteractionQueue.layer, RabbitDeadLetters.layer)
const products = Layer.mergeAll(
  MongoProductEmbeddings.layerConfig,
  MongoProductPairs.layer,
  MongoPhraseEmbeddings.layer,
)
const users = announcing(MongoUserEmbeddings.layerConfig).pipe(Layer.provideMerge(RabbitEmbeddingFeed.layer))

const dependencies = Layer.effect(
  Dependencies,
  Effect.all([Mysql.dependency, RabbitDependency.dependency, Mongo.dependency, Embedder.EmbedderDependency]),
)

const servers = [Mysql.layerConfig, Rabbit.layerConfig, Mongo.layerConfig] as const

/** With any embedder: see {@link Embedder.of}. */
export const on = <E, R>(embedder: Layer.Layer<Embedder.Embedder, E, R>) =>
  Layer.mergeAll(log, queue, users, products, dependencies).pipe(
    Layer.provideMerge(embedder),
    Layer.provide([...servers]),
  )

export const layer = on(Embedder.layerConfig)

/** Without the queue and the feed, whose publishers create what is missing as soon as they are connected. */
export const forSetup = Layer.mergeAll(
  RabbitDeadLetters.layer,
  MongoUserEmbeddings.layerConfig,
  products,
  dependencies,
).pipe(Layer.provideMerge(Embedder.layerConfig), Layer.provide([...servers]))
