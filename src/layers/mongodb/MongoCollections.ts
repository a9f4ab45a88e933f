/** The collections in MongoDB: names, validators and indexes, and how to create those that a database lacks. */
import { isDeepStrictEqual } from "node:util"
import { Record } from "effect"
import { type Db, type Document, type IndexDescriptionInfo, MongoServerError } from "mongodb"
import { namePattern, phraseEventTypes, zeroCounters } from "../../services/model/EventTypes.ts"
import { mostAttributes } from "../../services/model/Product.ts"
import { History } from "../../services/model/UserEmbedding.ts"

interface Index {
  readonly fields: ReadonlyArray<string>
  readonly unique?: true
  readonly expireAfterSeconds?: number
}

interface Definition {
  readonly name: string
  /** `$jsonSchema`. Without it, the collection accepts documents of other programs. */
  readonly schema?: Document
  readonly indexes: ReadonlyArray<Index>
}

export const names = {
  userEmbeddings: "user_embeddings",
  appliedOverflow: "user_embedding_ledger",
  productEmbeddings: "product_embeddings",
  phraseEmbeddings: "phrase_embeddings",
  productPairs: "product_pairs",
  productPairsState: "product_pairs_state",
  /** Optional: a vector search index on `embedding` with filters on `space` and `category`, for many products. */
  productVectors: "product_embeddings_vector",
} as const

const text = { bsonType: "string" }
const id = { bsonType: "string", minLength: 1, maxLength: 64 }
const count = { bsonType: ["int", "long"], minimum: 0 }
const double = { bsonType: "double" }
const notNegative = { ...double, minimum: 0 }
const instant = { bsonType: "date" }
const oneOf = (values: ReadonlyArray<string>) => ({ enum: [...values] })
/** An object with exactly these properties. All are required except `optional`. */
const exactly = (properties: Record<string, Document>, optional: ReadonlyArray<string> = []): Document => ({
  bsonType: "object",
  additionalProperties: false,
  required: Object.keys(properties).filter((name) => !optional.includes(name)),
  properties,
})

/** Any name: the types of `EVENT_WEIGHTS` are known to the programs alone. */
const eventType = { bsonType: "string", pattern: namePattern.source }
const event = (event_type: Document, reference: Record<string, Document>) =>
  exactly({ event_type, ...reference, occurred_at: instant, message_id: text })

const bookkept = {
  version: { ...count, minimum: 1 },
  applied: { bsonType: "binData" },
  archived: count,
  erased_at: { bsonType: ["date", "null"] },
  erased_to: count,
  generation: count,
  alias_of: id,
  aliases: {
    bsonType: "array",
    items: exactly({ user_id: id, generation: count, archived: count }),
  },
  merging_into: exactly({
    user_id: id,
    message_id: text,
    log_id: { bsonType: ["int", "long", "null"] },
    recorded_at: instant,
  }),
}
const optionalBookkept = ["erased_to", "generation", "alias_of", "aliases", "merging_into"]

const userEmbedding = exactly(
  {
    _id: id,
    user_id: id,
    embedding: { bsonType: ["binData", "array"], minItems: 1, items: { bsonType: "double" } },
    dimension_count: { bsonType: "int", minimum: 1 },
    last_updated: instant,
    event_count: count,
    last_event_type: eventType,
    last_event_id: text,
    mass: notNegative,
    total_weight: double,
    space: text,
    history: oneOf(History.literals),
    created_at: instant,
    updated_at: instant,
    recent: {
      bsonType: "array",
      maxItems: 10,
      items: {
        anyOf: [
          event({ ...eventType, not: oneOf(phraseEventTypes) }, { product_id: id }),
          event(oneOf(phraseEventTypes), { search_phrase: text }),
        ],
      },
    },
    metadata: {
      ...exactly(
        {
          ...Record.map(zeroCounters, () => count),
          decay_lambda: notNegative,
          last_recalculation: instant,
          weights: text,
        },
        ["weights"],
      ),
      patternProperties: { [`${namePattern.source.slice(0, -1)}_count$`]: count },
    },
    ...bookkept,
  },
  optionalBookkept,
)

/** The document of a user whose events are all taken back, and of an alias. */
const emptied = exactly({ _id: id, user_id: id, event_count: { enum: [0] }, ...bookkept }, optionalBookkept)

/** The document of an erased user. */
const tombstone = exactly(
  { _id: id, user_id: id, erased_at: instant, erased_to: count, version: { ...count, minimum: 1 } },
  ["erased_to"],
)

/** Of `user_embeddings`. No document matches two; `anyOf` is faster than `oneOf`, because it stops at the first match. */
export const userEmbeddingValidator = { anyOf: [userEmbedding, tombstone, emptied] }

