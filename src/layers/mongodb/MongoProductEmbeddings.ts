/** Product embeddings in MongoDB: one document per product in `product_embeddings`. */
import { Chunk, Clock, Effect, Layer, Option, Schema, Stream } from "effect"
import { type Collection, MongoServerError } from "mongodb"
import { ProductId } from "../../services/model/Interaction.ts"
import * as Vector from "../../services/model/Vector.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import {
  type Neighbour,
  NoVectorIndex,
  type ProductEmbedding,
  ProductEmbeddings,
  ProductEmbeddingsError,
  type StampSum,
  type StoredProduct,
  stampModulus,
} from "../../services/ports/ProductEmbeddings.ts"
import { insertTopK, moreSimilar } from "../../services/recommend/TopK.ts"
import * as Settings from "../../services/Settings.ts"
import {
  type Calls,
  decodeEach,
  fromStored,
  Mongo,
  type Storage,
  type StoredVector,
  toDouble,
  toStored,
} from "./Mongo.ts"
import { names } from "./MongoCollections.ts"

/** As this program writes it. Other programs may write products too, in any form. */
interface ProductDocument extends Omit<ProductEmbedding, "embedding"> {
  readonly embedding: StoredVector
  readonly dimension_count: number
  readonly created_at: Date
  readonly updated_at: Date
}
type FoundDocument = { readonly [Field in keyof ProductDocument]?: unknown }

const textOrNull = (value: unknown): string | null => (typeof value === "string" ? value : null)
/** 0 for a date that JavaScript cannot express, which would make every comparison of stamps differ. */
const millisOf = (value: unknown): number => {
  const millis = value instanceof Date ? value.getTime() : 0
  return Number.isNaN(millis) ? 0 : millis
}
const isId = Schema.is(ProductId)
const toId = (value: unknown): ProductId => {
  if (!isId(value)) throw new TypeError("no event can name this product")
  return value
}

const toDescription = ({ category, product_id, product_name }: FoundDocument) => ({
  product_id: toId(product_id),
  product_name: textOrNull(product_name),
  category: textOrNull(category),
})
const toStamp = ({ product_id, updated_at }: FoundDocument) => ({
  product_id: toId(product_id),
  updated_at: millisOf(updated_at),
})
const toProduct = (document: FoundDocument): StoredProduct => ({
  ...toDescription(document),
  embedding: fromStored(document.embedding),
  space: textOrNull(document.space) ?? "",
  text: textOrNull(document.text),
  updated_at: millisOf(document.updated_at),
})

const toProblem = ({ embedding, product_id }: FoundDocument, dimensions: number) => {
  if (!isId(product_id))
    return { product_id: JSON.stringify(product_id) ?? "none", detail: "has an id that no event can name" }
  const detail = Vector.problem(fromStored(embedding), dimensions)
  return detail === undefined ? undefined : { product_id, detail: `has a vector that ${detail}` }
}

/** Each product once. A later one replaces an earlier one, as if they were written one by one. */
const merge = (products: ReadonlyArray<ProductEmbedding>): Map<ProductId, ProductEmbedding> => {
  const merged = new Map<ProductId, ProductEmbedding>()
  for (const product of products) {
    const earlier = merged.get(product.product_id)
    merged.set(product.product_id, {
      ...product,
      product_name: product.product_name ?? earlier?.product_name ?? null,
      category: product.category ?? earlier?.category ?? null,
    })
  }
  return merged
}

const upsertOne = (product: ProductEmbedding, storage: Storage, now: Date) => {
  const { product_id, product_name, category, space, text, embedding } = product
  const known = { ...(product_name !== null && { product_name }), ...(category !== null && { category }) }
  const unknown = { ...(product_name === null && { product_name }), ...(category === null && { category }) }
  return {
    updateOne: {
      filter: { product_id },
      update: {
        $set: {
          embedding: toStored(embedding, storage),
          dimension_count: embedding.length,
          ...known,
          space,
          text,
          updated_at: now,
        },
        $setOnInsert: { ...unknown, created_at: now },
      },
      upsert: true,
    },
  }
}

/** With these fields alone, the server reads an index instead of documents. */
const stampFields = { _id: 0, product_id: 1, updated_at: 1 }
const stampOrZero = {
  $cond: [
    { $eq: [{ $type: "$updated_at" }, "date"] },
    { $mod: [{ $toLong: "$updated_at" }, stampModulus] },
    0,
  ],
}
/** About 600 KB: short enough to decode between two requests. */
const stampsPerBatch = 10_000

