/** Product embeddings in MongoDB: one document per product in `product_embeddings`. */
import { Array as Arr, Chunk, Clock, Effect, Layer, Option, Record, Schema, Stream } from "effect"
import { type AnyBulkWriteOperation, type Collection, MongoServerError } from "mongodb"
import { ProductId } from "../../services/model/Interaction.ts"
import { type Product, readAttributes } from "../../services/model/Product.ts"
import * as Vector from "../../services/model/Vector.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import {
  type Neighbour,
  NoVectorIndex,
  type ProductChange,
  type ProductEmbedding,
  ProductEmbeddings,
  ProductEmbeddingsError,
  type StampSum,
  type StoredProduct,
  stampModulus,
  type Upserted,
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
  readonly deleted_at?: Date | null
  /**
   * Since when the product has had its vector. Valid while `updated_at` is that of the product: another program that writes
   * the vector knows nothing of this field.
   */
  readonly vector_since?: { readonly at: Date; readonly updated_at: Date }
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

const isDeleted = ({ deleted_at }: FoundDocument) => (deleted_at ?? null) !== null
const toDescription = (document: FoundDocument): Product => ({
  product_id: toId(document.product_id),
  product_name: textOrNull(document.product_name),
  category: textOrNull(document.category),
  available: document.available !== false && !isDeleted(document),
  attributes: readAttributes(document.attributes),
})
const facts = { product_id: 1, product_name: 1, category: 1, available: 1, attributes: 1, deleted_at: 1 }
/** A deleted product is read without its vector. */
const storedFields = {
  _id: 0,
  ...facts,
  embedding: { $cond: [{ $lte: ["$deleted_at", null] }, "$embedding", "$$REMOVE"] },
  space: 1,
  text: 1,
  updated_at: 1,
}
const notDeleted = { deleted_at: null }
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
  deleted: isDeleted(document),
})

const toProblem = ({ embedding, product_id }: FoundDocument, dimensions: number) => {
  if (!isId(product_id))
    return { product_id: JSON.stringify(product_id) ?? "none", detail: "has an id that no event can name" }
  const detail = Vector.problem(fromStored(embedding), dimensions)
  return detail === undefined ? undefined : { product_id, detail: `has a vector that ${detail}` }
}

/** The fields that a change gives. A vector of one's own has no text. */
const givenFields = (change: ProductChange) =>
  Object.fromEntries(
    Object.entries(change).filter(
      ([field, value]) => value !== undefined && (value !== null || field === "text"),
    ),
  ) as ProductChange

/** Each product once, with all its changes in their order, and what becomes of each change. */
const merge = (changes: ReadonlyArray<ProductChange>, existing: ReadonlySet<ProductId>) => {
  const merged = new Map<ProductId, ProductChange>()
  const outcomes = changes.map((change): Upserted => {
    const { product_id } = change
    const earlier = merged.get(product_id)
    const exists = earlier !== undefined || existing.has(product_id)
    if (!exists && change.embedding === undefined) return "missing"
    merged.set(product_id, { ...earlier, ...givenFields(change) } as ProductChange)
    return exists ? "changed" : "created"
  })
  return { merged: [...merged.values()], outcomes }
}

const literals = (fields: object) =>
  Record.map({ ...fields } as Record<string, unknown>, (value) => ({ $literal: value }))

/** Since when the stored product has had its vector. */
const vectorTime = {
  $cond: [{ $eq: ["$vector_since.updated_at", "$updated_at"] }, "$vector_since.at", "$updated_at"],
}

