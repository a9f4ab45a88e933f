/** MySQL + RabbitMQ + MongoDB + OpenAI (or the local embedder) → Ports. */
import { Effect, Layer } from "effect"
import { Dependencies } from "../services/Dependencies.ts"
import * as Embedder from "./Embedder.ts"
import * as Mongo from "./Mongo.ts"
import * as MongoPhraseEmbeddings from "./MongoPhraseEmbeddings.ts"
import * as MongoProductEmbeddings from "./MongoProductEmbeddings.ts"
import * as MongoUserEmbeddings from "./MongoUserEmbeddings.ts"
import * as Mysql from "./Mysql.ts"
import * as Rabbit from "./Rabbit.ts"
import * as RabbitDeadLetters from "./RabbitDeadLetters.ts"
import * as RabbitInteractionQueue from "./RabbitInteractionQueue.ts"
import * as RabbitTopology from "./RabbitTopology.ts"
import * as SqlInteractionLog from "./SqlInteractionLog.ts"

const log = SqlInteractionLog.layer
const queue = Layer.merge(RabbitInteractionQueue.layer, RabbitDeadLetters.layer)
const embeddings = Layer.mergeAll(
  MongoUserEmbeddings.layerConfig,
  MongoProductEmbeddings.layerConfig,
  MongoPhraseEmbeddings.layer,
)

const dependencies = Layer.effect(
  Dependencies,
  Effect.all([Mysql.dependency, RabbitTopology.dependency, Mongo.dependency, Embedder.EmbedderDependency]),
)

const servers = [Mysql.layerConfig, Rabbit.layerConfig, Mongo.layerConfig] as const

/** With an embedder of one's own: {@link Embedder.of}. */
export const on = <E, R>(embedder: Layer.Layer<Embedder.Embedder, E, R>) =>
  Layer.mergeAll(log, queue, embeddings, dependencies).pipe(
    Layer.provideMerge(embedder),
    Layer.provide([...servers]),
  )

export const layer = on(Embedder.layerConfig)

/** Without the queue, whose publisher declares what is missing as soon as it is connected. */
export const looking = Layer.mergeAll(RabbitDeadLetters.layer, embeddings, dependencies).pipe(
  Layer.provideMerge(Embedder.layerConfig),
  Layer.provide([...servers]),
)
