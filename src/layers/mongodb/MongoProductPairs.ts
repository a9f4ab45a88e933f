/** The pairs of products in MongoDB: one document per product in `product_pairs`. */
import { Effect, Layer } from "effect"
import { type AnyBulkWriteOperation, MongoBulkWriteError } from "mongodb"
import { decodePairs, encodePairs } from "../../services/model/Together.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import { ProductEmbeddingsError } from "../../services/ports/ProductEmbeddings.ts"
import { notBegun, type PairProgress, ProductPairs } from "../../services/ports/ProductPairs.ts"
import { duplicateKey, isDuplicateKey, Mongo, refusals } from "./Mongo.ts"
import { names } from "./MongoCollections.ts"

interface PairsDocument {
  readonly _id: string
  readonly upto: number
  readonly pairs: string
}
interface ProgressDocument extends PairProgress {
  readonly _id: typeof progressId
}
const progressId = "progress"

/** Pairs can be counted again from the log, so that no write waits for the journal of a majority. */
const writeConcern = { w: 1, journal: false }

export const make = Effect.map(Mongo, ({ database, failingWith }): ProductPairs["Type"] => {
  const name = names.productPairs
  const documents = database.collection<PairsDocument>(name, { writeConcern })
  const state = database.collection<ProgressDocument>(names.productPairsState)
  const { call } = failingWith(portError(ProductEmbeddingsError))
  return {
    progress: call("find", names.productPairsState, async () => {
      const found = await state.findOne({ _id: progressId }, { projection: { _id: 0 } })
      return found === null ? notBegun : { ...notBegun, ...found }
    }),
    advance: (from, to) =>
      call("update", names.productPairsState, async () => {
        if (from.begunUpTo === 0 && from.countedUpTo === 0)
          await state.insertOne({ _id: progressId, ...notBegun }).catch((error: unknown) => {
            if (!isDuplicateKey(error)) throw error
          })
        const { matchedCount } = await state.updateOne({ _id: progressId, ...from }, { $set: to })
        return matchedCount === 1
      }),
    load: (products, most) =>
      products.length === 0
        ? Effect.succeed(new Map())
        : call("find", name, async () => {
            const found = await documents
              .find({ _id: { $in: [...products] } }, { batchSize: products.length })
              .toArray()
            return new Map(
              found.map(({ _id, pairs, upto }) => [_id, { upTo: upto, pairs: decodePairs(pairs, most) }]),
            )
          }),
    save: (upTo, rows) =>
      rows.length === 0
        ? Effect.void
        : call("bulkWrite", name, async () => {
            const operations = rows.map(
              ({ known, pairs, product_id }): AnyBulkWriteOperation<PairsDocument> => {
                const document = { upto: upTo, pairs: encodePairs(pairs) }
                return known
                  ? {
                      updateOne: {
                        filter: { _id: product_id, upto: { $lt: upTo } },
                        update: { $set: document },
                      },
                    }
                  : { insertOne: { document: { _id: product_id, ...document } } }
              },
            )
            await documents.bulkWrite(operations, { ordered: false }).catch((error: unknown) => {
              // A process that has lost the lease wrote them first, and the same.
              if (!(error instanceof MongoBulkWriteError)) throw error
              refusals(error, [duplicateKey])
            })
          }),
    remove: (products) => call("delete", name, () => documents.deleteMany({ _id: { $in: [...products] } })),
    outdate: call("update", name, () => documents.updateMany({}, { $set: { upto: -1 } })),
    removeBefore: (upTo) => call("delete", name, () => documents.deleteMany({ upto: { $lt: upTo } })),
  }
})

export const layer = Layer.effect(ProductPairs, make)