/** A pipeline, because what becomes of `vector_since` depends on the stored product. */
const upsertOne = (
  { embedding, product_id, ...fields }: ProductChange,
  storage: Storage,
  now: Date,
): AnyBulkWriteOperation<ProductDocument> => {
  const changed = { ...literals(fields), updated_at: now }
  if (embedding === undefined) {
    const set = { ...changed, vector_since: { at: vectorTime, updated_at: now } }
    return { updateOne: { filter: { product_id, ...notDeleted }, update: [{ $set: set }] } }
  }
  // Set before the vector, so that the vector is sent once.
  const before = { embedding: "$embedding", space: "$space", at: vectorTime }
  const isSame = {
    $and: [{ $eq: ["$_before.embedding", "$embedding"] }, { $eq: ["$_before.space", "$space"] }],
  }
  const set = {
    product_name: { $ifNull: ["$product_name", null] },
    category: { $ifNull: ["$category", null] },
    ...changed,
    embedding: { $literal: toStored(embedding, storage) },
    dimension_count: embedding.length,
    created_at: { $ifNull: ["$created_at", now] },
  }
  return {
    updateOne: {
      filter: { product_id },
      update: [
        { $set: { _before: before } },
        { $set: set },
        { $set: { vector_since: { at: { $cond: [isSame, "$_before.at", now] }, updated_at: now } } },
        { $unset: ["_before", "deleted_at"] },
      ],
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
/** About 120 KB: short enough to decode between two requests. */
const stampsPerBatch = 2_000
/** The default of the server is 16 MB, which the driver decodes in one go. */
const productsPerBatch = 100

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

const vectorsSince = ({ call, products }: Store, wanted: ReadonlyArray<ProductId>) =>
  call("find", name, async () => {
    const found = await products
      .find<{ readonly product_id: ProductId; readonly since?: unknown }>(
        { product_id: { $in: [...wanted] } },
        { projection: { _id: 0, product_id: 1, since: vectorTime }, batchSize: wanted.length },
      )
      .toArray()
    return new Map(found.map(({ product_id, since }) => [product_id, millisOf(since)]))
  })

const idsOf = (documents: ReadonlyArray<Pick<ProductDocument, "product_id">>) =>
  new Set(documents.map(({ product_id }) => product_id))

const upsert = ({ call, products, storage }: Store, changes: ReadonlyArray<ProductChange>) =>
  Effect.gen(function* () {
    const now = new Date(yield* Clock.currentTimeMillis)
    const ids = changes.map(({ product_id }) => product_id)
    const known = yield* call("find", name, () =>
      products
        .find<FoundDocument & { readonly product_id: ProductId }>(
          { product_id: { $in: ids } },
          { projection: { _id: 0, product_id: 1, deleted_at: 1 } },
        )
        .toArray(),
    )
    const [existing, deleted] = Arr.partition(known, isDeleted)
    const { merged, outcomes } = merge(changes, idsOf(existing))
    if (merged.length === 0) return outcomes
    const { upsertedIds } = yield* call("bulkWrite", name, () =>
      products.bulkWrite(
        merged.map((change) => upsertOne(change, storage, now)),
        { ordered: false },
      ),
    )
    const created = idsOf(deleted)
    for (const index of Object.keys(upsertedIds)) created.add(merged[Number(index)]!.product_id)
    // Another program may have created the product meanwhile.
    return outcomes.map((outcome, index) =>
      outcome === "created" && !created.has(ids[index]!) ? "changed" : outcome,
    )
  })

const remove = ({ call, products }: Store, ids: ReadonlyArray<ProductId>) =>
  Effect.gen(function* () {
    const now = new Date(yield* Clock.currentTimeMillis)
    const filter = { product_id: { $in: [...ids] }, ...notDeleted }
    const found = yield* call("find", name, () =>
      products.find(filter, { projection: { _id: 0, product_id: 1 } }).toArray(),
    )
    yield* call("updateMany", name, () =>
      products.updateMany(filter, [
        { $set: { deleted_at: now, updated_at: now, vector_since: { at: vectorTime, updated_at: now } } },
        { $unset: ["product_name", "category", "available", "attributes"] },
      ]),
    )
    return idsOf(found)
  })

const describe = ({ call, products }: Store, ids: ReadonlyArray<ProductId>) =>
  call("find", name, async () => {
    const found = await products
      .find<FoundDocument>({ product_id: { $in: [...ids] } }, { projection: { _id: 0, ...facts } })
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
    const available = { space, ...notDeleted, available: { $ne: false } }
    yield* store
      .stream(name, () => store.products.find(available, { projection, batchSize: 1000 }))
      .pipe(
        Stream.runForEachChunk((batch) =>
          Effect.sync(() => {
            for (const document of batch) {
              if (toProblem(document, vector.length) !== undefined) continue
              const embedding = fromStored(document.embedding)
              const norms = norm * Vector.norm(embedding)
              const similarity = norms === 0 ? 0 : Vector.clampCosine(Vector.dot(vector, embedding) / norms)
              insertTopK(best, limit, { product_id: document.product_id, similarity }, moreSimilar)
            }
          }),
        ),
      )
    const described = yield* describe(
      store,
      best.map(({ product_id }) => product_id),
    )
    return best.map(({ product_id, similarity }): Neighbour => {
      const { category = null, product_name = null } = described.get(product_id) ?? {}
      return { product_id, product_name, category, similarity }
    })
  })

/** A server without vector search refuses the stage. With vector search, but without the index, it finds nothing. */
const searchIndex = (
  { call, products }: Store,
  vector: Float32Array,
  { categories, limit, space }: Parameters<ProductEmbeddings["Type"]["indexed"]>[1],
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
            filter: { space, ...(categories && { category: { $in: categories } }) },
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
      (found) => found.length > 0 || categories !== undefined,
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
      vectorsSince: (wanted) =>
        wanted.length === 0 ? Effect.succeed(new Map()) : vectorsSince(store, wanted),
      upsert: (changes) => (changes.length === 0 ? Effect.succeed([]) : upsert(store, changes)),
      remove: (ids) => remove(store, ids),
      nearest: (vector, { limit, space }) => nearest(store, vector, space, limit),
      count: call("count", name, () => products.countDocuments(notDeleted)),
      countInOtherSpaces: (space) =>
        call("count", name, () => products.countDocuments({ space: { $ne: space }, ...notDeleted })),
      indexed: (vector, search) => searchIndex(store, vector, search),
      describe: (ids) => describe(store, ids),
      changed: (after) =>
        decoded(
          stream(name, () =>
            products.find<FoundDocument>(
              { updated_at: { $gt: new Date(after) } },
              { projection: storedFields, batchSize: productsPerBatch },
            ),
          ),
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
          const found = await products
            .find<FoundDocument>({ product_id: { $in: [...ids] } }, { projection: storedFields })
            .toArray()
          return decodeEach(name, found, toProduct)
        }),
      stream: (space) =>
        decoded(
          stream(name, () =>
            products
              .find<FoundDocument>({ space }, { projection: storedFields, batchSize: productsPerBatch })
              .sort({ product_id: 1 }),
          ),
          toProduct,
        ),
      problems: (space, dimensions) =>
        stream(name, () =>
          products.find<FoundDocument>(
            { space },
            { projection: { _id: 0, product_id: 1, embedding: 1 }, batchSize: productsPerBatch },
          ),
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