interface Store extends Calls<ProductEmbeddingsError> {
  readonly products: Collection<ProductDocument>
  readonly storage: Storage
}
const name = names.productEmbeddings

const load = ({ call, products }: Store, wanted: ReadonlyArray<ProductId>, space: string) =>
  call("find", name, async () => {
    const found = await products
      .find(
        { product_id: { $in: [...wanted] }, space },
        { projection: { _id: 0, product_id: 1, embedding: 1 }, batchSize: wanted.length },
      )
      .toArray()
    return new Map(found.map(({ product_id, embedding }) => [product_id, fromStored(embedding)]))
  })

const knownSince = ({ call, products }: Store, wanted: ReadonlyArray<ProductId>, space: string) =>
  call("find", name, async () => {
    const found = await products
      .find<{ readonly product_id: ProductId; readonly created_at?: unknown }>(
        { product_id: { $in: [...wanted] }, space },
        { projection: { _id: 0, product_id: 1, created_at: 1 }, batchSize: wanted.length },
      )
      .toArray()
    return new Map(found.map(({ created_at, product_id }) => [product_id, millisOf(created_at)]))
  })

const texts = ({ call, products }: Store, wanted: ReadonlyArray<ProductId>, space: string) =>
  call("find", name, async () => {
    const found = await products
      .find<Pick<ProductEmbedding, "product_id" | "text">>(
        { product_id: { $in: [...wanted] }, space },
        { projection: { _id: 0, product_id: 1, text: 1 }, batchSize: wanted.length },
      )
      .toArray()
    return new Map(
      found.flatMap(({ product_id, text }) =>
        typeof text === "string" ? [[product_id, text] as const] : [],
      ),
    )
  })

const upsert = ({ call, products, storage }: Store, given: ReadonlyArray<ProductEmbedding>) =>
  Effect.gen(function* () {
    const now = new Date(yield* Clock.currentTimeMillis)
    const merged = [...merge(given).values()]
    const { upsertedIds } = yield* call("bulkWrite", name, () =>
      products.bulkWrite(
        merged.map((product) => upsertOne(product, storage, now)),
        { ordered: false },
      ),
    )
    const created = new Set(
      merged.filter((_, index) => index in upsertedIds).map(({ product_id }) => product_id),
    )
    // If a product occurs twice, only the first is new.
    return given.map(({ product_id }) => created.delete(product_id))
  })

const describe = ({ call, products }: Store, ids: ReadonlyArray<ProductId>) =>
  call("find", name, async () => {
    const projection = { _id: 0, product_id: 1, product_name: 1, category: 1 }
    const found = await products
      .find<FoundDocument>({ product_id: { $in: [...ids] } }, { projection })
      .toArray()
    const described = decodeEach(name, found, toDescription)
    return new Map(described.map((product) => [product.product_id, product]))
  })

/** Compares with all products of the space. */
const nearest = (store: Store, vector: Float32Array, space: string, limit: number) =>
  Effect.gen(function* () {
    const norm = Vector.norm(vector)
    const best: Array<Pick<Neighbour, "product_id" | "similarity">> = []
    const projection = { _id: 0, product_id: 1, embedding: 1 }
    yield* store
      .stream(name, () => store.products.find({ space }, { projection, batchSize: 1000 }))
      .pipe(
        Stream.runForEachChunk((batch) =>
          Effect.sync(() => {
            for (const document of batch) {
              if (toProblem(document, vector.length) !== undefined) continue
              const embedding = fromStored(document.embedding)
              const norms = norm * Vector.norm(embedding)
              const similarity = norms === 0 ? 0 : Vector.dot(vector, embedding) / norms
              insertTopK(best, limit, { product_id: document.product_id, similarity }, moreSimilar)
            }
          }),
        ),
      )
    const described = yield* describe(
      store,
      best.map(({ product_id }) => product_id),
    )
    return best.map(
      ({ product_id, similarity }): Neighbour => ({
        ...(described.get(product_id) ?? { product_id, product_name: null, category: null }),
        similarity,
      }),
    )
  })

