/** MongoDB for tests: the client on a database of its own, set up. */
import { Effect, Layer, Redacted } from "effect"
import * as Mongo from "../../src/layers/mongodb/Mongo.ts"
import { freshMongo } from "./servers.ts"

/** The client on a database that is new and empty. */
export const emptyMongo = (url?: string) =>
  Layer.unwrapScoped(
    Effect.map(
      Effect.acquireRelease(Effect.sync(freshMongo), ({ drop }) => Effect.promise(drop)),
      (fresh) => Mongo.layer({ url: Redacted.make(url ?? fresh.url), database: fresh.database }),
    ),
  )

/** The client on a database with its collections. */
export const preparedMongo = () =>
  Layer.effectDiscard(Effect.flatMap(Mongo.dependency, ({ setup }) => setup)).pipe(
    Layer.provideMerge(emptyMongo()),
  )
