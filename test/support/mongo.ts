/** MongoDB for tests: a client on a new database. */
import { Effect, Layer, Redacted } from "effect"
import * as Mongo from "../../src/layers/mongodb/Mongo.ts"
import { freshMongo } from "./servers.ts"

/** A client on a new, empty database. */
export const emptyMongo = (url?: string) =>
  Layer.unwrapScoped(
    Effect.map(
      Effect.acquireRelease(Effect.sync(freshMongo), ({ drop }) => Effect.promise(drop)),
      (fresh) => Mongo.layer({ url: Redacted.make(url ?? fresh.url), database: fresh.database }),
    ),
  )

/** A client on a new database with its collections. */
export const preparedMongo = () =>
  Layer.effectDiscard(Effect.flatMap(Mongo.dependency, ({ setup }) => setup)).pipe(
    Layer.provideMerge(emptyMongo()),
  )