/** A server without vector search refuses the stage. With vector search, but without the index, it finds nothing. */
const searchIndex = (
  { call, products }: Store,
  vector: Float32Array,
  { category, limit, space }: Parameters<ProductEmbeddings["Type"]["indexed"]>[1],
) =>
  call("aggregate", name, () =>
    products
      .aggregate<FoundDocument>([
        {
          $vectorSearch: {
            index: names.productVectors,
            path: "embedding",
            queryVector: Array.from(vector, toDouble),
            numCandidates: Math.min(10_000, 10 * limit),
            limit,
            filter: { space, ...(category !== undefined && { category }) },
          },
        },
      ])
      .toArray(),
  ).pipe(
    Effect.catchIf(
      ({ cause, reason }) => reason === "rejected" && cause instanceof MongoServerError,
      ({ message }) => new NoVectorIndex({ detail: message }),
    ),
    Effect.map((found) => decodeEach(name, found, toProduct)),
    Effect.filterOrFail(
      (found) => found.length > 0 || category !== undefined,
      () => new NoVectorIndex({ detail: `the index ${names.productVectors} is missing or empty` }),
    ),
  )

const decoded = <A, E>(documents: Stream.Stream<FoundDocument, E>, decode: (document: FoundDocument) => A) =>
  Stream.mapChunks(documents, (chunk) => Chunk.unsafeFromArray(decodeEach(name, chunk, decode)))

export const make = (options: { readonly storage: Storage }) =>
  Effect.map(Mongo, ({ database, failingWith }): ProductEmbeddings["Type"] => {
    const products = database.collection<ProductDocument>(name)
    const { call, stream } = failingWith(portError(ProductEmbeddingsError))
    const store: Store = { call, stream, products, storage: options.storage }
    return {
      load: (wanted, space) => (wanted.length === 0 ? Effect.succeed(new Map()) : load(store, wanted, space)),
      knownSince: (wanted, space) =>
        wanted.length === 0 ? Effect.succeed(new Map()) : knownSince(store, wanted, space),
      texts: (wanted, space) =>
        wanted.length === 0 ? Effect.succeed(new Map()) : texts(store, wanted, space),
      upsert: (given) => (given.length === 0 ? Effect.succeed([]) : upsert(store, given)),
      nearest: (vector, { limit, space }) => nearest(store, vector, space, limit),
      count: call("count", name, () => products.countDocuments()),
      countInOtherSpaces: (space) =>
        call("count", name, () => products.countDocuments({ space: { $ne: space } })),
      indexed: (vector, search) => searchIndex(store, vector, search),
      describe: (ids) => describe(store, ids),
      changed: (after) =>
        decoded(
          stream(name, () => products.find<FoundDocument>({ updated_at: { $gt: new Date(after) } })),
          toProduct,
        ),
      stampSum: (space) =>
        call("aggregate", name, async () => {
          const [found] = await products
            .aggregate<StampSum>([
              { $match: { space } },
              { $group: { _id: null, count: { $sum: 1 }, sum: { $sum: stampOrZero } } },
            ])
            .toArray()
          return { count: found?.count ?? 0, sum: found?.sum ?? 0 }
        }),
      stamps: (space) =>
        decoded(
          stream(name, () =>
            products.find<FoundDocument>({ space }, { projection: stampFields, batchSize: stampsPerBatch }),
          ),
          toStamp,
        ),
      find: (ids) =>
        call("find", name, async () => {
          const found = await products.find<FoundDocument>({ product_id: { $in: [...ids] } }).toArray()
          return decodeEach(name, found, toProduct)
        }),
      stream: (space) =>
        decoded(
          stream(name, () => products.find<FoundDocument>({ space }).sort({ product_id: 1 })),
          toProduct,
        ),
      problems: (space, dimensions) =>
        stream(name, () =>
          products.find<FoundDocument>({ space }, { projection: { _id: 0, product_id: 1, embedding: 1 } }),
        ).pipe(Stream.filterMap((document) => Option.fromNullable(toProblem(document, dimensions)))),
    }
  })

export const layer = (options: { readonly storage: Storage }) =>
  Layer.effect(ProductEmbeddings, make(options))

/** EMBEDDING_STORAGE decides how vectors are written. Both ways are read. */
export const layerConfig = Layer.effect(
  ProductEmbeddings,
  Effect.flatMap(Settings.EMBEDDING_STORAGE, (storage) => make({ storage })),
)