/** Of `product_embeddings`. It leaves the other fields to the programs that write products. */
const productFacts = {
  bsonType: "object",
  properties: {
    available: { bsonType: "bool" },
    attributes: {
      bsonType: "object",
      maxProperties: mostAttributes,
      additionalProperties: { bsonType: ["string", "bool", "number", "array"], items: text },
    },
    deleted_at: { bsonType: ["date", "null"] },
  },
}

const definitions = (phraseTtlDays: number): ReadonlyArray<Definition> => [
  {
    name: names.userEmbeddings,
    schema: userEmbeddingValidator,
    // `_id` is the user id: a second unique index would forbid to shard the collection.
    indexes: [{ fields: ["user_id"] }, { fields: ["last_updated"] }, { fields: ["space"] }],
  },
  { name: names.appliedOverflow, schema: exactly({ _id: text }), indexes: [] },
  {
    name: names.productEmbeddings,
    schema: productFacts,
    indexes: [
      { fields: ["product_id"], unique: true },
      { fields: ["space", "product_id", "updated_at"] },
      { fields: ["updated_at"] },
    ],
  },
  { name: names.productPairs, indexes: [] },
  { name: names.productPairsState, indexes: [] },
  {
    name: names.phraseEmbeddings,
    indexes: [{ fields: ["last_used"], expireAfterSeconds: Math.round(phraseTtlDays * 86_400) }],
  },
]

/** A collection, validator or index that is missing or differs. */
export interface MissingObject {
  readonly name: string
  /** Creates or changes it. Idempotent, also when several processes do it at the same time. */
  readonly create: () => Promise<unknown>
}

const unlessCode = (code: number) => (error: unknown) => {
  if (!(error instanceof MongoServerError && error.code === code)) throw error
}
const namespaceExists = 48

const describe = ({ fields, unique, expireAfterSeconds }: Index): string =>
  `${unique ? "unique " : ""}index on ${fields.join(", ")}${
    expireAfterSeconds === undefined ? "" : `, expiring after ${expireAfterSeconds / 86_400} days`
  }`

const missingIndexes = (
  db: Db,
  { name: collection, indexes }: Definition,
  existing: ReadonlyArray<IndexDescriptionInfo>,
): ReadonlyArray<MissingObject> =>
  indexes.flatMap((index): ReadonlyArray<MissingObject> => {
    const { fields, ...options } = index
    const keyPattern = Object.fromEntries(fields.map((field) => [field, 1]))
    const found = existing.find(({ key }) =>
      isDeepStrictEqual(Object.entries(key), Object.entries(keyPattern)),
    )
    const create = () => db.collection(collection).createIndex(keyPattern, options)
    const name = `${collection}: ${describe(index)}`
    if (found === undefined) return [{ name, create }]
    if (found.expireAfterSeconds !== index.expireAfterSeconds)
      return [
        {
          name,
          create: () => db.command({ collMod: collection, index: { keyPattern, ...options } }),
        },
      ]
    // Creating it fails beside the existing index. An operator has to decide whether that may be dropped. A unique index
    // where none is needed only stands in the way of sharding.
    return index.unique && !found.unique ? [{ name, create }] : []
  })

export const missingObjects = async (
  db: Db,
  phraseTtlDays: number,
): Promise<ReadonlyArray<MissingObject>> => {
  const existing = new Map(
    (await db.listCollections({}, { nameOnly: false }).toArray()).map((found) => [found.name, found]),
  )
  const perCollection = definitions(phraseTtlDays).map(
    async (definition): Promise<ReadonlyArray<MissingObject>> => {
      const { name, schema } = definition
      const validator = schema && { $jsonSchema: schema }
      const rules = validator && { validator, validationLevel: "strict", validationAction: "error" }
      const found = existing.get(name)
      if (found === undefined)
        return [
          {
            name: `${name}: collection${schema ? " with validator" : ""}`,
            create: () => db.createCollection(name, rules).catch(unlessCode(namespaceExists)),
          },
          ...missingIndexes(db, definition, []),
        ]
      const { validator: set, validationLevel = "strict", validationAction = "error" } = found.options ?? {}
      const differs =
        rules && !isDeepStrictEqual({ validator: set, validationLevel, validationAction }, rules)
      return [
        ...(differs
          ? [{ name: `${name}: validator`, create: () => db.command({ collMod: name, ...rules }) }]
          : []),
        ...missingIndexes(db, definition, await db.collection(name).indexes()),
      ]
    },
  )
  return (await Promise.all(perCollection)).flat()
}
